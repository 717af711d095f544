# SPDX-License-Identifier: Apache-2.0
"""Processors: their list and switching them on and off."""

from typing import NotRequired, TypedDict

from ..agent import Agent
from ..errors import CallError, CommandError
from ..platform import cpu
from ..protocol.registry import command

LogicalProcessor = TypedDict("LogicalProcessor", {"logical-id": int, "online": bool, "can-offline": NotRequired[bool]})


@command()
def guest_get_vcpus(agent: Agent) -> list[LogicalProcessor]:
    """List processors, and which of them can be switched off."""
    return [
        {"logical-id": each.number, "online": each.online, "can-offline": each.can_offline}
        for each in cpu.list_processors()
    ]


@command(deadline=None)
def guest_set_vcpus(agent: Agent, vcpus: list[LogicalProcessor]) -> int:
    """Switch processors on and off in the given order up to the first failure, and return how many are as wanted.

    The failure itself is told only if it is that of the first processor.
    """
    done = 0
    for vcpu in vcpus:
        try:
            _set_online(vcpu["logical-id"], vcpu["online"])
        except (CallError, CommandError):
            if done == 0:
                raise
            break
        done += 1
    return done


def _set_online(number: int, online: bool) -> None:
    if not cpu.set_online(number, online) and not online:
        raise CommandError(f"logical processor #{number} can't be offlined")
