# SPDX-License-Identifier: Apache-2.0
"""The recorded handle number: what is read from odd files, and that writing is all or nothing."""

from __future__ import annotations

import os
import stat

import pytest

from qga.errors import ConfigError
from qga.limits import FIRST_HANDLE
from qga.platform import statefile


@pytest.mark.parametrize(
    ("content", "counter"),
    [
        (b"", FIRST_HANDLE),
        (b"[global]\n", FIRST_HANDLE),
        (b"[other]\nfd_counter=5\n", FIRST_HANDLE),
        (b"[global]\nfd_counter=5\n", 5),
        (b"# note\n[global]\nother=1\nfd_counter = +7 \n[more]\nx=1\n", 7),
        (b"[global]\nfd_counter=5\nfd_counter=6\n", 6),
        (b"[global]\nfd_counter=2147483647\n", 2147483647),
        (b"[global]\nfd_counter=2147483648\n", 0),
        (b"[global]\nfd_counter=" + b"9" * 5000, 0),
        (b"[global]\nfd_counter=5x\n", 0),
        (b"[global]\nfd_counter=5 x\n", 5),
        (b"[global]\nfd_counter=0x10\n", 0),
        (b"[global]\nfd_counter=1_0\n", 0),
        (b"[global]\nfd_counter=\n", 0),
        (b"[global]\nfd_counter=\xff\n", 0),
        (b"[global]\nfd_counter=-5\n", 0),
    ],
)
def test_what_is_read(tmp_path, content, counter):
    (tmp_path / "qga.state").write_bytes(content)
    assert statefile.read(str(tmp_path)) == counter


def test_a_missing_file_means_that_no_handle_was_given_out_yet(tmp_path):
    assert statefile.read(str(tmp_path)) == FIRST_HANDLE


@pytest.mark.parametrize("content", [b"garbage\n", b"fd_counter=5\n", b"\xff\xfe"])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / "qga.state").write_bytes(content)
    with pytest.raises(ConfigError, match=f"^error loading persistent state from path: {tmp_path}/qga.state, line 1: "):
        statefile.read(str(tmp_path))


def test_what_is_written_is_read_again_and_replaces_the_file_at_once(tmp_path):
    statefile.write(str(tmp_path), 1)
    first = (tmp_path / "qga.state").stat()
    statefile.write(str(tmp_path), 2024)
    second = (tmp_path / "qga.state").stat()
    assert statefile.read(str(tmp_path)) == 2024
    assert (tmp_path / "qga.state").read_bytes() == b"[global]\nfd_counter=2024\n"
    assert first.st_ino != second.st_ino, "written in place: a crash could leave half a file"
    assert os.listdir(tmp_path) == ["qga.state"]
    assert stat.S_IMODE(second.st_mode) & ~0o644 == 0


def test_writing_into_a_missing_directory_fails(tmp_path):
    with pytest.raises(FileNotFoundError):
        statefile.write(str(tmp_path / "none"), 1)


def test_a_write_that_fails_half_way_leaves_the_former_file_and_nothing_else(tmp_path):
    (tmp_path / "qga.state").mkdir()  # nothing can be renamed over a directory
    with pytest.raises(IsADirectoryError):
        statefile.write(str(tmp_path), 1)
    assert os.listdir(tmp_path) == ["qga.state"]


def test_a_link_at_the_temporary_name_is_not_followed(tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / f"qga.state.{os.getpid()}").symlink_to("victim")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        statefile.write(str(tmp_path), 1)
    assert (tmp_path / "victim").read_text() == "precious"
