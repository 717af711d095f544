# SPDX-License-Identifier: Apache-2.0
"""The least that an agent in Python has to do for a ping: a bare uvloop protocol that parses the request and answers.

`python -m benchmarks.bare_ping SOCKET` serves until it is ended.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import orjson
import uvloop


class BarePing(asyncio.Protocol):
    """Takes each chunk for one request, which a client that waits for its reply makes true."""

    def connection_made(self, transport: Any) -> None:
        """Keep the way back, a WriteTransport (which uvloop's is without inheriting from it)."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Parse and answer."""
        if orjson.loads(data)["execute"] == "guest-ping":
            self._transport.write(b'{"return":{}}\n')


async def serve(path: str) -> None:
    """Listen on a unix socket."""
    server = await asyncio.get_running_loop().create_unix_server(BarePing, path)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1]))
