# SPDX-License-Identifier: Apache-2.0
"""Listening sockets: their files, their modes, and those that systemd hands over."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.agents import QGA, AgentProcess, Client
from tests.daemon.observe import connected, eventually, run, running


def fails(*options: str, timeout: float = 20, **popen: Any) -> str:
    """Start an agent that cannot; what it says on standard error."""
    done = subprocess.run([*QGA, *options], capture_output=True, text=True, timeout=timeout, check=False, **popen)
    assert done.returncode == 1, done
    assert "Traceback" not in done.stderr
    return done.stderr.removesuffix("\n")


def wait_for(agent: AgentProcess) -> None:
    """Wait until the agent serves, which includes that it obeys signals."""
    with agent.connect() as client:
        client.ok("guest-ping")


def refused(directory: Path, path: Path) -> str:
    """What an agent says that cannot listen at `path`."""
    return fails("-m", "unix-listen", "-p", str(path), "-t", str(directory))


# --- unix-listen


def test_the_socket_is_for_its_owner_only_and_goes_with_the_agent(tmp_path: Path) -> None:
    former = os.umask(0)
    try:
        with AgentProcess(QGA, tmp_path) as agent:
            wait_for(agent)
            assert stat.S_IMODE(agent.path.stat().st_mode) == 0o600
            assert agent.stop() == 0
            assert not agent.path.exists()
    finally:
        os.umask(former)


def test_the_mode_of_the_socket_can_be_configured(tmp_path: Path) -> None:
    (tmp_path / "qemu-ga.conf").write_text("[general]\nsocket-mode=0660\n")
    former = os.umask(0o077)
    try:
        with AgentProcess(QGA, tmp_path) as agent:
            wait_for(agent)
            assert stat.S_IMODE(agent.path.stat().st_mode) == 0o660
    finally:
        os.umask(former)


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    with AgentProcess(QGA, tmp_path) as agent:
        wait_for(agent)
        agent.process.kill()
        agent.process.wait()
        assert agent.path.exists()
    with AgentProcess(QGA, tmp_path) as agent, agent.connect() as client:
        client.ok("guest-ping")


def test_a_socket_that_answers_is_left_alone(agent: AgentProcess, own_client: Client, tmp_path: Path) -> None:
    assert refused(tmp_path, agent.path) == f"Failed to bind socket to {agent.path}: Address already in use"
    own_client.ok("guest-ping")
    with agent.connect() as another:
        another.ok("guest-ping")


def test_a_socket_whose_queue_is_full_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener, ExitStack() as stack:
        listener.bind(str(path))
        listener.listen(0)
        while True:
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            try:
                client.connect(str(path))
            except BlockingIOError:
                break
        assert refused(tmp_path, path) == f"Failed to bind socket to {path}: Address already in use"
        assert path.is_socket()


@pytest.mark.parametrize("kind", ["file", "directory", "link to a socket", "dangling link", "fifo"])
def test_any_other_file_is_left_alone(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "socket"
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("target")
    with socket.socket(socket.AF_UNIX) as former:
        if kind == "link to a socket":
            former.bind(str(tmp_path / "target"))
        before = path.lstat()
        assert refused(tmp_path, path) == f"{path} exists and is not a socket"
        after = path.lstat()
    assert (before.st_ino, before.st_mode, before.st_size) == (after.st_ino, after.st_mode, after.st_size)


def test_a_socket_of_somebody_else_is_not_removed_at_the_end(tmp_path: Path) -> None:
    with AgentProcess(QGA, tmp_path) as agent, socket.socket(socket.AF_UNIX) as other:
        wait_for(agent)
        agent.path.unlink()
        other.bind(str(agent.path))
        assert agent.stop() == 0
        assert agent.path.is_socket()


def test_a_socket_that_was_removed_does_not_matter_at_the_end(tmp_path: Path) -> None:
    with AgentProcess(QGA, tmp_path) as agent:
        wait_for(agent)
        agent.path.unlink()
        assert agent.stop() == 0
    assert agent.log.read_text() == ""


def test_where_no_socket_can_be_made(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "socket"
    assert refused(tmp_path, path) == f"Failed to bind socket to {path}: No such file or directory"
    path = tmp_path / ("x" * 108)
    assert refused(tmp_path, path) == f"UNIX socket path '{path}' is too long"


def test_a_relative_socket_is_removed_too(tmp_path: Path) -> None:
    argv = [*QGA, "-m", "unix-listen", "-p", "socket", "-t", str(tmp_path)]
    with running(argv, cwd=tmp_path) as agent:
        with connected(tmp_path / "socket"):
            pass
        agent.terminate()
        assert agent.wait(10) == 0
    assert not (tmp_path / "socket").exists()


# --- systemd's socket activation

ACTIVATE = """
import os, sys
pid, count, fd, *argv = sys.argv[1:]
os.environ.update(LISTEN_PID=str(os.getpid()) if pid == "own" else pid, LISTEN_FDS=count, LISTEN_FDNAMES="x")
if int(fd) != 3:
    os.dup2(int(fd), 3)
    os.close(int(fd))
os.set_inheritable(3, True)
os.execv(argv[0], argv)
"""


def activating(*argv: str, fd: int, pid: str = "own", count: str = "1") -> list[str]:
    """The command line of `argv` with descriptor `fd` passed as systemd does it."""
    return [sys.executable, "-c", ACTIVATE, pid, count, str(fd), *argv]


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(5)
        yield listener


def test_a_socket_of_systemd_is_served_and_left_to_it(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with listening(path) as listener:
        qga = [*QGA, "-m", "virtio-serial", "-p", "/nonexistent", "-t", str(tmp_path)]
        argv = activating(*qga, fd=listener.fileno())
        with running(argv, pass_fds=[listener.fileno()]) as agent, connected(path) as client, connected(path):
            env = run(client, "env", capture_output=True)["out-data"].decode()
            assert "LISTEN_" not in env
            links = run(client, "/bin/sh", "-c", "echo /proc/self/fd/*", capture_output=True)["out-data"].split()
            assert len(links) == 4, "the socket is not handed on to programs"
            agent.terminate()
            assert agent.wait(10) == 0
        assert path.is_socket()


def activation_fails(tmp_path: Path, fd: int, **passed: str) -> str:
    argv = activating(*QGA, "-m", "unix-listen", "-p", str(tmp_path / "own.sock"), "-t", str(tmp_path), fd=fd, **passed)
    done = subprocess.run(argv, pass_fds=[fd], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1
    assert not (tmp_path / "own.sock").exists()
    return done.stderr.removesuffix("\n")


def test_only_one_socket_can_be_passed(tmp_path: Path) -> None:
    with listening(tmp_path / "passed.sock") as listener:
        text = activation_fails(tmp_path, listener.fileno(), count="2")
    assert text == "qga only supports listening on one socket"


def test_a_socket_of_another_family_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert activation_fails(tmp_path, listener.fileno()) == "unsupported listen fd type"


def test_a_socket_that_does_not_listen_is_refused(tmp_path: Path) -> None:
    one, other = socket.socketpair()
    with one, other:
        assert activation_fails(tmp_path, one.fileno()) == "the socket that was passed does not listen"


def test_what_is_no_socket_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        assert "invalid file descriptor fd = 3" in activation_fails(tmp_path, file.fileno())


def test_a_socket_meant_for_another_process_is_not_taken(tmp_path: Path) -> None:
    with listening(tmp_path / "passed.sock") as listener:
        qga = [*QGA, "-m", "unix-listen", "-p", str(tmp_path / "own.sock"), "-t", str(tmp_path)]
        argv = activating(*qga, fd=listener.fileno(), pid="1")
        with running(argv, pass_fds=[listener.fileno()]) as agent:
            with connected(tmp_path / "own.sock"):
                pass
            agent.terminate()
            assert agent.wait(10) == 0


# --- vsock-listen


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("", "must specify a path for this channel"),
        ("1234", "error parsing address '1234'"),
        (":1", "error parsing address ':1'"),
        ("1:", "error parsing address '1:'"),
        ("x:1", "Failed to parse cid 'x'"),
        ("4294967296:1", "Failed to parse cid '4294967296'"),
        ("-2:1", "Failed to parse cid '-2'"),
        ("1:x", "Failed to parse port 'x'"),
        ("1:4294967296", "Failed to parse port '4294967296'"),
        ("1:2:3", "Failed to parse port '2:3'"),
        ("1:2,x", "trailing characters in address '1:2,x'"),
    ],
)
def test_vsock_addresses_that_are_none(tmp_path: Path, address: str, text: str) -> None:
    assert fails("-m", "vsock-listen", "-p", address, "-t", str(tmp_path)) == text


def test_a_vsock_address_of_another_machine(tmp_path: Path) -> None:
    if not hasattr(socket, "AF_VSOCK") or not Path("/dev/vsock").exists():
        pytest.skip("this kernel has no vsock")
    text = fails("-m", "vsock-listen", "-p", "77777:1024", "-t", str(tmp_path))
    assert text == "Failed to bind socket to 77777:1024: Cannot assign requested address"


VSOCK_LOCAL = 1
"""The context id of the loopback transport (linux/vm_sockets.h, VMADDR_CID_LOCAL)."""


@pytest.fixture
def vsock_port() -> int:
    """A free port of the loopback transport."""
    try:
        with socket.socket(socket.AF_VSOCK) as probe:
            probe.bind((VSOCK_LOCAL, socket.VMADDR_PORT_ANY))
            port = probe.getsockname()[1]
    except OSError as exc:
        pytest.skip(f"this kernel has no vsock loopback transport ({exc})")
    assert isinstance(port, int)
    return port


@pytest.mark.parametrize(("peers", "welcome"), [("any", True), ("1", True), ("2", False), (None, False)])
def test_vsock_clients_are_chosen_by_context_id(tmp_path: Path, vsock_port: int, peers: str, welcome: bool) -> None:
    config = tmp_path / "config"
    config.write_text(f"[general]\nvsock-peers={peers}\n" if peers else "")
    argv = [*QGA, "-c", str(config), "-m", "vsock-listen", "-p", f"{VSOCK_LOCAL}:{vsock_port}", "-t", str(tmp_path)]
    with running(argv) as agent, socket.socket(socket.AF_VSOCK) as client:
        client.settimeout(10)
        eventually(lambda: client.connect_ex((VSOCK_LOCAL, vsock_port)) == 0)
        client.send(b'{"execute":"guest-ping"}')
        try:
            assert client.recv(100) == (b'{"return":{}}\n' if welcome else b"")
        except ConnectionResetError:
            assert not welcome
        agent.terminate()
        assert agent.wait(10) == 0
