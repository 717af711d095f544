# SPDX-License-Identifier: Apache-2.0
"""Reply texts: JSON on one line of pure ASCII, whatever is in them."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qga._framing import Framer, Span
from qga.errors import CommandError, CommandNotFound
from qga.protocol.reply import encode, error, success

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
numbers = st.integers(-(1 << 63), (1 << 64) - 1) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=20,
)


def check_line(data: bytes) -> None:
    assert data.isascii()
    assert not any(byte < 0x20 or byte == 0x7F for byte in data)


@settings(max_examples=300, deadline=None)
@given(values)
def test_any_value_comes_back(value: Any) -> None:
    data = encode(value)
    check_line(data)
    assert json.loads(data) == value


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("\u00e9", b'"\\u00E9"'),
        ("\U0001f600", b'"\\uD83D\\uDE00"'),
        ("\x7f", b'"\\u007F"'),
        ("\x7f\u00e9", b'"\\u007F\\u00E9"'),
        ("a/b", b'"a/b"'),
        ('"\\\b\f\n\r\t', b'"\\"\\\\\\b\\f\\n\\r\\t"'),
        ("\0", b'"\\u0000"'),
        ("\ufffd", b'"\\uFFFD"'),
        (18446744073709551615, b"18446744073709551615"),
        (1.5, b"1.5"),
        ({"a": [1, None, True]}, b'{"a":[1,null,true]}'),
        ({"\u00e9": 1}, b'{"\\u00E9":1}'),
    ],
)
def test_how_it_is_written(value: Any, written: bytes) -> None:
    assert encode(value) == written


@pytest.mark.parametrize("depth", [1, 253, 254, 255, 1023])
def test_deep_values_come_back(depth: int) -> None:
    value: Any = "\u00e9"
    for _ in range(depth):
        value = {"k": [1, value, 2], "l": {}}
    assert encode(value) == b'{"k":[1,' * depth + b'"\\u00E9"' + b',2],"l":{}}' * depth


def test_text_that_is_not_utf_8_is_marked() -> None:
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    assert json.loads(encode({"name": name})) == {"name": "caf\ufffd"}
    check_line(encode([name, {"k": name}]))


def test_a_long_string_of_a_request_is_written_out() -> None:
    framer = Framer()
    framer.feed(b'["' + b"x" * 50_000 + b'"]')
    span = next(framer)[0]
    assert isinstance(span, Span)
    assert encode({"id": [span, 1]}) == b'{"id":["' + b"x" * 50_000 + b'",1]}'
    nested: Any = span
    for _ in range(300):
        nested = [nested]
    assert encode(nested) == b"[" * 300 + b'"' + b"x" * 50_000 + b'"' + b"]" * 300


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(TypeError):
        encode(object())


def test_results() -> None:
    assert success({"a": 1}, b"}\n") == b'{"return":{"a":1}}\n'
    assert success(None, b"}\n") == b'{"return":{}}\n'
    assert success([], b',"id":7}\n') == b'{"return":[],"id":7}\n'
    assert success(0, b"}\n") == b'{"return":0}\n'


def test_errors() -> None:
    assert error(CommandError("no \u201cx\u201d")) == (
        b'{"error":{"class":"GenericError","desc":"no \\u201Cx\\u201D"}}\n'
    )
    assert json.loads(error(CommandNotFound("gone"), b'{"id":7,')) == {
        "id": 7,
        "error": {"class": "CommandNotFound", "desc": "gone"},
    }


def test_nothing_is_imported_late() -> None:
    # Later there may be no descriptor left to read a module with, or the disk may be frozen.
    script = """
import sys
from qga.protocol import reply
before = set(sys.modules)
reply.encode("\\u201c\\x7f\\U0001f600")
reply.encode({"name": b"\\xff".decode("utf-8", "surrogateescape")})
print(sorted(set(sys.modules) - before))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
