# SPDX-License-Identifier: Apache-2.0
"""Memory blocks: their list, their size, switching them on and off."""

import errno
from typing import Literal, NotRequired, TypedDict

from ..agent import Agent
from ..errors import CommandError, from_os
from ..platform import memory
from ..protocol.registry import command
from ..protocol.schema import Uint64

MemoryBlock = TypedDict("MemoryBlock", {"phys-index": Uint64, "online": bool, "can-offline": NotRequired[bool]})

Response = Literal["success", "not-found", "operation-not-supported", "operation-failed"]

MemoryBlockResponse = TypedDict(
    "MemoryBlockResponse", {"phys-index": Uint64, "response": Response, "error-code": NotRequired[int]}
)


class MemoryBlockInfo(TypedDict):
    """The value of guest-get-memory-block-info."""

    size: int


@command()
def guest_get_memory_blocks(agent: Agent) -> list[MemoryBlock]:
    """List memory blocks, and which of them can be switched off."""
    try:
        blocks = memory.list_blocks()
    except OSError as exc:
        raise from_os("failed to list memory blocks", exc) from exc
    if not blocks and memory.is_supported():
        raise CommandError("guest reported zero memory blocks!")
    return [
        {"phys-index": Uint64(each.number), "online": each.online, "can-offline": each.can_offline} for each in blocks
    ]


@command(deadline=None)
def guest_set_memory_blocks(agent: Agent, mem_blks: list[MemoryBlock]) -> list[MemoryBlockResponse]:
    """Switch memory blocks on and off, and tell for each whether that worked."""
    return [_set_online(wanted["phys-index"], wanted["online"]) for wanted in mem_blks]


def _set_online(index: Uint64, online: bool) -> MemoryBlockResponse:
    if not memory.is_supported():
        return {"phys-index": index, "response": "operation-not-supported", "error-code": errno.ENOENT}
    try:
        has_switch = memory.set_online(index, online)
    except FileNotFoundError:
        return {"phys-index": index, "response": "not-found", "error-code": errno.ENOENT}
    except OSError as exc:
        return {"phys-index": index, "response": "operation-failed", "error-code": exc.errno or errno.EIO}
    if not has_switch:
        response: Response = "success" if online else "operation-not-supported"
        return {"phys-index": index, "response": response, "error-code": errno.ENOENT}
    return {"phys-index": index, "response": "success"}


@command()
def guest_get_memory_block_info(agent: Agent) -> MemoryBlockInfo:
    """Tell the size of a memory block in bytes."""
    return {"size": memory.block_size()}
