# SPDX-License-Identifier: Apache-2.0
"""Reading a file that is in the page cache, in requests of three sizes; the floor reads it and sends as many bytes."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator

import pytest

from tests.agents import AgentProcess, Client

from .cases import FLOOR, Case
from .conftest import Connect, Server, Source
from .contest import Contest, Samples, Turn, throughput
from .wire import exchange, open_file, request

FLOOR_BLOCK = 96 << 10
"""What floor.c reads at once."""


class Read:
    """One contestant, and the requests that make it send a whole file of `size` bytes; `rewind` may be empty."""

    def __init__(self, client: Client, pid: int, size: int, requests: list[bytes], rewind: bytes) -> None:
        self._client = client
        self._pid = pid
        self._size = size
        self._requests = requests
        self._rewind = rewind
        self._expected = 0
        self._total = 0

    def verify(self, data: bytes, payload: Callable[[bytes], bytes]) -> None:
        """Read the file and compare it with `data`, untimed; `payload` takes a reply's bytes of the file out of it."""
        self._prepare()
        content = bytearray()
        for line in self._requests:
            self._client.send(line)
            reply = self._client.recv_line()
            content += payload(reply)
            self._expected += len(reply)
        assert content == data

    def turn(self) -> Turn:
        """Read the file against the clock; the replies must be as long as those that were compared with the file."""
        return Turn(self._run, self._prepare, self._check)

    def _prepare(self) -> None:
        if self._rewind:
            assert "return" in self._client.raw(self._rewind)

    def _run(self) -> Samples:
        return throughput(self._pid, self._size, self._exchange)

    def _exchange(self) -> None:
        self._total = exchange(self._client.sock, self._requests)

    def _check(self) -> None:
        assert self._total == self._expected


def agent_read(client: Client, pid: int, source: Source, count: int) -> Read:
    """An agent's part."""
    size, handle = len(source.data), open_file(client, source.path)
    requests = [request("guest-file-read", handle=handle, count=count)] * (size // count)
    read = Read(client, pid, size, requests, request("guest-file-seek", handle=handle, offset=0, whence=0))
    read.verify(source.data, lambda reply: base64.b64decode(json.loads(reply)["return"]["buf-b64"], validate=True))
    return read


def floor_read(client: Client, pid: int, source: Source, count: int) -> Read:
    """The floor's part: it has no position in the file, and sends a third more behind each block."""
    size = len(source.data)
    read = Read(client, pid, size, [b"%d %d\n" % (start, count) for start in range(0, size, count)], b"")
    read.verify(source.data, lambda reply: b"".join(_blocks(reply, count)))
    return read


def _blocks(reply: bytes, count: int) -> Iterator[bytes]:
    while count:
        block = min(count, FLOOR_BLOCK)
        yield reply[:block]
        reply, count = reply[block + block // 3 :], count - block


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(48 << 20, marks=pytest.mark.case(Case.READ_48M), id="48MiB"),
        pytest.param(4 << 20, marks=pytest.mark.case(Case.READ_4M), id="4MiB"),
        pytest.param(64 << 10, marks=pytest.mark.case(Case.READ_64K), id="64KiB"),
    ],
)
def test_read(
    contest: Contest, agents: dict[str, AgentProcess], floor: Server, connect: Connect, source: Source, count: int
) -> None:
    """48 MiB in all, whatever the size of the requests."""
    count = min(count, len(source.data))
    reads = {name: agent_read(connect(agent), agent.pid, source, count) for name, agent in agents.items()}
    reads[FLOOR] = floor_read(connect(floor), floor.pid, source, count)
    contest.race({name: read.turn() for name, read in reads.items()})
