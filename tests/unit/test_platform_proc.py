# SPDX-License-Identifier: Apache-2.0
"""Reading of small files, and of those that are not small: a routing table may have megabytes."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from qga.errors import CallError
from qga.platform import proc


@pytest.mark.parametrize("size", [0, 1, 16384, 16385, 100_000])
def test_file_is_read_to_its_end(tmp_path: Path, size: int) -> None:
    (tmp_path / "file").write_bytes(b"x" * size)
    assert proc.read(str(tmp_path / "file")) == b"x" * size


def test_time_grows_with_the_size_and_not_faster(tmp_path: Path) -> None:
    size = 64 << 20
    with (tmp_path / "file").open("wb") as file:
        file.truncate(size)
    began = time.monotonic()
    assert len(proc.read(str(tmp_path / "file"))) == size
    assert time.monotonic() - began < 5


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CallError) as caught:
        proc.read(str(tmp_path / "file"))
    assert caught.value.call == f'open("{tmp_path}/file")'
    assert proc.read_or_none(str(tmp_path / "file")) is None
