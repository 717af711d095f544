# SPDX-License-Identifier: Apache-2.0
"""Freezing, thawing and trimming of mounted file systems, and the file that marks a freeze.

Source: Linux, include/uapi/linux/fs.h and fs/ioctl.c; fsfreeze(8), fstrim(8).
"""

import errno
import fcntl
import os
import struct
import threading
from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

from .mounts import Mount
from .proc import calling

MARKER: Final = "qga.state.isfrozen"
"""File in the state directory that exists while file systems are frozen, for an agent that is started then."""

FIFREEZE: Final = 0xC0045877
FITHAW: Final = 0xC0045878
FITRIM: Final = 0xC0185879
"""Both directions, which all architectures encode alike."""

_RANGE: Final = struct.Struct("=qqq")
"""struct fstrim_range: start, length, least extent; -1 as length is the whole file system."""


class Trimmed(NamedTuple):
    """Bytes that were discarded, and the least extent in bytes that the file system looked at."""

    size: int
    minimum: int


def is_marked(state_dir: str) -> bool:
    """Whether a freeze was begun with this state directory and not ended."""
    return os.path.exists(f"{state_dir}/{MARKER}")


def mark(state_dir: str) -> None:
    """Make the file that marks a freeze, before the first file system is frozen; OSError."""
    os.close(os.open(f"{state_dir}/{MARKER}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))


def unmark(state_dir: str) -> None:
    """Remove the mark, after the last file system was thawed; OSError."""
    os.unlink(f"{state_dir}/{MARKER}")


class Frozen:
    """The file systems that one call of `freeze` froze.

    A descriptor of each is kept, so that it can be thawed though it was detached or something was mounted over it.
    While frozen it cannot be unmounted. One thread at a time may freeze or thaw; `stop` is for any other one.
    """

    def __init__(self) -> None:
        self._held: list[int] = []
        self._lock = threading.Lock()
        self.stopped = False
        """`stop` was called; nothing more will be frozen."""

    def freeze(self, mounts: Sequence[Mount], wanted: Collection[bytes] | None) -> int:
        """Freeze `mounts`, or those of them at the `wanted` places, the last one first; returns how many are frozen.

        What cannot be frozen, or is frozen already, is passed over; any other failure is a CallError that leaves the
        rest to `thaw`.
        """
        for mount in reversed(mounts):
            if self.stopped:
                break
            if wanted is None or mount.mountpoint in wanted:
                self._freeze_one(mount)
        return len(self._held)

    def stop(self) -> None:
        """Thaw what is frozen so far and have `freeze` go no further, even if it waits in the kernel for a writer."""
        with self._lock:
            self.stopped = True
            for fd in reversed(self._held):
                thaw(fd)

    def thaw(self, mounts: Sequence[Mount]) -> int:
        """Thaw what is held, then whatever else of `mounts` is frozen, both in mount order; returns how many were.

        What is held comes first: to look up a path may take a file system that waits for one of these.
        """
        count = 0
        with self._lock:
            while self._held:
                fd = self._held.pop()
                count += thaw(fd)
                os.close(fd)
        return count + sum(_thaw_mount(mount) for mount in mounts)

    def _freeze_one(self, mount: Mount) -> None:
        where = mount.mountpoint.decode(errors="replace")
        with calling(f"failed to open {where}"):
            fd = open_mount(mount.mountpoint)
        try:
            with calling(f"failed to freeze {where}"):
                frozen = freeze(fd)
        except OSError:
            os.close(fd)
            raise
        with self._lock:
            if frozen and not self.stopped:
                self._held.append(fd)
                return
            if frozen:
                thaw(fd)
        os.close(fd)


def _thaw_mount(mount: Mount) -> bool:
    try:
        fd = open_mount(mount.mountpoint)
    except OSError:
        return False
    thawed = thaw(fd)
    os.close(fd)
    return thawed


def open_mount(mountpoint: bytes) -> int:
    """A descriptor for the file system mounted there; OSError. The caller closes it."""
    return os.open(mountpoint, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)


def freeze(fd: int) -> bool:
    """Freeze a file system; False if it cannot be frozen or somebody has frozen it already. Other failures: OSError."""
    try:
        fcntl.ioctl(fd, FIFREEZE, 0)
    except OSError as exc:
        if exc.errno in (errno.EOPNOTSUPP, errno.EBUSY):
            return False
        raise
    return True


def thaw(fd: int) -> bool:
    """Thaw a file system however often it is frozen; whether it was. Never raises."""
    thawed = False
    while True:
        try:
            fcntl.ioctl(fd, FITHAW, 0)
        except OSError:
            return thawed
        thawed = True


def trim(fd: int, minimum: int) -> Trimmed:
    """Discard unused extents of at least `minimum` bytes; OSError."""
    answer = fcntl.ioctl(fd, FITRIM, _RANGE.pack(0, -1, minimum))
    _, size, least = _RANGE.unpack(answer)
    return Trimmed(size, least)
