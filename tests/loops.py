# SPDX-License-Identifier: Apache-2.0
"""Loop devices for tests that run as root."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def add_partition(device: str, number: int, start: int, sectors: int) -> str:
    """Tell the kernel of a partition, which needs no partition table on the disk; return the partition's path."""
    subprocess.run(["addpart", device, str(number), str(start), str(sectors)], check=True)
    return f"{device}p{number}"


@contextmanager
def attached(image: Path) -> Iterator[str]:
    """Attach `image` to a free loop device, and yield the device's path."""
    # Without --partscan partitions would outlive the image.
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
