# SPDX-License-Identifier: Apache-2.0
"""What is measured, and the bars: how good qga has to be, most of them against qemu-ga in the same run."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import NamedTuple

QGA = "qga"
QEMU_GA = "qemu-ga"
FLOOR = "floor"
ONE_CLIENT = "one client"

RATE = "MB/s"
CPU = "CPU s/GB"
MICROSECONDS = "µs"
MILLISECONDS = "ms"
MEMORY = "MB"
MEMORY_AFTER = "MB after 1 s"
DESCRIPTORS = "descriptors"
"""What a sample is a number of; MB and GB are powers of ten."""


class Case(StrEnum):
    """The name of a case; a test bears it as `@pytest.mark.case(...)`."""

    READ_48M = "read 48 MiB in one request"
    READ_4M = "read in 4 MiB requests"
    READ_64K = "read in 64 KiB requests"
    WRITE_45M = "write 45 MiB in one request"
    WRITE_4M = "write in 4 MiB requests"
    EXEC = "exec, 15 MiB of output"
    PING = "ping, all on one core"
    READ_MEMORY = "peak over idle, 48 MiB read"
    LONG_READ_MEMORY = "growth over a 4 GiB read"
    WRITE_MEMORY = "peak over idle, 45 MiB write"
    IDLE_MEMORY = "idle memory"
    START = "start to first reply"
    CLIENTS = "64 clients read at once"
    POLL = "one poll as libvirt makes it"
    POLL_GROWTH = "growth over 10,000 polls"
    PING_WHILE_READING = "ping while another client reads"
    PING_WHILE_SLOW = "ping while a slow command runs"


class Bar(NamedTuple):
    """A limit for one measure of a case.

    against: the contestant that qga's figure is divided by; None: qga's figure itself is compared with the limit.
    summary: makes one figure of the samples of all rounds.
    """

    case: Case
    measure: str
    against: str | None
    sense: str
    limit: float
    summary: Callable[[Sequence[float]], float] = statistics.median

    def holds(self, value: float) -> bool:
        """Whether `value`, a ratio or qga's figure, is on the right side of the limit."""
        return value >= self.limit if self.sense == ">=" else value <= self.limit


BARS = [
    Bar(Case.READ_48M, RATE, QEMU_GA, ">=", 18),
    Bar(Case.READ_48M, RATE, FLOOR, ">=", 0.75),
    Bar(Case.READ_48M, CPU, QEMU_GA, "<=", 1 / 12),
    Bar(Case.READ_4M, RATE, QEMU_GA, ">=", 10),
    Bar(Case.READ_64K, RATE, QEMU_GA, ">=", 3),
    Bar(Case.WRITE_45M, RATE, QEMU_GA, ">=", 30),
    Bar(Case.WRITE_4M, RATE, QEMU_GA, ">=", 30),
    Bar(Case.EXEC, RATE, QEMU_GA, ">=", 5),
    # Most of a ping is the kernel's: a bare uvloop protocol, the floor here, needs about 0.45 of qemu-ga's time.
    Bar(Case.PING, MICROSECONDS, QEMU_GA, "<=", 0.8),
    # A limit on memory is for the worst round: a guest that is short of it is not helped by a median.
    Bar(Case.READ_MEMORY, MEMORY, None, "<=", 4, max),
    # No growth, as far as the kernel's counters can tell: each core keeps up to 32 pages to itself.
    Bar(Case.LONG_READ_MEMORY, MEMORY, None, "<=", 1, max),
    Bar(Case.WRITE_MEMORY, MEMORY, None, "<=", 72, max),
    Bar(Case.WRITE_MEMORY, MEMORY_AFTER, None, "<=", 4, max),
    Bar(Case.IDLE_MEMORY, MEMORY, None, "<=", 24, max),
    Bar(Case.START, MILLISECONDS, None, "<=", 120),
    Bar(Case.CLIENTS, RATE, ONE_CLIENT, ">=", 0.9),
    Bar(Case.POLL, MILLISECONDS, QEMU_GA, "<=", 4),
    Bar(Case.POLL_GROWTH, MEMORY, None, "<=", 0.5, max),
    Bar(Case.POLL_GROWTH, DESCRIPTORS, None, "<=", 0, max),
    Bar(Case.PING_WHILE_READING, MILLISECONDS, None, "<=", 5),
    Bar(Case.PING_WHILE_SLOW, MILLISECONDS, None, "<=", 5),
]
