# SPDX-License-Identifier: Apache-2.0
"""Network interfaces with their addresses and counters, and the routing tables.

Interfaces come from two netlink dumps in the kernel's order (rtnetlink(7); Linux, include/uapi/linux/rtnetlink.h): one
socket and a few system calls for all facts of all interfaces.
"""

import os
import socket
import struct
import sys
from collections.abc import Iterator
from typing import Final, NamedTuple

from . import proc

_GET_LINK: Final = 18
_GET_ADDRESS: Final = 22
_ERROR: Final = 2
_DONE: Final = 3
_REQUEST_DUMP: Final = 0x301
_DUMP_INTERRUPTED: Final = 0x10
_DUMP_ATTEMPTS: Final = 5
_RECEIVE: Final = 65536

_HEADER: Final = struct.Struct("=IHHII")
_LINK: Final = struct.Struct("=BxHiII")
_ADDRESS: Final = struct.Struct("=BBBBI")
_ATTRIBUTE: Final = struct.Struct("=HH")
_STATS64: Final = struct.Struct("=8Q56xQ")
_ATTRIBUTE_TYPE: Final = 0x3FFF

_LINK_ADDRESS: Final = 1
_LINK_NAME: Final = 3
_LINK_STATS64: Final = 23
_ADDRESS_REMOTE: Final = 1
_ADDRESS_LOCAL: Final = 2
_ADDRESS_LABEL: Final = 3


class InetAddress(NamedTuple):
    """An IPv4 or IPv6 address of an interface."""

    family: int
    """AF_INET or AF_INET6."""
    address: str
    prefix: int


class Counters(NamedTuple):
    """What an interface has carried, counted as in /proc/net/dev."""

    rx_bytes: int
    rx_packets: int
    rx_errors: int
    rx_dropped: int
    tx_bytes: int
    tx_packets: int
    tx_errors: int
    tx_dropped: int


class Interface(NamedTuple):
    """An interface, or an address label of one, which has no counters of its own."""

    name: str
    hardware_address: str
    """Six bytes, whatever the length of the link's addresses: cut off, or filled with zeros."""
    addresses: list[InetAddress]
    counters: Counters | None


class _InterruptedError(Exception):
    """The list changed while it was read."""


def list_interfaces() -> list[Interface]:
    """All interfaces in the kernel's order, then address labels that differ from their interface's name; OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        links = dict(_link(message) for message in _dump(netlink, _GET_LINK, _LINK.size))
        interfaces = {link.name: link for link in links.values()}
        for message in _dump(netlink, _GET_ADDRESS, _ADDRESS.size):
            _add_address(message, links, interfaces)
    return list(interfaces.values())


def _dump(netlink: socket.socket, kind: int, size: int) -> list[memoryview]:
    """Ask for all objects of a kind, again if they changed meanwhile; `size` is that of the request's fixed part."""
    for _ in range(_DUMP_ATTEMPTS - 1):
        try:
            return list(_messages(netlink, kind, size))
        except _InterruptedError:
            continue
    return list(_messages(netlink, kind, size, interruptible=False))


def _messages(netlink: socket.socket, kind: int, size: int, interruptible: bool = True) -> Iterator[memoryview]:
    netlink.send(_HEADER.pack(_HEADER.size + size, kind, _REQUEST_DUMP, 0, 0) + bytes(size))
    interrupted = False
    while True:
        data = memoryview(netlink.recv(_RECEIVE))
        while data:
            length, message_kind, flags, _, _ = _HEADER.unpack_from(data)
            interrupted |= bool(flags & _DUMP_INTERRUPTED)
            if message_kind == _DONE:
                if interrupted and interruptible:
                    raise _InterruptedError
                return
            if message_kind == _ERROR:
                code = -struct.unpack_from("=i", data, _HEADER.size)[0]
                raise OSError(code, os.strerror(code))
            yield data[_HEADER.size : length]
            data = data[_aligned(length) :]


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def _attributes(message: memoryview, start: int) -> Iterator[tuple[int, memoryview]]:
    end = len(message)
    while start < end:
        length, kind = _ATTRIBUTE.unpack_from(message, start)
        yield kind & _ATTRIBUTE_TYPE, message[start + _ATTRIBUTE.size : start + length]
        start += _aligned(length)


def _link(message: memoryview) -> tuple[int, Interface]:
    index: int = _LINK.unpack_from(message)[2]
    name, hardware, counters = "", b"", None
    for kind, value in _attributes(message, _LINK.size):
        if kind == _LINK_NAME:
            name = _text(value)
        elif kind == _LINK_ADDRESS:
            hardware = bytes(value[:6])
        elif kind == _LINK_STATS64:
            counters = _counters(value)
            break  # the kernel puts the many other attributes behind it
    return index, Interface(name, hardware.ljust(6, b"\0").hex(":"), [], counters)


def _counters(value: memoryview) -> Counters:
    """struct rtnl_link_stats64; packets that the device missed count as dropped, as in /proc/net/dev."""
    rx_packets, tx_packets, rx_bytes, tx_bytes, rx_errors, tx_errors, rx_dropped, tx_dropped, rx_missed = (
        _STATS64.unpack_from(value)
    )
    rx_dropped += rx_missed
    return Counters(rx_bytes, rx_packets, rx_errors, rx_dropped, tx_bytes, tx_packets, tx_errors, tx_dropped)


def _add_address(message: memoryview, links: dict[int, Interface], interfaces: dict[str, Interface]) -> None:
    """Give one address to its interface, or to an entry for its label; of a point-to-point link, the local one."""
    family, prefix, _, _, index = _ADDRESS.unpack_from(message)
    link = links.get(index)
    if link is None or family not in (socket.AF_INET, socket.AF_INET6):
        return
    found = dict(_attributes(message, _ADDRESS.size))
    address = found.get(_ADDRESS_LOCAL) or found[_ADDRESS_REMOTE]
    name = _text(found[_ADDRESS_LABEL]) if _ADDRESS_LABEL in found else link.name
    interface = interfaces.setdefault(name, Interface(name, link.hardware_address, [], None))
    interface.addresses.append(InetAddress(family, socket.inet_ntop(family, address), prefix))


def _text(value: memoryview) -> str:
    return bytes(value).rstrip(b"\0").decode(errors="replace")


class Route4(NamedTuple):
    """A line of /proc/net/route."""

    interface: str
    destination: str
    gateway: str
    mask: str
    flags: int
    refcnt: int
    use: int
    metric: int
    mtu: int
    window: int
    irtt: int


class Route6(NamedTuple):
    """A line of /proc/net/ipv6_route."""

    interface: str
    destination: str
    destination_prefix: int
    source: str
    source_prefix: int
    nexthop: str
    metric: int
    refcnt: int
    use: int
    flags: int


def routes4(root: str = "") -> list[Route4]:
    """The IPv4 routes in the kernel's order; empty if it has no IPv4; OSError."""
    return [_route4(line) for line in _lines(f"{root}/proc/net/route")[1:]]


def _route4(line: bytes) -> Route4:
    interface, destination, gateway, flags, refcnt, use, metric, mask, mtu, window, irtt = line.split()
    return Route4(
        interface=interface.decode(errors="replace"),
        destination=_inet4(destination),
        gateway=_inet4(gateway),
        mask=_inet4(mask),
        flags=int(flags, 16),
        refcnt=int(refcnt),
        use=int(use),
        metric=int(metric),
        mtu=int(mtu),
        window=int(window),
        irtt=int(irtt),
    )


def _inet4(text: bytes) -> str:
    """An address printed as one hexadecimal number in the machine's byte order."""
    return socket.inet_ntop(socket.AF_INET, int(text, 16).to_bytes(4, sys.byteorder))


def routes6(root: str = "") -> list[Route6]:
    """The IPv6 routes in the kernel's order; empty if it has no IPv6; OSError."""
    return [_route6(line) for line in _lines(f"{root}/proc/net/ipv6_route")]


def _route6(line: bytes) -> Route6:
    destination, prefix, source, source_prefix, nexthop, metric, refcnt, use, flags, interface = line.split()
    return Route6(
        interface=interface.decode(errors="replace"),
        destination=_inet6(destination),
        destination_prefix=int(prefix, 16),
        source=_inet6(source),
        source_prefix=int(source_prefix, 16),
        nexthop=_inet6(nexthop),
        metric=_signed(metric),
        refcnt=_signed(refcnt),
        use=_signed(use),
        flags=int(flags, 16),
    )


def _inet6(text: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET6, bytes.fromhex(text.decode()))


def _signed(text: bytes) -> int:
    """A number of 32 bits that clients know with a sign: the metric of the last resort is -1."""
    value = int(text, 16)
    return value - (1 << 32) if value >= 1 << 31 else value


def _lines(path: str) -> list[bytes]:
    # Bytes, as an interface's name may contain what is a blank or an end of line in Unicode only.
    return (proc.read_or_none(path) or b"").splitlines()
