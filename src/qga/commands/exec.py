# SPDX-License-Identifier: Apache-2.0
"""Programs of the guest: start one, ask how it ended and what it wrote."""

import os
from contextlib import ExitStack
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, TypedDict, TypeVar, cast

from pybase64 import b64encode

from ..agent import Agent
from ..errors import CommandError, from_os, strerror
from ..limits import EXEC_OUTPUT_MAX
from ..logs import account
from ..platform import process
from ..platform.process import SMALL, Capture, Feed, Process
from ..protocol.registry import command
from ..protocol.schema import Payload, decoded, wire_bytes
from ..protocol.stream import Bulk, Stream

CaptureMode = Literal["none", "stdout", "stderr", "separated", "merged"]
CaptureOutput = Annotated[bool | CaptureMode, "GuestExecCaptureOutput"]
End = TypeVar("End", Feed, Capture)

READING = "failed to read captured output"


class Exec(TypedDict):
    """The value of guest-exec."""

    pid: int


ExecStatus = TypedDict(
    "ExecStatus",
    {
        "exited": bool,
        "exitcode": NotRequired[int],
        "signal": NotRequired[int],
        "out-data": NotRequired[str],
        "err-data": NotRequired[str],
        "out-truncated": NotRequired[bool],
        "err-truncated": NotRequired[bool],
    },
)


class Pipes(NamedTuple):
    """What is connected to the standard streams of a child; None is /dev/null."""

    feed: Feed | None
    out: Capture | None
    err: Capture | None
    merged: bool


@command(deadline=None)
async def guest_exec(
    agent: Agent,
    path: str,
    arg: list[str] | None = None,
    env: list[str] | None = None,
    input_data: Payload | None = None,
    capture_output: CaptureOutput = False,
) -> Exec:
    """Start a program and return its process id; guest-exec-status tells the rest."""
    words = [path, *(arg or ())]
    account('guest-exec called: "%s"', " ".join(words))
    argv = [wire_bytes(word) for word in words]
    environment = None if env is None else [wire_bytes(text) for text in env]
    data = None if input_data is None else await agent.workers.run(partial(_input, input_data))
    with ExitStack() as undo:
        try:
            pipes = _open_pipes(data, capture_output, undo)
            pid, pidfd = await agent.workers.run(partial(_start, argv, environment, pipes))
        except OSError as exc:
            raise CommandError(f"Failed to execute child process “{path}” ({strerror(exc)})") from exc
        undo.pop_all()
    for end in (pipes.feed, pipes.out, pipes.err):
        if end is not None:
            end.begin()
    former = agent.processes.pop(pid, None)
    if former is not None:  # nobody has asked about it, and the number is free again
        former.release()
    agent.processes[pid] = Process(pid, pidfd, pipes.out, pipes.err)
    return {"pid": pid}


@command(inline=True, deadline=None)
def guest_exec_status(agent: Agent, pid: int) -> ExecStatus | Annotated[Stream, ExecStatus]:
    """Tell whether a program has ended, and if so how and what it wrote; that answer is given once."""
    account("guest-exec-status called, pid: %d", pid)
    child = agent.processes.get(pid)
    if child is None:
        raise CommandError(f"PID {pid} does not exist")
    ended = child.ended
    if ended is None:
        return {"exited": False}
    members: dict[str, Any] = {"exited": True}
    if ended.exit_code is not None:
        members["exitcode"] = ended.exit_code
    if ended.signal is not None:
        members["signal"] = ended.signal
    bulks = []
    for name, capture in (("out", child.out), ("err", child.err)):
        if capture is None or not capture.size:
            continue
        if capture.size <= SMALL:
            members[f"{name}-data"] = b64encode(capture.kept).decode()
            members[f"{name}-truncated"] = capture.truncated
        else:
            bulks.append(_bulk(name, capture))
    del agent.processes[pid]
    if bulks:
        return Stream(members, bulks, READING, child)
    child.release()
    return cast(ExecStatus, members)


def _input(payload: Payload) -> bytes:
    # A copy: the child may take its input long after the request's buffer is used again.
    return bytes(decoded(payload))


def _open_pipes(data: bytes | None, mode: bool | CaptureMode, undo: ExitStack) -> Pipes:
    def opened(end: End) -> End:
        undo.callback(end.abandon)
        return end

    feed = None if data is None else opened(Feed(data))
    out = opened(Capture(EXEC_OUTPUT_MAX)) if mode is True or mode in ("stdout", "separated", "merged") else None
    err = opened(Capture(EXEC_OUTPUT_MAX)) if mode is True or mode in ("stderr", "separated") else None
    return Pipes(feed, out, err, mode == "merged")


def _start(argv: list[bytes], env: list[bytes] | None, pipes: Pipes) -> tuple[int, int]:
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        stdin = pipes.feed.child_end if pipes.feed else null
        stdout = pipes.out.child_end if pipes.out else null
        stderr = stdout if pipes.merged else pipes.err.child_end if pipes.err else null
        return process.start(argv, env, stdin, stdout, stderr)
    finally:
        os.close(null)


def _bulk(name: str, capture: Capture) -> Bulk:
    try:
        source = capture.file()
    except OSError as exc:
        raise from_os(READING, exc) from exc
    return Bulk(f"{name}-data", source, capture.size, lambda count, eof: {f"{name}-truncated": capture.truncated})
