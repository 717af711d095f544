# SPDX-License-Identifier: Apache-2.0
"""The mounted file systems that lie on block devices: what is frozen, trimmed and reported.

Format of the list: Linux, Documentation/filesystems/proc.rst, section 3.5.
"""

import os
import stat
from typing import NamedTuple

from . import proc


class Mount(NamedTuple):
    """The first mount of one file system."""

    number: str
    """Device number, `MAJOR:MINOR`, as /sys/dev/block names its entries."""
    mountpoint: bytes
    fstype: str
    source: bytes
    """What was mounted, mostly a device node."""


def list_mounts(root: str = "") -> list[Mount]:
    """Mounts on block devices in mount order, each device once, by its first mount; CallError."""
    mounts: dict[str, Mount] = {}
    # Not splitlines: the kernel escapes newlines in names, but not carriage returns.
    for line in proc.read(f"{root}/proc/self/mountinfo").split(b"\n"):
        mount = _parse(line, root)
        if mount is not None and mount.number not in mounts:
            mounts[mount.number] = mount
    return list(mounts.values())


def _parse(line: bytes, root: str) -> Mount | None:
    """One line of mountinfo; None if what is mounted is no block device.

    Major number 0 stands for file systems without a device (tmpfs, overlay, NFS, FUSE), but also for btrfs, which
    spreads over several: there the device that was named at mount time counts.
    """
    before, separator, after = line.partition(b" - ")
    if not separator:  # behind the last line
        return None
    _id, _parent, number, _root, mountpoint = before.split(b" ", 5)[:5]
    fstype, source = after.split(b" ", 2)[:2]
    source = unescape(source)
    if number.startswith(b"0:"):
        found = _node_number(root.encode() + source) if fstype == b"btrfs" else None
        if found is None:
            return None
        number = found
    return Mount(number.decode(), unescape(mountpoint), fstype.decode(errors="replace"), source)


def _node_number(path: bytes) -> bytes | None:
    """The device number of a block device node, None if it is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    if not stat.S_ISBLK(status.st_mode):
        return None
    return b"%d:%d" % (os.major(status.st_rdev), os.minor(status.st_rdev))


def unescape(text: bytes) -> bytes:
    """Turn the octal escapes of mountinfo (blank, tab, newline, backslash, #) back into bytes."""
    if b"\\" not in text:
        return text
    first, *escaped = text.split(b"\\")
    return first + b"".join(bytes((int(part[:3], 8),)) + part[3:] for part in escaped)
