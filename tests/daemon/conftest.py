# SPDX-License-Identifier: Apache-2.0
"""Running agents for the tests of this directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agents import QGA, AgentProcess, Client


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    """An agent that many tests use one after the other; whatever it logs is an unexpected failure."""
    with AgentProcess(QGA, tmp_path_factory.mktemp("shared")) as agent:
        with agent.connect() as client:
            client.ok("guest-ping")
        yield agent
        assert agent.stop() == 0
    assert agent.log.read_text() == ""


@pytest.fixture
def client(shared: AgentProcess) -> Iterator[Client]:
    """A connection to the shared agent."""
    with shared.connect() as client:
        yield client


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[AgentProcess]:
    """An agent of the test's own, for what would disturb others or is disturbed by them."""
    with AgentProcess(QGA, tmp_path) as agent:
        with agent.connect() as client:
            client.ok("guest-ping")
        yield agent
        assert agent.stop() == 0
    assert agent.log.read_text() == ""


@pytest.fixture
def own_client(agent: AgentProcess) -> Iterator[Client]:
    """A connection to the test's own agent, and the only one."""
    with agent.connect() as client:
        client.ok("guest-ping")
        yield client
