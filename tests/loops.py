# SPDX-License-Identifier: Apache-2.0
"""Loop devices for tests that run as root."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SECTOR = 512


def write_partition_table(image: Path, *partitions: tuple[int, int]) -> None:
    """Write a DOS partition table with primary partitions, each given by its first sector and its number of sectors."""
    entries = b"".join(struct.pack("<BxxxBxxxII", 0, 0x83, start, count) for start, count in partitions)
    with image.open("r+b") as file:
        file.seek(446)
        file.write(entries.ljust(64, b"\0") + b"\x55\xaa")


@contextmanager
def attached(image: Path) -> Iterator[str]:
    """Attach `image` to a free loop device, with its partitions, and yield the device's path."""
    argv = ["losetup", "--find", "--show", "--partscan", str(image)]
    device = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@contextmanager
def mounted(device: str, mountpoint: Path) -> Iterator[Path]:
    """Mount `device`; the directory is made if need be."""
    mountpoint.mkdir(exist_ok=True)
    subprocess.run(["mount", device, mountpoint], check=True)
    try:
        yield mountpoint
    finally:
        subprocess.run(["umount", mountpoint], check=True)
