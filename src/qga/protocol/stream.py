# SPDX-License-Identifier: Apache-2.0
"""Replies whose bulk is base64: sent block by block from a descriptor, never held whole."""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

from .._b64io import Encoder
from ..errors import CommandError, from_os
from ..limits import COMMAND_TIMEOUT
from .reply import encode

PATIENCE_MS = 50
"""How long a worker thread waits in all for a slow reader before it leaves the waiting to the event loop."""


class Bulk(NamedTuple):
    """One base64 member of a reply.

    source: descriptor, read from its position; size: bytes wanted, at the most.
    after: called with (count, eof) once the data is complete, gives the members that follow it.
    """

    key: str
    source: int
    size: int
    after: Callable[[int, bool], Mapping[str, Any]]


class Source(Protocol):
    """What the descriptors belong to: one request at a time may use it."""

    def acquire(self, timeout: float) -> bool:
        """Wait for the turn of this request, `timeout` seconds at the most; OSError if it is no longer usable."""

    def release(self) -> None:
        """Let the next request have it."""


class Stream:
    """A handler's result: plain members, then one or more bulk ones.

    doing: what the error reply says if nothing can be read, such as "failed to read file".
    source: acquired before the first block is read, released when the reply is out or given up.
    """

    def __init__(self, members: Mapping[str, Any], bulks: list[Bulk], doing: str, source: Source) -> None:
        self._members = members
        self._bulks = bulks
        self._doing = doing
        self._source = source
        self._acquired = False
        self._encoders: list[Encoder] = []

    def open(self, end: bytes) -> None:
        """Read the first block; CommandError if there is none. `end` is what closes the reply behind the value."""
        try:
            if not self._acquire(COMMAND_TIMEOUT):
                raise CommandError(f"{self._doing}: in use by another request")
            self._make_encoders(end)
            self._encoders[0].prime()
        except OSError as exc:
            self.release()
            raise from_os(self._doing, exc) from exc
        except BaseException:
            self.release()
            raise

    def open_cached(self, end: bytes) -> bool:
        """Like `open`, if one block is all and it is in memory; otherwise False, and `open` may follow."""
        try:
            if len(self._bulks) > 1 or not self._acquire(0):
                return False
        except OSError:
            return False
        try:
            self._make_encoders(end)
            return self._encoders[0].prime_cached()
        except BaseException:
            self.release()
            raise

    def rewind(self) -> None:
        """Put back what was read, for a reply that came too late; what a pipe or terminal gave is lost."""
        for bulk, encoder in zip(self._bulks, self._encoders, strict=True):
            with suppress(OSError):
                os.lseek(bulk.source, -encoder.count, os.SEEK_CUR)

    def _acquire(self, timeout: float) -> bool:
        if not self._acquired:
            self._acquired = self._source.acquire(timeout)
        return self._acquired

    def release(self) -> None:
        """Let others use the source: the reply is out or given up."""
        if self._acquired:
            self._acquired = False
            self._source.release()

    def _make_encoders(self, end: bytes) -> None:
        self._encoders = []
        head = b'{"return":{' + _members(self._members) + (b"," if self._members else b"") + _opening(self._bulks[0])
        for bulk, following in zip(self._bulks, [*self._bulks[1:], None], strict=True):
            closing = b"}" + end if following is None else b"," + _opening(following)
            self._encoders.append(Encoder(bulk.source, bulk.size, head, _tail(bulk, closing)))
            head = b""

    def pump(self, out: int, patience: int = PATIENCE_MS) -> bool:
        """Write until all is out (True) or `patience` ms were spent waiting for `out` (False); OSError if it broke."""
        while self._encoders:
            if not self._encoders[0].pump(out, patience):
                return False
            del self._encoders[0]
        return True


def _members(members: Mapping[str, Any]) -> bytes:
    return encode(members)[1:-1]


def _opening(bulk: Bulk) -> bytes:
    return encode(bulk.key) + b':"'


def _tail(bulk: Bulk, closing: bytes) -> Callable[[int, bool], bytes]:
    def tail(count: int, eof: bool) -> bytes:
        members = _members(bulk.after(count, eof))
        return b'"' + (b"," + members if members else b"") + closing

    return tail
