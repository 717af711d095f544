# SPDX-License-Identifier: Apache-2.0
"""What outlives a connection: configuration, open files, started programs, and whether file systems are frozen."""

import asyncio
import threading

from .config import Config
from .errors import CommandError
from .freezing import FreezeState
from .limits import HANDLE_STEP
from .platform import statefile
from .platform.files import OpenFile
from .platform.process import Process
from .protocol.registry import Command, allowed_names
from .workers import WorkerPool


class HandleTable:
    """Open files by handle. A number is never given out twice, not even by a later process with the same state.

    Numbers are reserved in steps, each step recorded before its first number is used. Any thread may call any method.
    OSError from the constructor if the state directory cannot be written; with `frozen` that is not tried yet.
    """

    def __init__(self, state_dir: str, frozen: bool = False) -> None:
        self._state_dir = state_dir
        self._files: dict[int, OpenFile] = {}
        self._numbering = threading.Lock()
        self._next = statefile.read(state_dir)
        self._reserved = self._next
        if not frozen:
            self._reserve()

    def add(self, file: OpenFile) -> int:
        """Take ownership of `file` and return its handle; CommandError if the numbers could not be recorded."""
        with self._numbering:
            if self._next >= self._reserved:
                try:
                    self._reserve()
                except OSError as exc:
                    file.close()
                    raise CommandError("failed to commit persistent state to disk") from exc
            handle = self._next
            self._next += 1
        self._files[handle] = file
        return handle

    def get(self, handle: int) -> OpenFile:
        """The file of a handle, or CommandError."""
        try:
            return self._files[handle]
        except KeyError:
            raise CommandError(f"handle '{handle}' has not been found") from None

    def pop(self, handle: int) -> OpenFile:
        """Forget a handle, and return its file, which is the caller's from now on."""
        return self._files.pop(handle)

    def _reserve(self) -> None:
        statefile.write(self._state_dir, self._next + HANDLE_STEP)
        self._reserved = self._next + HANDLE_STEP


class Agent:
    """The state that commands work on; the event loop's thread owns it, except where a part says otherwise."""

    def __init__(self, config: Config, files: HandleTable, frozen: bool = False) -> None:
        self.config = config
        self.workers = WorkerPool(asyncio.get_running_loop())
        self.files = files
        self.processes: dict[int, Process] = {}
        self.freezing = FreezeState(config, self.workers, frozen)
        self._allowed = allowed_names(config.allow_rpcs, config.block_rpcs)

    @property
    def frozen(self) -> bool:
        """Whether file systems are frozen."""
        return self.freezing.frozen

    def is_enabled(self, command: Command) -> bool:
        """Whether a client may use the command now: while frozen only what is safe then, else what is configured."""
        return command.frozen_ok if self.frozen else command.name in self._allowed

    def deadline(self, command: Command) -> float | None:
        """Seconds that the command may take, None for ever."""
        if command.deadline is None or self.config.command_timeout is None:
            return command.deadline
        return self.config.command_timeout or None
