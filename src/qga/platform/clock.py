# SPDX-License-Identifier: Apache-2.0
"""The system clock, the hardware clock and the time zone."""

import time
from typing import NamedTuple

from .run import run

HWCLOCK = "/sbin/hwclock"
SET_HARDWARE_CLOCK = "set hardware clock to system time"
"""What failed, in the words of the C agent, for both directions."""

YEAR_FIRST, YEAR_LAST = 1970, 2069


class Zone(NamedTuple):
    """The local time zone: its abbreviation, and seconds east of UTC at this moment."""

    name: str
    offset: int


def now() -> int:
    """Nanoseconds since the epoch, in steps of a microsecond as gettimeofday(2) counts."""
    return time.time_ns() // 1000 * 1000


def is_valid(nanoseconds: int) -> bool:
    """Whether a time is one that a guest's clock may be set to: its year must be in 1970..2069."""
    try:
        return YEAR_FIRST <= time.gmtime(_whole_seconds(nanoseconds)).tm_year <= YEAR_LAST
    except (OverflowError, OSError):
        return False


def set_system_clock(nanoseconds: int) -> None:
    """Set the system clock, to the microsecond; OSError."""
    seconds = _whole_seconds(nanoseconds)
    microseconds = (nanoseconds - seconds * 1_000_000_000) // 1000 if nanoseconds >= 0 else 0
    time.clock_settime_ns(time.CLOCK_REALTIME, seconds * 1_000_000_000 + microseconds * 1000)


def system_to_hardware(hwclock: str = HWCLOCK) -> None:
    """Set the hardware clock from the system clock; CommandError. Source: hwclock(8)."""
    run([hwclock, "-w"], SET_HARDWARE_CLOCK)


def hardware_to_system(hwclock: str = HWCLOCK) -> None:
    """Set the system clock from the hardware clock; CommandError. Source: hwclock(8)."""
    run([hwclock, "-s"], SET_HARDWARE_CLOCK)


def zone() -> Zone:
    """The zone that TZ or /etc/localtime name now."""
    time.tzset()
    local = time.localtime()
    return Zone(local.tm_zone, local.tm_gmtoff)


def _whole_seconds(nanoseconds: int) -> int:
    # Rounded towards the epoch, as C divides.
    return nanoseconds // 1_000_000_000 if nanoseconds >= 0 else -(-nanoseconds // 1_000_000_000)
