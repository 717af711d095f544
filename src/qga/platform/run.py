# SPDX-License-Identifier: Apache-2.0
"""Running a helper program of the system to its end: freeze hook, chpasswd, hwclock, shutdown.

Blocks, so it belongs on a worker thread. The program gets a session of its own, nothing or the given bytes to read,
and one pipe for what it writes; it is over when that pipe is closed and the program has ended.
"""

import errno
import os
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress

from ..errors import CommandError, strerror

OUTPUT_MAX = 64 << 10
"""Bytes of a program's output that an error message repeats; the rest is read and dropped."""

KILLED_PATIENCE = 5.0
"""Seconds that a killed program gets to be gone; one that hangs in the kernel is left behind."""

_BLOCK = 16384


def run(argv: Sequence[str | bytes], action: str, stdin: bytes | None = None, timeout: float | None = None) -> None:
    """Run a program and return when it has ended with status 0.

    argv: the program, looked for in PATH if it has no slash, and its arguments.
    action: what it is to do, as in "set user password", for the text of an error.
    stdin: what it may read; None for nothing.
    timeout: seconds after which its process group is killed; None for never.

    Raises CommandError with the C agent's text and what the program wrote.
    Source: protocol reference, rules for external helpers.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    child = _start(argv, action, stdin is not None)
    try:
        output = _converse(child, stdin or b"", deadline)
        status = child.wait(_left(deadline))
    except subprocess.TimeoutExpired as exc:
        _kill(child)
        raise CommandError(f"child process has failed to {action}: timed out after {timeout:g} s") from exc
    finally:
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()
    _judge(status, output.decode(errors="replace"), action)


def _start(argv: Sequence[str | bytes], action: str, has_input: bool) -> subprocess.Popen[bytes]:
    try:
        # A pipe, not a file in memory: SELinux lets the domain of chpasswd read the agent's pipes only, and a
        # descriptor that it takes away looks like empty input, with which chpasswd reports success.
        return _popen(argv, subprocess.PIPE if has_input else subprocess.DEVNULL)
    except OSError as exc:
        if exc.filename is None:
            raise CommandError(f"failed to create child process: {strerror(exc)}") from exc
        # The C agent learns it from its child, which writes this line and exits.
        failure = f"failed to exec '{os.fsdecode(argv[0])}': {strerror(exc)}\n"
        raise CommandError(f"child process has failed to {action}: {failure}") from exc


def _popen(argv: Sequence[str | bytes], stdin: int) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            argv, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, bufsize=0
        )
    except OSError as exc:
        if exc.errno != errno.ENOEXEC or b"/" not in os.fsencode(argv[0]):
            raise
        return _popen(["/bin/sh", *argv], stdin)  # a script without "#!", as execvp(3) takes it


def _converse(child: subprocess.Popen[bytes], data: bytes, deadline: float | None) -> bytes:
    """Give the child its input as fast as it takes it, and return its output once that has ended."""
    assert child.stdout is not None
    poll = select.poll()
    poll.register(child.stdout, select.POLLIN)
    if child.stdin is not None:
        os.set_blocking(child.stdin.fileno(), False)
        poll.register(child.stdin, select.POLLOUT)
    kept = b""
    while True:
        left = _left(deadline)
        ready = [fd for fd, _ in poll.poll(None if left is None else left * 1000)]
        if not ready:
            raise subprocess.TimeoutExpired("", 0)
        if child.stdin is not None and child.stdin.fileno() in ready:
            data = _give(child.stdin.fileno(), data)
            if not data:
                poll.unregister(child.stdin)
                child.stdin.close()
                child.stdin = None
        if child.stdout.fileno() in ready:
            chunk = os.read(child.stdout.fileno(), _BLOCK)
            if not chunk:
                return kept
            kept += chunk[: OUTPUT_MAX - len(kept)]


def _give(pipe: int, data: bytes) -> bytes:
    """Write a block and return what is left; nothing is if the child does not read."""
    try:
        return data[os.write(pipe, data[:_BLOCK]) :]
    except BlockingIOError:
        return data
    except BrokenPipeError:
        return b""


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _kill(child: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        child.wait(KILLED_PATIENCE)


def _judge(status: int, output: str, action: str) -> None:
    if status < 0:
        raise CommandError("child process has terminated abnormally" + (output and f": {output}"))
    if status > 0:
        raise CommandError(f"child process has failed to {action}: {output or f'exit status {status}'}")
