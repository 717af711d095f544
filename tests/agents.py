# SPDX-License-Identifier: Apache-2.0
"""Agents as real processes, and a client that speaks to them byte by byte; shared by tests and benchmarks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

QGA = [sys.executable, "-m", "qga"]
QEMU_GA = os.environ.get("QEMU_GA") or shutil.which("qemu-ga", path=os.environ.get("PATH", "") + ":/usr/sbin")
"""The reference agent; the environment variable QEMU_GA names another build of it."""

NO_QEMU_GA = "qemu-ga is not installed (Debian: qemu-guest-agent)"


class Connection:
    """Bytes to a unix socket, lines from it."""

    def __init__(self, path: Path, timeout: float = 30.0) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(timeout)
        try:
            self.sock.connect(str(path))
        except OSError:
            self.sock.close()
            raise
        self._lines = self.sock.makefile("rb", buffering=1 << 20)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._lines.close()
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)


class Client(Connection):
    """A connection to an agent's unix socket; every call checks that exactly one line came back."""

    def recv_line(self) -> bytes:
        """The next reply line, b"" at the end of the stream."""
        return self._lines.readline()

    def raw(self, request: bytes) -> dict[str, Any]:
        """Send bytes, return the next reply parsed."""
        self.send(request)
        line = self.recv_line()
        if not line.endswith(b"\n"):
            raise ConnectionError(f"reply cut off after {len(line)} bytes")
        reply = json.loads(line.lstrip(b"\xff"))
        assert isinstance(reply, dict)
        return reply

    def call(self, execute: str, **arguments: Any) -> dict[str, Any]:
        """Send a request (underscores in argument names become hyphens), return the whole reply."""
        request: dict[str, Any] = {"execute": execute}
        if arguments:
            request["arguments"] = {name.replace("_", "-"): value for name, value in arguments.items()}
        return self.raw(json.dumps(request).encode() + b"\n")

    def ok(self, execute: str, **arguments: Any) -> Any:
        """Like `call`, but the value of `return`; an error reply raises AssertionError."""
        reply = self.call(execute, **arguments)
        assert "return" in reply, reply
        return reply["return"]

    def error(self, execute: str, **arguments: Any) -> str:
        """Like `call`, but the text of the error; a success raises AssertionError."""
        reply = self.call(execute, **arguments)
        assert "error" in reply, reply
        return str(reply["error"]["desc"])


class AgentProcess:
    """An agent listening on a unix socket in `directory`, ended by its own process id.

    argv: the program, `QGA` or `[QEMU_GA]`; options: further command line options; env: additions to the environment.
    """

    def __init__(
        self,
        argv: list[str],
        directory: Path,
        *options: str,
        env: dict[str, str] | None = None,
        method: str = "unix-listen",
    ) -> None:
        self.directory = directory
        self._is_qga = argv == QGA
        self.path = directory / "agent.sock"
        self.log = directory / "agent.log"
        state = directory / "state"
        state.mkdir(exist_ok=True)
        config = directory / "qemu-ga.conf"
        config.touch()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*argv, "-m", method, "-p", str(self.path), "-t", str(state), *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "QGA_CONF": str(config), **(env or {})},
            )

    def __enter__(self) -> AgentProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        return self.process.pid

    def connect(self, timeout: float = 30.0) -> Client:
        """Connect, waiting for the socket to appear."""
        deadline = time.monotonic() + 10
        while True:
            try:
                return Client(self.path, timeout)
            except (FileNotFoundError, ConnectionRefusedError):
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"agent did not start:\n{self.log.read_text()}") from None
                time.sleep(0.002)

    def stop(self, timeout: float = 10.0) -> int:
        """End the agent with SIGTERM (SIGKILL if it does not obey) and return its exit status.

        The reference agent gets SIGKILL at once: it misses a SIGTERM now and then when a client has just left.
        """
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM if self._is_qga else signal.SIGKILL)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def memory(self, field: str = "VmRSS") -> int:
        """A size in bytes from /proc/PID/status: VmRSS now, VmHWM at its peak."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
        raise LookupError(field)

    def cpu_seconds(self) -> float:
        """User and system time used so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
