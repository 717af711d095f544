# SPDX-License-Identifier: Apache-2.0
"""The command registry: one decorated function is one command of the protocol.

    @command(deadline=None)
    def guest_fstrim(agent: Agent, minimum: int = 0) -> FilesystemTrimResponse:
        \"""Discard the unused blocks of mounted file systems.\"""

The function's name gives the wire name, its annotations the argument types (see `schema`), its docstring the
documentation. Its kind says where it runs:

* `def`: on a worker thread; may block;
* `def` with `inline=True`: on the event loop; only computes;
* `async def`: on the event loop, as a task; awaits what takes long.

A handler returns the value of `return` (None is `{}`), or a `stream.Stream` for bulk base64. It refuses by raising
`CommandError`.
"""

import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from ..limits import COMMAND_TIMEOUT
from .schema import Param, params_of

logger = logging.getLogger(__name__)

Handler = TypeVar("Handler", bound=Callable[..., Any])


Undo: TypeAlias = Callable[[Any, Any], None]


class Command(NamedTuple):
    """What the dispatcher knows of a command."""

    name: str
    handler: Callable[..., Any]
    params: tuple[Param, ...]
    inline: bool
    is_async: bool
    frozen_ok: bool
    success_response: bool
    delimited: bool
    deadline: float | None
    """Seconds, or None for a command that is never given up."""
    undo: Undo | None
    """Takes back a result that came after the deadline."""

    @property
    def summary(self) -> str:
        """The first line of the handler's docstring."""
        return (self.handler.__doc__ or "").strip().partition("\n")[0]


REGISTRY: Final[dict[str, Command]] = {}
"""All commands by wire name, in order of registration."""


def command(
    *,
    inline: bool = False,
    frozen_ok: bool = False,
    success_response: bool = True,
    delimited: bool = False,
    deadline: float | None = COMMAND_TIMEOUT,
    undo: Undo | None = None,
) -> Callable[[Handler], Handler]:
    """Register the decorated function as a command.

    inline: runs on the event loop and must neither block nor take long.
    frozen_ok: stays enabled while file systems are frozen, even if it is blocked by configuration.
    success_response: False for commands that answer only when they fail.
    delimited: a byte 0xFF goes before the reply to a success.
    deadline: seconds after which the client gets a timeout error; None for never.
    undo: called with the agent and the result, on the worker thread, if the client has got that error already.
    """

    def register(handler: Handler) -> Handler:
        name = handler.__name__.replace("_", "-")
        if name in REGISTRY:
            raise ValueError(f"command {name} is registered twice")
        if not handler.__doc__:
            raise ValueError(f"command {name} has no docstring")
        REGISTRY[name] = Command(
            name=name,
            handler=handler,
            params=params_of(handler),
            inline=inline,
            is_async=inspect.iscoroutinefunction(handler),
            frozen_ok=frozen_ok,
            success_response=success_response,
            delimited=delimited,
            deadline=deadline,
            undo=undo,
        )
        return handler

    return register


def allowed_names(allow: Sequence[str], block: Sequence[str]) -> frozenset[str]:
    """The commands that configuration leaves enabled: those in the allow list, or all if it is empty, less the blocked.

    A name that is no command is logged: it is most likely a typing error that leaves a command open.
    """
    for name in (*allow, *block):
        if name not in REGISTRY:
            logger.error("no command is called '%s' (allow or block list)", name)
    return frozenset(allow or REGISTRY) - frozenset(block)
