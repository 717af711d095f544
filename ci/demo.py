# SPDX-License-Identifier: Apache-2.0
"""What a client does with an agent, on a unix socket: info, exec, and a 48 MiB file both ways."""

import base64
import hashlib
import json
import os
import tempfile
import time
from pathlib import Path

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
            started = time.perf_counter()
            data = read_file(client, source)
            report("read", SIZE, started)
            started = time.perf_counter()
            write_file(client, copy, data)
            report("wrote", SIZE, started)
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
    """Read a file in one request."""
    handle = client.ok("guest-file-open", path=str(path))
    reply = client.ok("guest-file-read", handle=handle, count=SIZE)
    client.ok("guest-file-close", handle=handle)
    assert reply["count"] == SIZE
    return base64.b64decode(reply["buf-b64"])


def write_file(client: Client, path: Path, data: bytes) -> None:
    """Write a file in as few requests as the protocol allows."""
    handle = client.ok("guest-file-open", path=str(path), mode="w")
    for start in range(0, len(data), WRITE_SIZE):
        text = base64.b64encode(data[start : start + WRITE_SIZE]).decode()
        request = {"execute": "guest-file-write", "arguments": {"handle": handle, "buf-b64": text}}
        assert "return" in client.raw(json.dumps(request).encode())
    client.ok("guest-file-close", handle=handle)


def report(did: str, size: int, started: float) -> None:
    """Print a throughput, the client's own base64 and JSON work included."""
    seconds = time.perf_counter() - started
    print(f"{did:9} {size >> 20} MiB in {seconds:.3f} s: {size / seconds / 1e6:.0f} MB/s, client's work included")


if __name__ == "__main__":
    main()
