# SPDX-License-Identifier: Apache-2.0
"""A program whose output is captured: from guest-exec to the end of the reply that carries the output."""

from __future__ import annotations

import base64
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.agents import AgentProcess, Client

from .cases import Case
from .conftest import Connect, Source
from .contest import Contest, Samples, Turn, throughput
from .wire import BUFFER, receive, request

SIZE = 15 << 20
POLL_SECONDS = 0.001
NOT_YET_MAX = 1000
"""A reply longer than this has the output in it."""


@pytest.mark.case(Case.EXEC)
def test_exec(
    contest: Contest, agents: dict[str, AgentProcess], connect: Connect, source: Source, tmp_path: Path
) -> None:
    """`cat` of a file, polled every millisecond."""
    data = source.data[:SIZE]
    path = tmp_path / "output"
    path.write_bytes(data)
    turns = {}
    for name, agent in agents.items():
        client = connect(agent)
        assert captured(client, path) == data
        turns[name] = Turn(partial(run, client, agent.pid, path, len(data)))
    contest.race(turns)
    path.unlink()


def begin(client: Client, path: Path) -> int:
    """Start `cat`, return its process id."""
    pid = client.ok("guest-exec", path="cat", arg=[str(path)], capture_output=True)["pid"]
    assert isinstance(pid, int)
    return pid


def captured(client: Client, path: Path) -> bytes:
    """The output, untimed."""
    pid = begin(client, path)
    status: dict[str, Any] = {"exited": False}
    while not status["exited"]:
        time.sleep(POLL_SECONDS)
        status = client.ok("guest-exec-status", pid=pid)
    assert status["exitcode"] == 0
    assert not status["out-truncated"]
    return base64.b64decode(status["out-data"], validate=True)


def run(client: Client, agent_pid: int, path: Path, size: int) -> Samples:
    """The output against the clock."""
    lengths: list[int] = []
    samples = throughput(agent_pid, size, lambda: lengths.append(collect(client, begin(client, path))))
    assert 0 <= lengths[0] - size * 4 // 3 < NOT_YET_MAX
    return samples


def collect(client: Client, pid: int) -> int:
    """Poll until the output comes, return the length of the reply that brings it."""
    status = request("guest-exec-status", pid=pid)
    while True:
        client.sock.sendall(status)
        length = receive(client.sock)
        if length > NOT_YET_MAX:
            return length
        assert json.loads(BUFFER[:length])["return"] == {"exited": False}
        time.sleep(POLL_SECONDS)
