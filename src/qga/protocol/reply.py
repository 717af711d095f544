# SPDX-License-Identifier: Apache-2.0
"""Reply texts: one line of pure ASCII JSON each."""

from typing import Any

import orjson

from .._framing import Span
from ..errors import CommandError


def encode(value: Any) -> bytes:
    """JSON for `value` by orjson, but pure ASCII as the C agent's, and with the long strings of a request."""
    try:
        data = orjson.dumps(value, default=_long_string)
    except TypeError:
        data = _encode_slowly(value)
    if data.isascii() and b"\x7f" not in data:
        return data
    return data.decode().translate(_Escapes()).encode("ascii")


def success(value: Any, end: bytes) -> bytes:
    """The line for a command's result."""
    return b'{"return":' + encode({} if value is None else value) + end


def error(exc: CommandError, start: bytes = b"{") -> bytes:
    """The line for a refused or failed request."""
    return start + b'"error":' + encode({"class": exc.error_class, "desc": str(exc)}) + b"}\n"


def _long_string(value: Any) -> str:
    if type(value) is Span:
        return str(value)
    raise TypeError(f"no JSON for {type(value).__name__}")


def _encode_slowly(value: Any) -> bytes:
    # For what orjson refuses: an id nested deeper than 254 levels, bytes of a file name that are not UTF-8.
    pieces: list[bytes] = []
    pending = [value]
    while pending:
        item = pending.pop()
        if type(item) is bytes:
            pieces.append(item)
        elif type(item) is list:
            pending.append(b"]")
            for index in range(len(item) - 1, -1, -1):
                pending += (item[index], b"," if index else b"")
            pending.append(b"[")
        elif type(item) is dict:
            pending.append(b"}")
            for index, (key, member) in enumerate(reversed(item.items()), 1 - len(item)):
                pending += (member, b":", key, b"," if index else b"")
            pending.append(b"{")
        elif type(item) is str:
            # The C agent sends U+FFFD for what is not UTF-8.
            pieces.append(orjson.dumps(item.encode("utf-8", "surrogateescape").decode("utf-8", "replace")))
        else:
            pieces.append(orjson.dumps(item, default=_long_string))
    return b"".join(pieces)


class _Escapes(dict[int, int | str]):
    """What `str.translate` puts for a character; each is worked out once in a text."""

    def __missing__(self, code: int) -> int | str:
        self[code] = value = code if code < 0x7F else _escaped(code)
        return value


def _escaped(code: int) -> str:
    if code < 0x10000:
        return f"\\u{code:04X}"
    return f"\\u{0xD7C0 + (code >> 10):04X}\\u{0xDC00 | code & 0x3FF:04X}"
