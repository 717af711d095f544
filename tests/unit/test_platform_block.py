# SPDX-License-Identifier: Apache-2.0
"""Block devices and their addresses, on the machines described in tests/data."""

from __future__ import annotations

from pathlib import Path

import pytest

from qga.platform import block, udev
from qga.platform.diskaddress import CcwAddress, DiskAddress, PciAddress, locate
from tests import trees
from tests.trees import Tree


def device(tree: Tree, name: str) -> block.BlockDevice:
    return next(found for found in block.list_devices(tree.root) if found.name == name)


def names(devices: list[block.BlockDevice]) -> list[str]:
    return [found.name for found in devices]


def test_each_disk_precedes_its_partitions_and_empty_drives_are_left_out(tmp_path: Path) -> None:
    tree = trees.load("virtio", tmp_path)
    assert [(found.name, found.disk) for found in block.list_devices(tree.root)] == [
        ("sda", None),
        ("sda1", "sda"),
        ("sdb", None),
        ("vda", None),
        ("vda1", "vda"),
        ("vda2", "vda"),
        ("vda14", "vda"),
        ("ram0", None),
    ]


def test_names_with_numbers_are_told_from_partitions(tmp_path: Path) -> None:
    tree = trees.load("nvme", tmp_path)
    disks = {found.name: found.disk for found in block.list_devices(tree.root)}
    assert disks == {
        "xvda": None,
        "xvda1": "xvda",
        "mmcblk0": None,
        "mmcblk0p1": "mmcblk0",
        "nvme0n1": None,
        "nvme0n1p1": "nvme0n1",
        "nvme0n2": None,
        "nvme1n1": None,
        "nvme2n1": None,
        "nvme2n1p1": "nvme2n1",
        "mmcblk0boot0": None,
        "cciss!c0d0": None,
        "cciss!c0d0p1": "cciss!c0d0",
    }


def test_exclamation_mark_of_a_name_is_a_slash_in_dev(tmp_path: Path) -> None:
    tree = trees.load("nvme", tmp_path)
    assert device(tree, "cciss!c0d0p1").node == "/dev/cciss/c0d0p1"


def test_names_of_one_length_are_sorted_and_longer_ones_follow(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    order = ["sdb", "sdaa", "sda", "dm-10", "dm-9", "sdz"]
    for minor, name in enumerate(order):
        tree.add(f"disk devices/virtual/block/{name} 8:{minor} 100")
    assert names(block.list_devices(tree.root)) == ["sda", "sdb", "sdz", "dm-9", "sdaa", "dm-10"]


def test_find_knows_disks_and_partitions_by_number(tmp_path: Path) -> None:
    tree = trees.load("virtio", tmp_path)
    found = block.find("254:14", tree.root)
    assert found is not None
    assert (found.name, found.node, found.disk) == ("vda14", "/dev/vda14", "vda")
    assert block.find("254:99", tree.root) is None


def test_slaves_are_the_devices_directly_below(tmp_path: Path) -> None:
    tree = trees.load("stacked", tmp_path)
    assert names(block.slaves(device(tree, "dm-0"), tree.root)) == ["vda2", "md127"]
    assert names(block.slaves(device(tree, "md127"), tree.root)) == ["sda1", "sdb1"]
    assert block.slaves(device(tree, "vda"), tree.root) == []
    assert block.slaves(device(tree, "vda1"), tree.root) == []


@pytest.mark.parametrize(
    ("name", "leaves"),
    [
        ("vda1", ["vda1"]),
        ("dm-0", ["vda2", "sda1", "sdb1"]),
        ("dm-10", ["vda2", "vda2"]),
        ("dm-11", []),
        ("loop0p1", []),
        ("md127p1", []),
    ],
)
def test_hardware_follows_slaves_down_to_real_devices(tmp_path: Path, name: str, leaves: list[str]) -> None:
    tree = trees.load("stacked", tmp_path)
    assert names(block.hardware(device(tree, name), tree.root)) == leaves


def test_device_mapper_names_come_from_sysfs(tmp_path: Path) -> None:
    tree = trees.load("stacked", tmp_path)
    assert block.mapper_name(device(tree, "dm-10"), tree.root) == "vg-thin"
    assert block.mapper_name(device(tree, "md127"), tree.root) is None
    assert block.mapper_name(device(tree, "vda"), tree.root) is None


PCI_1F2 = PciAddress(0, 0, 0x1F, 2)
PCI_011 = PciAddress(0, 0, 1, 1)


@pytest.mark.parametrize(
    ("machine", "name", "address"),
    [
        ("virtio", "vda", DiskAddress("virtio", pci=PciAddress(0, 4, 0, 0))),
        ("virtio", "vda14", DiskAddress("virtio", pci=PciAddress(0, 4, 0, 0))),
        ("virtio", "sda1", DiskAddress("scsi", unit=0, pci=PciAddress(0, 3, 0, 0))),
        ("virtio", "sdb", DiskAddress("scsi", unit=5, pci=PciAddress(0, 3, 0, 0))),
        ("ahci", "sda", DiskAddress("sata", unit=0, pci=PCI_1F2)),
        ("ahci", "sr0", DiskAddress("sata", unit=1, pci=PCI_1F2)),
        ("ahci", "sdb", DiskAddress("sata", unit=2, pci=PCI_1F2)),
        ("ahci", "sdc", DiskAddress("sata", unit=3, pci=PCI_1F2)),
        ("ahci", "sdd", DiskAddress("sata", unit=0, pci=PciAddress(0, 1, 0, 0))),
        ("ide", "sda", DiskAddress("ide", bus=0, unit=0, pci=PCI_011)),
        ("ide", "sdb", DiskAddress("ide", bus=0, unit=1, pci=PCI_011)),
        ("ide", "sr0", DiskAddress("ide", bus=1, unit=0, pci=PCI_011)),
        ("ide", "sdc", DiskAddress("ide", bus=1, unit=1, pci=PCI_011)),
        ("ide", "sde", DiskAddress("scsi", unit=6, pci=PciAddress(0, 0, 5, 0))),
        ("usb", "sdf1", DiskAddress("usb", pci=PciAddress(0, 0, 6, 0))),
        ("usb", "sdg", DiskAddress("usb", pci=PciAddress(0, 0, 0x1D, 7))),
        ("usb", "sdh", DiskAddress("unknown")),
        ("ide", "sdi", DiskAddress("unknown")),
        ("ide", "fd0", DiskAddress("unknown")),
        ("nvme", "nvme0n1p1", DiskAddress("nvme", pci=PciAddress(0, 0, 4, 0))),
        ("nvme", "nvme1n1", DiskAddress("unknown")),
        ("nvme", "nvme2n1", DiskAddress("unknown")),
        ("nvme", "mmcblk0", DiskAddress("unknown")),
        ("nvme", "xvda1", DiskAddress("unknown")),
        ("s390", "vda1", DiskAddress("virtio", ccw=CcwAddress(0, 0, 4, 0xA01))),
        ("s390", "sda", DiskAddress("scsi", 0, 1, 1, ccw=CcwAddress(0, 1, 5, 0xB02))),
        ("s390", "sdb", DiskAddress("scsi", 2, 3, 4, ccw=CcwAddress(0, 1, 5, 0xB02))),
        ("s390", "dasda", DiskAddress("unknown", ccw=CcwAddress(1, 2, 6, 0xC03))),
        ("s390", "vdb", DiskAddress("virtio", pci=PciAddress(1, 0, 0, 0))),
        ("mmio", "vda", DiskAddress("virtio")),
        ("mmio", "sdb", DiskAddress("scsi", 1, 4, 3)),
    ],
)
def test_address(tmp_path: Path, machine: str, name: str, address: DiskAddress) -> None:
    tree = trees.load(machine, tmp_path)
    assert locate(device(tree, name).path, tree.root) == address


def test_channel_device_without_a_subchannel_number_has_no_address() -> None:
    assert locate("devices/css0/defunct/0.0.1234/block/dasda") == DiskAddress("unknown")


def test_udev_properties_are_read_from_its_database(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    (tree.udev / "b8:0").write_bytes(b"S:disk/by-id/x\nI:123\nE:ID_SERIAL=a=b \xff\nE:EMPTY=\nG:systemd\nV:1\n")
    assert udev.properties("8:0", tree.root) == {"ID_SERIAL": "a=b �", "EMPTY": ""}
    assert udev.properties("8:1", tree.root) == {}


def test_counters_of_old_and_new_kernels(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    (tree.proc / "diskstats").write_text(
        " 254       0 vda 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17\n   8       1 sda1 1 2 3 4 5 6 7 8 9 10 11\n"
    )
    assert block.disk_stats(tree.root) == [
        block.DiskStats("vda", 254, 0, tuple(range(1, 18))),
        block.DiskStats("sda1", 8, 1, tuple(range(1, 12))),
    ]


def test_this_machine_has_the_disks_of_sys_block() -> None:
    def is_lasting(name: str) -> bool:
        """Not a loop device, which other tests attach and detach meanwhile."""
        return not name.startswith("loop") and Path(f"/sys/block/{name}/size").read_text() != "0\n"

    expected = {entry.name for entry in Path("/sys/block").iterdir() if is_lasting(entry.name)}
    assert {found.name for found in block.list_devices() if found.disk is None and is_lasting(found.name)} == expected
