# SPDX-License-Identifier: Apache-2.0
"""What the tests ask of an agent, and see of its process from outside."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.agents import Client

MIB = 1 << 20
READ_MAX = 48 * MIB


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def request(execute: str, **arguments: Any) -> bytes:
    """A request as bytes; underscores in argument names become hyphens."""
    named = {name.replace("_", "-"): value for name, value in arguments.items()}
    return json.dumps({"execute": execute, "arguments": named}).encode()


def data_of(reply: Any) -> bytes:
    """The bytes that a guest-file-read returned."""
    data = base64.b64decode(reply["buf-b64"], validate=True)
    assert len(data) == reply["count"]
    return data


def start(client: Client, path: str, *arg: str, **options: Any) -> int:
    """Start a program and return its process id."""
    pid = client.ok("guest-exec", path=path, arg=list(arg), **options)["pid"]
    assert isinstance(pid, int)
    return pid


def ended(client: Client, pid: int) -> dict[str, Any]:
    """The status of a program once it has ended, its output decoded."""
    deadline = time.monotonic() + 20
    while not (status := client.ok("guest-exec-status", pid=pid))["exited"]:
        assert time.monotonic() < deadline, "the program did not end"
        time.sleep(0.001)
    for stream in ("out-data", "err-data"):
        if stream in status:
            status[stream] = base64.b64decode(status[stream], validate=True)
    return dict(status)


def run(client: Client, path: str, *arg: str, **options: Any) -> dict[str, Any]:
    """Start a program and wait for its end."""
    return ended(client, start(client, path, *arg, **options))


def eventually(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait until `condition` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "that did not come about in time"
        time.sleep(0.005)


def descriptors(pid: int) -> dict[int, str]:
    """The open descriptors of a process and what they are."""
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:
            continue
    return found


def threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def children(pid: int) -> list[int]:
    """The child processes of all threads of a process, zombies included."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def wake_ups(pid: int) -> int:
    """How often the threads of a process have been scheduled so far."""
    count = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            if "ctxt_switches" in line:
                count += int(line.split()[1])
    return count


@contextmanager
def running(argv: list[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process that does not outlive the block."""
    with subprocess.Popen(argv, **options) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def connected(path: Path) -> Iterator[Client]:
    """A client of the agent that listens at `path`, or will soon; it is ready when the block begins."""
    deadline = time.monotonic() + 10
    while True:
        try:
            client = Client(path)
            break
        except (FileNotFoundError, ConnectionRefusedError):
            assert time.monotonic() < deadline, "the agent did not start"
            time.sleep(0.005)
    with client:
        client.ok("guest-ping")
        yield client
