# SPDX-License-Identifier: Apache-2.0
"""One stream of requests: reads them, answers them strictly in order, and takes no more than it can answer."""

import asyncio
from collections.abc import Coroutine
from functools import partial
from typing import Any, Final, Protocol

from .._framing import Framer
from ..errors import ChannelError
from ..workers import WorkerPool
from .dispatch import Dispatcher, Reply, Started, pump
from .stream import Stream

TURN = 64
"""Requests answered before other connections get a turn."""

LARGE = 1 << 20
"""Bytes of receive buffer that an idle connection may keep."""

TRIM_SECONDS = 0.5
"""How long the memory of a large request is kept for the next one."""


class Link(Protocol):
    """What a session needs of its channel."""

    def out_fd(self) -> int:
        """The descriptor that replies are written to."""

    def send(self, data: bytes) -> bool:
        """Write, and keep what the peer does not take yet; True if nothing is kept. ChannelError if it is gone."""

    async def flushed(self) -> None:
        """Wait until nothing is kept."""

    async def writable(self) -> None:
        """Wait until the peer takes bytes; ChannelError if it is gone."""

    def pause(self) -> None:
        """Stop reporting that bytes have come in."""

    def resume(self) -> None:
        """Report again."""

    def ended(self) -> None:
        """The peer will send no more and everything is answered."""

    def lost(self, exc: Exception) -> None:
        """The channel is unusable."""


class Session:
    """The protocol state of one connection.

    While a request is being answered no further one is looked at and no byte is read, so a peer that sends
    without reading is stopped by its own full pipe.
    """

    def __init__(self, dispatcher: Dispatcher, workers: WorkerPool, link: Link) -> None:
        self._dispatcher = dispatcher
        self._workers = workers
        self._link = link
        self._framer = Framer()
        self._task: asyncio.Task[None] | None = None
        self._trim: asyncio.TimerHandle | None = None
        self._at_eof = False
        self._settling = False

    def readable(self, fd: int) -> int:
        """Read from `fd` once and answer what is complete; returns what `Framer.fill` does. OSError, ChannelError."""
        if self._task is not None:
            self._link.pause()
            return -1
        got = self._framer.fill(fd)
        if got > 0:
            self._advance()
        return got

    def end_of_input(self) -> None:
        """The peer sends no more: finish what it has asked for, then tell the link."""
        self._at_eof = True
        if self._task is None:
            self._link.ended()

    def close(self) -> None:
        """Give the memory back at once: half of a large request may be in it."""
        if self._trim is not None:
            self._trim.cancel()
        del self._framer

    async def settle(self) -> None:
        """Begin no further request, and wait for the reply under way."""
        self._settling = True
        if self._task is not None:
            await asyncio.wait([self._task])

    def _advance(self) -> None:
        for _ in range(TURN):
            request = _NOTHING if self._settling else next(self._framer, _NOTHING)
            if request is _NOTHING:
                return self._idle()
            reply = self._dispatcher.dispatch(request, self._link.out_fd())
            if isinstance(reply, bytes):
                if not self._link.send(reply):
                    return self._begin(None)
            elif isinstance(reply, Started):
                if not self._send_cached(reply.stream):
                    return self._begin(self._stream(reply))
            elif reply is not None:
                return self._begin(reply)
        return self._begin(None)

    def _send_cached(self, stream: Stream) -> bool:
        # What is in memory already is sent from here: a change of threads would cost more.
        try:
            done = pump(stream, self._link.out_fd(), patience=0)
        except ChannelError:
            stream.release()
            raise
        if done:
            stream.release()
        return done

    def _idle(self) -> None:
        if self._framer.size > LARGE and self._trim is None:
            self._trim = asyncio.get_running_loop().call_later(TRIM_SECONDS, self._give_back)

    def _give_back(self) -> None:
        self._trim = None
        # If it is in use, the next time that nothing is to be done begins the wait anew.
        if self._task is None:
            self._framer.trim()

    def _begin(self, pending: Coroutine[Any, Any, Reply] | None) -> None:
        self._task = asyncio.get_running_loop().create_task(self._finish(pending))

    async def _finish(self, pending: Coroutine[Any, Any, Reply] | None) -> None:
        # pending: the rest of a request; None if only the reply has to get out, or others have to get a turn.
        try:
            reply = await (pending or asyncio.sleep(0))
            if isinstance(reply, Started):
                await self._stream(reply)
            elif reply is not None:
                self._link.send(reply)
            await self._link.flushed()
            self._task = None
            self._advance()
        except Exception as exc:
            self._task = None
            self._link.lost(exc)
            return
        if self._task is not None or self._settling:
            return
        if self._at_eof:
            self._link.ended()
        else:
            self._link.resume()

    async def _stream(self, started: Started) -> None:
        stream, done = started
        try:
            while not done:
                await self._link.writable()
                done = await self._workers.run(partial(pump, stream, self._link.out_fd()))
        finally:
            stream.release()


_NOTHING: Final = object()
