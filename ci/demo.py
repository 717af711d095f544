# SPDX-License-Identifier: Apache-2.0
"""What a client does with an agent, on a unix socket: info, exec, and a 48 MiB file both ways."""

import base64
import hashlib
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.agents import QGA, AgentProcess, Client

SIZE = 48 << 20
WRITE_SIZE = 45 << 20
"""Base64 of this and the request around it stay below the protocol's 64 MiB."""


def main() -> None:
    """Run the demonstration; an AssertionError if anything is not as it should be."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        source, copy = directory / "source", directory / "copy"
        source.write_bytes(os.urandom(SIZE))
        with AgentProcess(QGA, directory) as agent, agent.connect() as client:
            show_info(client)
            run_program(client)
            data = read_file(client, source)
            write_file(client, copy, data)
            print(f"agent     {agent.memory() / 1e6:.1f} MB resident, {agent.memory('VmHWM') / 1e6:.1f} MB at its peak")
        digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (source, copy)]
        assert digests[0] == digests[1], "the copy differs"
        print(f"sha256    {digests[0][:16]}... is the same for source and copy")


def show_info(client: Client) -> None:
    """Print what the agent says of itself."""
    info = client.ok("guest-info")
    enabled = sum(command["enabled"] for command in info["supported_commands"])
    print(f"info      protocol level {info['version']}, {enabled} commands enabled")


def run_program(client: Client) -> None:
    """Run uname in the guest and print what it says."""
    pid = client.ok("guest-exec", path="uname", arg=["-sr"], capture_output=True)["pid"]
    while not (status := client.ok("guest-exec-status", pid=pid))["exited"]:
        time.sleep(0.001)
    output = base64.b64decode(status["out-data"]).decode().strip()
    print(f"exec      uname -sr: {output!r}, exit code {status['exitcode']}")


def read_file(client: Client, path: Path) -> bytes:
    """Read a file in one request; what is timed is the request until the last byte of its reply is here."""
    handle = client.ok("guest-file-open", path=str(path))
    started = time.perf_counter()
    reply = exchange(client, request("guest-file-read", handle=handle, count=SIZE))
    report("read", SIZE, time.perf_counter() - started)
    client.ok("guest-file-close", handle=handle)
    value = json.loads(reply)["return"]
    assert value["count"] == SIZE
    return base64.b64decode(value["buf-b64"])


def write_file(client: Client, path: Path, data: bytes) -> None:
    """Write a file in as few requests as the protocol allows; what is timed is the requests and their replies."""
    handle = client.ok("guest-file-open", path=str(path), mode="w")
    requests = [
        request("guest-file-write", handle=handle, buf_b64=base64.b64encode(data[start : start + WRITE_SIZE]).decode())
        for start in range(0, len(data), WRITE_SIZE)
    ]
    started = time.perf_counter()
    replies = [exchange(client, text) for text in requests]
    report("wrote", len(data), time.perf_counter() - started)
    assert sum(json.loads(reply)["return"]["count"] for reply in replies) == len(data)
    client.ok("guest-file-close", handle=handle)


def request(execute: str, **arguments: Any) -> bytes:
    """The bytes of a request."""
    named = {name.replace("_", "-"): value for name, value in arguments.items()}
    return json.dumps({"execute": execute, "arguments": named}).encode()


def exchange(client: Client, text: bytes) -> bytearray:
    """Send a request and receive its reply, without looking at it."""
    client.send(text)
    reply = bytearray(SIZE * 4 // 3 + (1 << 20))
    received = 0
    while not reply.endswith(b"\n", 0, received):
        received += client.sock.recv_into(memoryview(reply)[received:])
    return reply[:received]


def report(did: str, size: int, seconds: float) -> None:
    """Print a throughput."""
    print(f"{did:9} {size >> 20} MiB in {seconds * 1000:.0f} ms: {size / seconds / 1e6:.0f} MB/s")


if __name__ == "__main__":
    main()
