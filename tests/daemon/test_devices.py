# SPDX-License-Identifier: Apache-2.0
"""Serial lines and virtio ports, for which pairs of pseudo terminals stand in, and standard input and output."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import termios
import time
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agents import QGA
from tests.daemon.observe import MIB, b64, data_of, descriptors, eventually, request, running, wake_ups

PING = b'{"execute":"guest-ping"}'
PONG = b'{"return":{}}\n'


class Line:
    """The host's end of a pair of pseudo terminals; the agent's end is raw unless `cooked`, and at `path`."""

    def __init__(self, path: Path, cooked: bool = False) -> None:
        self.host, self._terminal = pty.openpty()
        self._received = b""
        if not cooked:
            tty.setraw(self._terminal)
        path.unlink(missing_ok=True)
        self.name = os.ttyname(self._terminal)
        path.symlink_to(self.name)

    def hang_up(self) -> None:
        """Close both ends that are ours; the agent's reads as ended then."""
        for fd in (self._terminal, self.host):
            os.close(fd)
        self._terminal = self.host = -1

    def send(self, data: bytes) -> None:
        while data:
            data = data[os.write(self.host, data) :]

    def receive(self) -> bytes:
        """The next line, its end included."""
        while b"\n" not in self._received:
            assert select.select([self.host], [], [], 15)[0], f"no more than {len(self._received)} bytes came"
            self._received += os.read(self.host, 65536)
        line, end, self._received = self._received.partition(b"\n")
        return line + end

    def ask(self, execute: str, **arguments: Any) -> Any:
        """The value of `return`."""
        self.send(request(execute, **arguments))
        return json.loads(self.receive())["return"]

    def attributes(self) -> list[Any]:
        """The settings of the line, which both ends share."""
        return termios.tcgetattr(self.host)


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    line = Line(tmp_path / "device")
    yield line
    if line.host >= 0:
        line.hang_up()


def opened(line: Line, agent: subprocess.Popen[bytes]) -> None:
    """Wait until the agent has opened the line: until then a serial line drops what is sent."""
    eventually(lambda: line.name in descriptors(agent.pid).values())
    time.sleep(0.05)


def qga(method: str, directory: Path, *options: str) -> list[str]:
    return [*QGA, "-m", method, "-p", str(directory / "device"), "-t", str(directory), *options]


# --- isa-serial


def test_a_serial_line_is_set_to_raw(tmp_path: Path) -> None:
    line = Line(tmp_path / "device", cooked=True)
    line.send(b'{"execute":"guest-sync","arguments":{"id":"stale"}}\n')
    before = line.attributes()
    with running(qga("isa-serial", tmp_path)) as agent:
        eventually(lambda: line.attributes()[3] == 0)
        os.set_blocking(line.host, False)
        echo = os.read(line.host, 65536)
        os.set_blocking(line.host, True)
        assert echo.endswith(b"\r\n")
        assert line.ask("guest-sync", id=1) == 1, "stale input is to be dropped"
        iflag, oflag, cflag, lflag, ispeed, ospeed, cc = line.attributes()
        assert (oflag, lflag) == (0, 0)
        cooked = termios.ICRNL | termios.INLCR | termios.IGNCR | termios.IXON | termios.IXOFF | termios.ISTRIP
        assert not iflag & (cooked | termios.BRKINT | termios.IGNBRK | termios.PARMRK | termios.INPCK)
        assert (ispeed, ospeed) == (termios.B38400, termios.B38400)
        assert cflag & (termios.CSIZE | termios.PARENB) == before[2] & (termios.CSIZE | termios.PARENB)
        assert (cc[termios.VMIN], cc[termios.VTIME]) in [(1, 0), (b"\x01", b"\x00")]
        agent.terminate()
        assert agent.wait(10) == 0
    line.hang_up()


@pytest.mark.parametrize("method", ["isa-serial", "virtio-serial"])
def test_every_byte_and_large_messages_pass(line: Line, tmp_path: Path, method: str) -> None:
    content = bytes(range(256)) * 2000
    (tmp_path / "file").write_bytes(content)
    with running(qga(method, tmp_path)) as agent:
        opened(line, agent)
        assert line.ask("guest-sync", id=1) == 1
        line.send(b'\xff{"execute":"guest-sync-delimited","arguments":{"id":2}}\r\n')
        assert json.loads(line.receive())["error"]["desc"] == "JSON parse error, stray '\ufffd'"
        assert line.receive() == b'\xff{"return":2}\n'
        for byte in b"\x04\x03\x11\x13\x7f":
            line.send(bytes([byte]) + b"\n")
            assert json.loads(line.receive())["error"]["desc"] == f"JSON parse error, stray '{chr(byte)}'"
        handle = line.ask("guest-file-open", path=str(tmp_path / "file"))
        assert data_of(line.ask("guest-file-read", handle=handle, count=MIB)) == content
        copy = line.ask("guest-file-open", path=str(tmp_path / "copy"), mode="w")
        assert line.ask("guest-file-write", handle=copy, buf_b64=b64(content))["count"] == len(content)
        assert (tmp_path / "copy").read_bytes() == content
        agent.terminate()
        assert agent.wait(10) == 0


def test_a_serial_line_that_hangs_up_ends_the_agent(line: Line, tmp_path: Path) -> None:
    with running(qga("isa-serial", tmp_path)) as agent:
        opened(line, agent)
        assert line.ask("guest-sync", id=1) == 1
        line.hang_up()
        assert agent.wait(10) == 0


@pytest.mark.parametrize("method", ["isa-serial", "virtio-serial"])
def test_a_device_that_is_missing(tmp_path: Path, method: str) -> None:
    done = subprocess.run(qga(method, tmp_path), capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1
    assert done.stderr == f"error opening channel '{tmp_path}/device': No such file or directory\n"


@pytest.mark.parametrize("method", ["isa-serial", "virtio-serial"])
def test_a_device_that_is_none(tmp_path: Path, method: str) -> None:
    (tmp_path / "device").write_bytes(PING)
    done = subprocess.run(qga(method, tmp_path), capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error opening channel '{tmp_path}/device': ")
    assert "Traceback" not in done.stderr


def test_a_device_that_appears_later_is_opened_then(tmp_path: Path) -> None:
    with running(qga("virtio-serial", tmp_path, "--retry-path")) as agent:
        time.sleep(0.5)
        assert agent.poll() is None
        line = Line(tmp_path / "device")
        began = time.monotonic()
        assert line.ask("guest-sync", id=1) == 1
        assert time.monotonic() - began < 6
        agent.terminate()
        assert agent.wait(10) == 0
        line.hang_up()


def test_a_serial_line_that_hung_up_is_opened_again(line: Line, tmp_path: Path) -> None:
    with running(qga("isa-serial", tmp_path, "--retry-path")) as agent:
        opened(line, agent)
        handle = line.ask("guest-file-open", path="/dev/zero")
        line.hang_up()
        time.sleep(0.2)
        assert agent.poll() is None
        before = wake_ups(agent.pid)
        fresh = Line(tmp_path / "device")
        opened(fresh, agent)
        assert wake_ups(agent.pid) - before < 10
        assert fresh.ask("guest-sync", id=2) == 2
        assert data_of(fresh.ask("guest-file-read", handle=handle, count=3)) == bytes(3)
        agent.terminate()
        assert agent.wait(10) == 0
        fresh.hang_up()


# --- virtio-serial


def test_a_port_without_host_is_waited_out_without_polling(line: Line, tmp_path: Path) -> None:
    with running(qga("virtio-serial", tmp_path)) as agent:
        assert line.ask("guest-sync", id=1) == 1
        line.hang_up()  # from now on the agent reads end of file
        time.sleep(0.3)
        before = wake_ups(agent.pid)
        time.sleep(2)
        assert wake_ups(agent.pid) - before <= 3
        assert agent.poll() is None
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(10) == 0


def test_an_idle_port_is_not_polled(line: Line, tmp_path: Path) -> None:
    with running(qga("virtio-serial", tmp_path)) as agent:
        assert line.ask("guest-sync", id=1) == 1
        before = wake_ups(agent.pid)
        time.sleep(1)
        assert wake_ups(agent.pid) - before <= 2


# --- stdio


def stdio(directory: Path, **options: Any) -> subprocess.CompletedProcess[bytes]:
    argv = [*QGA, "-m", "stdio", "-t", str(directory)]
    return subprocess.run(argv, capture_output=True, timeout=30, check=False, **options)


def requests_of_all_kinds(directory: Path) -> bytes:
    """Opens a file of a MiB and reads it, in a fresh state directory, among small requests."""
    (directory / "file").write_bytes(bytes(MIB))
    return b"".join(
        [
            PING * 500,
            request("guest-file-open", path=str(directory / "file")),
            request("guest-file-read", handle=1000, count=MIB),
            request("guest-exec", path="/nonexistent/x"),
            b"\xff",
            request("guest-sync-delimited", id=5),
        ]
    )


def check_replies(output: bytes) -> None:
    lines = output.splitlines(keepends=True)
    assert lines[:500] == [PONG] * 500
    opened, block, failed, stray, sync = lines[500:]
    assert opened == b'{"return":1000}\n'
    assert data_of(json.loads(block)["return"]) == bytes(MIB)
    assert b"error" in failed
    assert b"stray" in stray
    assert sync == b'\xff{"return":5}\n'


def test_requests_and_replies_through_pipes(tmp_path: Path) -> None:
    done = stdio(tmp_path, input=requests_of_all_kinds(tmp_path))
    assert (done.returncode, done.stderr) == (0, b"")
    check_replies(done.stdout)


def test_requests_and_replies_through_files(tmp_path: Path) -> None:
    (tmp_path / "requests").write_bytes(requests_of_all_kinds(tmp_path))
    argv = [*QGA, "-m", "stdio", "-t", str(tmp_path)]
    with (tmp_path / "requests").open("rb") as source, (tmp_path / "replies").open("wb") as target:
        done = subprocess.run(argv, stdin=source, stdout=target, stderr=subprocess.PIPE, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    check_replies((tmp_path / "replies").read_bytes())


def test_no_requests_at_all(tmp_path: Path) -> None:
    done = stdio(tmp_path, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_conversation_through_pipes(tmp_path: Path) -> None:
    argv = [*QGA, "-m", "stdio", "-t", str(tmp_path)]
    with running(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as agent:
        assert agent.stdin
        assert agent.stdout
        for number in range(20):
            agent.stdin.write(request("guest-sync", id=number))
            agent.stdin.flush()
            assert json.loads(agent.stdout.readline()) == {"return": number}
        agent.stdin.close()
        assert agent.wait(10) == 0


def test_a_reader_that_goes_away_ends_the_agent(tmp_path: Path) -> None:
    argv = [*QGA, "-m", "stdio", "-t", str(tmp_path)]
    with running(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as agent:
        assert agent.stdin
        assert agent.stdout
        agent.stdout.close()
        agent.stdin.write(PING)
        agent.stdin.flush()
        assert agent.wait(10) == 0


def test_pipes_are_left_as_they_were(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    try:
        with running([*QGA, "-m", "stdio", "-t", str(tmp_path)], stdin=read_end, stdout=subprocess.DEVNULL) as agent:
            eventually(lambda: not os.get_blocking(read_end))
            os.close(write_end)
            assert agent.wait(10) == 0
        assert os.get_blocking(read_end)
    finally:
        os.close(read_end)
