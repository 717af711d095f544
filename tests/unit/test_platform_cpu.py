# SPDX-License-Identifier: Apache-2.0
"""Processors, switched on and off in made-up trees only."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from qga.errors import CallError
from qga.platform import cpu
from qga.platform.cpu import CpuTimes, Processor
from tests.trees import Tree

PROCESSORS = """
devices/system/cpu
    cpu0/topology
    cpu1/online = 1
    cpu2/online = 0
    cpu10/online = 1
    cpufreq
    cpuidle
    online = 0-1,10
"""


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path, PROCESSORS)


def switch(tree: Tree, number: int) -> Path:
    return tree.sys / f"devices/system/cpu/cpu{number}/online"


def test_processors_are_listed_by_number(tree: Tree) -> None:
    assert cpu.list_processors(tree.root) == [
        Processor(0, True, False),
        Processor(1, True, True),
        Processor(2, False, True),
        Processor(10, True, True),
    ]


def test_switching_writes_one_digit(tree: Tree) -> None:
    assert cpu.set_online(1, False, tree.root)
    assert switch(tree, 1).read_text() == "0\n"
    assert cpu.set_online(2, True, tree.root)
    assert switch(tree, 2).read_text() == "1\n"


def test_processor_that_is_as_wanted_is_not_written(tree: Tree) -> None:
    path = switch(tree, 1)
    os.utime(path, (1, 1))
    assert cpu.set_online(1, True, tree.root)
    assert path.stat().st_mtime == 1


def test_processor_without_a_switch(tree: Tree) -> None:
    assert not cpu.set_online(0, False, tree.root)
    assert not cpu.set_online(0, True, tree.root)


@pytest.mark.parametrize("number", [99, -1])
def test_unknown_processor_names_its_directory(tree: Tree, number: int) -> None:
    with pytest.raises(CallError) as caught:
        cpu.set_online(number, True, tree.root)
    assert caught.value.call == f'open("{tree.root}/sys/devices/system/cpu/cpu{number}/")'
    assert caught.value.errno == errno.ENOENT


def test_switch_that_cannot_be_opened_is_named(tree: Tree) -> None:
    switch(tree, 1).unlink()
    switch(tree, 1).mkdir()
    with pytest.raises(CallError) as caught:
        cpu.set_online(1, True, tree.root)
    assert caught.value.call == f'open("{tree.root}/sys/devices/system/cpu/cpu1//online")'
    assert caught.value.errno == errno.EISDIR


def test_failed_write_is_named(tree: Tree) -> None:
    switch(tree, 1).unlink()
    switch(tree, 1).symlink_to("/dev/full")
    with pytest.raises(CallError) as caught:
        cpu.set_online(1, False, tree.root)
    assert caught.value.call == f'pwrite("{tree.root}/sys/devices/system/cpu/cpu1//online")'
    assert caught.value.errno == errno.ENOSPC


def test_missing_directory_of_processors_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CallError) as caught:
        cpu.list_processors(str(tmp_path))
    assert caught.value.call == f"failed to list entries: {tmp_path}/sys/devices/system/cpu"


def test_times_are_those_of_single_processors(tree: Tree) -> None:
    (tree.proc / "stat").write_text(
        "cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 1 2 3 4 5 6 7 8 9 10\ncpu3 1 2 3 4\nintr 5 0 0\nctxt 7\ncpufake 1\n"
    )
    assert cpu.cpu_times(tree.root) == [CpuTimes(0, tuple(range(1, 11))), CpuTimes(3, (1, 2, 3, 4))]
