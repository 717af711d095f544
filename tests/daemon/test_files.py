# SPDX-License-Identifier: Apache-2.0
"""guest-file-* on all kinds of files; what qemu-ga does likewise is compared in tests/compat."""

from __future__ import annotations

import base64
import ctypes
import fcntl
import json
import mmap
import os
import pty
import re
import signal
import socket
import subprocess
import time
import tty
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.agents import QGA, AgentProcess, Client
from tests.daemon.observe import MIB, READ_MAX, b64, data_of, descriptors, eventually, request

EMPTY = "failed to read file: Resource temporarily unavailable"


def opened(client: Client, path: Path | str, mode: str = "r") -> int:
    handle = client.ok("guest-file-open", path=str(path), mode=mode)
    assert isinstance(handle, int)
    return handle


def read(client: Client, handle: int, count: int = READ_MAX) -> tuple[bytes, bool]:
    reply = client.ok("guest-file-read", handle=handle, count=count)
    return data_of(reply), reply["eof"]


def write(client: Client, handle: int, data: bytes) -> int:
    count = client.ok("guest-file-write", handle=handle, buf_b64=b64(data))["count"]
    assert isinstance(count, int)
    return count


@contextmanager
def umask(mask: int) -> Iterator[None]:
    former = os.umask(mask)
    try:
        yield
    finally:
        os.umask(former)


# --- regular files


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4096, 98303, 98304, 98305, 196608, 1_000_003, READ_MAX])
def test_a_file_is_read_whole(client: Client, tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    handle = opened(client, tmp_path / "file")
    assert read(client, handle) == (content, size < READ_MAX)
    assert read(client, handle, 1) == (b"", True)


def test_a_file_is_read_in_uneven_pieces(client: Client, tmp_path: Path) -> None:
    content = os.urandom(3 * MIB)
    (tmp_path / "file").write_bytes(content)
    handle = opened(client, tmp_path / "file")
    pieces = []
    for count in [1, 98304, 98303, 5, 65536, 1_000_000, READ_MAX]:
        piece, eof = read(client, handle, count)
        pieces.append(piece)
        assert eof == (count == READ_MAX)
    assert b"".join(pieces) == content


@pytest.mark.parametrize("size", [1, 24574, 24575, 24576, 98304, 98305, 1_000_003, 45 * MIB])
def test_a_file_is_written_whole(client: Client, tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    handle = opened(client, tmp_path / "file", "w")
    assert write(client, handle, content) == size
    assert (tmp_path / "file").read_bytes() == content, "the bytes have to be there when the write is answered"


def test_base64_in_lines_is_written(client: Client, tmp_path: Path) -> None:
    content = os.urandom(2 * MIB + 1)
    handle = opened(client, tmp_path / "file", "w")
    lines = base64.encodebytes(content).decode()
    assert client.ok("guest-file-write", handle=handle, buf_b64=lines) == {"count": len(content), "eof": False}
    assert (tmp_path / "file").read_bytes() == content


def test_base64_with_escaped_slashes_is_written(client: Client, tmp_path: Path) -> None:
    content = b"\xff" * MIB + os.urandom(MIB)
    text = json.dumps(b64(content)).replace("/", "\\/")
    handle = opened(client, tmp_path / "file", "w")
    reply = client.raw(
        b'{"execute":"guest-file-write","arguments":{"handle":%d,"buf-b64":%s}}' % (handle, text.encode())
    )
    assert reply["return"]["count"] == len(content)
    assert (tmp_path / "file").read_bytes() == content


@pytest.mark.parametrize(("tail", "text"), [("@", "contains invalid characters"), ("Y", "is not valid")])
@pytest.mark.parametrize("size", [3, 5 * MIB])
def test_bad_base64_writes_nothing(client: Client, tmp_path: Path, size: int, tail: str, text: str) -> None:
    handle = opened(client, tmp_path / "file", "w")
    assert client.error("guest-file-write", handle=handle, buf_b64=b64(bytes(size)) + tail) == f"Base64 data {text}"
    assert (tmp_path / "file").stat().st_size == 0
    assert write(client, handle, b"good") == 4


@pytest.mark.parametrize("text", ["YQ", "Y", "=", "==", "YQ=", "YQ==YQ==", "YWJj=", "YQ==\nYQ==", "YW=j", "=YWJ"])
def test_wrong_padding_writes_nothing(client: Client, tmp_path: Path, text: str) -> None:
    handle = opened(client, tmp_path / "file", "w")
    assert client.error("guest-file-write", handle=handle, buf_b64=text) == "Base64 data is not valid"
    assert (tmp_path / "file").stat().st_size == 0


def test_a_write_of_less_than_was_sent(client: Client, tmp_path: Path) -> None:
    handle = opened(client, tmp_path / "file", "w")
    content = os.urandom(MIB)
    assert client.ok("guest-file-write", handle=handle, buf_b64=b64(content), count=1000)["count"] == 1000
    assert (tmp_path / "file").read_bytes() == content[:1000]


def test_a_file_past_4_gib(client: Client, tmp_path: Path) -> None:
    far = 5 << 30
    handle = opened(client, tmp_path / "file", "w+")
    assert client.ok("guest-file-seek", handle=handle, offset=far, whence="set")["position"] == far
    assert write(client, handle, b"far away") == 8
    assert client.ok("guest-file-seek", handle=handle, offset=-9, whence="end")["position"] == far - 1
    assert read(client, handle, 100) == (b"\0far away", True)
    os.unlink(tmp_path / "file")


def test_a_hole_is_read_as_zeros(client: Client, tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.truncate(4 * MIB)
    assert read(client, opened(client, tmp_path / "file")) == (bytes(4 * MIB), True)


def test_a_file_that_shrinks_while_it_is_sent(client: Client, tmp_path: Path) -> None:
    content = os.urandom(READ_MAX)
    (tmp_path / "file").write_bytes(content)
    handle = opened(client, tmp_path / "file")
    client.send(request("guest-file-read", handle=handle, count=READ_MAX))
    time.sleep(0.1)
    os.truncate(tmp_path / "file", 20 * MIB)
    reply = json.loads(client.recv_line())["return"]
    assert reply["eof"]
    assert data_of(reply) == content[: 20 * MIB]
    assert read(client, handle, 1) == (b"", True)


def test_a_file_that_grows_has_no_end_yet(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    handle = opened(client, path)
    assert read(client, handle, 100) == (b"one", True)
    with path.open("ab") as file:
        file.write(b"two")
    assert read(client, handle, 3) == (b"two", False)


@pytest.mark.parametrize("mode", ["a", "a+"])
def test_appends_go_to_the_end_of_what_others_wrote(client: Client, tmp_path: Path, mode: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"start ")
    handle = opened(client, path, mode)
    with path.open("ab") as file:
        file.write(b"other ")
    client.ok("guest-file-seek", handle=handle, offset=0, whence="set")
    assert write(client, handle, b"ours") == 4
    assert path.read_bytes() == b"start other ours"


def test_a_deleted_file_stays_usable(client: Client, tmp_path: Path) -> None:
    handle = opened(client, tmp_path / "file", "w+")
    os.unlink(tmp_path / "file")
    assert write(client, handle, b"content") == 7
    client.ok("guest-file-seek", handle=handle, offset=0, whence=0)
    assert read(client, handle) == (b"content", True)


# --- permissions of new files


@pytest.mark.parametrize("mode", ["w", "a", "w+", "a+"])
def test_new_files_can_be_read_and_written_by_all(tmp_path: Path, mode: str) -> None:
    with umask(0o077), AgentProcess(QGA, tmp_path) as agent, agent.connect() as client:
        (tmp_path / "old").touch(mode=0o640)
        opened(client, tmp_path / "new", mode)
        opened(client, tmp_path / "old", mode)
    assert (tmp_path / "new").stat().st_mode & 0o7777 == 0o666
    assert (tmp_path / "old").stat().st_mode & 0o7777 == 0o600


def test_the_mode_of_new_files_can_be_configured(tmp_path: Path) -> None:
    (tmp_path / "qemu-ga.conf").write_text("[general]\nnew-file-mode=0640\n")
    with umask(0), AgentProcess(QGA, tmp_path) as agent, agent.connect() as client:
        opened(client, tmp_path / "new", "w")
    assert (tmp_path / "new").stat().st_mode & 0o7777 == 0o640


# --- devices and pipes


def test_zeros_without_end(client: Client) -> None:
    assert read(client, opened(client, "/dev/zero")) == (bytes(READ_MAX), False)


@contextmanager
def memory_that_ends_badly(path: Path, size: int) -> Iterator[int]:
    """Yields the address of `size` bytes "A", behind which /proc/PID/mem fails as a bad disk does."""
    path.write_bytes(b"A" * 2 * size)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as area:
        first = ctypes.c_char.from_buffer(area)
        file.truncate(size)
        yield ctypes.addressof(first)
        del first


@pytest.mark.parametrize(("size", "count"), [(1000, 4096), (400_000, 480_000)])
def test_a_medium_that_fails_after_some_bytes(client: Client, tmp_path: Path, size: int, count: int) -> None:
    with memory_that_ends_badly(tmp_path / "mapped", MIB) as start:
        handle = opened(client, f"/proc/{os.getpid()}/mem")
        client.ok("guest-file-seek", handle=handle, offset=start + MIB - size, whence="set")
        assert read(client, handle, count) == (b"A" * size, False)
        assert client.error("guest-file-read", handle=handle) == "failed to read file: Input/output error"
        client.ok("guest-file-close", handle=handle)


def test_a_full_device_refuses_the_write(client: Client) -> None:
    handle = opened(client, "/dev/full", "w")
    text = client.error("guest-file-write", handle=handle, buf_b64=b64(b"x"))
    assert text == "failed to write to file: No space left on device"
    client.ok("guest-file-flush", handle=handle)
    client.ok("guest-file-close", handle=handle)


@pytest.mark.parametrize("path", ["/proc/kallsyms", "/proc/self/smaps", "/proc/cpuinfo", "/proc/self/mountinfo"])
def test_files_of_proc_are_read_to_their_end(client: Client, path: str) -> None:
    data, eof = read(client, opened(client, path))
    assert eof
    assert data
    if path == "/proc/kallsyms":
        assert data == Path(path).read_bytes()


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


def test_a_pipe_gives_what_is_there(client: Client, fifo: Path) -> None:
    handle = opened(client, fifo)
    assert read(client, handle, 5) == (b"", True)
    with fifo.open("wb", buffering=0) as writer:
        assert client.error("guest-file-read", handle=handle, count=5) == EMPTY
        writer.write(b"12345678")
        assert read(client, handle, 5) == (b"12345", False)
        assert read(client, handle, 5) == (b"678", False)
        assert client.error("guest-file-read", handle=handle, count=5) == EMPTY
        assert read(client, handle, 0) == (b"", False)
        writer.write(b"9")
        assert read(client, handle) == (b"9", False)
        writer.write(b"end")
    assert read(client, handle, 5) == (b"end", True)
    assert read(client, handle, 5) == (b"", True)


def test_a_pipe_gives_what_is_there_beyond_one_block(client: Client, fifo: Path) -> None:
    content = os.urandom(300_000)
    handle = opened(client, fifo)
    with fifo.open("wb", buffering=0) as writer:
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, MIB)
        writer.write(content)
        assert read(client, handle) == (content, False)
        assert client.error("guest-file-read", handle=handle) == EMPTY


def test_a_full_pipe_refuses_the_write(client: Client, fifo: Path) -> None:
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        handle = opened(client, fifo, "w")
        assert write(client, handle, bytes(65536)) == 65536
        text = client.error("guest-file-write", handle=handle, buf_b64=b64(b"x"))
        assert text == "failed to write to file: Resource temporarily unavailable"
        assert len(os.read(reader, 100_000)) == 65536
        assert write(client, handle, b"again") == 5
    finally:
        os.close(reader)


def test_a_pipe_whose_reader_is_gone(client: Client, fifo: Path) -> None:
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    handle = opened(client, fifo, "w")
    os.close(reader)
    text = client.error("guest-file-write", handle=handle, buf_b64=b64(b"x"))
    assert text == "failed to write to file: Broken pipe"


def test_a_terminal_gives_what_was_typed(client: Client, shared: AgentProcess) -> None:
    keyboard, terminal = pty.openpty()
    try:
        tty.setraw(terminal)
        handle = opened(client, os.ttyname(terminal), "r+")
        assert client.error("guest-file-read", handle=handle, count=100) == EMPTY
        os.write(keyboard, b"typed")
        assert read(client, handle, 100) == (b"typed", False)
        assert write(client, handle, b"shown") == 5
        assert os.read(keyboard, 100) == b"shown"
        fields = Path(f"/proc/{shared.pid}/stat").read_text().rpartition(")")[2].split()
        own = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        assert fields[4] == own[4], "the terminal must not become the agent's own"
    finally:
        os.close(keyboard)
        os.close(terminal)


def test_a_socket_does_not_open(client: Client, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        text = client.error("guest-file-open", path=str(tmp_path / "socket"))
    assert text == f"failed to open file '{tmp_path}/socket' (mode: 'r'): No such device or address"


# --- disks that are full


@pytest.mark.root
def test_a_disk_that_fills_up(client: Client, tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], check=True)
    try:
        path = tmp_path / "file"
        handle = opened(client, path, "w")
        text = client.error("guest-file-write", handle=handle, buf_b64=b64(b"x" * (4 * MIB)))
        assert text == "failed to write to file: No space left on device"
        assert path.read_bytes() == b"x" * MIB, "what there was room for is there"
        client.ok("guest-file-flush", handle=handle)
        assert client.ok("guest-file-seek", handle=handle, offset=0, whence="set")["position"] == 0
        assert write(client, handle, b"y") == 1
        assert "return" in client.call("guest-file-close", handle=handle)
        text = client.error("guest-file-close", handle=handle)
        assert text == f"handle '{handle}' has not been found"
    finally:
        subprocess.run(["umount", tmp_path], check=True)


# --- handles


def test_handles_outlive_connections(shared: AgentProcess, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    with shared.connect() as first:
        handle = opened(first, tmp_path / "file")
        assert read(first, handle, 3) == (b"con", False)
    with shared.connect() as second:
        assert read(second, handle, 100) == (b"tent", True)
        second.ok("guest-file-close", handle=handle)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_handle_numbers_are_never_used_again(tmp_path: Path, how: signal.Signals) -> None:
    numbers = []
    for _ in range(3):
        with AgentProcess(QGA, tmp_path) as agent, agent.connect() as client:
            numbers += [opened(client, "/dev/null") for _ in range(3)]
            client.ok("guest-file-close", handle=numbers[-1])
            numbers.append(opened(client, "/dev/null"))
            agent.process.send_signal(how)
            agent.process.wait()
    assert numbers[0] == 1000
    assert numbers == sorted(set(numbers))


def test_handle_numbers_are_recorded_before_they_are_given_out(tmp_path: Path) -> None:
    with AgentProcess(QGA, tmp_path) as agent, agent.connect() as client:
        for _ in range(2100):
            handle = opened(client, "/dev/null")
            client.ok("guest-file-close", handle=handle)
            if handle % 512 == 0:
                assert recorded(tmp_path) > handle
    assert recorded(tmp_path) > handle


def recorded(directory: Path) -> int:
    found = re.fullmatch(r"\[global\]\nfd_counter=(\d+)\n", (directory / "state/qga.state").read_text())
    assert found
    return int(found[1])


def test_a_state_directory_that_vanishes(tmp_path: Path) -> None:
    with AgentProcess(QGA, tmp_path) as agent, agent.connect() as client:
        assert opened(client, "/dev/null") == 1000
        for path in (tmp_path / "state").iterdir():
            path.unlink()
        (tmp_path / "state").rmdir()
        before = descriptors(agent.pid)
        replies = []
        for _ in range(1100):
            replies.append(client.call("guest-file-open", path="/dev/zero"))
            if "return" in replies[-1]:  # not to meet the limit on descriptors
                client.ok("guest-file-close", handle=replies[-1]["return"])
        refused = [reply["error"]["desc"] for reply in replies if "error" in reply]
        assert set(refused) == {"failed to commit persistent state to disk"}
        given = [reply["return"] for reply in replies if "return" in reply]
        assert given == list(range(1001, 1001 + len(given)))
        assert len(descriptors(agent.pid)) == len(before)
        (tmp_path / "state").mkdir()
        assert opened(client, "/dev/null") > given[-1]


@pytest.mark.parametrize("state", ["missing", "file/state"])
def test_an_unusable_state_directory_is_told_at_the_start(tmp_path: Path, state: str) -> None:
    (tmp_path / "file").touch()
    argv = [*QGA, "-m", "unix-listen", "-p", str(tmp_path / "agent.sock"), "-t", str(tmp_path / state)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20)
    assert done.returncode == 1
    assert str(tmp_path / state) in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "agent.sock").exists()


def test_a_closed_handle_is_gone_and_its_descriptor_too(client: Client, shared: AgentProcess, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    handle = opened(client, tmp_path / "file")
    assert str(tmp_path / "file") in descriptors(shared.pid).values()
    client.ok("guest-file-close", handle=handle)
    assert str(tmp_path / "file") not in descriptors(shared.pid).values()
    assert client.error("guest-file-read", handle=handle) == f"handle '{handle}' has not been found"


def test_opens_that_fail_leave_no_descriptor(agent: AgentProcess, own_client: Client, tmp_path: Path) -> None:
    before = descriptors(agent.pid)
    for path, mode in [
        ("/nonexistent/x", "r"),
        ("/tmp", "w"),
        (str(tmp_path / "file" / "x"), "w"),
        ("/dev/null", "?"),
    ]:
        own_client.error("guest-file-open", path=path, mode=mode)
    assert descriptors(agent.pid) == before


# --- several clients


def test_two_clients_share_one_handle_without_losing_a_byte(shared: AgentProcess, tmp_path: Path) -> None:
    numbers = b"".join(number.to_bytes(4, "big") for number in range(1_000_000))
    (tmp_path / "file").write_bytes(numbers)
    with shared.connect() as first, shared.connect() as second:
        handle = opened(first, tmp_path / "file")
        ask = request("guest-file-read", handle=handle, count=40_000)

        def read_blocks(client: Client) -> list[bytes]:
            client.send(ask * 60)
            replies = [json.loads(client.recv_line())["return"] for _ in range(60)]
            return [data_of(reply) for reply in replies if reply["count"]]

        with ThreadPoolExecutor() as pool:
            blocks = [block for part in pool.map(read_blocks, (first, second)) for block in part]
    assert len(blocks) == 100
    assert b"".join(sorted(blocks)) == numbers


def test_a_handle_in_use_is_waited_for(shared: AgentProcess, tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.truncate(READ_MAX)
    with shared.connect() as first, shared.connect() as second:
        handle = opened(first, tmp_path / "file")
        first.send(request("guest-file-read", handle=handle, count=READ_MAX))
        time.sleep(0.1)
        second.send(request("guest-file-seek", handle=handle, offset=0, whence="cur"))
        second.sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            second.sock.recv(1, socket.MSG_PEEK)
        second.sock.settimeout(20)
        assert json.loads(first.recv_line())["return"]["count"] == READ_MAX
        assert json.loads(second.recv_line())["return"]["position"] == READ_MAX
        second.ok("guest-file-close", handle=handle)


def test_a_handle_is_free_again_when_its_reader_vanishes(shared: AgentProcess, tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.truncate(READ_MAX)
    with shared.connect() as second:
        with shared.connect() as first:
            handle = opened(first, tmp_path / "file")
            first.send(request("guest-file-read", handle=handle, count=READ_MAX))
            time.sleep(0.1)
        position = second.ok("guest-file-seek", handle=handle, offset=0, whence="cur")["position"]
        assert 0 < position < READ_MAX
        second.ok("guest-file-close", handle=handle)


def test_closing_while_others_wait_for_the_handle(shared: AgentProcess, tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.truncate(READ_MAX)
    reader, closer, waiter = (shared.connect() for _ in range(3))
    with reader, closer, waiter:
        handle = opened(reader, tmp_path / "file")
        reader.send(request("guest-file-read", handle=handle, count=READ_MAX))
        time.sleep(0.1)
        closer.send(request("guest-file-close", handle=handle))
        time.sleep(0.05)
        waiter.send(request("guest-file-read", handle=handle, count=1))
        waiter.send(request("guest-file-seek", handle=handle, offset=0, whence=0))
        assert json.loads(reader.recv_line())["return"]["count"] == READ_MAX
        assert json.loads(closer.recv_line()) == {"return": {}}
        texts = [json.loads(waiter.recv_line())["error"]["desc"] for _ in range(2)]
        assert texts == ["failed to read file: Bad file descriptor", f"handle '{handle}' has not been found"]
    eventually(lambda: str(tmp_path / "file") not in descriptors(shared.pid).values())
