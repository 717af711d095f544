# SPDX-License-Identifier: Apache-2.0
"""Memory and start-up, each sample from a process of its own."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.agents import AgentProcess, Client

from .cases import MEMORY, MEMORY_AFTER, MILLISECONDS, QEMU_GA, QGA, Case
from .conftest import Source, Start
from .contest import Contest, Samples, Turn
from .wire import exchange, open_file, request

ROUNDS = 5
SETTLE_SECONDS = 0.2
WRITE_SIZE = 45 << 20
LONG_SIZE = 4 << 30
LONG_COUNT = 48 << 20
MB = 1e6


def forget_peak(agent: AgentProcess) -> None:
    """Make VmHWM begin again at the present size. Source: proc_pid_clear_refs(5)."""
    Path(f"/proc/{agent.pid}/clear_refs").write_text("5")


def idle(agent: AgentProcess) -> int:
    """Bytes of an agent that has nothing to do."""
    time.sleep(SETTLE_SECONDS)
    forget_peak(agent)
    return agent.memory()


@pytest.fixture
def sparse() -> Iterator[Path]:
    """A file of 4 GiB that takes no room; on a disk, the page cache would be filled with its zeros."""
    fd = os.memfd_create("sparse")
    os.truncate(fd, LONG_SIZE)
    yield Path(f"/proc/{os.getpid()}/fd/{fd}")
    os.close(fd)


def race_fresh(contest: Contest, start: Start, measure: Callable[[AgentProcess, Client], Samples]) -> None:
    """A race in which each turn is a new process; `measure` is given it and a connection to it."""

    def run(name: str) -> Samples:
        agent = start(name)
        try:
            with agent.connect() as client:
                return measure(agent, client)
        finally:
            agent.stop()

    contest.race({name: Turn(partial(run, name)) for name in (QEMU_GA, QGA)}, ROUNDS, warm_ups=0)


@pytest.mark.case(Case.READ_MEMORY)
def test_memory_of_a_read(contest: Contest, start: Start, source: Source) -> None:
    """48 MiB in one request."""
    size = len(source.data)

    def measure(agent: AgentProcess, client: Client) -> Samples:
        handle = open_file(client, source.path)
        before = idle(agent)
        length = exchange(client.sock, [request("guest-file-read", handle=handle, count=size)])
        assert length > size * 4 // 3
        return {MEMORY: (agent.memory("VmHWM") - before) / MB}

    race_fresh(contest, start, measure)


@pytest.mark.case(Case.WRITE_MEMORY)
def test_memory_of_a_write(contest: Contest, start: Start, source: Source) -> None:
    """45 MiB in one request."""
    data = source.data[:WRITE_SIZE]
    text = base64.b64encode(data).decode()

    def measure(agent: AgentProcess, client: Client) -> Samples:
        path = agent.directory / "copy"
        write = request("guest-file-write", handle=open_file(client, path, "w"), buf_b64=text)
        before = idle(agent)
        assert "return" in client.raw(write)
        peak = agent.memory("VmHWM")
        time.sleep(0 if contest.quick else 1)
        after = agent.memory()
        assert path.stat().st_size == len(data)
        path.unlink()
        return {MEMORY: (peak - before) / MB, MEMORY_AFTER: (after - before) / MB}

    race_fresh(contest, start, measure)


@pytest.mark.case(Case.LONG_READ_MEMORY)
def test_memory_of_a_long_read(contest: Contest, qga: AgentProcess, sparse: Path) -> None:
    """A sparse file, read in requests of 48 MiB; what counts is how far the peak rises after the first of them."""
    count = 4 if contest.quick else LONG_SIZE // LONG_COUNT

    def run() -> Samples:
        with qga.connect() as client:
            read = request("guest-file-read", handle=open_file(client, sparse), count=LONG_COUNT)
            forget_peak(qga)
            first = exchange(client.sock, [read])
            before = qga.memory("VmHWM")
            assert exchange(client.sock, [read] * (count - 1)) == first * (count - 1)
            return {MEMORY: (qga.memory("VmHWM") - before) / MB}

    contest.race({QGA: Turn(run)}, rounds=1, warm_ups=0)


@pytest.mark.case(Case.IDLE_MEMORY)
def test_idle_memory(contest: Contest, start: Start) -> None:
    """Resident memory after the start and one ping."""

    def measure(agent: AgentProcess, client: Client) -> Samples:
        assert client.ok("guest-ping") == {}
        return {MEMORY: idle(agent) / MB}

    race_fresh(contest, start, measure)


@pytest.mark.case(Case.START)
def test_start(contest: Contest, start: Start) -> None:
    """From the start of the process to the end of the first reply."""
    running: list[AgentProcess] = []

    def run(name: str) -> Samples:
        begun = time.perf_counter()
        running.append(start(name))
        with running[0].connect() as client:
            assert client.ok("guest-ping") == {}
            return {MILLISECONDS: (time.perf_counter() - begun) * 1e3}

    turns = {name: Turn(partial(run, name), check=lambda: running.pop().stop()) for name in (QEMU_GA, QGA)}
    contest.race(turns)
