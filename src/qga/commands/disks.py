# SPDX-License-Identifier: Apache-2.0
"""Disks and partitions: what they are made of, where they are attached, how they fare."""

from typing import NotRequired, TypedDict, cast

from ..agent import Agent
from ..errors import from_os
from ..platform import block, diskaddress, nvme, udev
from ..protocol.registry import command


class PciAddress(TypedDict):
    """A PCI function."""

    domain: int
    bus: int
    slot: int
    function: int


class CcwAddress(TypedDict):
    """A channel device of s390x."""

    cssid: int
    ssid: int
    subchno: int
    devno: int


DiskAddress = TypedDict(
    "DiskAddress",
    {
        "pci-controller": PciAddress,
        "bus-type": str,
        "bus": int,
        "target": int,
        "unit": int,
        "serial": NotRequired[str],
        "dev": NotRequired[str],
        "ccw-address": NotRequired[CcwAddress],
    },
)

DiskSmart = TypedDict(
    "DiskSmart",
    {
        "type": str,
        "critical-warning": int,
        "temperature": int,
        "available-spare": int,
        "available-spare-threshold": int,
        "percentage-used": int,
        "data-units-read-lo": int,
        "data-units-read-hi": int,
        "data-units-written-lo": int,
        "data-units-written-hi": int,
        "host-read-commands-lo": int,
        "host-read-commands-hi": int,
        "host-write-commands-lo": int,
        "host-write-commands-hi": int,
        "controller-busy-time-lo": int,
        "controller-busy-time-hi": int,
        "power-cycles-lo": int,
        "power-cycles-hi": int,
        "power-on-hours-lo": int,
        "power-on-hours-hi": int,
        "unsafe-shutdowns-lo": int,
        "unsafe-shutdowns-hi": int,
        "media-errors-lo": int,
        "media-errors-hi": int,
        "number-of-error-log-entries-lo": int,
        "number-of-error-log-entries-hi": int,
    },
)


class DiskInfo(TypedDict):
    """One entry of guest-get-disks."""

    name: str
    partition: bool
    dependencies: list[str]
    address: NotRequired[DiskAddress]
    alias: NotRequired[str]
    smart: NotRequired[DiskSmart]


@command()
def guest_get_disks(agent: Agent) -> list[DiskInfo]:
    """List disks, each followed by its partitions."""
    try:
        return [_disk(device) if device.disk is None else _partition(device) for device in block.list_devices()]
    except OSError as exc:
        raise from_os("failed to list disks", exc) from exc


def _partition(device: block.BlockDevice) -> DiskInfo:
    return {"name": device.node, "partition": True, "dependencies": [block.node(device.disk or "")]}


def _disk(device: block.BlockDevice) -> DiskInfo:
    info: DiskInfo = {
        "name": device.node,
        "partition": False,
        "dependencies": [slave.node for slave in block.slaves(device)],
    }
    alias = block.mapper_name(device)
    if alias is not None:
        info["alias"] = alias
    if not device.is_virtual:
        info["address"] = address_of(device)
        log = nvme.smart_log(device.node) if info["address"]["bus-type"] == "nvme" else None
        if log is not None:
            info["smart"] = smart_of(log)
    return info


def smart_of(log: nvme.SmartLog) -> DiskSmart:
    """The health of a disk; the members of DiskSmart stand in the order of the log."""
    return cast(DiskSmart, dict(zip(DiskSmart.__annotations__, ("nvme", *log[:5], *log.counters), strict=True)))


def address_of(device: block.BlockDevice) -> DiskAddress:
    """Where a device is attached, by which node and serial number it is known."""
    place = diskaddress.locate(device.path)
    address: DiskAddress = {
        "pci-controller": cast(PciAddress, place.pci._asdict()),
        "bus-type": place.bus_type,
        "bus": place.bus,
        "target": place.target,
        "unit": place.unit,
        "dev": device.node,
    }
    serial = udev.properties(device.number).get("ID_SERIAL")
    if serial is not None:
        address["serial"] = serial
    if place.ccw is not None:
        address["ccw-address"] = cast(CcwAddress, place.ccw._asdict())
    return address
