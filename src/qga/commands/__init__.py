# SPDX-License-Identifier: Apache-2.0
"""All commands, a module for each subject; importing this package registers them."""

from ..protocol.registry import REGISTRY
from . import (
    cpu,
    disks,
    exec,  # noqa: A004 - named after its subject, as all are
    files,
    filesystems,
    fsfreeze,
    info,
    memory,
    network,
    power,
    ssh,
    stats,
    system,
    time,
    users,
)

__all__ = [
    "REGISTRY",
    "cpu",
    "disks",
    "exec",
    "files",
    "filesystems",
    "fsfreeze",
    "info",
    "memory",
    "network",
    "power",
    "ssh",
    "stats",
    "system",
    "time",
    "users",
]
