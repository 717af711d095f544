# SPDX-License-Identifier: Apache-2.0
"""Running agents for the tests of this directory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.agents import QGA, AgentProcess, Client


@contextmanager
def running(directory: Path) -> Iterator[AgentProcess]:
    """An agent that answers; in the end it has to obey SIGTERM, and whatever it logged is an unexpected failure."""
    with AgentProcess(QGA, directory) as agent:
        with agent.connect() as client:
            client.ok("guest-ping")
        yield agent
        assert agent.stop() == 0
    assert agent.log.read_text() == ""


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    """An agent that many tests use one after the other."""
    with running(tmp_path_factory.mktemp("shared")) as agent:
        yield agent


@pytest.fixture
def client(shared: AgentProcess) -> Iterator[Client]:
    """A connection to the shared agent."""
    with shared.connect() as client:
        yield client


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[AgentProcess]:
    """An agent of the test's own, for what would disturb others or is disturbed by them."""
    with running(tmp_path) as agent:
        yield agent


@pytest.fixture
def own_client(agent: AgentProcess) -> Iterator[Client]:
    """A connection to the test's own agent, and the only one."""
    with agent.connect() as client:
        client.ok("guest-ping")
        yield client
