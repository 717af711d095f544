# SPDX-License-Identifier: Apache-2.0
"""The pool of threads for whatever may block."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from qga.workers import KEPT, THREADS_MAX, WorkerPool

Test = Callable[[WorkerPool], Coroutine[Any, Any, None]]


def with_pool(test: Test) -> None:
    """Run `test` in an event loop with a pool; nothing may have gone wrong unheard."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        complaints: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        await test(WorkerPool(loop))
        assert complaints == []

    asyncio.run(main())


class Census:
    """Counts the workers that were not there when it was made: idle ones of earlier pools stay for good."""

    def __init__(self) -> None:
        self._earlier = set(threading.enumerate())

    def count(self) -> int:
        return sum(thread.name == "qga-worker" for thread in set(threading.enumerate()) - self._earlier)

    async def settles_at(self, count: int) -> None:
        """Wait until so many workers are there."""
        async with asyncio.timeout(5):
            while self.count() != count:
                await asyncio.sleep(0.005)


@pytest.fixture
def census() -> Census:
    return Census()


def test_results_and_exceptions_come_back() -> None:
    async def test(pool: WorkerPool) -> None:
        assert await pool.run(lambda: 42) == 42
        assert await pool.run(threading.get_ident) != threading.get_ident()
        with pytest.raises(ZeroDivisionError):
            await pool.run(lambda: 1 // 0)
        with pytest.raises(SystemExit):
            await pool.run(lambda: sys.exit(3))
        assert await pool.run(lambda: "still alive") == "still alive"

    with_pool(test)


def test_jobs_that_block_do_not_hold_up_others() -> None:
    async def test(pool: WorkerPool) -> None:
        release = threading.Event()
        stuck = [pool.run(release.wait) for _ in range(THREADS_MAX - 1)]
        async with asyncio.timeout(2):
            assert await pool.run(lambda: "free") == "free"
        release.set()
        await asyncio.gather(*stuck)

    with_pool(test)


def test_with_all_threads_stuck_jobs_wait_and_then_run() -> None:
    async def test(pool: WorkerPool) -> None:
        release = threading.Event()
        stuck: list[Awaitable[bool]] = [pool.run(release.wait) for _ in range(THREADS_MAX)]
        late = pool.run(lambda: "late")
        await asyncio.sleep(0.05)
        assert not late.done()
        release.set()
        assert await late == "late"
        await asyncio.gather(*stuck)

    with_pool(test)


def test_idle_threads_beyond_a_few_end(census: Census) -> None:
    async def test(pool: WorkerPool) -> None:
        release = threading.Event()
        jobs = [pool.run(release.wait) for _ in range(40)]
        await census.settles_at(40)
        release.set()
        await asyncio.gather(*jobs)
        await census.settles_at(KEPT)
        assert await pool.run(lambda: 1) == 1
        await census.settles_at(KEPT)

    with_pool(test)


def test_threads_are_there_before_they_are_needed(census: Census) -> None:
    async def test(pool: WorkerPool) -> None:
        await census.settles_at(KEPT)

    with_pool(test)


def test_without_further_threads_jobs_wait_for_those_there_are() -> None:
    async def test(pool: WorkerPool) -> None:
        former = threading.stack_size(1 << 46)  # more than there is address space
        try:
            assert await asyncio.gather(*(pool.run(lambda: 1) for _ in range(20))) == [1] * 20
        finally:
            threading.stack_size(former)

    with_pool(test)


def test_draining_waits_for_every_job_but_not_for_ever() -> None:
    async def test(pool: WorkerPool) -> None:
        await pool.drain(60)
        release = threading.Event()
        jobs = [pool.run(release.wait) for _ in range(3)]
        jobs[0].cancel()
        began = time.monotonic()
        await pool.drain(0.1)
        assert 0.1 <= time.monotonic() - began < 5
        asyncio.get_running_loop().call_later(0.1, release.set)
        await pool.drain(60)
        assert 0.2 <= time.monotonic() - began < 5

    with_pool(test)


def test_one_job_after_the_other_takes_no_further_thread(census: Census) -> None:
    async def test(pool: WorkerPool) -> None:
        for number in range(500):
            assert await pool.run(lambda number=number: number) == number  # type: ignore[misc]
        assert census.count() <= KEPT + 1

    with_pool(test)


def test_an_abandoned_job_ends_unheard() -> None:
    async def test(pool: WorkerPool) -> None:
        release = threading.Event()
        ended = threading.Event()

        def job() -> None:
            release.wait()
            ended.set()
            raise ValueError("nobody hears this")

        future = pool.run(job)
        future.cancel()
        release.set()
        async with asyncio.timeout(5):
            while not ended.is_set():
                await asyncio.sleep(0.001)
        assert await pool.run(lambda: "next") == "next"

    with_pool(test)


def test_results_keep_no_memory() -> None:
    class Large:
        pass

    async def test(pool: WorkerPool) -> None:
        large = await pool.run(Large)
        gone = weakref.ref(large)
        del large
        await asyncio.sleep(0.02)
        gc.collect()
        assert gone() is None

    with_pool(test)


def test_a_stuck_job_does_not_keep_the_program_from_ending() -> None:
    script = """
import asyncio, time
from qga.workers import WorkerPool

async def main():
    pool = WorkerPool(asyncio.get_running_loop())
    pool.run(lambda: time.sleep(60))
    pool.run(lambda: time.sleep(0.2))
    await asyncio.sleep(0.1)

asyncio.run(main())
"""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert time.monotonic() - began < 10
