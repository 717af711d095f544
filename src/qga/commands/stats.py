# SPDX-License-Identifier: Apache-2.0
"""Counters of processors and disks, and the load."""

import os
from typing import Literal, NotRequired, TypedDict, cast

from ..agent import Agent
from ..errors import from_os
from ..platform import block, cpu
from ..protocol.registry import command


class CpuStats(TypedDict):
    """One processor's times in milliseconds, in the order of the kernel's columns."""

    type: Literal["linux"]
    cpu: int
    user: int
    nice: int
    system: int
    idle: int
    iowait: NotRequired[int]
    irq: NotRequired[int]
    softirq: NotRequired[int]
    steal: NotRequired[int]
    guest: NotRequired[int]
    guestnice: NotRequired[int]


@command()
def guest_get_cpustats(agent: Agent) -> list[CpuStats]:
    """Tell how long each online processor has been in which state."""
    per_second = cpu.ticks_per_second()
    return [_cpu_stats(processor, per_second) for processor in cpu.cpu_times()]


def _cpu_stats(processor: cpu.CpuTimes, per_second: int) -> CpuStats:
    times = [ticks * 1000 // per_second for ticks in processor.ticks]
    return cast(CpuStats, dict(zip(CpuStats.__annotations__, ("linux", processor.number, *times), strict=False)))


DiskStats = TypedDict(
    "DiskStats",
    {
        "read-ios": int,
        "read-merges": int,
        "read-sectors": int,
        "read-ticks": int,
        "write-ios": int,
        "write-merges": int,
        "write-sectors": int,
        "write-ticks": int,
        "ios-pgr": int,
        "total-ticks": int,
        "weight-ticks": int,
        "discard-ios": NotRequired[int],
        "discard-merges": NotRequired[int],
        "discard-sectors": NotRequired[int],
        "discard-ticks": NotRequired[int],
        "flush-ios": NotRequired[int],
        "flush-ticks": NotRequired[int],
    },
)
"""The counters in the order of the kernel's columns; later kernels have more of them."""


class DiskStatsInfo(TypedDict):
    """One entry of guest-get-diskstats."""

    name: str
    major: int
    minor: int
    stats: DiskStats


@command()
def guest_get_diskstats(agent: Agent) -> list[DiskStatsInfo]:
    """Tell how much each disk and partition has read and written."""
    return [_disk_stats(device) for device in block.disk_stats()]


def _disk_stats(device: block.DiskStats) -> DiskStatsInfo:
    stats = cast(DiskStats, dict(zip(DiskStats.__annotations__, device.counters, strict=False)))
    return {"name": device.name, "major": device.major, "minor": device.minor, "stats": stats}


class LoadAverage(TypedDict):
    """The value of guest-get-load."""

    load1m: float
    load5m: float
    load15m: float


@command(inline=True)
def guest_get_load(agent: Agent) -> LoadAverage:
    """Tell how many tasks were running or waiting, averaged over 1, 5 and 15 minutes."""
    try:
        load1m, load5m, load15m = os.getloadavg()
    except OSError as exc:
        raise from_os("cannot query load average", exc) from exc
    return {"load1m": load1m, "load5m": load5m, "load15m": load15m}
