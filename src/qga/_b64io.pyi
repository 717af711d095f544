# SPDX-License-Identifier: Apache-2.0
from collections.abc import Callable
from typing import final

from ._framing import Span

@final
class Encoder:
    """Reads up to `count` bytes from `source` and writes them, base64, between a head and a tail to another descriptor.

    head: bytes written before the data.
    tail: called with (count, eof) when the data is complete, returns the bytes written after it.

    The descriptors are the caller's and must outlive the encoder; `source` is read at its own position.
    """

    count: int
    eof: bool

    def __init__(self, source: int, count: int, head: bytes, tail: Callable[[int, bool], bytes]) -> None: ...
    def prime(self) -> None:
        """Read the first block, so that a source that cannot be read at all fails before anything is sent.

        Raises OSError if the very first read fails; BlockingIOError if nothing is there yet.
        """

    def prime_cached(self) -> bool:
        """Queue all of the data if it is a single block that is in memory already: True. Otherwise nothing happens.

        Never blocks. Source: RWF_NOWAIT in preadv2(2).
        """

    def pump(self, out: int, patience: int) -> bool:
        """Write until everything is out (True), or `patience` milliseconds were spent waiting for `out` (False).

        A read error after the first block ends the data early: the tail tells the count really sent. Raises OSError if
        `out` fails.
        """

def decode(data: Span | str | bytearray) -> memoryview:
    """Decode base64 strictly: the standard alphabet, correct padding, newlines anywhere and nothing else.

    data: a `str`, or a writable buffer such as a `Span`, which is decoded in place and so is destroyed.
    Returns a buffer with the bytes: for a `Span` a view into it, which is valid only as long as the span.
    Raises ValueError with the text for the client; the decoded bytes are complete or not returned at all.
    """

def spawn(
    path: bytes, argv: list[bytes], env: list[bytes] | None, stdin: int, stdout: int, stderr: int, session: bool = False
) -> int:
    """Start a program and return its process id; the GIL is free while the kernel loads it.

    path: the file to execute, no search is made; argv, env: lists of bytes, passed verbatim, None for the agent's own
    environment; stdin, stdout, stderr: descriptors above 2 that the child gets as 0, 1 and 2; session: it leads a
    session and a process group of its own.

    The child keeps the working directory and umask. Raises OSError if it cannot be started.
    Source: posix_spawn(3).
    """

__test__: dict[str, str]
