# SPDX-License-Identifier: Apache-2.0
"""The same scenario against qga and qemu-ga, compared reply by reply."""

from __future__ import annotations

import base64
import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.agents import QEMU_GA, QGA, AgentProcess, Client

Reply = dict[str, Any]
"""A whole reply, parsed."""


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def plain(text: str) -> str:
    """The text of an error as newer releases have it; older ones wrap that of guest-exec."""
    wrapped = re.fullmatch("Guest agent command failed, error was '(.*)'", text)
    return wrapped[1] if wrapped else text


class Both:
    """Connections to both agents."""

    def __init__(self, ours: Client, theirs: Client) -> None:
        self.ours = ours
        self.theirs = theirs

    def ask(self, execute: str, **arguments: Any) -> tuple[Reply, Reply]:
        """The whole replies of qga and qemu-ga."""
        return self.ours.call(execute, **arguments), self.theirs.call(execute, **arguments)


class Side:
    """One agent, a directory of its own, and what it answered; that directory and numbers it chose are masked."""

    def __init__(self, client: Client, directory: Path) -> None:
        self.client = client
        self.directory = directory
        self.handle = 0
        self.transcript: list[str] = []

    def call(self, execute: str, **arguments: Any) -> Any:
        """Send a request and note the reply; the value of `return`, None after an error."""
        reply = self.client.call(execute, **arguments)
        self.note(f"{execute} {json.dumps(arguments)[:200]}", reply)
        return reply.get("return")

    def note(self, question: str, answer: Any) -> None:
        """Make something a part of what is compared."""
        text = f"{question} -> {json.dumps(answer, sort_keys=True)}"
        text = text.replace(str(self.directory), "DIRECTORY")
        self.transcript.append(text.replace(str(self.handle), "HANDLE") if self.handle else text)

    # --- files

    def file(self, name: str, content: bytes = b"") -> Path:
        """Make a file in the side's directory."""
        path = self.directory / name
        path.write_bytes(content)
        return path

    def open(self, name: str, mode: str | None = None) -> bool:
        """Open a file of the side's directory, or anything by an absolute name, for the calls below."""
        path = name if name.startswith("/") else str(self.directory / name)
        arguments = {"path": path} if mode is None else {"path": path, "mode": mode}
        reply = self.client.call("guest-file-open", **arguments)
        self.handle = reply.get("return", self.handle)
        self.note(f"guest-file-open {arguments}", reply)
        return "return" in reply

    def read(self, count: int | None = None) -> None:
        self.call("guest-file-read", handle=self.handle, **({} if count is None else {"count": count}))

    def write(self, data: bytes | str, count: int | None = None) -> None:
        """Write bytes, or a text that is sent as it is instead of base64."""
        text = data if isinstance(data, str) else b64(data)
        self.call("guest-file-write", handle=self.handle, buf_b64=text, **({} if count is None else {"count": count}))

    def seek(self, offset: Any, whence: Any) -> None:
        self.call("guest-file-seek", handle=self.handle, offset=offset, whence=whence)

    def tell(self) -> None:
        self.seek(0, "cur")

    def flush(self) -> None:
        self.call("guest-file-flush", handle=self.handle)

    def close(self) -> None:
        self.call("guest-file-close", handle=self.handle)

    # --- programs

    def run(self, path: str, *arg: str, **options: Any) -> None:
        """Start a program and note how it ended and what it wrote; its process id is masked."""
        reply = self.client.call("guest-exec", path=path, arg=list(arg), **options)
        question = f"guest-exec {path} {str(arg)[:200]} {str(options)[:200]}"
        if "error" in reply:
            return self.note(question, plain(reply["error"]["desc"]))
        deadline = time.monotonic() + 20
        while True:
            status = self.client.ok("guest-exec-status", pid=reply["return"]["pid"])
            if status["exited"]:
                return self.note(question, {name: self._brief(value) for name, value in status.items()})
            assert time.monotonic() < deadline, f"{question} did not end"
            time.sleep(0.002)

    def _brief(self, value: Any) -> Any:
        # Of output: its size and some of it.
        if not isinstance(value, str):
            return value
        data = base64.b64decode(value).replace(str(self.directory).encode(), b"DIRECTORY")
        return [len(data), data[:500].decode("latin-1"), data[-20:].decode("latin-1")]


class Sides:
    """Both agents; a scenario is played to one after the other."""

    def __init__(self, ours: AgentProcess, theirs: AgentProcess) -> None:
        self._agents = ours, theirs
        self._clients = ours.connect(), theirs.connect()
        version = self._clients[1].ok("guest-info")["version"]
        self.reference_version = tuple(int(number) for number in version.split(".")[:2])

    def close(self) -> None:
        for client in self._clients:
            client.close()

    def compare(self, scenario: Callable[[Side], object]) -> None:
        """Play the scenario to both and assert that the transcripts are the same."""
        transcripts = [self._play(scenario, *side) for side in zip(self._agents, self._clients, strict=True)]
        assert transcripts[0], "nothing was compared"
        differences = [(mine, theirs) for mine, theirs in zip(*transcripts, strict=True) if mine != theirs]
        assert not differences, "\n".join(f"qga:     {mine}\nqemu-ga: {theirs}" for mine, theirs in differences)

    def _play(self, scenario: Callable[[Side], object], agent: AgentProcess, client: Client) -> list[str]:
        with tempfile.TemporaryDirectory(dir=agent.directory) as files:
            side = Side(client, Path(files))
            scenario(side)
            return side.transcript


@contextmanager
def both(directory: Path) -> Iterator[Sides]:
    """Start both agents, each in a directory under `directory`."""
    places = directory / "qga", directory / "qemu-ga"
    for place in places:
        place.mkdir()
    with AgentProcess(QGA, places[0]) as ours, AgentProcess([str(QEMU_GA)], places[1]) as theirs:
        sides = Sides(ours, theirs)
        try:
            yield sides
        finally:
            sides.close()
