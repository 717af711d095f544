# SPDX-License-Identifier: Apache-2.0
"""Replies whose bulk is base64: sent block by block from a descriptor, never held whole."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .._b64io import Encoder
from ..errors import from_os
from .reply import encode

PATIENCE_MS = 50
"""How long a worker thread waits in all for a slow reader before it leaves the waiting to the event loop."""


class Bulk(NamedTuple):
    """One base64 member of a reply.

    source: descriptor, read from its position; count: bytes wanted, at the most.
    after: called with (count, eof) once the data is complete, gives the members that follow it.
    """

    key: str
    source: int
    count: int
    after: Callable[[int, bool], Mapping[str, Any]]


class Stream:
    """A handler's result: plain members, then one or more bulk ones.

    doing: what the error reply says if nothing can be read, such as "failed to read file".
    release: called exactly once, when the reply is out or given up.
    """

    def __init__(self, members: Mapping[str, Any], bulks: list[Bulk], doing: str, release: Callable[[], None]) -> None:
        self._members = members
        self._bulks = bulks
        self._doing = doing
        self._encoders: list[Encoder] = []
        self.release = release

    def open(self, end: bytes) -> None:
        """Read the first block; CommandError if there is none. `end` is what closes the reply behind the value."""
        head = b'{"return":{' + _members(self._members) + (b"," if self._members else b"")
        for bulk, following in zip(self._bulks, [*self._bulks[1:], None], strict=True):
            closing = b"}" + end if following is None else b"," + _opening(following)
            self._encoders.append(Encoder(bulk.source, bulk.count, head + _opening(bulk) if head else b"", _tail(bulk, closing)))
            head = b""
        try:
            self._encoders[0].prime()
        except OSError as exc:
            raise from_os(self._doing, exc) from exc

    def pump(self, out: int) -> bool:
        """Write until all is out (True) or the reader is too slow for a thread to wait (False); OSError if it is gone."""
        while self._encoders:
            if not self._encoders[0].pump(out, PATIENCE_MS):
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
