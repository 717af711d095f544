# SPDX-License-Identifier: Apache-2.0
"""Going into the background, and the file that tells the daemon's process id."""

import contextlib
import fcntl
import os
from typing import NoReturn

from .errors import ConfigError, strerror


class PidFile:
    """A file with this process's id, locked for as long as the process lives; ConfigError if another one holds it."""

    def __init__(self, path: str) -> None:
        self._path = os.path.abspath(path)
        self._fd = _lock(self._path)
        try:
            os.ftruncate(self._fd, 0)
            os.write(self._fd, b"%d\n" % os.getpid())
        except OSError as exc:
            self.remove()
            raise ConfigError(f"Cannot write pid file: {strerror(exc)}") from exc

    def remove(self) -> None:
        """Delete the file, unless another one took its name, and give up the lock."""
        if _is_same_file(self._fd, self._path):
            with contextlib.suppress(OSError):
                os.unlink(self._path)
        os.close(self._fd)


def daemonize(pidfile: str | None) -> PidFile | None:
    """Continue in a child process without terminal, in `/`, with umask 077 and standard streams on /dev/null.

    The calling process ends here: with status 0 once the child has its pid file, else with the status of the child,
    whose ConfigError still reaches the caller's standard error. pidfile: None for no such file now.
    Descriptors stay open; nothing may have started a thread yet.
    """
    ready, report = os.pipe()
    if child := os.fork():
        os.close(report)
        _wait_and_exit(child, ready)
    os.close(ready)
    os.setsid()
    os.umask(0o077)
    held = None if pidfile is None else PidFile(pidfile)
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    if null > 2:  # else it took the place of a stream that was closed
        os.close(null)
    os.write(report, b"\0")
    os.close(report)
    return held


def _wait_and_exit(child: int, ready: int) -> NoReturn:
    if os.read(ready, 1):
        os._exit(0)
    _, status = os.waitpid(child, 0)
    os._exit(os.waitstatus_to_exitcode(status) or 1)


def _lock(path: str) -> int:
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as exc:
            raise ConfigError(f"Could not create '{path}': {strerror(exc)}") from exc
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            os.close(fd)
            raise ConfigError(f"Cannot lock pid file: {strerror(exc)}") from exc
        if _is_same_file(fd, path):
            return fd
        os.close(fd)  # its former owner deleted it just before the lock was ours


def _is_same_file(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    except OSError:
        return False
