# SPDX-License-Identifier: Apache-2.0
"""Bulk replies that do not get out: what they have read is put back, and their source is free again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from qga.platform.files import OpenFile
from qga.protocol.stream import Bulk, Stream

MIB = 1 << 20


@pytest.fixture
def file(tmp_path: Path) -> Iterator[OpenFile]:
    path = tmp_path / "file"
    path.write_bytes(bytes(MIB))
    opened = OpenFile(os.open(path, os.O_RDONLY))
    opened.seek(5, os.SEEK_SET)
    yield opened
    opened.close()


def reading(file: OpenFile, count: int) -> Stream:
    bulk = Bulk("buf-b64", file.fd, count, lambda count, eof: {"count": count, "eof": eof})
    return Stream({}, [bulk], "failed to read file", file)


def position(file: OpenFile) -> int:
    return os.lseek(file.fd, 0, os.SEEK_CUR)


@pytest.mark.parametrize("count", [1000, MIB])
def test_read_that_is_given_up_can_be_repeated(file: OpenFile, count: int) -> None:
    stream = reading(file, count)
    stream.open(b"}\n")
    assert position(file) > 5
    stream.rewind()
    stream.release()
    assert position(file) == 5
