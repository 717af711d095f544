# SPDX-License-Identifier: Apache-2.0
"""Reply texts: one line of pure ASCII JSON each."""

import codecs
from typing import Any

import orjson

from .._framing import Span
from ..errors import CommandError


def encode(value: Any) -> bytes:
    """JSON for `value`; other than orjson alone: pure ASCII, as the C agent's, and long strings of a request allowed."""
    try:
        data = orjson.dumps(value, default=_long_string)
    except TypeError:
        data = orjson.dumps(_without_surrogates(value), default=_long_string)
    if data.isascii() and b"\x7f" not in data:
        return data
    return data.decode().encode("ascii", "qga-json").replace(b"\x7f", b"\\u007F")


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


def _without_surrogates(value: Any) -> Any:
    # Bytes of file names that are not UTF-8 reach us as lone surrogates; the C agent sends U+FFFD for them.
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_surrogates(item) for item in value]
    return value


def _escape(exc: UnicodeError) -> tuple[str, int]:
    assert isinstance(exc, UnicodeEncodeError)
    text = exc.object[exc.start : exc.end].encode("utf-16-be")
    units = [int.from_bytes(text[index : index + 2], "big") for index in range(0, len(text), 2)]
    return "".join(f"\\u{unit:04X}" for unit in units), exc.end


codecs.register_error("qga-json", _escape)
