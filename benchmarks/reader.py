# SPDX-License-Identifier: Apache-2.0
"""Another client, as a process of its own: reads a file in the largest blocks there are, over and over.

`python -m benchmarks.reader SOCKET FILE` prints a line for each block and ends when it is ended.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.agents import Client

from .wire import exchange, open_file, request

SIZE = 48 << 20


def main() -> None:
    """Read until ended."""
    with Client(Path(sys.argv[1])) as client:
        handle = open_file(client, Path(sys.argv[2]))
        read = request("guest-file-read", handle=handle, count=SIZE)
        rewind = request("guest-file-seek", handle=handle, offset=0, whence=0)
        while True:
            print(exchange(client.sock, [read, rewind]), flush=True)


if __name__ == "__main__":
    main()
