# SPDX-License-Identifier: Apache-2.0
"""The measuring client. While the clock runs it counts bytes and looks at nothing but the newline that ends a reply."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

from tests.agents import Client

BUFFER = bytearray(1 << 20)
"""Where everything is received while the clock runs."""

PING = b'{"execute":"guest-ping"}\n'
NEWLINE = ord("\n")


def request(execute: str, **arguments: Any) -> bytes:
    """A request's bytes; underscores in argument names become hyphens."""
    named = {name.replace("_", "-"): value for name, value in arguments.items()}
    return json.dumps({"execute": execute, "arguments": named}).encode() + b"\n"


def open_file(client: Client, path: Path, mode: str = "r") -> int:
    """Open a file in the guest and return its handle."""
    handle = client.ok("guest-file-open", path=str(path), mode=mode)
    assert isinstance(handle, int)
    return handle


def receive(sock: socket.socket) -> int:
    """Take one reply and drop it, return its length; a reply that comes in one piece stays in `BUFFER`."""
    total = 0
    while True:
        got = sock.recv_into(BUFFER)
        if not got:
            raise ConnectionError("the agent closed the connection")
        total += got
        if BUFFER[got - 1] == NEWLINE:
            return total


def exchange(sock: socket.socket, requests: Iterable[bytes]) -> int:
    """Send each request and take its reply before the next one; return the length of all replies."""
    total = 0
    for data in requests:
        sock.sendall(data)
        total += receive(sock)
    return total


def ping_median(sock: socket.socket, count: int, pause: float = 0) -> float:
    """Seconds of the median of `count` round trips of guest-ping, `pause` seconds apart; each reply is checked."""
    times, replies = [], set()
    for _ in range(count):
        start = time.perf_counter()
        sock.sendall(PING)
        reply = sock.recv(4096)
        times.append(time.perf_counter() - start)
        replies.add(reply)
        if pause:
            time.sleep(pause)
    assert all(reply.endswith(b"\n") and json.loads(reply) == {"return": {}} for reply in replies), replies
    return median(times)
