# SPDX-License-Identifier: Apache-2.0
"""Reading the small text files of /proc and /sys.

Functions that read them take `root`, a prefix of every path: empty for this machine, a directory for a captured tree.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import CallError

_BLOCK = 16384


@contextmanager
def calling(call: str) -> Iterator[None]:
    """Turn an OSError of the block inside into a CallError that names `call`."""
    try:
        yield
    except OSError as exc:
        raise CallError(call, exc) from exc


def read(path: str) -> bytes:
    """The whole file; CallError. Read to its end, since one read of a list in /proc gives a page or so."""
    with calling(f'open("{path}")'):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            blocks = []
            while block := os.read(fd, _BLOCK):
                blocks.append(block)
            return b"".join(blocks)
        finally:
            os.close(fd)


def read_or_none(path: str) -> bytes | None:
    """Like `read`, None if there is no such file."""
    try:
        return read(path)
    except CallError as exc:
        if exc.errno == errno.ENOENT:
            return None
        raise
