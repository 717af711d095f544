# SPDX-License-Identifier: Apache-2.0
"""All commands, a module for each subject; importing this package registers them."""

from ..protocol.registry import REGISTRY
from . import exec, files, info  # noqa: A004 - named after its subject

__all__ = ["REGISTRY", "exec", "files", "info"]
