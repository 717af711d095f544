# SPDX-License-Identifier: Apache-2.0
"""Freezing, thawing and trimming by system calls, and the mark in the state directory."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from qga.errors import CallError
from qga.platform.freeze import Frozen, is_marked, mark, open_mount, thaw, trim, unmark
from qga.platform.mounts import Mount
from tests.loopdev import World, freeze_lock, is_frozen


def mount_at(path: Path | str) -> Mount:
    return Mount("7:0", os.fsencode(path), "ext4", b"/dev/loop0")


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with freeze_lock(), World(tmp_path) as entered:
        yield entered


def test_mark_lasts_until_it_is_removed(tmp_path: Path) -> None:
    assert not is_marked(str(tmp_path))
    mark(str(tmp_path))
    mark(str(tmp_path))
    assert is_marked(str(tmp_path))
    unmark(str(tmp_path))
    assert not is_marked(str(tmp_path))


def test_mark_that_is_gone_already_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        unmark(str(tmp_path))


def test_mark_is_for_the_owner_only_and_empty(tmp_path: Path) -> None:
    mark(str(tmp_path))
    status = (tmp_path / "qga.state.isfrozen").stat()
    assert (status.st_mode & 0o7777, status.st_size) == (0o600, 0)


def test_freeze_tells_which_mount_point_it_cannot_open(tmp_path: Path) -> None:
    with pytest.raises(CallError) as caught:
        Frozen().freeze([mount_at(tmp_path / "none")], None)
    assert caught.value.call == f"failed to open {tmp_path}/none"
    assert caught.value.errno == errno.ENOENT


def test_mount_points_that_are_not_wanted_are_not_even_opened(tmp_path: Path) -> None:
    assert Frozen().freeze([mount_at(tmp_path / "none")], [b"/other"]) == 0


def test_stopped_freeze_begins_nothing_more(tmp_path: Path) -> None:
    frozen = Frozen()
    frozen.stop()
    assert frozen.freeze([mount_at(tmp_path / "none")], None) == 0


def test_thaw_passes_over_what_is_gone_or_not_frozen(tmp_path: Path) -> None:
    before = open_descriptors()
    assert Frozen().thaw([mount_at("/proc"), mount_at(tmp_path / "none")]) == 0
    assert open_descriptors() == before


def test_fifo_as_mount_point_is_no_trap(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    os.close(open_mount(os.fsencode(tmp_path / "fifo")))


def test_trim_of_a_filesystem_without_blocks_is_refused() -> None:
    fd = open_mount(b"/proc")
    with pytest.raises(OSError, match=os.strerror(errno.ENOTTY)):
        trim(fd, 0)
    os.close(fd)


@pytest.mark.root
def test_filesystems_that_cannot_be_frozen_do_not_count() -> None:
    before = open_descriptors()
    assert Frozen().freeze([mount_at("/proc"), mount_at("/sys")], None) == 0
    assert open_descriptors() == before


@pytest.mark.root
def test_what_was_frozen_is_held_until_the_thaw(world: World) -> None:
    world.add("ext4", "/mnt/a")
    world.add("ext4", "/mnt/b")
    places = [world.path("/mnt/a"), world.path("/mnt/b")]
    before = open_descriptors()
    frozen = Frozen()
    assert frozen.freeze([mount_at(place) for place in places], None) == 2
    assert [is_frozen(place) for place in places] == [True, True]
    assert open_descriptors() == before + 2
    assert frozen.thaw([]) == 2
    assert [is_frozen(place) for place in places] == [False, False]
    assert open_descriptors() == before


@pytest.mark.root
def test_stop_thaws_at_once_and_leaves_the_rest_to_thaw(world: World) -> None:
    world.add("ext4", "/mnt/a")
    before = open_descriptors()
    frozen = Frozen()
    frozen.freeze([mount_at(world.path("/mnt/a"))], None)
    frozen.stop()
    assert not is_frozen(world.path("/mnt/a"))
    assert frozen.thaw([]) == 0
    assert open_descriptors() == before


@pytest.mark.root
def test_thaw_tells_whether_there_was_something_to_thaw(world: World) -> None:
    world.add("ext4", "/mnt/a")
    world.run("fsfreeze", "--freeze", "/mnt/a")
    fd = open_mount(os.fsencode(world.path("/mnt/a")))
    assert thaw(fd)
    assert not thaw(fd)
    os.close(fd)


@pytest.mark.root
def test_trim_tells_bytes_and_least_extent(world: World) -> None:
    world.add("ext4", "/mnt/a")
    fd = open_mount(os.fsencode(world.path("/mnt/a")))
    first = trim(fd, 1 << 16)
    assert first.size > 1 << 20
    assert first.minimum == 1 << 16
    os.close(fd)
