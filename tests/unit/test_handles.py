# SPDX-License-Identifier: Apache-2.0
"""The table of open files."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qga.agent import HandleTable
from qga.commands.files import guest_file_close
from qga.errors import CommandError
from qga.limits import FIRST_HANDLE, HANDLE_STEP
from qga.platform import statefile
from qga.platform.files import OpenFile


def null() -> OpenFile:
    """An open file that needs no file system."""
    return OpenFile(os.open(os.devnull, os.O_RDWR))


def test_handle_is_gone_after_a_close_that_failed(tmp_path: Path) -> None:
    agent: Any = SimpleNamespace(files=HandleTable(str(tmp_path)))
    file = null()
    handle = agent.files.add(file)
    os.close(file.fd)  # the kernel reports an error at close only for file systems that are hard to come by
    with pytest.raises(CommandError, match="failed to close handle: Bad file descriptor"):
        guest_file_close(agent, handle)
    with pytest.raises(CommandError, match=f"handle '{handle}' has not been found"):
        guest_file_close(agent, handle)


def test_numbers_are_recorded_before_they_are_used(tmp_path: Path) -> None:
    table = HandleTable(str(tmp_path))
    assert statefile.read(str(tmp_path)) == FIRST_HANDLE + HANDLE_STEP
    file = null()
    handles = [table.add(file) for _ in range(HANDLE_STEP + 1)]
    assert handles == list(range(FIRST_HANDLE, FIRST_HANDLE + HANDLE_STEP + 1))
    assert statefile.read(str(tmp_path)) == FIRST_HANDLE + 2 * HANDLE_STEP
    file.close()


def test_nothing_is_recorded_while_frozen(tmp_path: Path) -> None:
    HandleTable(str(tmp_path), frozen=True)
    assert list(tmp_path.iterdir()) == []


def test_open_that_cannot_be_recorded_is_refused_and_closed(tmp_path: Path) -> None:
    table = HandleTable(str(tmp_path), frozen=True)
    tmp_path.rmdir()
    file = null()
    with pytest.raises(CommandError, match="failed to commit persistent state to disk"):
        table.add(file)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file.fd)
    tmp_path.mkdir()
