# SPDX-License-Identifier: Apache-2.0
"""What a host asks every guest for, again and again, as long as it runs."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from statistics import median

import pytest

from tests.agents import AgentProcess, Client

from .cases import DESCRIPTORS, MEMORY, MILLISECONDS, QGA, Case
from .conftest import Connect
from .contest import Contest, Samples, Turn
from .wire import BUFFER, receive, request

COMMANDS = [
    "guest-get-osinfo",
    "guest-get-fsinfo",
    "guest-get-disks",
    "guest-get-users",
    "guest-get-timezone",
    "guest-get-host-name",
    "guest-network-get-interfaces",
]
"""What libvirt sends for virDomainGetGuestInfo and virDomainInterfaceAddresses."""

REQUESTS = [request(name) for name in COMMANDS]
SUCCESS = b'{"return"'
WARM_UP_POLLS = 500


def require_commands(client: Client) -> None:
    """Skip the test unless the agent has all of them."""
    enabled = {command["name"] for command in client.ok("guest-info")["supported_commands"] if command["enabled"]}
    if missing := sorted(set(COMMANDS) - enabled):
        pytest.skip(f"not in the agent: {', '.join(missing)}")


def poll(client: Client) -> None:
    """All commands, one after the other; an error reply is not accepted."""
    for line in REQUESTS:
        client.sock.sendall(line)
        receive(client.sock)
        assert BUFFER.startswith(SUCCESS), BUFFER[:500]


def run(client: Client, count: int) -> Samples:
    """Median of `count` polls."""
    times = []
    for _ in range(count):
        start = time.perf_counter()
        poll(client)
        times.append(time.perf_counter() - start)
    return {MILLISECONDS: median(times) * 1e3}


@pytest.mark.case(Case.POLL)
def test_poll(contest: Contest, agents: dict[str, AgentProcess], connect: Connect) -> None:
    """One poll after the other."""
    clients = {name: connect(agent) for name, agent in agents.items()}
    for client in clients.values():
        require_commands(client)
    count = 1 if contest.quick else 20
    contest.race({name: Turn(partial(run, client, count)) for name, client in clients.items()})


def holdings(agent: AgentProcess) -> tuple[int, int]:
    """Bytes of memory, counted page by page where VmRSS is an estimate, and number of open descriptors."""
    lines = Path(f"/proc/{agent.pid}/smaps_rollup").read_text().splitlines()
    resident = next(line for line in lines if line.startswith("Rss:"))
    return int(resident.split()[1]) * 1024, len(os.listdir(f"/proc/{agent.pid}/fd"))


@pytest.mark.case(Case.POLL_GROWTH)
def test_poll_growth(contest: Contest, qga: AgentProcess, connect: Connect) -> None:
    """What the agent holds after 10,000 further polls."""
    client = connect(qga)
    require_commands(client)
    poll_often(client, 5 if contest.quick else WARM_UP_POLLS)

    def grow() -> Samples:
        memory, descriptors = holdings(qga)
        poll_often(client, 20 if contest.quick else 10_000)
        memory_after, descriptors_after = holdings(qga)
        return {MEMORY: (memory_after - memory) / 1e6, DESCRIPTORS: descriptors_after - descriptors}

    contest.race({QGA: Turn(grow)}, rounds=1, warm_ups=0)


def poll_often(client: Client, count: int) -> None:
    """Poll `count` times."""
    for _ in range(count):
        poll(client)
