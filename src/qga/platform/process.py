# SPDX-License-Identifier: Apache-2.0
"""Child processes of guest-exec: started without a shell, watched by the event loop, their output kept in memory files.

Output goes from the pipe into a memfd by splice(2), so it is never copied through this process and is read back by the
code that reads files. Source for the descriptor that reports the end of a process: pidfd_open(2).
"""

import asyncio
import errno
import fcntl
import os
import signal
from contextlib import suppress
from typing import NamedTuple

from .._b64io import spawn

PIPE_SIZE = 1 << 20
"""Wanted capacity of a captured pipe: fewer wake-ups per MiB."""

SPLICE_SIZE = 1 << 20
"""Most bytes moved in one turn of the event loop."""

SMALL = 64 << 10
"""Most bytes of output that are kept without a descriptor once the program has ended."""

FILES_MAX = 256
"""Memory files at once for programs that have ended: nobody may ever ask, and descriptors are few."""

DEFAULT_PATH = b"/bin:/usr/bin:."
"""Where programs are looked for if there is no PATH."""

SEARCH_ON = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ENODEV, errno.ETIMEDOUT)
"""Failures after which the next directory of PATH is tried, besides EACCES: nothing usable there."""

Environment = list[bytes] | None


def find_program(name: bytes, env: Environment) -> list[bytes]:
    """The files that may be meant by `name`: itself if it has a slash, else one for each directory of PATH.

    PATH is taken from `env` if that has one, else from this process.
    """
    if b"/" in name:
        return [name]
    path = next((entry[5:] for entry in env or () if entry.startswith(b"PATH=")), None)
    if path is None:
        path = os.environb.get(b"PATH", DEFAULT_PATH)
    return [os.path.join(directory or b".", name) for directory in path.split(b":")] if name and path else []


def start(
    argv: list[bytes], env: Environment, stdin: int, stdout: int, stderr: int, *, session: bool = False
) -> tuple[int, int]:
    """Start `argv[0]`, searched for as `find_program` says; session: in one of its own. May block; OSError.

    Returns its process id and a descriptor that becomes readable when it ends, which is the caller's.
    """
    pid = _spawn_first(argv, env, stdin, stdout, stderr, session)
    try:
        return pid, os.pidfd_open(pid)
    except OSError:  # no descriptor left: nobody could ever tell how it ended
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise


def _spawn_first(argv: list[bytes], env: Environment, stdin: int, stdout: int, stderr: int, session: bool) -> int:
    # A file that is no program for the kernel is given to /bin/sh, as execvp(3) does.
    failure = OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    denied: OSError | None = None
    for program in find_program(argv[0], env):
        try:
            os.stat(program)  # cheaper than a process that finds nothing to execute, and fails alike
            return spawn(program, argv, env, stdin, stdout, stderr, session)
        except OSError as exc:
            if exc.errno == errno.ENOEXEC:
                return spawn(b"/bin/sh", [b"/bin/sh", program, *argv[1:]], env, stdin, stdout, stderr, session)
            if exc.errno == errno.EACCES:
                denied = exc
            elif exc.errno not in SEARCH_ON:
                raise
            failure = exc
    raise denied or failure


class Capture:
    """Takes what a child writes to a pipe: the first `limit` bytes are kept, the rest is read and dropped."""

    _files = 0

    def __init__(self, limit: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._limit = limit
        self.kept = b""
        """The output once it has ended, unless it is in a memory file."""
        self._memory = -1
        self._open_memory()
        try:
            self._pipe, self.child_end = os.pipe()
        except OSError:
            self._close_memory()
            raise
        self.size = 0
        self.truncated = False
        self.ended = False
        os.set_blocking(self._pipe, False)
        with suppress(OSError):  # over the user's limit: slower, nothing else
            fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, PIPE_SIZE)

    def begin(self) -> None:
        """Start to read, once the child has its end."""
        os.close(self.child_end)
        self._loop.add_reader(self._pipe, self._take)

    def file(self) -> int:
        """Descriptor of the output, at its start; OSError if there can be none."""
        if self._memory < 0:
            self._open_memory()
            try:
                with open(self._memory, "wb", closefd=False) as file:
                    file.write(self.kept)
            except OSError:
                self._close_memory()
                raise
            self.kept = b""
        os.lseek(self._memory, 0, os.SEEK_SET)
        return self._memory

    def close(self) -> None:
        """Forget everything; the child's writes fail from now on."""
        if not self.ended:
            self._loop.remove_reader(self._pipe)
            os.close(self._pipe)
            self.ended = True
        self._close_memory()

    def abandon(self) -> None:
        """Undo the constructor, for a child that could not be started."""
        os.close(self.child_end)
        os.close(self._pipe)
        self._close_memory()

    def _take(self) -> None:
        room = min(self._limit - self.size, SPLICE_SIZE)
        try:
            taken = os.splice(self._pipe, self._memory, room) if room else len(os.read(self._pipe, 65536))
        except BlockingIOError:
            return
        except OSError:  # no memory for more: the rest is dropped, so that the child can go on
            self._limit = self.size
            self.truncated = True
            return
        if taken == 0:
            self._end()
        elif room:
            self.size += taken
        else:
            self.truncated = True

    def _end(self) -> None:
        self._loop.remove_reader(self._pipe)
        os.close(self._pipe)
        self.ended = True
        if self.size <= SMALL or Capture._files > FILES_MAX:
            self.kept = os.pread(self._memory, self.size, 0)
            self._close_memory()

    def _open_memory(self) -> None:
        self._memory = os.memfd_create("qga-exec", os.MFD_CLOEXEC)
        Capture._files += 1

    def _close_memory(self) -> None:
        if self._memory >= 0:
            os.close(self._memory)
            self._memory = -1
            Capture._files -= 1


class Feed:
    """Gives bytes to a child's standard input as fast as it takes them, then closes it."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._loop = asyncio.get_running_loop()
        self._rest = memoryview(data)
        self.child_end, self._pipe = os.pipe()
        os.set_blocking(self._pipe, False)

    def begin(self) -> None:
        """Start to write, once the child has its end."""
        os.close(self.child_end)
        self._loop.add_writer(self._pipe, self._give)

    def abandon(self) -> None:
        """Undo the constructor, for a child that could not be started."""
        os.close(self.child_end)
        os.close(self._pipe)

    def _give(self) -> None:
        try:
            if self._rest:
                self._rest = self._rest[os.write(self._pipe, self._rest[:65536]) :]
        except BlockingIOError:
            return
        except OSError:
            self._rest = memoryview(b"")  # the child has closed its input
        if not self._rest:
            self._loop.remove_writer(self._pipe)
            os.close(self._pipe)


class Ended(NamedTuple):
    """How a process ended: exactly one of the two is not None."""

    exit_code: int | None
    signal: int | None


class Process:
    """A started child, known by what `start` returned."""

    def __init__(self, pid: int, pidfd: int, out: Capture | None, err: Capture | None) -> None:
        self.pid = pid
        self.out = out
        self.err = err
        self._exit: Ended | None = None
        self._loop = asyncio.get_running_loop()
        self._pidfd = pidfd
        self._loop.add_reader(self._pidfd, self._reap)

    @property
    def ended(self) -> Ended | None:
        """How it ended, once all of its output is here as well."""
        if any(capture is not None and not capture.ended for capture in (self.out, self.err)):
            return None
        return self._exit

    def acquire(self, timeout: float) -> bool:
        """The output of a program that has ended is read by the one request that is told so."""
        return self.ended is not None

    def release(self) -> None:
        """Drop the kept output."""
        for capture in (self.out, self.err):
            if capture is not None:
                capture.close()

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        self._exit = Ended(code, None) if code >= 0 else Ended(None, -code)
