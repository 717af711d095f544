# SPDX-License-Identifier: Apache-2.0
"""Interfaces of this machine, and routes of others."""

from __future__ import annotations

import socket
import struct
import sys
import threading
from pathlib import Path

import pytest

from qga.platform import net
from qga.platform.net import Counters, InetAddress, Route4, Route6
from tests.trees import Tree


def proc_counters() -> dict[str, Counters]:
    counters = {}
    for line in Path("/proc/net/dev").read_text().splitlines()[2:]:
        name, _, numbers = line.partition(":")
        rx_bytes, rx_packets, rx_errors, rx_dropped, _, _, _, _, tx_bytes, tx_packets, tx_errors, tx_dropped = map(
            int, numbers.split()[:12]
        )
        counters[name.strip()] = Counters(
            rx_bytes, rx_packets, rx_errors, rx_dropped, tx_bytes, tx_packets, tx_errors, tx_dropped
        )
    return counters


def send_to_self(count: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind(("127.0.0.1", 0))
        for _ in range(count):
            sender.sendto(b"x" * 100, sender.getsockname())


def test_counters_are_those_of_proc_net_dev() -> None:
    send_to_self(10)
    before = proc_counters()
    found = {interface.name: interface.counters for interface in net.list_interfaces()}
    after = proc_counters()
    assert before["lo"].rx_packets >= 10
    for name in before.keys() & after.keys():
        counters = found[name]
        assert counters is not None
        assert all(low <= value <= high for low, value, high in zip(before[name], counters, after[name], strict=True))


def test_interfaces_come_in_the_order_of_their_numbers() -> None:
    plain = [interface.name for interface in net.list_interfaces() if interface.counters is not None]
    assert plain == [name for _, name in sorted(socket.if_nameindex())]


def test_loopback_has_zero_hardware_address_and_its_addresses() -> None:
    loopback = net.list_interfaces()[0]
    assert loopback.name == "lo"
    assert loopback.hardware_address == "00:00:00:00:00:00"
    assert InetAddress(socket.AF_INET, "127.0.0.1", 8) in loopback.addresses


def test_hardware_addresses_are_those_of_sysfs() -> None:
    checked = 0
    for interface in net.list_interfaces():
        if interface.counters is None:
            continue  # an address label
        known = Path(f"/sys/class/net/{interface.name}/address").read_text().strip()
        if len(known) == 17:
            assert interface.hardware_address == known
            checked += 1
    assert checked


HEADER = struct.Struct("=IHHII")


def message(kind: int, body: bytes = b"", flags: int = 2) -> bytes:
    return HEADER.pack(HEADER.size + len(body), kind, flags, 0, 0) + body


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def answering(*replies: bytes) -> socket.socket:
    """One end of a pair whose other end sends the next of `replies` for each request."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def serve() -> None:
        with theirs:
            for reply in replies:
                if not theirs.recv(4096):
                    return
                theirs.send(reply)

    threading.Thread(target=serve, daemon=True).start()
    return ours


def test_error_of_the_kernel_is_an_os_error() -> None:
    with answering(message(2, struct.pack("=i", -1) + bytes(16))) as netlink, pytest.raises(PermissionError):
        net._dump(netlink, 18, 16)


def test_interrupted_dump_is_asked_for_again() -> None:
    first = message(16, b"old!", flags=2 | 0x10) + message(3, bytes(4))
    second = message(16, b"new!") + message(3, bytes(4))
    with answering(first, second) as netlink:
        assert [bytes(body) for body in net._dump(netlink, 18, 16)] == [b"new!"]


def test_dump_that_is_always_interrupted_is_taken_in_the_end() -> None:
    always = message(16, b"some", flags=2 | 0x10) + message(3, bytes(4))
    with answering(*[always] * 5) as netlink:
        assert [bytes(body) for body in net._dump(netlink, 18, 16)] == [b"some"]


@pytest.mark.parametrize(
    ("hardware", "text"),
    [
        (b"", "00:00:00:00:00:00"),
        (bytes((0x52, 0x54, 0, 0xAB, 0xCD, 0xEF)), "52:54:00:ab:cd:ef"),
        (bytes((10, 1, 2, 3)), "0a:01:02:03:00:00"),
        (bytes(range(1, 21)), "01:02:03:04:05:06"),
    ],
)
def test_hardware_addresses_are_shown_as_six_bytes(hardware: bytes, text: str) -> None:
    body = struct.pack("=BxHiII", 0, 1, 7, 0, 0) + attribute(3, b"n\xff0\0")
    body += attribute(1, hardware) if hardware else b""
    index, interface = net._link(memoryview(body))
    assert (index, interface.name, interface.hardware_address) == (7, "n�0", text)


def test_packets_that_the_device_missed_count_as_dropped() -> None:
    stats = struct.pack("=25Q", *range(1, 26))
    body = struct.pack("=BxHiII", 0, 1, 7, 0, 0) + attribute(3, b"e\0") + attribute(23, stats)
    assert net._link(memoryview(body))[1].counters == Counters(3, 1, 5, 7 + 16, 4, 2, 6, 8)


def test_ipv4_routes(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    (tree.proc / "net").mkdir()

    def address(text: str) -> str:
        return f"{int.from_bytes(socket.inet_aton(text), sys.byteorder):08X}"

    (tree.proc / "net/route").write_text(
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
        f"eth0\t{address('10.77.0.0')}\t{address('10.1.0.9')}\t0003\t4\t5\t300\t{address('255.255.0.0')}\t"
        "1460\t50\t120   \n"
        f"*\t{address('10.78.0.0')}\t00000000\t0201\t0\t0\t0\t{address('255.255.255.0')}\t0\t0\t0\n"
    )
    assert net.routes4(tree.root) == [
        Route4("eth0", "10.77.0.0", "10.1.0.9", "255.255.0.0", 3, 4, 5, 300, 1460, 50, 120),
        Route4("*", "10.78.0.0", "0.0.0.0", "255.255.255.0", 0x201, 0, 0, 0, 0, 0, 0),
    ]


def test_ipv6_routes(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    (tree.proc / "net").mkdir()
    (tree.proc / "net/ipv6_route").write_text(
        "fd770000000000000000000000000000 40 fd010000000000000000000000000000 30 fd010000000000000000000000000007 "
        "00001000 00000001 0000000a 00000003       v1\n"
        f"{0:032x} 00 {0:032x} 00 {0:032x} ffffffff 00000001 00000000 80200200       lo\n"
        f"{0:032x} 00 {0:032x} 00 {0:032x} 00000001 00000001 00000000 00000001 a\u3000b\u2028c\n",
        encoding="utf-8",
    )
    assert net.routes6(tree.root) == [
        Route6("v1", "fd77::", 64, "fd01::", 48, "fd01::7", 4096, 1, 10, 3),
        Route6("lo", "::", 0, "::", 0, "::", -1, 1, 0, 0x80200200),
        Route6("a\u3000b\u2028c", "::", 0, "::", 0, "::", 1, 1, 0, 1),
    ]


def test_machine_without_one_family_has_no_routes_of_it(tmp_path: Path) -> None:
    assert net.routes4(str(tmp_path)) == []
    assert net.routes6(str(tmp_path)) == []
