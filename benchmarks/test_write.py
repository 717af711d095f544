# SPDX-License-Identifier: Apache-2.0
"""Writing a file from its beginning, again and again, so that the page cache and nothing slower is what receives it."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from tests.agents import AgentProcess, Client

from .cases import Case
from .conftest import Connect, Source
from .contest import Contest, Samples, Turn, throughput
from .wire import exchange, open_file, request

SPOIL = bytes(4096)


class Write:
    """One agent and the requests, made beforehand, that make it write `data`."""

    def __init__(self, client: Client, pid: int, path: Path, data: bytes, count: int) -> None:
        self._client = client
        self._pid = pid
        self._path = path
        self._data = data
        self._starts = range(0, len(data), count)
        handle = open_file(client, path, "w")
        self._rewind = request("guest-file-seek", handle=handle, offset=0, whence=0)
        self._flush = request("guest-file-flush", handle=handle)
        blocks = (base64.b64encode(data[start : start + count]).decode() for start in self._starts)
        self._requests = [request("guest-file-write", handle=handle, buf_b64=block) for block in blocks]
        self._expected = 0
        self._total = 0

    def verify(self) -> None:
        """Write everything untimed, and look at each reply."""
        self._prepare()
        for line in self._requests:
            self._client.send(line)
            reply = self._client.recv_line()
            assert b'"return"' in reply, reply
            self._expected += len(reply)
        self._total = self._expected
        self._check()

    def turn(self) -> Turn:
        """Write everything against the clock; afterwards all of it must be in the file."""
        return Turn(self._run, self._prepare, self._check)

    def _prepare(self) -> None:
        # What the last round has written must not make this round's check succeed.
        with self._path.open("rb+") as file:
            for start in self._starts:
                file.seek(start)
                file.write(SPOIL)
        assert "return" in self._client.raw(self._rewind)

    def _run(self) -> Samples:
        return throughput(self._pid, len(self._data), self._exchange)

    def _exchange(self) -> None:
        self._total = exchange(self._client.sock, self._requests)

    def _check(self) -> None:
        assert "return" in self._client.raw(self._flush)
        assert self._total == self._expected
        assert self._path.read_bytes() == self._data


@pytest.mark.parametrize(
    ("size", "count"),
    [
        pytest.param(45 << 20, 45 << 20, marks=pytest.mark.case(Case.WRITE_45M), id="45MiB"),
        pytest.param(44 << 20, 4 << 20, marks=pytest.mark.case(Case.WRITE_4M), id="4MiB"),
    ],
)
def test_write(
    contest: Contest, agents: dict[str, AgentProcess], connect: Connect, source: Source, size: int, count: int
) -> None:
    """45 MiB make 60 MiB of base64, close to the most that a request may be."""
    data = source.data[:size]
    count = min(count, len(data))
    writes = {
        name: Write(connect(agent), agent.pid, agent.directory / "copy", data, count) for name, agent in agents.items()
    }
    for write in writes.values():
        write.verify()
    contest.race({name: write.turn() for name, write in writes.items()})
