# SPDX-License-Identifier: Apache-2.0
"""Files of the guest: open, read, write, seek, flush, close.

Handles are shared by all connections and outlive them. Nothing is buffered: a write has reached the kernel when it is
answered, and an error of the medium shows at the write that met it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Literal, TypedDict

from ..agent import Agent
from ..errors import CommandError, from_os
from ..limits import COMMAND_TIMEOUT, READ_COUNT_DEFAULT, READ_COUNT_MAX
from ..logs import account
from ..platform.files import OpenFile, flags_for, open_file
from ..protocol.registry import command
from ..protocol.schema import Payload, decoded, wire_bytes
from ..protocol.stream import Bulk, Stream

Whence = Annotated[int | Literal["set", "cur", "end"], "GuestFileWhence"]


FileRead = TypedDict("FileRead", {"count": int, "buf-b64": str, "eof": bool})


class FileWrite(TypedDict):
    """The value of guest-file-write: bytes written, and whether the end was met (it never is)."""

    count: int
    eof: bool


class FileSeek(TypedDict):
    """The value of guest-file-seek: the new position from the start of the file."""

    position: int
    eof: bool


@command(undo=lambda agent, handle: agent.files.pop(handle).close())
def guest_file_open(agent: Agent, path: str, mode: str = "r") -> int:
    """Open a file with an fopen mode and return a handle for it."""
    account("guest-file-open called, filepath: %s, mode: %s", path, mode)
    flags = flags_for(mode)
    if flags is None:
        raise CommandError(f"invalid file open mode '{mode}'")
    try:
        fd = open_file(wire_bytes(path), flags, agent.config.new_file_mode)
    except OSError as exc:
        raise from_os(f"failed to open file '{path}' (mode: '{mode}')", exc) from exc
    handle = agent.files.add(OpenFile(fd))
    account("guest-file-open, handle: %d", handle)
    return handle


@command(deadline=None)
def guest_file_close(agent: Agent, handle: int) -> None:
    """Close a handle; it is gone even if the close reports an error."""
    account("guest-file-close called, handle: %d", handle)
    with _using(agent, handle) as file:
        agent.files.pop(handle)
        try:
            file.close()
        except OSError as exc:
            raise from_os("failed to close handle", exc) from exc


@command(inline=True)
def guest_file_read(agent: Agent, handle: int, count: int = READ_COUNT_DEFAULT) -> Annotated[Stream, FileRead]:
    """Read up to `count` bytes (48 MiB at the most) from the handle's position."""
    file = agent.files.get(handle)
    if not 0 <= count <= READ_COUNT_MAX:
        raise CommandError(f"value '{count}' is invalid for argument count")
    data = Bulk("buf-b64", file.fd, count, lambda count, eof: {"count": count, "eof": eof})
    return Stream({}, [data], "failed to read file", file)


@command(deadline=None)
def guest_file_write(agent: Agent, handle: int, buf_b64: Payload, count: int | None = None) -> FileWrite:
    """Write the decoded bytes, or the first `count` of them, at the handle's position.

    Nothing is written unless the whole request is valid.
    """
    with _using(agent, handle) as file:
        data = decoded(buf_b64)
        if count is None:
            count = len(data)
        elif not 0 <= count <= len(data):
            raise CommandError(f"value '{count}' is invalid for argument count")
        try:
            file.write(data[:count])
        except OSError as exc:
            account("guest-file-write failed, handle: %d", handle)
            raise from_os("failed to write to file", exc) from exc
    return {"count": count, "eof": False}


@command()
def guest_file_seek(agent: Agent, handle: int, offset: int, whence: Whence) -> FileSeek:
    """Move the handle's position: from the start (0, "set"), from here (1, "cur") or from the end (2, "end")."""
    with _using(agent, handle) as file:
        try:
            return {"position": file.seek(offset, _whence(whence)), "eof": False}
        except OSError as exc:
            raise from_os("failed to seek file", exc) from exc


@command()
def guest_file_flush(agent: Agent, handle: int) -> None:
    """Wait for the writes under way on the handle; there is no buffer of our own to write out."""
    with _using(agent, handle):
        pass


@contextmanager
def _using(agent: Agent, handle: int) -> Iterator[OpenFile]:
    file = agent.files.get(handle)
    try:
        if not file.acquire(COMMAND_TIMEOUT):
            raise CommandError(f"handle '{handle}' is in use by another request")
    except OSError as exc:  # closed while we waited
        raise CommandError(f"handle '{handle}' has not been found") from exc
    try:
        yield file
    finally:
        file.release()


def _whence(whence: int | str) -> int:
    if isinstance(whence, str):
        return {"set": os.SEEK_SET, "cur": os.SEEK_CUR, "end": os.SEEK_END}[whence]
    if whence not in (os.SEEK_SET, os.SEEK_CUR, os.SEEK_END):
        raise CommandError(f"invalid whence code {whence}")
    return whence
