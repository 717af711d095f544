# SPDX-License-Identifier: Apache-2.0
"""All commands, a module for each subject; importing this package registers them."""

from ..protocol.registry import REGISTRY
from . import cpu, disks, exec, files, filesystems, info, memory, network, stats  # noqa: A004 - named after their subjects

__all__ = ["REGISTRY", "cpu", "disks", "exec", "files", "filesystems", "info", "memory", "network", "stats"]
