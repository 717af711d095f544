# SPDX-License-Identifier: Apache-2.0
from collections.abc import Iterator
from typing import Any, final

@final
class ParseError:
    """Not raised: an item of the stream that says that a request could not be read; `desc` is for the client."""

    desc: str

    def __init__(self, desc: str) -> None: ...

@final
class Span:
    """A long string value that stays in the receive buffer: ASCII without escapes, read through the buffer protocol.

    Its bytes stay in place for as long as it exists; writable, so that they can be decoded there. `str()` copies them.
    """

    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class Framer:
    """Splits a byte stream into JSON values; iterate to get those that are complete.

    An item is a JSON value (dict, list, str, Span, int, float, bool, None) or a `ParseError`. Iteration stops when the
    buffered bytes hold no further complete value; after more bytes it can be resumed.
    """

    def fill(self, fd: int) -> int:
        """Read once from a non-blocking descriptor: bytes read, 0 at end of file, -1 if nothing is there; OSError."""

    def feed(self, data: bytes) -> None:
        """Append bytes that were read elsewhere."""

    def __iter__(self) -> Iterator[Any]: ...
    def __next__(self) -> Any: ...
    def trim(self) -> None:
        """Give the memory of a large request back, unless it is still needed."""

    @property
    def buffered(self) -> int:
        """Bytes received that do not yet make a complete value."""

    @property
    def size(self) -> int:
        """Bytes of the receive buffer."""

__test__: dict[str, str]
