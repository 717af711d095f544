# SPDX-License-Identifier: Apache-2.0
"""Splitting the byte stream into requests, without a process or a socket around it; for information."""

from __future__ import annotations

from typing import Any

import pytest

from qga._framing import Framer

REQUESTS = {
    "ping": (b'{"execute":"guest-ping"}\n', {"execute": "guest-ping"}),
    "read": (
        b'{"execute":"guest-file-read","arguments":{"handle":1000,"count":4194304},"id":7}\n',
        {"execute": "guest-file-read", "arguments": {"handle": 1000, "count": 4194304}, "id": 7},
    ),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_framing(benchmark: Any, name: str) -> None:
    """One request that comes in one piece."""
    line, expected = REQUESTS[name]
    framer = Framer()

    def split() -> Any:
        framer.feed(line)
        return next(framer)

    assert benchmark(split) == expected
    assert framer.buffered <= len(b"\n")
