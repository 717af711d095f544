# SPDX-License-Identifier: Apache-2.0
"""All commands, a module for each subject; importing this package registers them."""

from . import exec, files, info
from ..protocol.registry import REGISTRY

__all__ = ["REGISTRY", "exec", "files", "info"]
