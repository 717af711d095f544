# SPDX-License-Identifier: Apache-2.0
"""Where a disk is attached, told from its sysfs path: what a host matches with the disks it gave to the guest.

Examples of such paths:

    devices/pci0000:00/0000:00:02.4/0000:04:00.0/virtio2/block/vda/vda1
    devices/pci0000:00/0000:00:1f.2/ata3/host2/target2:0:0/2:0:0:0/block/sda
    devices/pci0000:00/0000:00:04.0/nvme/nvme0/nvme0n1
    devices/css0/0.0.0004/0.0.0a01/virtio2/block/vda
"""

import os
from itertools import pairwise
from typing import NamedTuple

_BUS_OF_DRIVER = {
    "virtio-pci": "virtio",
    "nvme": "nvme",
    "ahci": "sata",
    "ata_piix": "ide",
    "sym53c8xx": "scsi",
    "xhci_hcd": "usb",
    "ehci-pci": "usb",
}
"""The drivers of PCI controllers that a host can name; others are "unknown"."""


class PciAddress(NamedTuple):
    """A PCI function; all -1 for a disk that is not on PCI."""

    domain: int
    bus: int
    slot: int
    function: int


class CcwAddress(NamedTuple):
    """A channel device of s390x: channel subsystem, subchannel set, subchannel, device."""

    cssid: int
    ssid: int
    subchno: int
    devno: int


class DiskAddress(NamedTuple):
    """The controller of a disk, and its place there."""

    bus_type: str
    bus: int = 0
    target: int = 0
    unit: int = 0
    pci: PciAddress = PciAddress(-1, -1, -1, -1)
    ccw: CcwAddress | None = None


class _ScsiAddress(NamedTuple):
    host: int
    channel: int
    target: int
    lun: int


def locate(path: str, root: str = "") -> DiskAddress:
    """The address of the disk or partition at `path` below /sys."""
    parts = path.split("/")
    if parts[1].startswith("pci"):
        return _on_pci(parts, root)
    scsi = _scsi_address(parts)
    ccw = _ccw_address(parts)
    if not any(part.startswith("virtio") for part in parts):
        return DiskAddress("unknown", ccw=ccw)
    if scsi is None:
        return DiskAddress("virtio", ccw=ccw)
    return DiskAddress("scsi", scsi.channel, scsi.target, scsi.lun, ccw=ccw)


def _on_pci(parts: list[str], root: str) -> DiskAddress:
    """Walk from the root bus through bridges to the first function whose driver is a known disk controller's."""
    for depth in range(2, len(parts)):
        pci = _pci_address(parts[depth])
        if pci is None:
            break
        controller = "/".join(parts[: depth + 1])
        driver = _driver(f"{root}/sys/{controller}")
        if driver in _BUS_OF_DRIVER:
            return _behind(driver, pci, controller, parts, root)
    return DiskAddress("unknown")


def _behind(driver: str, pci: PciAddress, controller: str, parts: list[str], root: str) -> DiskAddress:
    """The place behind a controller, in the terms that the host's description of the disk uses."""
    bus_type = _BUS_OF_DRIVER[driver]
    scsi = _scsi_address(parts)
    if driver == "virtio-pci" and scsi is not None:
        return DiskAddress("scsi", unit=scsi.lun, pci=pci)
    if driver == "sym53c8xx" and scsi is not None:
        return DiskAddress(bus_type, unit=scsi.target, pci=pci)
    if driver == "ahci":
        return DiskAddress(bus_type, unit=_port_index(controller, parts, root), pci=pci)
    if driver == "ata_piix" and scsi is not None:
        return DiskAddress(bus_type, bus=_port_index(controller, parts, root), unit=scsi.target, pci=pci)
    return DiskAddress(bus_type, pci=pci)


def _driver(directory: str) -> str:
    try:
        return os.path.basename(os.readlink(f"{directory}/driver"))
    except OSError:
        return ""


def _port_index(controller: str, parts: list[str], root: str) -> int:
    """Which of the controller's ata ports the path goes through; their numbers go on over all controllers."""
    port = parts[controller.count("/") + 1]
    try:
        ports = [name for name in os.listdir(f"{root}/sys/{controller}") if _is_port(name)]
        return sorted(ports, key=_port_number).index(port)
    except (OSError, ValueError):
        return 0


def _is_port(name: str) -> bool:
    return name.startswith("ata") and name[3:].isdigit()


def _port_number(name: str) -> int:
    return int(name[3:])


def _pci_address(part: str) -> PciAddress | None:
    """`0000:04:00.0`, in hexadecimal."""
    if part.count(":") != 2 or part.count(".") != 1:
        return None
    domain, bus, rest = part.split(":")
    slot, _, function = rest.partition(".")
    return PciAddress(int(domain, 16), int(bus, 16), int(slot, 16), int(function, 16))


def _scsi_address(parts: list[str]) -> _ScsiAddress | None:
    """The numbers of `target2:0:0/2:0:0:0`: host, channel, target, logical unit."""
    for part, below in pairwise(parts):
        if part.startswith("target") and below.count(":") == 3:
            return _ScsiAddress(*map(int, below.split(":")))
    return None


def _ccw_address(parts: list[str]) -> CcwAddress | None:
    """`css0/0.1.0005/0.1.0b02`: a subchannel and the device on it, in hexadecimal."""
    if not parts[1].startswith("css") or parts[2].count(".") != 2:
        return None
    cssid, ssid, subchno = parts[2].split(".")
    devno = parts[3].rpartition(".")[2]
    return CcwAddress(int(cssid, 16), int(ssid, 16), int(subchno, 16), int(devno, 16))
