# SPDX-License-Identifier: Apache-2.0
"""Character devices: the virtio port, which is the usual channel, and serial ports."""

import asyncio
import errno
import logging
import os
import select
import termios
from collections.abc import Callable

from ..errors import ChannelError, strerror
from .base import Channel

logger = logging.getLogger(__name__)

OPEN_FLAGS = os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class HostGoneError(ChannelError):
    """The host side of a virtio port was closed; the port itself is fine."""


class VirtioChannel(Channel):
    """A virtio port. While the host side is closed it reads as end of file, which is waited out without polling."""

    _edges: select.epoll | None = None

    def lost(self, exc: Exception | None = None) -> None:
        """A reply that nobody is there to read is dropped; any other failure ends the channel."""
        if isinstance(exc, HostGoneError):
            self._unsent = memoryview(b"")
            self._at_eof()
        else:
            super().lost(exc)

    async def writable(self) -> None:
        """Wait until the host takes bytes; HostGoneError if its side is closed."""
        await super().writable()
        # A closed host side is reported as writable, but every write fails with EAGAIN.
        watch = select.poll()
        watch.register(self._out, select.POLLOUT)
        if any(events & select.POLLHUP for _, events in watch.poll(0)):
            raise HostGoneError("the host closed its side")

    def _at_eof(self) -> None:
        # Level-triggered waiting would spin: the port stays "readable" until the host comes back. An edge-triggered
        # epoll reports only that moment (Linux: drivers/char/virtio_console.c wakes the port's waiters then).
        self.pause()
        if self._edges is None:
            self._edges = select.epoll()
            self._edges.register(self._in, select.EPOLLIN | select.EPOLLET)
            self._loop.add_reader(self._edges.fileno(), self._on_edge)

    def _on_edge(self) -> None:
        assert self._edges is not None
        hung_up = any(events & select.EPOLLHUP for _, events in self._edges.poll(0))
        if not hung_up:
            self._stop_edges()
            self.resume()

    def _stop_edges(self) -> None:
        if self._edges is not None:
            self._loop.remove_reader(self._edges.fileno())
            self._edges.close()
            self._edges = None

    def _close_fds(self) -> None:
        self._stop_edges()
        super()._close_fds()


class TtyChannel(Channel):
    """A serial line. End of file is a hang-up: the device has to be opened anew."""

    def _at_eof(self) -> None:
        self.lost(ChannelError("hang-up"))


class DeviceChannel:
    """Keeps a channel open on a device, and opens it again when it breaks if there is a pause to do so after.

    fd: the device, None if it could not be opened yet; open_device: opens it, ChannelError; retry_seconds: None for no
    further attempt.
    """

    def __init__(
        self,
        fd: int | None,
        open_device: Callable[[], int],
        make_channel: Callable[[int], Channel],
        retry_seconds: float | None,
    ) -> None:
        self._fd = fd
        self._open_device = open_device
        self._make_channel = make_channel
        self._retry_seconds = retry_seconds
        self._channel: Channel | None = None
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self.failed: asyncio.Future[Exception | None] = self._loop.create_future()
        """Done when the channel is closed for good; the result is what broke it, if anything did."""

    def start(self) -> None:
        """Begin to serve."""
        if self._fd is None:
            self._retry()
            return
        self._channel = self._make_channel(self._fd)
        self._fd = None
        self._channel.closed.add_done_callback(self._closed)
        self._channel.start()

    async def aclose(self) -> None:
        """Let the reply under way finish and close the device."""
        self._retry_seconds = None
        if self._timer is not None:
            self._timer.cancel()
        if self._channel is not None:
            self._channel.pause()
            await self._channel.settle()
            self._channel.close()

    def _closed(self, closed: asyncio.Future[Exception | None]) -> None:
        self._channel = None
        if self._retry_seconds is not None:
            self._retry()
        elif not self.failed.done():
            self.failed.set_result(closed.result())

    def _retry(self) -> None:
        assert self._retry_seconds is not None
        self._timer = self._loop.call_later(self._retry_seconds, self._reopen)

    def _reopen(self) -> None:
        try:
            self._fd = self._open_device()
        except ChannelError as exc:
            logger.warning("%s", exc)
        self.start()


def open_virtio(path: str) -> int:
    """Open a virtio port for both directions; ChannelError in the C agent's words."""
    try:
        fd = os.open(path, OPEN_FLAGS)
    except OSError as exc:
        raise ChannelError(f"error opening channel '{path}': {strerror(exc)}") from exc
    try:
        with select.epoll() as probe:
            probe.register(fd)
    except OSError as exc:  # a plain file or a directory: nothing will ever come in
        os.close(fd)
        raise ChannelError(f"error opening channel '{path}': {strerror(exc)}") from exc
    return fd


def open_tty(path: str) -> int:
    """Open a serial line raw at 38400 baud, word size and parity as they are. ChannelError if it is no terminal."""
    fd = open_virtio(path)
    try:
        raw = termios.tcgetattr(fd)
        raw[0] &= ~(
            termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP
            | termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON | termios.IXOFF | termios.INPCK
        )  # fmt: skip
        raw[1] = raw[3] = 0
        raw[4] = raw[5] = termios.B38400
        raw[6][termios.VMIN], raw[6][termios.VTIME] = 1, 0
        termios.tcflush(fd, termios.TCIFLUSH)
        termios.tcsetattr(fd, termios.TCSANOW, raw)
    except termios.error as exc:
        os.close(fd)
        raise ChannelError(
            f"error opening channel '{path}': {os.strerror(exc.args[0] if exc.args else errno.ENOTTY)}"
        ) from exc
    return fd
