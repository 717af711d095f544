# SPDX-License-Identifier: Apache-2.0
"""Rounds in which the contestants take turns, so that whatever else the machine does meets all of them alike."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from .cases import CPU, QGA, RATE, Case

ROUNDS = 9
"""Timed rounds; the guard wants five at the least."""

Samples = dict[str, float]
"""What one turn gives: a value for each measure."""


def _nothing() -> None:
    pass


class Turn(NamedTuple):
    """One contestant's part in a round. `run` measures; `prepare` and `check` come before and after it, untimed."""

    run: Callable[[], Samples]
    prepare: Callable[[], object] = _nothing
    check: Callable[[], object] = _nothing


class Contest:
    """The rounds of one case; their samples go into the result file as `extra_info`.

    quick: benchmarks are disabled: one round, nothing is recorded, and what repeats should repeat less.
    """

    def __init__(self, benchmark: Any, case: Case) -> None:
        self._benchmark = benchmark
        self._samples: dict[str, dict[str, list[float]]] = {}
        self.quick: bool = benchmark.disabled
        benchmark.extra_info.update(case=str(case), samples=self._samples)

    def race(self, turns: Mapping[str, Turn], rounds: int = ROUNDS, warm_ups: int = 1) -> None:
        """Let each contestant have its turn, round by round; what pytest-benchmark itself times is qga's."""
        turn = turns[QGA]

        def others_first() -> None:
            for name, other in turns.items():
                if name != QGA:
                    other.prepare()
                    self._run(name, other)
                    other.check()
            turn.prepare()

        self._benchmark.pedantic(
            self._run,
            args=(QGA, turn),
            setup=others_first,
            teardown=lambda *_: turn.check(),
            rounds=rounds,
            warmup_rounds=warm_ups,
        )
        if self.quick:  # pytest-benchmark leaves the teardown out then
            turn.check()
        else:
            self._forget(warm_ups)

    def _run(self, name: str, turn: Turn) -> None:
        for measure, value in turn.run().items():
            self._samples.setdefault(measure, {}).setdefault(name, []).append(value)

    def _forget(self, rounds: int) -> None:
        for contestants in self._samples.values():
            for samples in contestants.values():
                del samples[:rounds]


def throughput(pid: int, size: int, work: Callable[[], object]) -> Samples:
    """Do `work`, which moves `size` bytes: its rate, and the processor time that process `pid` spent on it."""
    cpu, start = cpu_seconds(pid), time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    return {RATE: size / seconds / 1e6, CPU: (cpu_seconds(pid) - cpu) / (size / 1e9)}


def cpu_seconds(pid: int) -> float:
    """Processor time of a process and all its threads, in nanosecond steps. Source: clock_getcpuclockid(3)."""
    return time.clock_gettime(~pid << 3 | 2)


@contextmanager
def on_one_core(*pids: int) -> Iterator[None]:
    """Confine this thread and all threads of the processes `pids` to one core."""
    threads = [0, *(int(thread) for pid in pids for thread in os.listdir(f"/proc/{pid}/task"))]
    before = {thread: os.sched_getaffinity(thread) for thread in threads}
    core = min(before[0])
    try:
        for thread in threads:
            os.sched_setaffinity(thread, {core})
        yield
    finally:
        for thread, cores in before.items():
            os.sched_setaffinity(thread, cores)
