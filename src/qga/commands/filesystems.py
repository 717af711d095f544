# SPDX-License-Identifier: Apache-2.0
"""Mounted file systems and the disks below them."""

import os
from typing import NotRequired, TypedDict

from ..agent import Agent
from ..platform import block
from ..platform.mounts import Mount, list_mounts
from ..protocol.registry import command
from .disks import DiskAddress, address_of

FilesystemInfo = TypedDict(
    "FilesystemInfo",
    {
        "name": str,
        "mountpoint": str,
        "type": str,
        "used-bytes": NotRequired[int],
        "total-bytes": NotRequired[int],
        "total-bytes-privileged": NotRequired[int],
        "disk": list[DiskAddress],
    },
)


@command()
def guest_get_fsinfo(agent: Agent) -> list[FilesystemInfo]:
    """List mounted file systems in mount order, with their size and disks."""
    return [_filesystem(mount) for mount in list_mounts()]


def _filesystem(mount: Mount) -> FilesystemInfo:
    device = block.find(mount.number)
    info: FilesystemInfo = {
        "name": device.name if device else mount.number,
        "mountpoint": mount.mountpoint.decode(errors="replace"),
        "type": mount.fstype,
        "disk": [address_of(part) for part in block.hardware(device)] if device else [],
    }
    try:
        usage = os.statvfs(mount.mountpoint)
    except OSError:
        return info  # unreadable, as below a mount that hides it: reported without sizes
    used = usage.f_blocks - usage.f_bfree
    info["used-bytes"] = used * usage.f_frsize
    info["total-bytes"] = (used + usage.f_bavail) * usage.f_frsize
    info["total-bytes-privileged"] = usage.f_blocks * usage.f_frsize
    return info
