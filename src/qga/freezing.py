# SPDX-License-Identifier: Apache-2.0
"""Freezing and thawing as the agent does it: hook, mark, silence, and the watchdog that thaws when nobody else does.

While file systems are frozen, whatever writes to them sleeps until the thaw, and only this agent thaws. So nothing is
logged meanwhile, the only commands are those that write nothing, and the threads that freeze and thaw are there before.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from functools import partial

from . import logs
from .config import Config
from .errors import CommandError, CommandNotFound, strerror
from .platform import freeze, run
from .platform.mounts import list_mounts
from .workers import WorkerPool

logger = logging.getLogger(__name__)


DRAIN_SECONDS = 2.0
"""How long a freeze waits for commands under way; one that hangs in the kernel does not hold it up for more."""


class FreezeState:
    """Whether file systems are frozen, and the way there and back; all methods belong to the event loop's thread.

    commands: the threads of the commands, none of which should be in a write when the freeze begins.
    frozen: an agent with the same state directory froze them and ended before the thaw.
    """

    def __init__(self, config: Config, commands: WorkerPool, frozen: bool) -> None:
        self._config = config
        self._commands = commands
        self._loop = asyncio.get_running_loop()
        self._turn = asyncio.Lock()
        self._filesystems = freeze.Frozen()
        self._freezing = False
        self._ending = False
        self._given_up = ""
        # Threads of its own: those of other commands may all be asleep in writes to what is frozen.
        self._threads = WorkerPool(self._loop) if frozen else None
        self._watchdog: asyncio.TimerHandle | None = None
        self._expiry: asyncio.Task[None] | None = None
        self.frozen = frozen
        self.at_thaw: list[Callable[[], None]] = []
        """What could not be done while frozen: called once, on a worker thread."""
        if frozen:
            self._start_watchdog()

    @property
    def _workers(self) -> WorkerPool:
        # Started for the first freeze and kept for good; many agents never freeze anything.
        if self._threads is None:
            self._threads = WorkerPool(self._loop)
        return self._threads

    async def freeze(self, command: str, wanted: Collection[bytes] | None) -> int:
        """Freeze all file systems, or those with these mount points; returns how many are frozen.

        command: what the client asked for. Waits for a freeze or thaw under way. An error leaves nothing frozen:
        CommandError, or CallError for the system call that failed.
        """
        async with self._turn:
            if self.frozen:
                raise CommandNotFound(f"Command {command} has been disabled: the command is not allowed")
            await self._run_hook("freeze")
            try:
                count = await self._freeze(command, wanted)
            except BaseException:
                await _quietly(self._thaw())
                raise
            if count == 0:  # nothing to thaw but what others have frozen
                await _quietly(self._leave())
            return count

    async def _freeze(self, command: str, wanted: Collection[bytes] | None) -> int:
        try:
            mounts = await self._workers.run(list_mounts)
            if self._ending:
                raise CommandError(f"{command} refused: the agent is ending")
            await self._enter()
            count = await self._workers.run(partial(self._filesystems.freeze, mounts, wanted))
        finally:
            self._freezing = False
        if self._filesystems.stopped:
            raise CommandError(f"{command} {self._given_up}")
        return count

    async def _enter(self) -> None:
        self._filesystems = freeze.Frozen()
        await self._workers.run(self._mark)
        self.frozen = self._freezing = True
        self._start_watchdog()
        # No signal ends a thread that sleeps in a write to what is frozen: were this agent killed, its channel would
        # stay taken, and the next agent could not open it to thaw.
        await self._commands.drain(DRAIN_SECONDS)

    def _mark(self) -> None:
        try:
            freeze.mark(self._config.statedir)
        except OSError as exc:
            logger.warning("a restart of the agent would not know that it is frozen: %s", strerror(exc))
        logs.suspend()

    async def thaw(self) -> int:
        """Thaw whatever is frozen, by this agent or not; returns how many file systems were.

        CommandError if the hook fails, which comes last. Waits for a freeze or thaw under way.
        """
        async with self._turn:
            return await self._thaw()

    async def _thaw(self) -> int:
        count = await self._workers.run(self._thaw_all)
        await self._leave()
        return count

    def _thaw_all(self) -> int:
        try:
            mounts = list_mounts()
        except Exception:  # whatever it is, what this agent froze is thawed
            logger.exception("cannot list what else may be frozen")
            mounts = []
        return self._filesystems.thaw(mounts)

    async def _leave(self) -> None:
        if self.frozen:
            self.frozen = False
            self._stop_watchdog()
            await self._workers.run(self._unmark)
        await self._run_hook("thaw")

    def _unmark(self) -> None:
        try:
            freeze.unmark(self._config.statedir)
        except OSError as exc:
            logger.warning("the mark of a freeze cannot be removed: %s", strerror(exc))
        logs.resume()
        while self.at_thaw:
            self.at_thaw.pop()()

    async def _run_hook(self, argument: str) -> None:
        if self._config.fsfreeze_hook is not None:
            logs.account("executing fsfreeze hook with arg '%s'", argument)
            argv = [self._config.fsfreeze_hook, argument]
            await self._workers.run(partial(run.run, argv, "execute fsfreeze hook"))

    # --- thaws that nobody asked for

    def _start_watchdog(self) -> None:
        if self._config.freeze_timeout:
            self._watchdog = self._loop.call_later(self._config.freeze_timeout, self._expire)

    def _stop_watchdog(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None

    def _expire(self) -> None:
        self._expiry = self._loop.create_task(self._give_up(f"timed out after {self._config.freeze_timeout:g} s"))

    async def _give_up(self, reason: str) -> None:
        self._given_up = reason
        watchdog, stopped = self._watchdog, self._freezing
        if stopped:
            await self._workers.run(self._filesystems.stop)
        async with self._turn:
            # Meanwhile a client may have thawed, and even frozen again.
            if self.frozen and self._watchdog is watchdog:
                await _quietly(self._thaw())
            elif not stopped:
                return
        logger.error("file systems were thawed without a request: the freeze %s", reason)

    def refuse(self) -> None:
        """Freeze nothing from now on: the agent is about to end."""
        self._ending = True

    async def aclose(self) -> None:
        """Thaw what is frozen, since without the agent nobody would, and wait for a hook under way."""
        if self.frozen:
            await self._give_up("ended with the agent")
        async with self._turn:
            pass


async def _quietly(step: Awaitable[object]) -> None:
    """Await a step whose failure is no answer to what the client asked; it is logged."""
    try:
        await step
    except CommandError as exc:
        logger.error("%s", exc)
