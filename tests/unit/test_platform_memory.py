# SPDX-License-Identifier: Apache-2.0
"""Memory blocks, switched on and off in made-up trees only."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from qga.errors import CallError
from qga.platform import memory
from qga.platform.memory import MemoryBlock
from tests.trees import Tree

MEMORY = """
devices/system/memory
    block_size_bytes = 8000000
    auto_online_blocks = offline
    power/control = auto
    memory0
        state = online
        removable = 0
    memory2
        state = offline
        removable = 1
    memory10
        state = going-offline
    memory11/removable = 1
"""


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path, MEMORY)


def state(tree: Tree, number: int) -> Path:
    return tree.sys / f"devices/system/memory/memory{number}/state"


def test_blocks_are_listed_by_number(tree: Tree) -> None:
    assert memory.list_blocks(tree.root) == [
        MemoryBlock(0, True, False),
        MemoryBlock(2, False, True),
        MemoryBlock(10, False, False),
        MemoryBlock(11, True, True),
    ]


def test_kernel_without_memory_hot_plug_has_no_blocks(tmp_path: Path) -> None:
    assert memory.list_blocks(str(tmp_path)) == []
    assert not memory.is_supported(str(tmp_path))


def test_blocks_are_switched_by_word(tree: Tree) -> None:
    assert memory.set_online(2, True, tree.root)
    assert state(tree, 2).read_text().startswith("online")
    assert memory.set_online(0, False, tree.root)
    assert state(tree, 0).read_text().startswith("offline")


def test_block_that_is_as_wanted_is_not_written(tree: Tree) -> None:
    os.utime(state(tree, 2), (1, 1))
    assert memory.set_online(2, False, tree.root)
    assert state(tree, 2).stat().st_mtime == 1


def test_block_without_a_state_has_no_switch(tree: Tree) -> None:
    assert not memory.set_online(11, False, tree.root)


def test_unknown_block(tree: Tree) -> None:
    with pytest.raises(FileNotFoundError):
        memory.set_online(1, True, tree.root)


def test_refused_switch_keeps_its_errno(tree: Tree) -> None:
    state(tree, 2).unlink()
    state(tree, 2).symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space") as caught:
        memory.set_online(2, True, tree.root)
    assert caught.value.errno == errno.ENOSPC


def test_block_size_is_hexadecimal(tree: Tree) -> None:
    assert memory.block_size(tree.root) == 0x8000000


def test_block_size_of_a_kernel_without_blocks(tmp_path: Path) -> None:
    with pytest.raises(CallError) as caught:
        memory.block_size(str(tmp_path))
    assert caught.value.call == f'open("{tmp_path}/sys/devices/system/memory/")'
