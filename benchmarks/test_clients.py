# SPDX-License-Identifier: Apache-2.0
"""Many clients of one agent; qemu-ga serves one at a time, so qga is compared with itself serving one."""

from __future__ import annotations

import base64
import hashlib
import json
import select
from collections.abc import Callable
from functools import partial

import pytest

from tests.agents import AgentProcess, Client

from .cases import ONE_CLIENT, QGA, Case
from .conftest import Connect, Source
from .contest import Contest, Samples, Turn, throughput
from .wire import BUFFER, NEWLINE, exchange, open_file, request

BLOCK = 4 << 20
CLIENTS = 64
BLOCKS_EACH = 3


class Stream:
    """One client: asks for its next block when it has received all of the last one."""

    def __init__(self, client: Client, source: Source) -> None:
        self._client = client
        self.sock = client.sock
        handle = open_file(client, source.path)
        self._rewind = request("guest-file-seek", handle=handle, offset=0, whence=0)
        self._read = request("guest-file-read", handle=handle, count=BLOCK)
        self._left = 0
        self.received = 0

    def rewind(self, blocks: int) -> None:
        """Prepare for reading `blocks` blocks from the start of the file."""
        exchange(self.sock, [self._rewind])
        self._left = blocks
        self.received = 0

    def advance(self) -> bool:
        """Ask for the next block; False if that was all."""
        if not self._left:
            return False
        self._left -= 1
        self.sock.sendall(self._read)
        return True

    def read_alone(self) -> bytes:
        """The reply to a read of the first block."""
        self.rewind(0)
        self._client.send(self._read)
        return self._client.recv_line()

    def take(self) -> memoryview:
        """Receive what has come, which stays in `BUFFER` until the next call."""
        got = self.sock.recv_into(BUFFER)
        assert got, "the agent closed the connection"
        self.received += got
        return memoryview(BUFFER)[:got]


def read_all(streams: list[Stream], see: Callable[[Stream, memoryview], object] | None = None) -> None:
    """Let all clients read until each has all of its blocks; `see` is shown each piece that arrives."""
    by_fd = {stream.sock.fileno(): stream for stream in streams}
    with select.epoll() as epoll:
        for fd, stream in by_fd.items():
            epoll.register(fd, select.EPOLLIN)
            stream.advance()
        while by_fd:
            for fd, _ in epoll.poll():
                stream = by_fd[fd]
                piece = stream.take()
                if see:
                    see(stream, piece)
                if piece[-1] == NEWLINE and not stream.advance():
                    epoll.unregister(fd)
                    del by_fd[fd]


def verify(streams: list[Stream], data: bytes) -> int:
    """Let all clients read their first block at once, and check every byte; return the length of the reply."""
    hashes = {stream: hashlib.sha256() for stream in streams}
    for stream in streams:
        stream.rewind(1)
    read_all(streams, lambda stream, piece: hashes[stream].update(piece))
    reply = streams[0].read_alone()
    assert base64.b64decode(json.loads(reply)["return"]["buf-b64"], validate=True) == data[:BLOCK]
    assert {digest.digest() for digest in hashes.values()} == {hashlib.sha256(reply).digest()}
    return len(reply)


def turn(streams: list[Stream], pid: int, blocks: int, length: int) -> Turn:
    """All of `streams` read `blocks` blocks each, whose replies are `length` bytes long."""

    def prepare() -> None:
        for stream in streams:
            stream.rewind(blocks)

    def run() -> Samples:
        return throughput(pid, len(streams) * blocks * BLOCK, partial(read_all, streams))

    def check() -> None:
        assert [stream.received for stream in streams] == [blocks * length] * len(streams)

    return Turn(run, prepare, check)


@pytest.mark.case(Case.CLIENTS)
def test_clients(contest: Contest, qga: AgentProcess, connect: Connect, source: Source) -> None:
    """64 clients with a handle each, and one."""
    streams = [Stream(connect(qga), source) for _ in range(CLIENTS)]
    length = verify(streams, source.data)
    alone, together, blocks = streams[:1], streams, len(source.data) // BLOCK
    contest.race(
        {
            ONE_CLIENT: turn(alone, qga.pid, blocks, length),
            QGA: turn(together, qga.pid, min(BLOCKS_EACH, blocks), length),
        }
    )
