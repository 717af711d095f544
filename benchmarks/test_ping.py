# SPDX-License-Identifier: Apache-2.0
"""The smallest request: alone on one core with its client, and beside clients that keep the agent busy."""

from __future__ import annotations

import select
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.agents import AgentProcess, Client

from .cases import FLOOR, MICROSECONDS, MILLISECONDS, QGA, Case
from .conftest import Connect, Server, Source, Start
from .contest import Contest, Samples, Turn, on_one_core
from .wire import ping_median, request

PAUSE_SECONDS = 0.002


def micro(client: Client, count: int) -> Samples:
    """Median of `count` round trips."""
    return {MICROSECONDS: ping_median(client.sock, count) * 1e6}


def beside_work(client: Client, count: int) -> Samples:
    """Median of `count` round trips, spread out so that they meet the agent in all phases of its other work."""
    return {MILLISECONDS: ping_median(client.sock, count, PAUSE_SECONDS) * 1e3}


@pytest.mark.case(Case.PING)
def test_ping(contest: Contest, agents: dict[str, AgentProcess], bare_ping: Server, connect: Connect) -> None:
    """On one core, since otherwise it is the waking of a second one that is measured."""
    servers: dict[str, AgentProcess | Server] = {**agents, FLOOR: bare_ping}
    count = 50 if contest.quick else 2000
    turns = {name: Turn(partial(micro, connect(server), count)) for name, server in servers.items()}
    with on_one_core(*(server.pid for server in servers.values())):
        contest.race(turns)


@pytest.mark.case(Case.PING_WHILE_READING)
def test_ping_while_another_client_reads(contest: Contest, qga: AgentProcess, connect: Connect, source: Source) -> None:
    """The reply to a ping does not wait for the block that another client, a process of its own, is being sent."""
    client = connect(qga)
    argv = [sys.executable, "-m", "benchmarks.reader", str(qga.path), str(source.path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        try:
            assert reader.stdout.readline(), "the other client does not read"
            contest.race({QGA: Turn(partial(beside_work, client, 20 if contest.quick else 100))})
            assert reader.poll() is None
        finally:
            reader.terminate()
        assert len(reader.stdout.readlines()) >= 3, "the other client did not read meanwhile"


@pytest.mark.case(Case.PING_WHILE_SLOW)
def test_ping_while_a_slow_command_runs(contest: Contest, start: Start, connect: Connect, tmp_path: Path) -> None:
    """A freeze hook that takes its time and then refuses the freeze, of a file system that does not exist."""
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\nsleep {0.5 if contest.quick else 5}\nexit 1\n")
    hook.chmod(0o755)
    agent = start(QGA, f"--fsfreeze-hook={hook}")
    slow, client = connect(agent), connect(agent)
    commands = slow.ok("guest-info")["supported_commands"]
    if "guest-fsfreeze-freeze-list" not in {command["name"] for command in commands}:
        pytest.skip("qga has no guest-fsfreeze-freeze-list")
    slow.send(request("guest-fsfreeze-freeze-list", mountpoints=["/nonexistent"]))
    contest.race({QGA: Turn(partial(beside_work, client, 20 if contest.quick else 100))})
    assert not select.select([slow.sock], [], [], 0)[0], "the slow command was over too early"
    assert b"execute fsfreeze hook" in slow.recv_line()
