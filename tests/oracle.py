# SPDX-License-Identifier: Apache-2.0
"""A slow model of how the C agent turns a byte stream into requests, for tests to compare the compiled framer with.

Three stages, as in the protocol: a lexer that looks at one byte at a time, a gatherer that collects tokens until the
brackets balance, and a parser that reads the gathered tokens. Checked byte for byte against qemu-ga (tests/compat).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

TOKEN_BYTES_MAX = 64 << 20
TOKEN_COUNT_MAX = 2 << 20
NESTING_MAX = 1024

STRUCTURE = b"[]{}:,"
SPACE = b" \t\r\n"
DIGITS = b"0123456789"
LOWER = b"abcdefghijklmnopqrstuvwxyz"
QUOTES = {"string in '": 0x27, 'string in "': 0x22}
BACKSLASH = 0x5C


@dataclass(frozen=True)
class OracleError:
    """A request that could not be read; `desc` is the text for the client."""

    desc: str


class Token(NamedTuple):
    kind: str
    """One of the bytes of STRUCTURE, or "string", "integer", "float", "keyword"."""
    text: bytes


class _Malformed(Exception):
    """The gathered tokens are not a JSON value."""


class Oracle:
    """Feed it bytes; it gives the values and errors that they complete.

    token_bytes: one more than the tokens of one request may have together, and the most of one that is not complete;
    token_count: most tokens of one request; nesting: most brackets open at once; quoted: most bytes of a stray token
    that its error quotes (the C agent has no such limit).
    """

    def __init__(
        self,
        token_bytes: int = TOKEN_BYTES_MAX,
        token_count: int = TOKEN_COUNT_MAX,
        nesting: int = NESTING_MAX,
        quoted: int | None = None,
    ) -> None:
        self.token_bytes, self.token_count, self.nesting, self.quoted = token_bytes, token_count, nesting, quoted
        self.state = "start"
        self.token = bytearray()
        self._forget_tokens()
        # A value of the greatest depth is parsed by recursion, and compared by recursion in the tests.
        sys.setrecursionlimit(max(sys.getrecursionlimit(), 8 * nesting))

    def feed(self, data: bytes) -> list[object]:
        """Take more bytes of the stream; return the values and `OracleError`s that end within them."""
        return [item for byte in data for item in self._byte(byte)]

    # The lexer

    def _byte(self, byte: int) -> Iterator[object]:
        consumed = False
        while not consumed:
            kind, consumed = next_state(self.state, byte)
            if consumed:
                self.token.append(byte)
            if kind == "error":
                yield self._stray()
                kind = "recovery"
            elif kind in TOKEN_KINDS:
                yield from self._gather(Token(kind, bytes(self.token)))
                kind = "start"
            if kind in ("start", "recovery"):
                self.token.clear()
            self.state = kind
        if len(self.token) > self.token_bytes:
            self.state = "start"
            self.token.clear()
            self._forget_tokens()
            yield OracleError("JSON token size limit exceeded")

    def _stray(self) -> OracleError:
        self._forget_tokens()
        # The C agent formats it as a C string, which ends at a NUL.
        shown = bytes(self.token[: self.quoted]).partition(bytes(1))[0]
        return OracleError(f"JSON parse error, stray '{lossy_text(shown)}'")

    # The gatherer

    def _forget_tokens(self) -> None:
        self.tokens: list[Token] = []
        self.gathered = self.braces = self.brackets = 0

    def _gather(self, token: Token) -> Iterator[object]:
        self.braces += (token.kind == "{") - (token.kind == "}")
        self.brackets += (token.kind == "[") - (token.kind == "]")
        if excess := self._excess(token):
            self._forget_tokens()
            yield OracleError(f"JSON {excess} limit exceeded")
            return
        self.tokens.append(token)
        self.gathered += len(token.text)
        if self.braces >= 0 and self.brackets >= 0 and (self.braces > 0 or self.brackets > 0):
            return
        tokens = self.tokens
        self._forget_tokens()
        try:
            yield Parser(tokens).value()
        except _Malformed as exc:
            yield OracleError(f"JSON parse error, {exc}")

    def _excess(self, token: Token) -> str:
        if self.gathered + len(token.text) + 1 > self.token_bytes:
            return "token size"
        if len(self.tokens) + 1 > self.token_count:
            return "token count"
        if self.braces + self.brackets > self.nesting:
            return "nesting depth"
        return ""


TOKEN_KINDS = {*STRUCTURE.decode(), "string", "integer", "float", "keyword"}


def next_state(state: str, byte: int) -> tuple[str, bool]:
    """The lexer's table: the next state (or a token kind, or "error"), and whether the byte belongs to the token."""
    if state == "start":
        return _from_start(byte), True
    if state == "recovery":
        resets = byte in STRUCTURE or byte >= 0xFE or (byte < 0x20 and byte != 0x09)
        return ("start", False) if resets else ("recovery", True)
    if state in QUOTES:
        return _in_string(state, byte), True
    if state.startswith("escape in "):
        return ("error" if not 0x20 <= byte < 0xFE else "string in " + state[-1]), True
    return _in_word_or_number(state, byte)


def _from_start(byte: int) -> str:
    if byte in SPACE:
        return "start"
    if byte in STRUCTURE:
        return chr(byte)
    if byte in b"'\"":
        return f"string in {chr(byte)}"
    if byte in LOWER:
        return "word"
    if byte in DIGITS:
        return "zero" if byte == 0x30 else "digits"
    return "sign" if byte == 0x2D else "error"


def _in_string(state: str, byte: int) -> str:
    if not 0x20 <= byte < 0xFE:
        return "error"
    if byte == QUOTES[state]:
        return "string"
    return f"escape in {state[-1]}" if byte == BACKSLASH else state


ENDS = {"word": "keyword", "zero": "integer", "digits": "integer", "fraction": "float", "exponent": "float"}
"""What a word or number is that the next byte does not continue; the other states want another byte."""


def _in_word_or_number(state: str, byte: int) -> tuple[str, bool]:
    following = _continuation(state, byte)
    if following:
        return following, True
    return (ENDS[state], False) if state in ENDS else ("error", True)


def _continuation(state: str, byte: int) -> str:
    digit = byte in DIGITS
    if state == "word":
        return "word" if byte in LOWER else ""
    if state == "sign":
        return _from_start(byte) if digit else ""
    if state == "zero":
        return "error" if digit else {0x2E: "point"}.get(byte, "")
    if state == "digits":
        return "digits" if digit else {0x2E: "point", 0x45: "e", 0x65: "e"}.get(byte, "")
    if state in ("point", "fraction"):
        return "fraction" if digit else "e" if state == "fraction" and byte in b"eE" else ""
    if state == "e":
        return "exponent" if digit else "e sign" if byte in b"+-" else ""
    return "exponent" if digit else ""


class Parser:
    """Reads one value from tokens; the first problem met is the one reported."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = iter(tokens)

    def value(self) -> object:
        return self.value_of(next(self.tokens))

    def value_of(self, token: Token) -> object:
        readers = {
            "{": lambda _: self.members(),
            "[": lambda _: self.elements(),
            "string": string_value,
            "integer": integer_value,
            "float": float,
            "keyword": keyword_value,
        }
        if token.kind not in readers:
            raise _Malformed("expecting value")
        return readers[token.kind](token.text)

    def members(self) -> dict[str, object]:
        members: dict[str, object] = {}
        token = next(self.tokens)
        while token.kind != "}":
            self.member(token, members)
            token = self.after_item("}", "dict")
        return members

    def member(self, token: Token, members: dict[str, object]) -> None:
        key = self.value_of(token)
        if not isinstance(key, str):
            raise _Malformed("key is not a string in object")
        if next(self.tokens).kind != ":":
            raise _Malformed("missing : in object pair")
        value = self.value()
        if key in members:
            raise _Malformed("duplicate key")
        members[key] = value

    def elements(self) -> list[object]:
        elements: list[object] = []
        token = next(self.tokens)
        while token.kind != "]":
            elements.append(self.value_of(token))
            token = self.after_item("]", "list")
        return elements

    def after_item(self, end: str, where: str) -> Token:
        """The closing bracket, or the first token of the next item."""
        token = next(self.tokens)
        if token.kind == end:
            return token
        if token.kind != ",":
            raise _Malformed(f"expected separator in {where}")
        token = next(self.tokens)
        if token.kind == end:
            raise _Malformed("expecting value")
        return token


def keyword_value(text: bytes) -> bool | None:
    words = {b"true": True, b"false": False, b"null": None}
    if text not in words:
        raise _Malformed(f"invalid keyword '{text.decode()}'")
    return words[text]


def integer_value(text: bytes) -> int | float:
    value = int(text) if len(text) < 30 else 1 << 100
    return value if -(1 << 63) <= value < 1 << 64 else float(text)


ESCAPES = dict(zip(b"\"'\\/bfnrt", "\"'\\/\b\f\n\r\t", strict=True))


def string_value(text: bytes) -> str:
    """The string that a token with its quotes stands for."""
    chars, at = [], 1
    while at < len(text) - 1:
        if text[at] == BACKSLASH:
            char, at = _escape(text, at)
        else:
            code, at = code_point(text, at)
            if code < 0:
                raise _Malformed("invalid UTF-8 sequence in string")
            char = chr(code)
        chars.append(char)
    return "".join(chars)


def _escape(text: bytes, start: int) -> tuple[str, int]:
    if text[start + 1] != 0x75:
        if text[start + 1] not in ESCAPES:
            raise _Malformed("invalid escape sequence in string")
        return ESCAPES[text[start + 1]], start + 2
    code, end = _hex4(text, start + 2), start + 6
    if 0xD800 <= code < 0xDC00 and text[end : end + 2] == b"\\u":
        low = _hex4(text, end + 2)
        if 0xDC00 <= low < 0xE000:
            code, end = 0x10000 + ((code & 0x3FF) << 10 | low & 0x3FF), end + 6
    if not is_character(code):
        raise _Malformed(f"{lossy_text(text[start:end])} is not a valid Unicode character")
    return chr(code), end


def _hex4(text: bytes, start: int) -> int:
    digits = text[start : start + 4]
    return int(digits, 16) if len(digits) == 4 and all(d in b"0123456789abcdefABCDEF" for d in digits) else -1


def is_character(code: int) -> bool:
    """Whether Unicode gives the code point to characters: neither surrogate nor noncharacter."""
    return (
        0 <= code <= 0x10FFFF
        and not 0xD800 <= code < 0xE000
        and not 0xFDD0 <= code <= 0xFDEF
        and code & 0xFFFE != 0xFFFE
    )


def code_point(text: bytes, start: int) -> tuple[int, int]:
    """Decode one character of UTF-8: its code point (-1 if it is none) and where the next one starts.

    C0 80 is accepted as U+0000; a bad sequence ends before the first byte that cannot continue it.
    """
    lead = text[start]
    if lead < 0x80:
        return lead, start + 1
    if lead < 0xC0 or lead >= 0xFE:
        return -1, start + 1
    length = 8 - (lead ^ 0xFF).bit_length()
    code, end = lead & (0x7F >> length), start + 1
    while end < start + length:
        if end == len(text) or text[end] & 0xC0 != 0x80:
            return -1, end
        code, end = code << 6 | text[end] & 0x3F, end + 1
    least = {2: 0x80, 3: 0x800, 4: 0x10000}.get(length, 1 << 21)
    overlong = code < least and text[start:end] != b"\xc0\x80"
    return (-1 if overlong or not is_character(code) else code), end


def lossy_text(raw: bytes) -> str:
    """`raw` as the agent prints it: U+FFFD for each bad sequence."""
    chars, at = [], 0
    while at < len(raw):
        code, at = code_point(raw, at)
        chars.append(chr(code) if code >= 0 else "\ufffd")
    return "".join(chars)
