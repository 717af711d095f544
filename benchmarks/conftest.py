# SPDX-License-Identifier: Apache-2.0
"""The contestants as processes, and what the result file says about cases that were not measured."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.agents import NO_QEMU_GA, QEMU_GA, AgentProcess, Client
from tests.agents import QGA as QGA_ARGV

from .cases import QEMU_GA as QEMU_GA_NAME
from .cases import QGA
from .contest import Contest

SIZE = 48 << 20
SIZE_QUICK = 8 << 20
SEND_BUFFER = 1 << 20
"""Bytes that a client may have under way: with the default it is what limits a write."""


class Source(NamedTuple):
    """A file of 48 MiB, or 8 when benchmarks are disabled, and what is in it; no test moves more than that at once."""

    path: Path
    data: bytes


SKIPPED = pytest.StashKey[dict[str, str]]()


def pytest_configure(config: pytest.Config) -> None:
    """Register what the suite uses."""
    config.addinivalue_line("markers", "case(name): the case that a benchmark measures")
    config.stash[SKIPPED] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Remember why a case was skipped."""
    report = yield
    if report.skipped:
        reason = report.longrepr[2].removeprefix("Skipped: ")
        item.config.stash[SKIPPED].update((str(mark.args[0]), reason) for mark in item.iter_markers("case"))
    return report


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """Tell the guard which cases were skipped, and why."""
    output_json["skipped"] = config.stash[SKIPPED]


@pytest.fixture
def contest(request: pytest.FixtureRequest, benchmark: Any) -> Contest:
    """The contest for the case that the test is marked with."""
    mark = request.node.get_closest_marker("case")
    return Contest(benchmark, mark.args[0])


@pytest.fixture(scope="session")
def source(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    """A file to read. No newline is in it, since the floor ends its answers with one."""
    data = os.urandom(SIZE_QUICK if pytestconfig.getoption("benchmark_disable") else SIZE).replace(b"\n", b"\v")
    path = tmp_path_factory.mktemp("source") / "data"
    path.write_bytes(data)
    yield Source(path, data)
    path.unlink()


Start = Callable[..., AgentProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts agents: `start(name, *options)`; each gets a directory of its own, and is ended after the test."""
    count = 0
    with ExitStack() as stack:

        def start_agent(name: str, *options: str) -> AgentProcess:
            nonlocal count
            count += 1
            directory = tmp_path / f"{name}-{count}"
            directory.mkdir()
            return stack.enter_context(AgentProcess(_argv(name), directory, *options))

        yield start_agent


def _argv(name: str) -> list[str]:
    if name == QGA:
        return QGA_ARGV
    if QEMU_GA is None:
        # There CI would stay green without having compared anything.
        (pytest.fail if os.environ.get("CI") else pytest.skip)(NO_QEMU_GA)
    return [QEMU_GA]


@pytest.fixture
def qga(start: Start) -> AgentProcess:
    """The agent that all this is about."""
    return start(QGA)


@pytest.fixture
def agents(start: Start) -> dict[str, AgentProcess]:
    """Both agents, in the order of their turns."""
    return {name: start(name) for name in (QEMU_GA_NAME, QGA)}


class Server(NamedTuple):
    """A running program that is no agent; it can be measured like one."""

    pid: int
    path: Path

    def connect(self) -> Client:
        """A connection to it."""
        return Client(self.path)


@contextmanager
def serving(path: Path, argv: list[str]) -> Iterator[Server]:
    """Run a program that will listen at `path`; it is ended when the context is left."""
    process = subprocess.Popen(argv)
    try:
        wait_for(process, path)
        yield Server(process.pid, path)
    finally:
        process.terminate()
        process.wait()


def wait_for(process: subprocess.Popen[bytes], path: Path) -> None:
    """Wait until a server takes connections."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return Client(path).close()
        except (FileNotFoundError, ConnectionRefusedError):
            assert process.poll() is None, f"{process.args!r} did not start"
            assert time.monotonic() < deadline, f"{process.args!r} does not listen"
            time.sleep(0.002)


@pytest.fixture(scope="session")
def floor_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """floor.c, compiled."""
    program = tmp_path_factory.mktemp("floor") / "floor"
    text = Path(__file__).with_name("floor.c")
    compiler = shlex.split(os.environ.get("CC", "cc"))
    subprocess.run([*compiler, "-O2", "-Wall", "-Wextra", "-Werror", "-o", program, text], check=True)
    return program


@pytest.fixture
def floor(floor_program: Path, source: Source, tmp_path: Path) -> Iterator[Server]:
    """The floor of a read, serving the source file."""
    path = tmp_path / "floor.sock"
    with serving(path, [str(floor_program), str(path), str(source.path)]) as server:
        yield server


@pytest.fixture
def bare_ping(tmp_path: Path) -> Iterator[Server]:
    """The floor of a ping."""
    path = tmp_path / "ping.sock"
    with serving(path, [sys.executable, "-m", "benchmarks.bare_ping", str(path)]) as server:
        yield server


Connect = Callable[[AgentProcess | Server], Client]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Makes connections for measuring, which are closed after the test."""
    with ExitStack() as stack:

        def connect_to(server: AgentProcess | Server) -> Client:
            client = stack.enter_context(server.connect())
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            client.sock.settimeout(None)  # with a timeout, Python calls poll(2) before every other call
            return client

        yield connect_to
