# SPDX-License-Identifier: Apache-2.0
"""Threads for whatever may block, so that a thread that hangs in the kernel costs nobody else.

Not concurrent.futures: its threads are joined at exit, so one hung in a dead file system would keep the agent from
ending, and its queue lets a job wait behind such a thread.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

Result = TypeVar("Result")

KEPT = 2
"""Threads that are started at once and stay: a thaw, whose pool is its own, never has to start one."""

THREADS_MAX = 64
"""Threads at once; with this many stuck or busy, further jobs wait."""


class WorkerPool:
    """Runs functions on daemon threads. All methods belong to the thread of the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]] | None] = queue.SimpleQueue()
        self._threads = 0
        self._unfinished = 0
        self._drained = asyncio.Event()
        self._drained.set()
        for _ in range(KEPT):
            self._start_thread()

    def run(self, function: Callable[[], Result]) -> asyncio.Future[Result]:
        """Call `function` on a thread. The future may be abandoned: the job then ends unheard."""
        future: asyncio.Future[Result] = self._loop.create_future()
        if self._unfinished >= self._threads and self._threads < THREADS_MAX:
            with suppress(RuntimeError):  # no further thread is allowed: the job waits for one of those there are
                self._start_thread()
        self._unfinished += 1
        self._drained.clear()
        self._jobs.put((function, future))
        return future

    async def drain(self, patience: float) -> None:
        """Wait until no job runs any more, abandoned ones included, `patience` seconds at the most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self._drained.wait()

    def _start_thread(self) -> None:
        threading.Thread(target=self._work, name="qga-worker", daemon=True).start()
        self._threads += 1

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            function, future = job
            try:
                outcome: tuple[Any, BaseException | None] = (function(), None)
            except BaseException as exc:
                outcome = (None, exc)
            try:
                self._loop.call_soon_threadsafe(self._finish, future, *outcome)
            except RuntimeError:  # the loop is closed: the agent is ending
                return
            del job, function, future, outcome  # an idle thread must not keep the last job's memory

    def _finish(self, future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        self._unfinished -= 1
        if self._unfinished == 0:
            self._drained.set()
        if self._threads - self._unfinished > KEPT:
            self._threads -= 1
            self._jobs.put(None)
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
