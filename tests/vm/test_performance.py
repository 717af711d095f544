# SPDX-License-Identifier: Apache-2.0
"""Speed through a virtio port of a guest, next to what dd gets through one: both agents in one session."""

from __future__ import annotations

import base64
import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from .guest import Guest, RawClient
from .image import WANTED
from .results import Results

MEGABYTE = 1_000_000
SIZE = 16 << 20
SOURCE = "/var/tmp/performance"
REQUESTS = {"64 KiB": 64 << 10, "1 MiB": 1 << 20, "16 MiB": 16 << 20}
FLOOR_PORT = "/dev/virtio-ports/test.floor.0"

WRITTEN_AT_LEAST = 2 << 20
"""The C agent takes a megabyte a second here."""

READ_BAR = {"1 MiB": 2.0, "16 MiB": 2.0}
"""How many times the C agent's speed, or..."""

FLOOR_BAR = 0.8
"""... which part of dd's."""


class Cost(NamedTuple):
    """Of moving some bytes: megabytes (10^6) a second, and the agent's CPU seconds in the guest for each."""

    speed: float
    cpu: float


@pytest.fixture
def source(raw_guest: Guest) -> Iterator[str]:
    raw_guest.sh(f"head -c {SIZE} /dev/urandom >{SOURCE}; cat {SOURCE} >/dev/null")
    yield SOURCE
    raw_guest.sh(f"rm -f {SOURCE} {SOURCE}.copy")


def measure(guest: Guest, size: int, move: Callable[[], None], rounds: int = 2) -> Cost:
    """The best of some rounds of `move`, which moves `size` bytes."""
    ticks = f"awk '{{ print $14 + $15 }}' /proc/{guest.main_pid()}/stat"
    costs = []
    for _ in range(rounds):
        before, started = int(guest.sh(ticks)), time.monotonic()
        move()
        seconds = time.monotonic() - started
        cpu = (int(guest.sh(ticks)) - before) / 100
        costs.append(Cost(size / MEGABYTE / seconds, cpu / (size / MEGABYTE)))
    return max(costs)


def note(results: Results, guest: Guest, what: str, cost: Cost) -> None:
    results.measure(f"{what}, MB/s", guest.kind, cost.speed)
    results.measure(f"{what}, CPU ms per MB", guest.kind, cost.cpu * 1000)


def request(client: RawClient, execute: str, **arguments: object) -> bytes:
    """The reply to a request as it came: parsing 22 MB is not what is measured."""
    message = {"execute": execute, "arguments": {name.replace("_", "-"): value for name, value in arguments.items()}}
    client.send(json.dumps(message).encode() + b"\n")
    return client.line()


def test_floor_of_reading(raw_guest: Guest, source: str, results: Results) -> None:
    speeds = []
    for _ in range(2):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(60)
            sock.connect(str(raw_guest.floor_path))
            raw_guest.sh(f"systemd-run --quiet --collect dd if={source} of={FLOOR_PORT} bs=1M")
            got = len(sock.recv(1 << 20))
            started = time.monotonic()
            while got < SIZE:
                got += len(sock.recv(1 << 20))
            speeds.append(SIZE / MEGABYTE / (time.monotonic() - started))
    results.measure("floor of reading (dd), MB/s", raw_guest.kind, max(speeds))


@pytest.mark.parametrize("size", REQUESTS)
def test_read(raw_guest: Guest, source: str, results: Results, size: str) -> None:
    count = REQUESTS[size]
    with raw_guest.connect(timeout=120) as client:
        handle = client.call("guest-file-open", path=source)
        replies: list[bytes] = []

        def read() -> None:
            client.call("guest-file-seek", handle=handle, offset=0, whence="set")
            replies[:] = [request(client, "guest-file-read", handle=handle, count=count) for _ in range(SIZE // count)]

        cost = measure(raw_guest, SIZE, read)
        client.call("guest-file-close", handle=handle)
    data = b"".join(base64.b64decode(json.loads(reply)["return"]["buf-b64"]) for reply in replies)
    assert len(data) == SIZE
    note(results, raw_guest, f"read in requests of {size}", cost)
    if raw_guest.kind == "qga" and size in READ_BAR and "qemu-ga" in WANTED:
        reference = results.measurements[f"read in requests of {size}, MB/s"]["qemu-ga"]
        floor = results.measurements["floor of reading (dd), MB/s"]["qga"]
        assert cost.speed >= min(READ_BAR[size] * reference, FLOOR_BAR * floor)


@pytest.mark.parametrize("size", REQUESTS)
def test_write(raw_guest: Guest, source: str, results: Results, size: str) -> None:
    count = REQUESTS[size]
    total = max(count, WRITTEN_AT_LEAST)
    block = base64.b64encode(bytes(range(256)) * (count // 256)).decode()
    with raw_guest.connect(timeout=120) as client:
        handle = client.call("guest-file-open", path=f"{source}.copy", mode="w")

        def write() -> None:
            client.call("guest-file-seek", handle=handle, offset=0, whence="set")
            for _ in range(total // count):
                request(client, "guest-file-write", handle=handle, buf_b64=block)

        cost = measure(raw_guest, total, write, rounds=1)
        client.call("guest-file-close", handle=handle)
    assert int(raw_guest.sh(f"stat -c %s {source}.copy")) == total
    note(results, raw_guest, f"write in requests of {size}", cost)


def test_exec_output(raw_guest: Guest, source: str, results: Results) -> None:
    size = SIZE // 2
    with raw_guest.connect(timeout=120) as client:

        def execute() -> None:
            pid = client.call("guest-exec", path="/usr/bin/head", arg=["-c", str(size), source], capture_output=True)[
                "pid"
            ]
            while len(request(client, "guest-exec-status", pid=pid)) < size:
                time.sleep(0.02)

        cost = measure(raw_guest, size, execute)
    note(results, raw_guest, "exec output", cost)


def test_memory(raw_guest: Guest, results: Results) -> None:
    fields = raw_guest.sh(f"grep -E '^Vm(RSS|HWM):' /proc/{raw_guest.main_pid()}/status").split()
    peak, now = int(fields[1]), int(fields[4])
    results.measure("memory at its peak, MB", raw_guest.kind, peak * 1024 / MEGABYTE)
    results.measure("memory afterwards, MB", raw_guest.kind, now * 1024 / MEGABYTE)
    assert peak >= now > 0
