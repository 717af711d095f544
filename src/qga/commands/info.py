# SPDX-License-Identifier: Apache-2.0
"""Synchronisation, and what the agent can do."""

from typing import TypedDict

from .._version import PROTOCOL_LEVEL
from ..agent import Agent
from ..logs import account
from ..protocol.registry import REGISTRY, command

CommandInfo = TypedDict("CommandInfo", {"name": str, "enabled": bool, "success-response": bool})


class AgentInfo(TypedDict):
    """The value of guest-info."""

    version: str
    supported_commands: list[CommandInfo]


@command(inline=True, frozen_ok=True, delimited=True)
def guest_sync_delimited(agent: Agent, id: int) -> int:  # noqa: A002 - the protocol's name
    """Return the given number behind a byte 0xFF, so that a client finds the start of the reply in stale bytes."""
    return id


@command(inline=True, frozen_ok=True)
def guest_sync(agent: Agent, id: int) -> int:  # noqa: A002 - the protocol's name
    """Return the given number, so that a client can tell this reply from stale ones."""
    return id


@command(inline=True, frozen_ok=True)
def guest_ping(agent: Agent) -> None:
    """Do nothing, successfully."""
    account("guest-ping called")


@command(inline=True, frozen_ok=True)
def guest_info(agent: Agent) -> AgentInfo:
    """Tell the protocol level, and for each command whether it is enabled now."""
    return {
        "version": PROTOCOL_LEVEL,
        "supported_commands": [
            {"name": known.name, "enabled": agent.is_enabled(known), "success-response": known.success_response}
            for known in reversed(REGISTRY.values())
        ],
    }
