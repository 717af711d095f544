# SPDX-License-Identifier: Apache-2.0
"""Base64 between a file and a sink that costs nothing, and decoding in place; for information."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qga._b64io import Encoder, decode

SIZE = 12 << 20
ROUNDS = 30
DATA = os.urandom(SIZE)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    """A descriptor of a file that holds DATA."""
    path = tmp_path / "data"
    path.write_bytes(DATA)
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)
    path.unlink()


def encode(source: int, out: int) -> Encoder:
    """Send all of `source` to `out`."""
    os.lseek(source, 0, os.SEEK_SET)
    encoder = Encoder(source, SIZE, b'"', lambda count, eof: b'"\n')
    encoder.prime()
    assert encoder.pump(out, 1000)
    assert encoder.count == SIZE
    return encoder


def test_encode(benchmark: Any, file: int, tmp_path: Path) -> None:
    """The file from the page cache to /dev/null."""
    benchmark.extra_info["bytes"] = SIZE
    null = os.open(os.devnull, os.O_WRONLY)
    benchmark.pedantic(encode, args=(file, null), rounds=ROUNDS, warmup_rounds=1)
    os.close(null)
    copy = tmp_path / "copy"
    with copy.open("wb") as out:
        encode(file, out.fileno())
    assert copy.read_bytes() == b'"' + base64.b64encode(DATA) + b'"\n'
    copy.unlink()


def test_decode(benchmark: Any) -> None:
    """In place, so each round needs a text of its own."""
    benchmark.extra_info["bytes"] = SIZE
    text = base64.b64encode(DATA)
    decoded = benchmark.pedantic(decode, setup=lambda: ((bytearray(text),), {}), rounds=ROUNDS, warmup_rounds=1)
    assert decoded == DATA
