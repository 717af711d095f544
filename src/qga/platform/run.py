# SPDX-License-Identifier: Apache-2.0
"""Running a helper program of the system to its end: freeze hook, chpasswd, hwclock, shutdown.

Blocks, so it belongs on a worker thread; the other threads go on, even while the kernel loads the program from a disk
that hangs. The program gets a session of its own, nothing or the given bytes to read, and one pipe for what it writes;
it is over when that pipe is closed and the program has ended.
"""

import errno
import os
import select
import signal
import time
from collections.abc import Sequence
from contextlib import suppress

from ..errors import CommandError, strerror
from .process import start

OUTPUT_MAX = 64 << 10
"""Bytes of a program's output that an error message repeats; the rest is read and dropped."""

KILLED_PATIENCE = 5.0
"""Seconds that a killed program gets to be gone; one that hangs in the kernel is left behind."""

NOT_FOUND = 127
"""Exit status that a shell gives to a program that it cannot start."""

_BLOCK = 16384
_NO_CHILD = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)

_left_behind: list[int] = []
"""Children that did not end when killed, to be collected when they do."""


def run(argv: Sequence[str | bytes], action: str, stdin: bytes | None = None, timeout: float | None = None) -> None:
    """Run a program and return when it has ended with status 0.

    argv: the program, looked for in PATH if it has no slash, and its arguments.
    action: what it is to do, as in "set user password", for the text of an error.
    stdin: what it may read; None for nothing.
    timeout: seconds after which its process group is killed; None for never.

    Raises CommandError with the C agent's text and what the program wrote.
    Source: protocol reference, rules for external helpers.
    """
    try:
        status, output = _run(argv, stdin, timeout)
    except _Overdue as exc:
        raise CommandError(f"child process has failed to {action}: timed out after {timeout:g} s") from exc
    except OSError as exc:
        if exc.errno in _NO_CHILD:
            raise CommandError(f"failed to create child process: {strerror(exc)}") from exc
        # The C agent learns it from its child, which writes this line and exits.
        failure = f"failed to exec '{os.fsdecode(argv[0])}': {strerror(exc)}\n"
        raise CommandError(f"child process has failed to {action}: {failure}") from exc
    _judge(status, output.decode(errors="replace"), action)


def exit_status(argv: Sequence[str]) -> int:
    """Run a program found through PATH with its output thrown away.

    Returns its exit status, negative for a signal, NOT_FOUND if it cannot be started.
    """
    words = [os.fsencode(word) for word in argv]
    try:
        with open(os.devnull, "r+b", buffering=0) as null:
            pid, pidfd = start(words, None, null.fileno(), null.fileno(), null.fileno(), session=True)
    except OSError:
        return NOT_FOUND
    os.close(pidfd)
    return _status(pid)


def _run(argv: Sequence[str | bytes], stdin: bytes | None, timeout: float | None) -> tuple[int, bytes]:
    """The status and the first OUTPUT_MAX bytes of output. OSError, _Overdue."""
    _collect()
    child = _Child([os.fsencode(word) for word in argv], stdin)
    try:
        return child.converse(None if timeout is None else time.monotonic() + timeout)
    finally:
        child.close()


def _collect() -> None:
    for pid in _left_behind[:]:
        with suppress(ChildProcessError, ValueError):  # another thread may have been here first
            if os.waitpid(pid, os.WNOHANG)[0]:
                _left_behind.remove(pid)


class _Overdue(Exception):
    """The time limit has passed."""


class _Child:
    """A started program with its pipes."""

    def __init__(self, argv: list[bytes], stdin: bytes | None) -> None:
        # Pipes, not files in memory: SELinux lets the domain of chpasswd read the agent's pipes only, and a
        # descriptor that it takes away looks like empty input, with which chpasswd reports success.
        self._input = -1
        self._data = stdin or b""
        self._ended = False
        self._output, child_output = os.pipe()
        child_input = -1
        try:
            if stdin is None:
                child_input = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            else:
                child_input, self._input = os.pipe()
            self._pid, self._pidfd = start(argv, None, child_input, child_output, child_output, session=True)
        except OSError:
            self._close_pipes()
            raise
        finally:
            os.close(child_output)
            if child_input >= 0:
                os.close(child_input)

    def converse(self, deadline: float | None) -> tuple[int, bytes]:
        """Give the program its input as fast as it takes it; its status and output once both have ended."""
        poll = select.poll()
        poll.register(self._output, select.POLLIN)
        if self._input >= 0:
            os.set_blocking(self._input, False)
            poll.register(self._input, select.POLLOUT)
        kept = b""
        while True:
            ready = _wait(poll, deadline)
            if self._input in ready and not self._give():
                poll.unregister(self._input)
                os.close(self._input)
                self._input = -1
            if self._output in ready:
                chunk = os.read(self._output, _BLOCK)
                if not chunk:
                    return self._reap(deadline), kept
                kept += chunk[: OUTPUT_MAX - len(kept)]

    def close(self) -> None:
        """Let go of the program; one that has not ended is killed with its process group."""
        self._close_pipes()
        try:
            if not self._ended:
                self._kill()
        finally:
            os.close(self._pidfd)

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        try:
            self._reap(time.monotonic() + KILLED_PATIENCE)
        except _Overdue:
            _left_behind.append(self._pid)

    def _give(self) -> bool:
        """Write a block; whether there is more to write to a program that still reads."""
        try:
            self._data = self._data[os.write(self._input, self._data[:_BLOCK]) :]
        except BlockingIOError:
            return True
        except BrokenPipeError:
            return False
        return bool(self._data)

    def _reap(self, deadline: float | None) -> int:
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        _wait(poll, deadline)
        self._ended = True
        return _status(self._pid)

    def _close_pipes(self) -> None:
        os.close(self._output)
        if self._input >= 0:
            os.close(self._input)


def _wait(poll: select.poll, deadline: float | None) -> set[int]:
    """The descriptors that are ready; _Overdue at the deadline."""
    left = None if deadline is None else max(0.0, deadline - time.monotonic())
    ready = {fd for fd, _ in poll.poll(None if left is None else left * 1000)}
    if not ready:
        raise _Overdue
    return ready


def _status(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _judge(status: int, output: str, action: str) -> None:
    if status < 0:
        raise CommandError("child process has terminated abnormally" + (output and f": {output}"))
    if status > 0:
        raise CommandError(f"child process has failed to {action}: {output or f'exit status {status}'}")
