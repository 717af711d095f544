# SPDX-License-Identifier: Apache-2.0
"""Processors: which are online, switching them, their times.

Sources: Linux, Documentation/core-api/cpu_hotplug.rst, Documentation/filesystems/proc.rst section 1.7.
"""

import errno
import os
from typing import NamedTuple

from ..errors import CallError
from . import proc

_DIRECTORY = "/sys/devices/system/cpu"


class Processor(NamedTuple):
    """A processor that the kernel knows."""

    number: int
    online: bool
    can_offline: bool


def list_processors(root: str = "") -> list[Processor]:
    """All processors by number; CallError."""
    directory = f"{root}{_DIRECTORY}"
    with proc.calling(f"failed to list entries: {directory}"):
        names = os.listdir(directory)
    numbers = sorted(int(name[3:]) for name in names if name.startswith("cpu") and name[3:].isdigit())
    return [_processor(number, f"{directory}/cpu{number}/online") for number in numbers]


def _processor(number: int, switch: str) -> Processor:
    state = proc.read_or_none(switch)
    return Processor(number, state is None or not state.startswith(b"0"), state is not None)


def set_online(number: int, online: bool, root: str = "") -> bool:
    """Switch a processor on or off, unless it is so already; CallError.

    Return False if it has no switch, that is, it is always on.
    """
    directory = f"{root}{_DIRECTORY}/cpu{number}/"
    switch = f"{directory}/online"
    with proc.calling(f'open("{directory}")'):
        os.stat(directory)
    try:
        with proc.calling(f'open("{switch}")'):
            fd = os.open(switch, os.O_RDWR | os.O_CLOEXEC)
    except CallError as exc:
        if exc.errno == errno.ENOENT:
            return False
        raise
    try:
        with proc.calling(f'pread("{switch}")'):
            is_online = os.pread(fd, 1, 0) != b"0"
        if is_online != online:
            with proc.calling(f'pwrite("{switch}")'):
                os.pwrite(fd, b"1" if online else b"0", 0)
    finally:
        os.close(fd)
    return True


class CpuTimes(NamedTuple):
    """A `cpuN` line of /proc/stat."""

    number: int
    ticks: tuple[int, ...]
    """User, nice, system, idle and so on, as many as the kernel tells, in its order."""


def cpu_times(root: str = "") -> list[CpuTimes]:
    """The times of each online processor in clock ticks since boot; CallError."""
    times = []
    for line in proc.read(f"{root}/proc/stat").splitlines():
        if not line.startswith(b"cpu"):
            break  # the lines of processors come first
        name, *ticks = line.split()
        if name != b"cpu":
            times.append(CpuTimes(int(name[3:]), tuple(map(int, ticks))))
    return times


def ticks_per_second() -> int:
    """The unit of `CpuTimes.ticks`."""
    return os.sysconf("SC_CLK_TCK")
