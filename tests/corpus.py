# SPDX-License-Identifier: Apache-2.0
"""What clients send and what they should not, read from tests/data/framing: material for the tests of the framing.

One text a line, UTF-8, lines that start with "# " are comments. `<FF>` is a byte, `<PING>` a complete request, `<x40>`
means that the byte before it comes 40 times.
"""

from __future__ import annotations

import re
from pathlib import Path

DIRECTORY = Path(__file__).parent / "data/framing"


def request(identity: bytes) -> bytes:
    """A ping whose id is the JSON text `identity`, so that its value comes back."""
    return b'{"execute":"guest-ping","id":' + identity + b"}"


PING = request(b"1")


def _decode(line: bytes) -> bytes:
    text = line.replace(b"<PING>", PING)
    text = re.sub(rb"<([0-9A-F]{2})>", lambda code: bytes.fromhex(code[1].decode()), text)
    return re.sub(rb"(.)<x(\d+)>", lambda repeat: repeat[1] * int(repeat[2]), text, flags=re.DOTALL)


def _load(name: str) -> list[bytes]:
    lines = (DIRECTORY / name).read_bytes().splitlines()
    return [_decode(line) for line in lines if line and not line.startswith(b"# ")]


VALUES = _load("values.txt")
"""JSON texts with a value. None is past the limit of a double, since its echo is no JSON in the C agent's reply."""

NO_VALUES = _load("no-values.txt")
"""Texts without one."""

STREAMS = _load("streams.txt")
"""Streams that hold more, or less, than one value."""

PLACES = _load("places.txt")
"""Texts with a place for a byte; see `at_place`."""

SEPARATORS = [bytes([byte]) for byte in b"{}[]:,\"'\\ \t\r\n\0\x01\x7f\xc3\xfd\xfe\xff"]

FRAGMENTS = [*VALUES, *NO_VALUES, *SEPARATORS, b'"a":', b'{"execute":"guest-ping","id":', b'"execute"', b'"id"', PING]
"""What random streams are made of."""


def at_place(place: bytes) -> list[bytes]:
    """The text with each of the 256 bytes at its place."""
    return [place.replace(b"<??>", bytes([byte])) for byte in range(256)]


def short(text: bytes) -> str:
    """A name for a test of `text`."""
    return ascii(text)[2:-1] if len(text) <= 40 else f"{ascii(text[:30])[2:-1]}...{len(text)}"
