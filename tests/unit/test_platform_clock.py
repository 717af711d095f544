# SPDX-License-Identifier: Apache-2.0
"""Times that may be set, the helper program for the hardware clock, and time zones."""

from __future__ import annotations

import calendar
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qga.errors import CommandError
from qga.platform import clock

SECOND = 1_000_000_000


@pytest.fixture(autouse=True)
def own_zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield
    monkeypatch.undo()
    time.tzset()


def test_now_is_the_system_clock_in_microseconds() -> None:
    before = time.time_ns() // 1000 * 1000
    now = clock.now()
    assert before <= now <= time.time_ns()
    assert now % 1000 == 0


@pytest.mark.parametrize(
    ("nanoseconds", "valid"),
    [
        (0, True),
        (-1, True),
        (-SECOND, False),
        (-SECOND + 1, True),
        (calendar.timegm((2069, 12, 31, 23, 59, 59)) * SECOND, True),
        (calendar.timegm((2070, 1, 1, 0, 0, 0)) * SECOND, False),
        ((1 << 63) - 1, False),
        (-(1 << 63), False),
    ],
)
def test_years_that_a_clock_may_be_set_to(nanoseconds: int, valid: bool) -> None:
    assert clock.is_valid(nanoseconds) is valid


def test_hwclock_is_told_the_direction(tmp_path: Path) -> None:
    program = tmp_path / "hwclock"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n')
    program.chmod(0o755)
    clock.system_to_hardware(str(program))
    clock.hardware_to_system(str(program))
    assert (tmp_path / "calls").read_text() == "-w\n-s\n"


def test_failure_of_hwclock_is_told(tmp_path: Path) -> None:
    program = tmp_path / "hwclock"
    program.write_text("#!/bin/sh\necho no clock; exit 1\n")
    program.chmod(0o755)
    with pytest.raises(CommandError) as failure:
        clock.hardware_to_system(str(program))
    assert str(failure.value) == "child process has failed to set hardware clock to system time: no clock\n"


@pytest.mark.parametrize(
    ("zone", "expected"), [("XXX+3", ("XXX", -10800)), ("UTC", ("UTC", 0)), ("YYY-5:30", ("YYY", 19800))]
)
def test_zone_of_the_environment(zone: str, expected: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", zone)
    assert clock.zone() == expected
