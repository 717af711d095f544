# SPDX-License-Identifier: Apache-2.0
"""Open files of the guest-file-* commands: plain descriptors, written without a buffer of our own."""

import errno
import os
import threading

MODES = {
    "r": os.O_RDONLY,
    "w": os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
    "a": os.O_WRONLY | os.O_CREAT | os.O_APPEND,
    "r+": os.O_RDWR,
    "w+": os.O_RDWR | os.O_CREAT | os.O_TRUNC,
    "a+": os.O_RDWR | os.O_CREAT | os.O_APPEND,
}
"""Open flags by fopen mode, without the "b" that means nothing on Linux."""

WRITE_BLOCK = 1 << 20


def flags_for(mode: str) -> int | None:
    """The open flags of an fopen mode, None if it is none: `r`, `rb`, `r+`, `rb+` or `r+b`, likewise for w and a."""
    plain = mode.replace("b", "", 1)
    if not mode.startswith(plain[:1]):
        return None
    return MODES.get(plain)


def open_file(path: bytes, flags: int, new_mode: int) -> int:
    """Open non-blocking and close-on-exec; a file that is created gets exactly `new_mode`, whatever the umask. OSError.

    An existing path is opened without O_CREAT, so nothing is created through a dangling symlink.
    """
    flags |= os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    if not flags & os.O_CREAT:
        return os.open(path, flags)
    try:
        fd = os.open(path, flags | os.O_EXCL, 0o600)
    except FileExistsError:
        return os.open(path, flags & ~os.O_CREAT)
    try:
        os.fchmod(fd, new_mode)
    except OSError:
        os.close(fd)
        raise
    return fd


class OpenFile:
    """One handle: a descriptor that one request at a time may use."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._lock = threading.Lock()
        self._closed = False

    def acquire(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for the turn of this request: whether it has come. OSError if closed."""
        if not self._lock.acquire(timeout=timeout):
            return False
        if self._closed:
            self._lock.release()
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return True

    def release(self) -> None:
        """Let the next request have the file; any thread may do so."""
        self._lock.release()

    def write(self, data: memoryview) -> None:
        """Write everything, or raise OSError with a part of it written."""
        while data:
            data = data[os.write(self.fd, data[:WRITE_BLOCK]) :]

    def seek(self, offset: int, whence: int) -> int:
        """Move the position and return it, counted from the start of the file. OSError."""
        return os.lseek(self.fd, offset, whence)

    def close(self) -> None:
        """Close the descriptor; it is gone even if OSError reports that earlier writes were lost."""
        self._closed = True
        os.close(self.fd)
