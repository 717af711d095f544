# SPDX-License-Identifier: Apache-2.0
"""Shutdown and suspend: commands that answer only if they fail."""

from ..agent import Agent
from ..errors import CommandError
from ..logs import account
from ..platform import power
from ..protocol.registry import command


@command(success_response=False, deadline=None)
def guest_shutdown(agent: Agent, mode: str = "powerdown") -> None:
    """Shut the guest down: powerdown, halt or reboot."""
    account("guest-shutdown called, mode: %s", mode)
    if mode not in power.SHUTDOWN_MODES:
        # The C agent's text, which lacks its last bracket.
        raise CommandError("mode is invalid (valid values are: halt|powerdown|reboot")
    power.shut_down(mode)


@command(success_response=False, deadline=None)
def guest_suspend_disk(agent: Agent) -> None:
    """Save the memory to disk and power off (hibernate)."""
    power.suspend("disk")


@command(success_response=False, deadline=None)
def guest_suspend_ram(agent: Agent) -> None:
    """Suspend to memory."""
    power.suspend("ram")


@command(success_response=False, deadline=None)
def guest_suspend_hybrid(agent: Agent) -> None:
    """Save the memory to disk, then suspend to memory."""
    power.suspend("hybrid")
