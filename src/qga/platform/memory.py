# SPDX-License-Identifier: Apache-2.0
"""Memory blocks, the unit in which memory is switched on and off.

Source: Linux, Documentation/admin-guide/mm/memory-hotplug.rst.
"""

import os
from typing import NamedTuple

from . import proc

_DIRECTORY = "/sys/devices/system/memory"


class MemoryBlock(NamedTuple):
    """A memory block."""

    number: int
    online: bool
    can_offline: bool


def list_blocks(root: str = "") -> list[MemoryBlock]:
    """All memory blocks by number; empty if the kernel has no memory hot-plug; OSError."""
    directory = f"{root}{_DIRECTORY}"
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    numbers = sorted(int(name[6:]) for name in names if name.startswith("memory") and name[6:].isdigit())
    return [_block(number, f"{directory}/memory{number}") for number in numbers]


def _block(number: int, directory: str) -> MemoryBlock:
    state = proc.read_or_none(f"{directory}/state")
    removable = proc.read_or_none(f"{directory}/removable")
    return MemoryBlock(
        number,
        online=state is None or state.startswith(b"online"),
        can_offline=removable is not None and not removable.startswith(b"0"),
    )


def is_supported(root: str = "") -> bool:
    """Whether the kernel was built with memory hot-plug."""
    return os.path.isdir(f"{root}{_DIRECTORY}")


def set_online(number: int, online: bool, root: str = "") -> bool:
    """Switch a memory block on or off, unless it is so already; FileNotFoundError if there is no such block, OSError.

    Return False if the block has no switch.
    """
    directory = f"{root}{_DIRECTORY}/memory{number}"
    os.stat(directory)
    try:
        fd = os.open(f"{directory}/state", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        if os.pread(fd, 32, 0).startswith(b"online") != online:
            os.pwrite(fd, b"online" if online else b"offline", 0)
    finally:
        os.close(fd)
    return True


def block_size(root: str = "") -> int:
    """Bytes of one memory block; CallError."""
    directory = f"{root}{_DIRECTORY}/"
    with proc.calling(f'open("{directory}")'):
        os.stat(directory)
    with proc.calling('open sysfs file "block_size_bytes"'):
        return int(proc.read(f"{directory}block_size_bytes"), 16)
