# SPDX-License-Identifier: Apache-2.0
"""The guest's clock and time zone."""

from typing import TypedDict

from ..agent import Agent
from ..errors import CommandError, from_os
from ..platform import clock
from ..protocol.registry import command


class Timezone(TypedDict):
    """The value of guest-get-timezone: abbreviation, and seconds east of UTC now."""

    zone: str
    offset: int


@command(inline=True)
def guest_get_time(agent: Agent) -> int:
    """Tell the time of the system clock in nanoseconds since the epoch."""
    return clock.now()


@command()
def guest_set_time(agent: Agent, time: int | None = None) -> None:
    """Set both clocks to `time`, in nanoseconds since the epoch, or the system clock from the hardware clock."""
    if time is None:
        clock.hardware_to_system()
        return
    if not clock.is_valid(time):
        raise CommandError("Invalid time")
    try:
        clock.set_system_clock(time)
    except OSError as exc:
        raise from_os("Failed to set time to guest", exc) from exc
    clock.system_to_hardware()


@command()
def guest_get_timezone(agent: Agent) -> Timezone:
    """Tell the local time zone."""
    zone = clock.zone()
    return {"zone": zone.name, "offset": zone.offset}
