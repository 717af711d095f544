# SPDX-License-Identifier: Apache-2.0
"""From a parsed request to its reply: lookup, checks, deadline, and every failure as a reply.

The texts and the order of the checks are the C agent's: object, members, `execute`, known, enabled, arguments.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from .._framing import ParseError, Span
from ..errors import CallError, ChannelError, CommandError, CommandNotFound, from_os
from ..limits import QUOTED_MAX
from .registry import REGISTRY, Command
from .reply import encode, error, success
from .schema import bind
from .stream import PATIENCE_MS, Stream

if TYPE_CHECKING:
    from ..agent import Agent

logger = logging.getLogger(__name__)


class Started(NamedTuple):
    """An open bulk reply, of which a part may be out already; `done` is what `Stream.pump` returned."""

    stream: Stream
    done: bool


Reply: TypeAlias = bytes | Started | None
"""A complete line, a bulk reply under way, or nothing to send."""


class Ends(NamedTuple):
    """What the request's id adds to its reply: in front of an error, behind a result."""

    error_start: bytes
    success_end: bytes


class Dispatcher:
    """Answers the requests of one agent."""

    def __init__(self, agent: "Agent") -> None:
        self._agent = agent

    def dispatch(self, request: Any, out: int) -> Reply | Coroutine[Any, Any, Reply]:
        """Answer at once, or return the coroutine that will.

        request: an item of the framer; out: the descriptor that a bulk reply is written to. The coroutine raises
        ChannelError if that descriptor breaks.
        """
        if type(request) is not dict:
            text = request.desc if type(request) is ParseError else "QMP input must be a JSON object"
            return error(CommandError(text))
        ends = _ends(request)
        try:
            command, arguments = self._lookup(request)
            if not command.inline:
                return self._await(command, arguments, ends, out)
            result = command.handler(self._agent, **arguments)
            if type(result) is not Stream:
                return _reply(command, result, ends)
            if result.open_cached(ends.success_end):
                return Started(result, False)
            return self._await_worker(command, lambda: result, ends, out)
        except Exception as exc:
            return _failure(request, exc, ends)

    def _lookup(self, request: dict[str, Any]) -> tuple[Command, dict[str, Any]]:
        name, arguments = _check_members(request)
        command = REGISTRY.get(name)
        if command is None:
            raise CommandNotFound(f"The command {name} has not been found")
        if not self._agent.is_enabled(command):
            raise CommandNotFound(f"Command {name} has been disabled: the command is not allowed")
        return command, bind(command.params, arguments)

    def _await(self, command: Command, arguments: dict[str, Any], ends: Ends, out: int) -> Coroutine[Any, Any, Reply]:
        if command.is_async:
            return self._await_async(command, arguments, ends)
        return self._await_worker(command, partial(command.handler, self._agent, **arguments), ends, out)

    async def _await_async(self, command: Command, arguments: dict[str, Any], ends: Ends) -> Reply:
        deadline = self._agent.deadline(command)
        try:
            async with asyncio.timeout(deadline):
                return _reply(command, await command.handler(self._agent, **arguments), ends)
        except TimeoutError:
            return _failure(command, _timed_out(command, deadline), ends)
        except Exception as exc:
            return _failure(command, exc, ends)

    async def _await_worker(self, command: Command, call: Callable[[], Any], ends: Ends, out: int) -> Reply:
        deadline = self._agent.deadline(command)
        # Whoever takes it may answer: the worker that is about to send a bulk reply, or the deadline.
        claim = threading.Lock()
        undo = command.undo and partial(command.undo, self._agent)
        future = self._agent.workers.run(partial(_work, call, undo, claim, ends.success_end, out))
        timer = deadline and asyncio.get_running_loop().call_later(deadline, _expire, future, claim, command, deadline)
        try:
            result = await future
            return result if type(result) is Started else _reply(command, result, ends)
        except ChannelError:
            raise
        except Exception as exc:
            return _failure(command, exc, ends)
        finally:
            if timer:
                timer.cancel()


def _work(
    call: Callable[[], Any], undo: Callable[[Any], None] | None, claim: threading.Lock, end: bytes, out: int
) -> Any:
    # On a worker thread: the handler, and the first part of a bulk reply, in one go to save a change of threads.
    result = call()
    if type(result) is not Stream:
        if undo is not None and not claim.acquire(blocking=False):
            undo(result)
        return result
    result.open(end)
    try:
        if not claim.acquire(blocking=False):
            result.rewind()
            raise CommandError("too late, the deadline has answered")
        return Started(result, pump(result, out))
    except BaseException:
        result.release()
        raise


def pump(stream: Stream, out: int, patience: int = PATIENCE_MS) -> bool:
    """`Stream.pump`, with a broken descriptor as ChannelError."""
    try:
        return stream.pump(out, patience)
    except OSError as exc:
        raise ChannelError(f"reply cut off: {exc}") from exc


def _expire(future: asyncio.Future[Any], claim: threading.Lock, command: Command, deadline: float) -> None:
    if claim.acquire(blocking=False) and not future.done():
        future.set_exception(_timed_out(command, deadline))


def _timed_out(command: Command, deadline: float | None) -> CommandError:
    return CommandError(f"{command.name} timed out after {deadline:g} s")


def _ends(request: dict[str, Any]) -> Ends:
    if "id" not in request:
        return Ends(b"{", b"}\n")
    identity = b'"id":' + encode(request["id"])
    return Ends(b"{" + identity + b",", b"," + identity + b"}\n")


def _check_members(request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    arguments: dict[str, Any] = {}
    for member, value in request.items():
        if member == "execute":
            if type(value) is not str and type(value) is not Span:
                raise CommandError("QMP input member 'execute' must be a string")
        elif member == "arguments":
            if type(value) is not dict:
                raise CommandError("QMP input member 'arguments' must be an object")
            arguments = value
        elif member != "id":
            raise CommandError(f"QMP input member '{member}' is unexpected")
    if "execute" not in request:
        raise CommandError("QMP input lacks member 'execute'")
    # A name that came as a Span is longer than any command's; do not send all of it back.
    return str(request["execute"])[:QUOTED_MAX], arguments


def _reply(command: Command, result: Any, ends: Ends) -> bytes | None:
    logger.debug("%s: done", command.name)
    if not command.success_response:
        return None
    line = success(result, ends.success_end)
    return b"\xff" + line if command.delimited else line


def _failure(subject: Command | dict[str, Any], exc: Exception, ends: Ends) -> bytes:
    name = subject.name if isinstance(subject, Command) else subject.get("execute")
    if isinstance(exc, CallError):
        exc = from_os(exc.call, exc)
    if isinstance(exc, CommandError):
        logger.debug("%s: refused or failed", name)
        return error(exc, ends.error_start)
    logger.error("%s: unexpected failure", name, exc_info=exc)
    return error(CommandError(f"{name} failed: internal error, see the log of the agent"), ends.error_start)
