# SPDX-License-Identifier: Apache-2.0
"""The list of mounted file systems that lie on block devices."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from qga.errors import CallError
from qga.platform.mounts import Mount, list_mounts, unescape
from tests import loops


def mounts_of(directory: Path, mountinfo: bytes) -> list[Mount]:
    (directory / "proc/self").mkdir(parents=True)
    (directory / "proc/self/mountinfo").write_bytes(mountinfo)
    return list_mounts(str(directory))


def test_mount_order_is_kept_and_fields_are_told(tmp_path: Path) -> None:
    found = mounts_of(
        tmp_path,
        b"27 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n"
        b"31 27 259:3 / /srv rw - xfs /dev/nvme0n1 rw,attr2\n"
        b"29 27 8:17 / /boot rw,relatime shared:2 master:3 propagate_from:4 - vfat /dev/sdb1 rw\n",
    )
    assert found == [
        Mount("254:1", b"/", "ext4", b"/dev/vda1"),
        Mount("259:3", b"/srv", "xfs", b"/dev/nvme0n1"),
        Mount("8:17", b"/boot", "vfat", b"/dev/sdb1"),
    ]


def test_file_systems_without_a_device_are_left_out(tmp_path: Path) -> None:
    found = mounts_of(
        tmp_path,
        b"22 27 0:21 / /proc rw - proc proc rw\n"
        b"23 27 0:50 / /mnt rw - nfs4 server:/export rw\n"
        b"24 27 0:51 / /merged rw - overlay overlay rw,lowerdir=/a\n"
        b"25 27 0:52 / /btr rw - btrfs /dev/no-such-device rw\n"
        b"26 27 0:53 / /chr rw - btrfs /dev/null rw\n"
        b"27 1 7:0 / / ro - squashfs /dev/loop0 ro\n",
    )
    assert [mount.mountpoint for mount in found] == [b"/"]


def test_a_device_is_listed_once_by_its_first_mount(tmp_path: Path) -> None:
    found = mounts_of(
        tmp_path,
        b"27 1 254:1 / /first rw - ext4 /dev/vda1 rw\n"
        b"28 1 254:1 /sub /bind rw - ext4 /dev/vda1 rw\n"
        b"29 1 254:2 / /other rw - ext4 /dev/vda2 rw\n"
        b"30 1 254:1 / /again rw - ext4 /dev/vda1 rw\n",
    )
    assert [mount.mountpoint for mount in found] == [b"/first", b"/other"]


def test_octal_escapes_become_bytes(tmp_path: Path) -> None:
    found = mounts_of(tmp_path, b"27 1 254:1 / /a\\040b\\011c\\012d\\134e\\043\xff rw - ext4 /dev/x\\040y rw\n")
    assert found == [Mount("254:1", b"/a b\tc\nd\\e#\xff", "ext4", b"/dev/x y")]


@pytest.mark.parametrize(
    ("escaped", "plain"),
    [(b"", b""), (b"/a", b"/a"), (b"\\040", b" "), (b"\\134040", b"\\040"), (b"a\\040\\040b", b"a  b")],
)
def test_unescape(escaped: bytes, plain: bytes) -> None:
    assert unescape(escaped) == plain


def test_carriage_return_in_a_name_ends_no_line(tmp_path: Path) -> None:
    """The kernel does not escape it."""
    found = mounts_of(
        tmp_path, b"27 1 0:44 / /home/u/a\rb rw - tmpfs x\ry rw\n28 1 254:1 / /srv\r1 rw - ext4 /dev/vda1 rw\n"
    )
    assert found == [Mount("254:1", b"/srv\r1", "ext4", b"/dev/vda1")]


def test_unreadable_list_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CallError, match="No such file"):
        list_mounts(str(tmp_path))


def test_this_machine_lists_no_device_twice_and_only_mount_points() -> None:
    found = list_mounts()
    assert len({mount.number for mount in found}) == len(found)
    for mount in found:
        assert mount.mountpoint.startswith(b"/")


@pytest.mark.root
@pytest.mark.skipif(shutil.which("mkfs.btrfs") is None, reason="mkfs.btrfs is not installed (Debian: btrfs-progs)")
def test_btrfs_counts_by_the_device_that_was_mounted(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.touch()
    os.truncate(image, 128 << 20)
    with loops.attached(image) as device:
        subprocess.run(["mkfs.btrfs", "-q", device], check=True)
        with loops.mounted(device, tmp_path / "m") as mountpoint:
            number = os.stat(device).st_rdev
            found = [mount for mount in list_mounts() if mount.mountpoint == bytes(mountpoint)]
            expected = f"{os.major(number)}:{os.minor(number)}"
            assert found == [Mount(expected, bytes(mountpoint), "btrfs", device.encode())]
