# SPDX-License-Identifier: Apache-2.0
"""Block devices: which there are, what they are made of, their counters.

A device is known by its sysfs path, as in `devices/pci0000:00/0000:00:04.0/virtio1/block/vda/vda1`, which tells the
disk of a partition and the controllers on the way to it (Linux, Documentation/admin-guide/sysfs-rules.rst).
"""

import os
from typing import NamedTuple

from . import proc

Order = tuple[int, str]


class BlockDevice(NamedTuple):
    """A disk or a partition."""

    name: str
    """The kernel's name, as in sysfs: `sda1`, `dm-0`, `cciss!c0d0`."""
    path: str
    """Below /sys."""
    number: str
    """`MAJOR:MINOR`."""
    disk: str | None
    """The name of the disk that this is a partition of."""

    @property
    def node(self) -> str:
        """Its file in /dev."""
        return node(self.name)

    @property
    def is_virtual(self) -> bool:
        """Whether it has no hardware of its own: device mapper, md, loop, ram."""
        return self.path.startswith("devices/virtual/block/")


def node(name: str) -> str:
    """The file in /dev of a device with this kernel name, of which `!` stands for a slash."""
    return "/dev/" + name.replace("!", "/")


def find(number: str, root: str = "") -> BlockDevice | None:
    """The device `MAJOR:MINOR`, None if the kernel has none."""
    try:
        link = os.readlink(f"{root}/sys/dev/block/{number}")
    except OSError:
        return None
    return _from_path(link.removeprefix("../../"), number)


def list_devices(root: str = "") -> list[BlockDevice]:
    """All disks that have a size, each followed by its partitions; OSError if the list is unreadable.

    Sorted by name, shorter names first: sda, sda1, sda10, sdb, sdaa. /proc/partitions leaves out devices without a
    size or a node, and spares a look at each of them.
    """
    devices = []
    for line in proc.read(f"{root}/proc/partitions").splitlines()[2:]:
        major, minor = line.split(None, 2)[:2]
        device = find(f"{major.decode()}:{minor.decode()}", root)
        if device is not None:
            devices.append(device)
    return sorted(devices, key=_disk_then_partitions)


def slaves(device: BlockDevice, root: str = "") -> list[BlockDevice]:
    """The devices that a device mapper, md or other stacked device lies on, sorted by name."""
    try:
        names = os.listdir(f"{root}/sys/{device.path}/slaves")
    except OSError:
        return []
    found = [_by_name(name, root) for name in sorted(names, key=_order)]
    return [slave for slave in found if slave is not None]


def hardware(device: BlockDevice, root: str = "") -> list[BlockDevice]:
    """The devices with hardware of their own below a device: itself, or what its slaves come down to."""
    if not device.is_virtual:
        return [device]
    return [leaf for slave in slaves(device, root) for leaf in hardware(slave, root)]


def mapper_name(device: BlockDevice, root: str = "") -> str | None:
    """The name that device mapper has for the device, None for other devices."""
    if not device.name.startswith("dm-"):
        return None
    try:
        return proc.read(f"{root}/sys/{device.path}/dm/name").decode(errors="replace").removesuffix("\n")
    except OSError:
        return None


def _from_path(path: str, number: str) -> BlockDevice:
    """A partition's directory lies in its disk's, and bears its name and a number, with a `p` between if need be."""
    above, _, name = path.rpartition("/")
    disk = above.rpartition("/")[2]
    is_partition = name.startswith(disk) and name[len(disk) :].removeprefix("p").isdigit()
    return BlockDevice(name, path, number, disk if is_partition else None)


def _by_name(name: str, root: str) -> BlockDevice | None:
    try:
        number = proc.read(f"{root}/sys/class/block/{name}/dev")
    except OSError:
        return None
    return find(number.strip().decode(), root)


def _order(name: str) -> Order:
    return len(name), name


def _disk_then_partitions(device: BlockDevice) -> tuple[Order, Order]:
    return _order(device.disk or device.name), _order(device.name)


class DiskStats(NamedTuple):
    """A line of /proc/diskstats: its counters in the kernel's order, sectors of 512 bytes, times in milliseconds."""

    name: str
    major: int
    minor: int
    counters: tuple[int, ...]


def disk_stats(root: str = "") -> list[DiskStats]:
    """The counters of all disks and partitions, in the kernel's order; CallError.

    Fields: Linux, Documentation/admin-guide/iostats.rst.
    """
    stats = []
    for line in proc.read(f"{root}/proc/diskstats").splitlines():
        major, minor, name, *counters = line.split()
        stats.append(DiskStats(name.decode(errors="replace"), int(major), int(minor), tuple(map(int, counters))))
    return stats
