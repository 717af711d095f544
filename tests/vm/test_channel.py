# SPDX-License-Identifier: Apache-2.0
"""The channel itself: what happens on it when the host's end misbehaves, and the other kinds of channel."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time

import pytest

from .conftest import Pool
from .guest import PORT, Guest, RawClient
from .hypervisor import wait_for
from .results import Results

EXEC_LIMIT = 16 << 20


def test_boot_to_first_reply(raw_guest: Guest, results: Results) -> None:
    with raw_guest.connect() as client:
        assert client.call("guest-ping") == {}
    results.measure("seconds from power-on to the first reply", raw_guest.kind, raw_guest.seconds_to_first_reply)


def test_exec_output_past_16_mib_is_truncated(raw_guest: Guest) -> None:
    with raw_guest.connect(timeout=120) as client:
        status = client.execute("/bin/sh", "-c", "yes 0123456789abcde | head -c 17000000", timeout=120)
    assert status["exitcode"] == 0
    assert status["out-truncated"] is True
    assert base64.b64decode(status["out-data"]) == b"0123456789abcde\n" * (EXEC_LIMIT // 16)


def test_large_file_with_checksum(raw_guest: Guest) -> None:
    digest = raw_guest.sh("head -c 20000003 /dev/urandom >/var/tmp/large; sha256sum /var/tmp/large").split()[0]
    seen = hashlib.sha256()
    with raw_guest.connect(timeout=120) as client:
        handle = client.call("guest-file-open", path="/var/tmp/large")
        while not (reply := client.call("guest-file-read", handle=handle, count=16 << 20))["eof"]:
            seen.update(base64.b64decode(reply["buf-b64"]))
        seen.update(base64.b64decode(reply["buf-b64"]))
        client.call("guest-file-close", handle=handle)
    raw_guest.sh("rm /var/tmp/large")
    assert seen.hexdigest() == digest


def test_host_side_closed_in_the_middle_of_a_reply(raw_guest: Guest) -> None:
    with raw_guest.connect() as client:
        handle = client.call("guest-file-open", path="/dev/zero")
        client.send(b'{"execute":"guest-file-read","arguments":{"handle":%d,"count":8388608}}\n' % handle)
        assert client.sock.recv(100_000)
    before = raw_guest.main_pid()
    with raw_guest.connect() as client:
        assert client.call("guest-ping") == {}
        client.call("guest-file-close", handle=handle)
    assert raw_guest.main_pid() == before


def test_host_side_closed_before_the_reply_is_read(raw_guest: Guest) -> None:
    for _ in range(5):
        with RawClient(raw_guest.raw_path) as client:
            client.send(b'{"execute":"guest-get-osinfo"}\n' * 20)
        with raw_guest.connect() as client:
            assert client.call("guest-ping") == {}


def test_stale_bytes_before_a_delimited_sync(raw_guest: Guest) -> None:
    for stale in (b'{"execute":"guest-pi', b'"', b"\x00\x01[[[{", b'{"execute":"guest-ping"}' * 3, b"\xff\xff\xff"):
        with RawClient(raw_guest.raw_path) as client:
            client.send(stale)
            client.synchronise()
            assert client.call("guest-get-host-name") == {"host-name": "guest"}


def test_isa_serial_channel(raw_guest: Guest) -> None:
    options = "--method=isa-serial --path=/dev/ttyS1 --statedir=/run/isa"
    raw_guest.sh(f"mkdir -p /run/isa && systemd-run --quiet --collect --unit=isa {raw_guest.program} {options}")
    try:
        # Whoever opens a serial line throws away what came before.
        is_open = "ls -l /proc/$(systemctl show --property MainPID --value isa)/fd | grep -q ttyS1"
        wait_for(lambda: raw_guest.run(is_open).status == 0, "the agent to open the line")
        with raw_guest.connect(raw_guest.directory / "isa.sock") as client:
            assert client.call("guest-get-osinfo")["id"] == "debian"
            handle = client.call("guest-file-open", path="/usr/bin/env")
            data = base64.b64decode(client.call("guest-file-read", handle=handle, count=20_000)["buf-b64"])
            client.call("guest-file-close", handle=handle)
        expected = raw_guest.sh("head -c 20000 /usr/bin/env | sha256sum").split()[0]
        assert hashlib.sha256(data).hexdigest() == expected
        with raw_guest.connect(raw_guest.directory / "isa.sock") as client:
            assert client.call("guest-ping") == {}
    finally:
        raw_guest.sh("systemctl stop isa")


VSOCK_CLIENT = """
import json, socket
sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
sock.settimeout(30)
sock.connect((1, 4242))
sock.sendall(b'{"execute":"guest-get-host-name"}')
print(sock.makefile().readline())
"""


def test_vsock_channel(raw_guest: Guest) -> None:
    """The guest's kernel stands in for the host: its loopback transport has CID 1."""
    settings = "[general]\nmethod=vsock-listen\npath=4294967295:4242\nstatedir=/run/vsock\nvsock-peers=1\n"
    raw_guest.sh("modprobe vsock_loopback; mkdir -p /run/vsock; cat >/run/vsock/conf", stdin=settings)
    unit = "--unit=vsock --setenv=QGA_CONF=/run/vsock/conf"
    raw_guest.sh(f"systemd-run --quiet --collect {unit} {raw_guest.program}")
    try:
        wait_for(lambda: ":4242" in raw_guest.sh("ss --vsock --listening --numeric"), "the agent to listen", 30, 0.5)
        reply = raw_guest.sh("python3 -", stdin=VSOCK_CLIENT)
        assert json.loads(reply) == {"return": {"host-name": "guest"}}
    finally:
        raw_guest.sh("systemctl stop vsock")


def test_second_agent_waits_for_a_port_that_is_taken(raw_guest: Guest) -> None:
    """A port has one reader: whoever comes second is told so."""
    options = f"--statedir=/run/second --path=/dev/virtio-ports/{PORT}"
    taken = raw_guest.run(f"mkdir -p /run/second; {raw_guest.program} {options}")
    assert taken.status == 1
    assert "error opening channel" in taken.output
    with raw_guest.connect() as client:
        assert client.call("guest-ping") == {}


def test_two_guests_at_once(pool: Pool) -> None:
    raw, managed = pool.get("raw"), pool.get("libvirt")
    raw.sh("hostname first")
    managed.sh("hostname second")
    names: dict[str, set[str]] = {"raw": set(), "libvirt": set()}

    def ask_raw() -> None:
        with raw.connect() as client:
            for _ in range(30):
                names["raw"].add(client.call("guest-get-host-name")["host-name"])

    asking = threading.Thread(target=ask_raw)
    asking.start()
    for _ in range(15):
        names["libvirt"].add(managed.call("guest-get-host-name")["host-name"])
    asking.join()
    raw.sh("hostname guest")
    managed.sh("hostname guest")
    assert names == {"raw": {"first"}, "libvirt": {"second"}}


@pytest.mark.reference_fails("it polls the port ten times a second")
def test_wakes_up_at_most_once_a_second_while_no_host_listens(raw_guest: Guest, results: Results) -> None:
    pid = raw_guest.main_pid()
    switches = f"cat /proc/{pid}/task/*/status | awk '/^voluntary_ctxt/ {{ n += $2 }} END {{ print n }}'"
    time.sleep(1)
    seconds = 10
    before = int(raw_guest.sh(switches))
    time.sleep(seconds)
    per_second = (int(raw_guest.sh(switches)) - before) / seconds
    results.measure("wake-ups per second with the host side closed", raw_guest.kind, per_second)
    assert per_second <= 1
