# SPDX-License-Identifier: Apache-2.0
"""Freezing of file systems for a consistent snapshot, and discarding of their unused blocks."""

import errno
import os
from typing import Literal, NotRequired, TypedDict

from ..agent import Agent
from ..errors import strerror
from ..logs import account
from ..platform import freeze
from ..platform.mounts import list_mounts
from ..protocol.registry import command
from ..protocol.schema import wire_bytes


class TrimResult(TypedDict):
    """What came of one file system: bytes discarded and the least extent looked at, or an error."""

    path: str
    trimmed: NotRequired[int]
    minimum: NotRequired[int]
    error: NotRequired[str]


class TrimResponse(TypedDict):
    """The value of guest-fstrim."""

    paths: list[TrimResult]


@command(inline=True, frozen_ok=True)
def guest_fsfreeze_status(agent: Agent) -> Literal["thawed", "frozen"]:
    """Tell whether this agent has file systems frozen."""
    return "frozen" if agent.frozen else "thawed"


@command(deadline=None)
async def guest_fsfreeze_freeze(agent: Agent) -> int:
    """Run the freeze hook and freeze all file systems; return how many."""
    account("guest-fsfreeze called")
    return await agent.freezing.freeze("guest-fsfreeze-freeze", None)


@command(deadline=None)
async def guest_fsfreeze_freeze_list(agent: Agent, mountpoints: list[str] | None = None) -> int:
    """Like guest-fsfreeze-freeze, but only the file systems at these mount points.

    Unknown mount points are ignored; an empty list freezes nothing.
    """
    account("guest-fsfreeze called")
    wanted = None if mountpoints is None else [wire_bytes(path) for path in mountpoints]
    return await agent.freezing.freeze("guest-fsfreeze-freeze-list", wanted)


@command(frozen_ok=True, deadline=None)
async def guest_fsfreeze_thaw(agent: Agent) -> int:
    """Thaw all frozen file systems and run the thaw hook; return how many were thawed."""
    account("guest-fsthaw called")
    return await agent.freezing.thaw()


@command(deadline=None)
def guest_fstrim(agent: Agent, minimum: int = 0) -> TrimResponse:
    """Discard the unused blocks of all file systems, in extents of at least `minimum` bytes."""
    account("guest-fstrim called")
    return {"paths": [_trim(mount.mountpoint, minimum) for mount in reversed(list_mounts())]}


def _trim(mountpoint: bytes, minimum: int) -> TrimResult:
    path = mountpoint.decode(errors="replace")
    try:
        fd = freeze.open_mount(mountpoint)
    except OSError as exc:
        return {"path": path, "error": f"failed to open: {strerror(exc)}"}
    try:
        trimmed = freeze.trim(fd, minimum)
    except OSError as exc:
        if exc.errno in (errno.ENOTTY, errno.EOPNOTSUPP):
            return {"path": path, "error": "trim not supported"}
        return {"path": path, "error": f"failed to trim: {strerror(exc)}"}
    finally:
        os.close(fd)
    return {"path": path, "trimmed": trimmed.size, "minimum": trimmed.minimum}
