# SPDX-License-Identifier: Apache-2.0
"""Where messages go: the log file or standard error for `logging`, syslog for the accounting of commands.

Both keep silent while file systems are frozen: what is logged meanwhile waits in memory, at most PENDING_MAX lines of
it. Neither ever fails or waits: a full disk, a reader that has gone away or an absent syslog daemon loses lines.
"""

import logging
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from .config import Config
from .errors import ConfigError, strerror

PENDING_MAX: Final = 256
"""Lines kept while frozen: enough for what happens in a freeze, too few to matter for memory."""

LINE_MAX: Final = 8096
"""Characters of a message, and bytes of one to syslog, whose daemons cut at 8 KiB (rsyslog's default) or above.

Clients choose names of up to 64 MiB.
"""

RECONNECT_SECONDS: Final = 1.0
_USER_INFO: Final = 14
"""RFC 3164 priority: facility user, severity informational, as the C agent has it."""

_PRIORITIES: Final = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
_STDERR: Final = 2
_FILE_FLAGS: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK

logger = logging.getLogger(__name__)

Write = Callable[[bytes], None]


class Gate:
    """Lets lines through to where they are written, or keeps them while it is shut; any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shut = False
        self._kept: deque[tuple[Write, bytes]] = deque(maxlen=PENDING_MAX)

    def pass_on(self, write: Write, line: bytes) -> None:
        """Call `write(line)`, now or when the gate opens; the oldest kept line gives way when there are too many."""
        with self._lock:
            if self._shut:
                self._kept.append((write, line))
            else:
                write(line)

    def run(self, action: Callable[[], None]) -> None:
        """Call `action` while nobody writes, or not at all if the gate is shut; its exceptions pass."""
        with self._lock:
            if not self._shut:
                action()

    def shut(self) -> None:
        """Keep lines from now on; when this returns no write is under way."""
        with self._lock:
            self._shut = True

    def open(self, before: Callable[[], None]) -> None:
        """Call `before`, write what was kept, and let lines through even if `before` raised something."""
        with self._lock:
            self._shut = False
            try:
                before()
            finally:
                while self._kept:
                    write, line = self._kept.popleft()
                    write(line)


class LogFile:
    """The log file, or standard error if `path` is None."""

    def __init__(self, path: str | None) -> None:
        self._path = path and os.path.abspath(path)
        self._fd = _STDERR

    def reopen(self) -> None:
        """Open the file again, after it was moved away; OSError leaves the former one in use."""
        if self._path is None:
            return
        fresh = os.open(self._path, _FILE_FLAGS, 0o644)
        self.close()
        self._fd = fresh

    def close(self) -> None:
        """Close the file; what is written from now on goes to standard error."""
        if self._fd != _STDERR:
            os.close(self._fd)
            self._fd = _STDERR

    def write(self, line: bytes) -> None:
        """Append a line, or lose it if that fails or would wait."""
        try:
            # Standard error may be a pipe that nobody reads; a pipe that polls as writable takes PIPE_BUF bytes.
            poll = select.poll()
            poll.register(self._fd, select.POLLOUT)
            if poll.poll(0):
                os.write(self._fd, line if self._fd != _STDERR else line[: select.PIPE_BUF])
        except OSError:
            pass


class Syslog:
    """Datagrams to the local syslog daemon, if there is one; its socket is `path`."""

    def __init__(self, path: str = "/dev/log") -> None:
        self._path = path
        self._socket: socket.socket | None = None
        self._next_try = 0.0

    def write(self, line: bytes) -> None:
        """Send a line, or lose it if the daemon is absent or has too much to do."""
        for _ in range(2):
            if self._socket is None and not self._connect():
                return
            assert self._socket is not None
            try:
                self._socket.send(line)
            except BlockingIOError:
                return
            except OSError:
                self.close()  # the daemon was restarted: its new socket is another one
            else:
                return

    def close(self) -> None:
        """Close the connection; the next line makes a new one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connect(self) -> bool:
        if time.monotonic() < self._next_try:
            return False
        self._next_try = time.monotonic() + RECONNECT_SECONDS
        fresh = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        fresh.setblocking(False)
        try:
            fresh.connect(self._path)
        except OSError:
            fresh.close()
            return False
        self._socket = fresh
        return True


class _Handler(logging.Handler):
    """Gives records to the log file, as `<seconds>.<microseconds>: <level>: <text>`.

    journal: with the priority in front that systemd's journal files them under (sd-daemon(3)).
    """

    def __init__(self, journal: bool) -> None:
        super().__init__()
        self._journal = journal

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = _printable(record.getMessage()[:LINE_MAX])
            if record.exc_info:
                text += "\n" + _TRACEBACKS.formatException(record.exc_info)
            line = f"{record.created:.6f}: {record.levelname.lower()}: {text}\n"
            if self._journal:
                line = f"<{_PRIORITIES[record.levelno]}>{line}"
            _gate.pass_on(_log_file.write, line.encode(errors="backslashreplace"))
        except Exception:
            self.handleError(record)  # a message that cannot be formatted is no reason to end


_TRACEBACKS: Final = logging.Formatter()
_gate = Gate()
_log_file = LogFile(None)
_syslog = Syslog()


def setup(config: Config, *, frozen: bool = False) -> None:
    """Send the messages of `logging` where `config` says: errors only, or all if it is verbose.

    frozen: file systems are frozen already; the file is opened by `resume`. ConfigError if the file cannot be opened.
    """
    global _log_file
    _log_file.close()
    _log_file = LogFile(config.logfile)
    if frozen:
        _gate.shut()
    try:
        _gate.run(_log_file.reopen)
    except OSError as exc:
        raise ConfigError(f"unable to open specified log file: {strerror(exc)}") from exc
    root = logging.getLogger()
    root.handlers[:] = [_Handler(config.logfile is None and _is_journal(_STDERR))]
    root.setLevel(logging.DEBUG if config.verbose else logging.ERROR)


def _is_journal(fd: int) -> bool:
    """Whether systemd connected a stream to its journal (systemd.exec(5), JOURNAL_STREAM)."""
    status = os.fstat(fd)
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def account(message: str, *args: object) -> None:
    """Record in syslog that a client did something; `message` takes `args` by the % operator."""
    text = _printable((message % args)[:LINE_MAX])
    line = f"<{_USER_INFO}>qga[{os.getpid()}]: info: {text}".encode(errors="backslashreplace")
    _gate.pass_on(_syslog.write, line[:LINE_MAX])


def reopen() -> None:
    """Open the log file again, after it was moved away; while frozen this waits for `resume`, which always does it."""
    try:
        _gate.run(_log_file.reopen)
    except OSError as exc:
        logger.error("cannot open the log file again: %s", strerror(exc))


def suspend() -> None:
    """Write and send nothing from now on: it could wait for a frozen file system."""
    _gate.shut()


def resume() -> None:
    """Write what was logged since `suspend`, and go on as before."""
    try:
        _gate.open(_log_file.reopen)
    except OSError as exc:
        logger.error("cannot open the log file again: %s", strerror(exc))


def _printable(text: str) -> str:
    """`text` on one line: names that clients choose must not look like further lines."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
