# SPDX-License-Identifier: Apache-2.0
"""What all channels share: non-blocking descriptors, a session on them, and back-pressure in both directions.

Plain descriptors instead of asyncio transports: sockets, serial and virtio ports then go through one piece of code,
requests are read straight into the framer's buffer, and bulk replies are written by a worker without a copy.
"""

import asyncio
import logging
import os

from ..errors import ChannelError
from ..protocol.dispatch import Dispatcher
from ..protocol.session import Session
from ..workers import WorkerPool

logger = logging.getLogger(__name__)


class Channel:
    """A link to one peer. Owns its descriptors and closes them, but never while a worker may be writing to them."""

    def __init__(self, dispatcher: Dispatcher, workers: WorkerPool, fd_in: int, fd_out: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._in = fd_in
        self._out = fd_out
        self._session = Session(dispatcher, workers, self)
        self._unsent = memoryview(b"")
        self._writable: asyncio.Future[None] | None = None
        self._reading = False
        self.closed: asyncio.Future[Exception | None] = self._loop.create_future()
        """Done when the channel is closed; the result is what broke it, if anything did."""
        os.set_blocking(fd_in, False)
        os.set_blocking(fd_out, False)

    # --- for the session

    def out_fd(self) -> int:
        """The descriptor that replies are written to."""
        return self._out

    def send(self, data: bytes) -> bool:
        """Write, and keep what the peer does not take yet; True if nothing is kept. ChannelError if it is gone."""
        try:
            written = os.write(self._out, data)
        except BlockingIOError:
            written = 0
        except OSError as exc:
            raise ChannelError(f"cannot reply: {exc}") from exc
        if written == len(data):
            return True
        self._unsent = memoryview(data)[written:]
        return False

    async def flushed(self) -> None:
        """Wait until nothing is kept; ChannelError if the peer is gone."""
        while self._unsent:
            await self.writable()
            try:
                self._unsent = self._unsent[os.write(self._out, self._unsent) :]
            except BlockingIOError:
                continue
            except OSError as exc:
                raise ChannelError(f"reply cut off: {exc}") from exc

    async def writable(self) -> None:
        """Wait until the peer takes bytes; ChannelError if it is gone."""
        self._writable = self._loop.create_future()
        self._loop.add_writer(self._out, self._on_writable)
        try:
            await self._writable
        finally:
            self._loop.remove_writer(self._out)
            self._writable = None

    def pause(self) -> None:
        """Stop reporting that bytes have come in."""
        if self._reading:
            self._loop.remove_reader(self._in)
            self._reading = False

    def resume(self) -> None:
        """Report again."""
        if not self._reading and not self.closed.done():
            self._loop.add_reader(self._in, self._on_readable)
            self._reading = True

    def ended(self) -> None:
        """The peer will send no more and everything is answered."""
        self.close()

    def lost(self, exc: Exception | None = None) -> None:
        """The channel is unusable."""
        if not self.closed.done():
            expected = exc is None or isinstance(exc, OSError | ChannelError)
            if expected:
                logger.warning("%s lost: %s", self, exc)
            else:
                logger.error("%s lost", self, exc_info=exc)
            self.close(exc)

    # --- for the owner

    start = resume

    def close(self, exc: Exception | None = None) -> None:
        """Close the descriptors and resolve `closed`. Not while the session is busy."""
        if self.closed.done():
            return
        self.pause()
        self._session.close()
        self._close_fds()
        self.closed.set_result(exc)

    async def settle(self) -> None:
        """Wait for the reply under way."""
        await self._session.settle()

    # --- for subclasses

    def _at_eof(self) -> None:
        # A socket whose peer has closed its sending side.
        self.pause()
        self._session.end_of_input()

    def _close_fds(self) -> None:
        os.close(self._in)
        if self._out != self._in:
            os.close(self._out)

    # --- loop callbacks

    def _on_readable(self) -> None:
        try:
            got = self._session.readable(self._in)
        except Exception as exc:
            self.lost(exc)
            return
        if got == 0:
            self._at_eof()

    def _on_writable(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
