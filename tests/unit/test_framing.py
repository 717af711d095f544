# SPDX-License-Identifier: Apache-2.0
"""The compiled framer against the model in tests/oracle.py; then what no model has: spans, buffer, memory, time."""

from __future__ import annotations

import itertools
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qga._framing import Framer, ParseError, Span
from tests.corpus import FRAGMENTS, NO_VALUES, PING, PLACES, STREAMS, VALUES, at_place, request, short
from tests.oracle import NESTING_MAX, TOKEN_BYTES_MAX, TOKEN_COUNT_MAX, Oracle, OracleError

QUOTED_MAX = 4096
"""Bytes of a stray token that the framer's error quotes; the C agent quotes all."""

MIB = 1 << 20
CORPUS = [*STREAMS, *(request(value) for value in (*VALUES, *NO_VALUES)), *VALUES, *NO_VALUES]


def plain(value: Any) -> Any:
    """The item as the model has it."""
    if isinstance(value, Span):
        return str(value)
    if isinstance(value, ParseError):
        return OracleError(value.desc)
    if isinstance(value, dict):
        return {name: plain(member) for name, member in value.items()}
    return [plain(element) for element in value] if isinstance(value, list) else value


def framed(pieces: Iterable[bytes], framer: Framer | None = None) -> list[Any]:
    """All items that come out while the pieces go in."""
    framer = framer or Framer()
    items = []
    for piece in pieces:
        framer.feed(piece)
        items += [plain(item) for item in framer]
    return items


def modelled(stream: bytes) -> list[object]:
    return Oracle(quoted=QUOTED_MAX).feed(stream)


def assert_same(items: list[Any], expected: list[object]) -> None:
    """Equal in order of members and in type too: repr tells 1 from True and 1.0, and -0.0 from 0.0."""
    assert repr(items) == repr(expected)


def pieces(stream: bytes, cuts: Iterable[int]) -> Iterator[bytes]:
    """The stream cut at these places."""
    start = 0
    for cut in sorted(cuts):
        yield stream[start:cut]
        start = cut
    yield stream[start:]


# --- the model's answer, wherever the bytes are cut


@pytest.mark.parametrize("stream", CORPUS, ids=short)
def test_stream_gives_what_the_model_gives_at_every_cut(stream: bytes) -> None:
    stream += b"\n" + PING
    expected = modelled(stream)
    for cut in range(len(stream) + 1):
        assert_same(framed([stream[:cut], stream[cut:]]), expected)


@pytest.mark.parametrize("stream", CORPUS, ids=short)
def test_each_byte_gives_what_it_gives_in_the_model(stream: bytes) -> None:
    framer, oracle = Framer(), Oracle(quoted=QUOTED_MAX)
    for index in range(len(stream)):
        byte = stream[index : index + 1]
        assert_same(framed([byte], framer), oracle.feed(byte))


@pytest.mark.parametrize("place", PLACES, ids=short)
def test_every_byte_at_a_place_gives_what_the_model_gives(place: bytes) -> None:
    for stream in at_place(place):
        assert_same(framed([stream, b"\n" + PING]), modelled(stream + b"\n" + PING))


@pytest.mark.parametrize("seed", range(4))
def test_random_cuts_of_long_streams_make_no_difference(seed: int) -> None:
    rng = random.Random(seed)
    stream = b"\n".join(rng.sample(CORPUS, len(CORPUS)))
    expected = modelled(stream)
    for _ in range(20):
        cuts = rng.choices(range(len(stream)), k=rng.randrange(1, 400))
        assert_same(framed(pieces(stream, cuts)), expected)


def broken(text: bytes, changes: list[tuple[int, int, int]]) -> bytes:
    """Replace, remove or insert bytes: (what, where, which byte)."""
    mutable = bytearray(text)
    for what, where, byte in changes:
        start = where % (len(mutable) + 1)
        mutable[start : start + (what != 2)] = [] if what == 1 else [byte]
    return bytes(mutable)


CHANGES = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 400), st.integers(0, 255)), max_size=4)
CUTS = st.lists(st.integers(0, 400), max_size=6)
DAMAGED = st.builds(broken, st.lists(st.sampled_from(FRAGMENTS), max_size=10).map(b"".join), CHANGES)


@given(stream=DAMAGED, cuts=CUTS)
@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_damaged_streams_give_what_the_model_gives(stream: bytes, cuts: list[int]) -> None:
    assert_same(framed(pieces(stream, cuts)), modelled(stream))


@given(stream=st.binary(max_size=200), cuts=CUTS)
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_noise_gives_what_the_model_gives(stream: bytes, cuts: list[int]) -> None:
    assert_same(framed(pieces(stream, cuts)), modelled(stream))


def is_allowed(char: str) -> bool:
    return not 0xFDD0 <= ord(char) <= 0xFDEF and ord(char) & 0xFFFE != 0xFFFE


TEXT = st.text(st.characters(exclude_categories=["Cs"]).filter(is_allowed))
NUMBER = st.integers(-(1 << 63), (1 << 64) - 1) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXT, inner, max_size=5),
    max_leaves=30,
)


@given(value=JSON, ascii_only=st.booleans(), indent=st.none() | st.just(1), cuts=CUTS)
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_json_value_arrives_unchanged(value: Any, ascii_only: bool, indent: int | None, cuts: list[int]) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode() + b"\n"
    assert_same(framed(pieces(text, cuts)), [value])


# --- iterating


def test_values_of_one_read_come_one_by_one_and_iteration_goes_on_after_more_bytes() -> None:
    framer = Framer()
    framer.feed(b"[1][2][3")
    assert next(framer) == [1]
    framer.feed(b"4]5")
    assert list(framer) == [[2], [34]]
    assert list(framer) == []
    framer.feed(b" ")
    assert list(framer) == [5]


def test_buffered_counts_the_bytes_of_the_unfinished_value_only() -> None:
    framer = Framer()
    sizes = []
    for piece in (b" \n ", b"[1,", b" 2]", b"\n", b'"abc', b"\xff", b"garbage", b" \n", b"12", b" "):
        framer.feed(piece)
        list(framer)
        sizes.append(framer.buffered)
    assert sizes == [0, 3, 0, 0, 4, 0, 0, 0, 2, 0]


def test_feed_refuses_what_is_not_bytes() -> None:
    with pytest.raises(TypeError):
        Framer().feed("{}")  # type: ignore[arg-type]


def test_two_framers_do_not_share_a_stream() -> None:
    one, two = Framer(), Framer()
    assert framed([b'{"a":'], one) == []
    assert framed([b"[1]"], two) == [[1]]
    assert framed([b"2}"], one) == [{"a": 2}]


# --- stray tokens


def test_error_quotes_a_long_stray_token_in_part() -> None:
    [error] = framed([b'"' + b"x" * 100_000 + b"\n"])
    assert error == OracleError("JSON parse error, stray '\"" + "x" * (QUOTED_MAX - 1) + "'")


def test_error_quotes_a_long_stray_token_of_bad_utf8_in_part() -> None:
    stream = b"'" + b"\xe2\x82\xac\x80" * 5000 + b"\0"
    assert_same(framed([stream]), modelled(stream))


@pytest.mark.parametrize("chunk", [999, 4096, 30_000])
def test_error_quotes_its_token_alone_after_a_flood_of_blanks(chunk: int) -> None:
    for content in (100, 3_000, 20_000, 60_000):
        stream = b'["a",' + b" " * 150_000 + b'"' + text_of(content) + b"\n"
        assert_same(framed(pieces(stream, range(chunk, len(stream), chunk))), modelled(stream))


# --- limits (their exact place was taken from qemu-ga)

SIZE_ERROR = OracleError("JSON token size limit exceeded")
COUNT_ERROR = OracleError("JSON token count limit exceeded")
DEPTH_ERROR = OracleError("JSON nesting depth limit exceeded")


def lengths(items: Iterable[Any]) -> list[Any]:
    """The items with long strings as their size, so that a failed assertion stays readable."""
    return [len(item) if isinstance(item, Span | str) else plain(item) for item in items]


def test_token_may_have_one_byte_less_than_the_limit() -> None:
    framer = Framer()
    framer.feed(b'"' + b"x" * (TOKEN_BYTES_MAX - 3) + b'"')
    assert lengths(framer) == [TOKEN_BYTES_MAX - 3]


@pytest.mark.parametrize("content", [TOKEN_BYTES_MAX - 2, TOKEN_BYTES_MAX - 1])
def test_token_of_the_limit_is_refused_at_its_end(content: int) -> None:
    framer = Framer()
    framer.feed(b'"' + b"x" * content + b'"[1]')
    assert lengths(framer) == [SIZE_ERROR, [1]]


def test_token_that_is_not_complete_at_the_limit_is_given_up_and_its_rest_read_anew() -> None:
    framer = Framer()
    framer.feed(b'["' + b"x" * TOKEN_BYTES_MAX)
    assert lengths(framer) == [SIZE_ERROR]
    framer.feed(b'yes 5"a"]')
    assert lengths(framer) == [OracleError("JSON parse error, invalid keyword 'yes'"), 5, 1, *modelled(b"]")]


def test_endless_number_is_given_up_at_the_limit() -> None:
    framer = Framer()
    framer.feed(b"1" * (TOKEN_BYTES_MAX + 1))
    assert lengths(framer) == [SIZE_ERROR]


@pytest.mark.parametrize(("spare", "refused"), [(1, False), (0, True)])
def test_tokens_of_a_request_are_counted_together_without_the_blanks(spare: int, refused: bool) -> None:
    half = (TOKEN_BYTES_MAX - spare - len('["",""]')) // 2
    odd = (TOKEN_BYTES_MAX - spare - len('["",""]')) % 2
    framer = Framer()
    framer.feed(b'[ "' + b"x" * half + b'" ,\n "' + b"y" * (half + odd) + b'" ]')
    items = [lengths(item) if isinstance(item, list) else plain(item) for item in framer]
    assert items == [SIZE_ERROR] if refused else items == [[half, half + odd]]


def test_counts_start_again_with_each_request_and_after_each_error() -> None:
    framer = Framer()
    big = b'["' + b"x" * (40 * MIB) + b'"'
    for end, outcome in ((b"]", list), (b"@\n", ParseError), (b"]", list), (b"}", ParseError), (b"]", list)):
        framer.feed(big + end)
        assert [type(item) for item in framer] == [outcome]


def numbers(count: int) -> bytes:
    """An array of `count` tokens (odd) with its brackets."""
    return b"[1" + b",1" * ((count - 3) // 2) + b"]"


def test_request_may_have_as_many_tokens_as_the_limit() -> None:
    [value] = framed([numbers(TOKEN_COUNT_MAX - 1)])
    assert value == [1] * (TOKEN_COUNT_MAX // 2 - 1)
    # An even number makes no array; that its grammar is looked at shows that its count is right.
    assert framed([numbers(TOKEN_COUNT_MAX - 1)[:-1] + b" 1]"]) == modelled(b"[1 1]")


def test_one_token_more_is_refused_and_the_rest_read_anew() -> None:
    assert framed([numbers(TOKEN_COUNT_MAX + 1)]) == [COUNT_ERROR]
    assert framed([numbers(TOKEN_COUNT_MAX + 3)]) == [COUNT_ERROR, *modelled(b"1]")]


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":'])
def test_nesting_up_to_the_limit_is_read(opening: bytes) -> None:
    brackets = opening.count(b"[") + opening.count(b"{")
    closing = opening[::-1].translate(bytes.maketrans(b"[{", b"]}"), b':a"')
    text = opening * (NESTING_MAX // brackets) + b"1" + closing * (NESTING_MAX // brackets)
    assert_same(framed([text]), modelled(text))
    assert type(framed([text])[0]) is not OracleError


@pytest.mark.parametrize("text", [b"[" * 1025 + b"]" * 1025, b'{"a":' * 1025 + b"1" + b"}" * 1025, b"[" * 3000])
def test_nesting_past_the_limit_is_refused_as_in_the_model(text: bytes) -> None:
    items = framed([text])
    assert items[0] == DEPTH_ERROR
    assert_same(items, modelled(text))


# --- long strings


def spans_in(value: Any) -> list[Span]:
    """All spans of a value, in order."""
    if isinstance(value, dict):
        return [span for member in value.values() for span in spans_in(member)]
    if isinstance(value, list):
        return [span for element in value for span in spans_in(element)]
    return [value] if isinstance(value, Span) else []


def text_of(size: int, seed: int = 0) -> bytes:
    """Base64-like text of `size` bytes that does not repeat at a power of two."""
    return (bytes(range(0x30, 0x7B)).replace(b"\\", b"") * (size // 74 + 2))[seed % 74 :][:size]


@pytest.mark.parametrize("quote", [b'"', b"'"])
@pytest.mark.parametrize("size", [64 << 10, (64 << 10) + 1, 100_003, MIB, 48 * MIB])
def test_long_string_arrives_as_a_span_of_its_bytes(size: int, quote: bytes) -> None:
    text = text_of(size)
    framer = Framer()
    framer.feed(b'{"execute":"x","arguments":{"buf-b64":' + quote + text + quote + b"}}")
    [value] = framer
    span = value["arguments"]["buf-b64"]
    assert type(span) is Span
    assert len(span) == size
    with memoryview(span) as view:
        assert (view.nbytes, view.format, view.readonly) == (size, "B", False)
        assert view == text
    assert value["execute"] == "x"


@pytest.mark.parametrize("size", range((32 << 10) - 70, (32 << 10) + 70, 9))
def test_strings_about_the_size_of_a_span_keep_their_content(size: int) -> None:
    text = text_of(size)
    assert framed([b"[" + b'"' + text + b'",1]']) == [[text.decode(), 1]]


@pytest.mark.parametrize("chunk", [1 << 10, 4096, 65_537])
def test_long_string_that_arrives_in_pieces_is_whole(chunk: int) -> None:
    text = text_of(300_000)
    stream = b'{"a":"' + text + b'","b":[1]}'
    framer = Framer()
    for start in range(0, len(stream), chunk):
        framer.feed(stream[start : start + chunk])
        values = list(framer)
    assert bytes(values[0]["a"]) == text
    assert values[0]["b"] == [1]


def test_several_long_strings_of_one_request_are_there_together() -> None:
    texts = [text_of(100_000, seed) for seed in range(4)]
    framer = Framer()
    framer.feed(b'{"a":"%b","b":["%b",{"c":"%b"}],"d":"%b"}' % tuple(texts))
    [value] = framer
    assert [bytes(span) for span in spans_in(value)] == texts


LARGE_STRINGS = {
    "plain": '"' + "cWdh" * 10_000 + '"',
    "escape": '"' + "cWdh" * 9_000 + "\\n" + "cWdh" * 1_000 + '"',
    "other text": '"' + "cWdh" * 9_000 + "\u00e9" + "cWdh" * 1_000 + '"',
    "blanks": " " * 100_000 + '"x"',
}


@pytest.mark.parametrize("step", [7_001, 50_001, 1_000_000])
@pytest.mark.parametrize("kinds", list(itertools.product(LARGE_STRINGS, repeat=3)), ids="-".join)
def test_large_strings_of_all_kinds_do_not_mix(kinds: tuple[str, ...], step: int) -> None:
    framer = Framer()
    text = "[" + ",".join(LARGE_STRINGS[kind] for kind in kinds) + "]"
    data = text.encode() * 2 + PING
    items = framed([data[at : at + step] for at in range(0, len(data), step)], framer)
    assert items == [json.loads(text)] * 2 + [json.loads(PING)]


@pytest.mark.parametrize("filler", range(29_980, 29_995))
def test_string_in_the_place_that_another_had_before_blanks_were_squeezed_out(filler: int) -> None:
    """One of these fillers puts the last string exactly where the first one was."""
    blanks = " " * 130_000
    fillers = f'"{"b" * 30_000}","{"b" * filler}"'
    parts = ["[" + " " * 100_000 + '"' + "a" * 40_000 + '",', blanks, f'{fillers},"short",1,2,3{blanks}', "]"]
    assert framed(part.encode() for part in parts) == [json.loads("".join(parts))]


def test_span_keeps_its_bytes_while_the_framer_goes_on() -> None:
    framer = Framer()
    kept = []
    for seed in range(30):
        framer.feed(b'"' + text_of(100_000, seed) + b'"[1')
        kept += list(framer)
        framer.feed(b"]" + PING * (seed * 50))
        assert len(list(framer)) == 1 + seed * 50
        framer.trim()
    assert [bytes(span) for span in kept] == [text_of(100_000, seed) for seed in range(30)]


def traffic(rng: random.Random) -> tuple[bytes, Any]:
    """A request with long and short strings and long runs of blanks, and its value."""
    blank = [rng.choice([b"", b" ", b"\r\n", b" \t" * rng.randrange(40_000)]) for _ in range(8)]
    texts = [text_of(rng.choice([0, 7, 5_000, 40_000, 200_000]), rng.randrange(74)) for _ in range(3)]
    text = b'%b{%b"a"%b:%b"%b",%b"b":[1,%b"%b\\n"%b, \'%b\'] }' % (
        *blank[:4],
        texts[0],
        *blank[4:6],
        texts[1],
        blank[6],
        texts[2],
    )
    return text + blank[7], {"a": texts[0].decode(), "b": [1, texts[1].decode() + "\n", texts[2].decode()]}


@pytest.mark.parametrize("seed", range(12))
def test_buffer_survives_any_traffic_with_spans_held_and_let_go(seed: int) -> None:
    rng = random.Random(seed)
    requests = [traffic(rng) for _ in range(60)]
    stream = b"".join(text for text, _ in requests)
    expected = [value for _, value in requests]
    framer, held, arrived, start = Framer(), [], 0, 0
    while start < len(stream):
        size = rng.choice([1, 100, 4096, 70_000, 500_000])
        framer.feed(stream[start : start + size])
        start += size
        held += list(framer)
        if rng.random() < 0.3:
            framer.trim()
        while held and rng.random() < 0.7:
            assert plain(held.pop(0)) == expected[arrived]
            arrived += 1
    assert [plain(value) for value in held] == expected[arrived:]


def test_span_and_its_view_outlive_the_framer() -> None:
    framer = Framer()
    framer.feed(b'"' + text_of(MIB) + b'"')
    view = memoryview(next(framer))
    del framer
    # Something else gets a chance to take the memory.
    Framer().feed(b"y" * MIB)
    assert view == text_of(MIB)


def test_writing_into_a_span_changes_nothing_else() -> None:
    framer = Framer()
    framer.feed(b'{"a":"' + text_of(100_000) + b'","b":"' + text_of(100_000) + b'"}' + PING)
    value = next(framer)
    memoryview(value["a"])[:] = b"\xff" * 100_000
    assert bytes(value["b"]) == text_of(100_000)
    assert [plain(item) for item in framer] == modelled(PING)


@pytest.mark.parametrize("extra", [rb"\n", rb"\u00e9", "\u20ac".encode(), b"\xc0\x80", b"\x7f", rb"\"", rb"\/"])
@pytest.mark.parametrize("place", [0, 50_000, 100_000])
def test_long_string_that_is_not_plain_text_has_the_models_value(extra: bytes, place: int) -> None:
    text = text_of(100_000)
    stream = b'{"a":["' + text[:place] + extra + text[place:] + b'"]}'
    assert_same(framed([stream]), modelled(stream))


@pytest.mark.parametrize("flaw", [rb"\x", rb"\ud800", b"\xc3", b"\t", b"\xff", b"\xed\xa0\x80"])
def test_long_string_with_a_flaw_has_the_models_error(flaw: bytes) -> None:
    stream = b'{"a":"' + text_of(100_000) + flaw + text_of(70_000) + b'"}\n' + PING
    assert_same(framed([stream]), modelled(stream))


def test_long_keys_work_and_equal_ones_are_found() -> None:
    key = b'"' + text_of(100_000) + b'"'
    for stream in (b"{" + key + b":1}", b"{" + key + b":1," + key + b":2}", b"{" + key + b":" + key + b"}"):
        assert_same(framed([stream]), modelled(stream))


def test_equal_keys_beside_a_long_string_are_found() -> None:
    stream = b'{"a":1,"x":"' + text_of(100_000) + b'","a":2}'
    assert_same(framed([stream]), modelled(stream))


# --- reading from a descriptor


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """What the framer reads from (not blocking), and the peer."""
    ours, peer = socket.socketpair()
    ours.setblocking(False)
    with ours, peer:
        yield ours, peer


def test_fill_reads_what_is_there(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, peer = ends
    framer = Framer()
    peer.sendall(PING + b"[1")
    assert framer.fill(ours.fileno()) == len(PING) + 2
    assert [plain(item) for item in framer] == modelled(PING)
    peer.sendall(b"2]")
    assert framer.fill(ours.fileno()) == 2
    assert list(framer) == [[12]]


def test_fill_tells_nothing_there_from_the_end(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, peer = ends
    framer = Framer()
    assert framer.fill(ours.fileno()) == -1
    peer.sendall(b"[1]")
    peer.shutdown(socket.SHUT_WR)
    assert framer.fill(ours.fileno()) == 3
    assert framer.fill(ours.fileno()) == 0
    assert list(framer) == [[1]]


def test_fill_from_a_pipe_and_its_end() -> None:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    framer = Framer()
    try:
        assert framer.fill(reader) == -1
        os.write(writer, b"{}")
        assert framer.fill(reader) == 2
    finally:
        os.close(writer)
    assert framer.fill(reader) == 0
    os.close(reader)
    assert list(framer) == [{}]


def test_fill_raises_what_the_system_says() -> None:
    with pytest.raises(OSError, match=os.strerror(9)) as caught:
        Framer().fill(-1)
    assert caught.value.errno == 9


def test_fill_reads_a_request_that_is_larger_than_the_buffer(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, peer = ends
    peer.setblocking(False)
    framer, text = Framer(), text_of(3 * MIB)
    values: list[Any] = []
    rest = memoryview(b'{"a":"' + text + b'"}' + PING)
    while len(values) < 2:
        if rest:
            rest = rest[peer.send(rest) :]
        while framer.fill(ours.fileno()) > 0:
            values += list(framer)
    assert bytes(values[0]["a"]) == text
    assert_same([plain(values[1])], modelled(PING))


def test_fill_and_feed_may_alternate(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, peer = ends
    framer = Framer()
    framer.feed(b"[1,")
    peer.sendall(b"2,")
    assert framer.fill(ours.fileno()) == 2
    framer.feed(b"3]")
    assert list(framer) == [[1, 2, 3]]


# --- memory


def test_trim_gives_the_memory_of_a_large_request_back() -> None:
    framer = Framer()
    idle = framer.size
    framer.feed(b'"' + text_of(8 * MIB) + b'"')
    assert len(next(framer)) == 8 * MIB
    framer.feed(b'{"rest":')
    assert framer.size > 8 * MIB
    framer.trim()
    assert framer.size == idle
    framer.feed(b"1}")
    assert list(framer) == [{"rest": 1}]


def test_trim_keeps_what_is_still_needed() -> None:
    framer = Framer()
    framer.feed(b'"' + text_of(8 * MIB))
    framer.trim()
    framer.feed(b'"')
    assert bytes(next(framer)) == text_of(8 * MIB)


def growth_of(code: str) -> int:
    """Run code in a fresh interpreter that has a Framer `f` and a chunk of `MIB` bytes; bytes that its peak grew by."""
    program = f"""
from qga._framing import Framer, ParseError
MIB = 1 << 20
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) * 1024
def push(chunk, times):
    items = []
    for _ in range(times):
        f.feed(chunk)
        items += f
    return items
f = Framer()
push(b"[1]", 10)
before = peak()
{code}
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_token_past_the_limit_takes_little_more_memory_than_the_limit() -> None:
    grown = growth_of("""
assert push(b'"', 1) == []
items = push(b"x" * MIB, 65)
assert [item.desc for item in items][:1] == ["JSON token size limit exceeded"], items
""")
    assert 60 * MIB < grown < 80 * MIB


def test_long_string_is_not_copied() -> None:
    grown = growth_of("""
assert push(b'{"a":"', 1) == []
assert push(b"x" * MIB, 48) == []
[value] = push(b'"}', 1)
assert len(value["a"]) == 48 * MIB
""")
    assert 40 * MIB < grown < 60 * MIB


@pytest.mark.parametrize(
    ("before", "flood", "after"),
    [
        ("[1,", b" ", "2]"),
        ("[1,", b"\n\t\r ", "2]"),
        ("['a ] b',", b"  \n", "2]"),
        ("", b" \n", "[2]"),
        ("@", b"garbage ", "[2]"),
        ("\\xff", b"\x80", "[2]"),
    ],
)
def test_flood_without_tokens_takes_no_memory(before: str, flood: bytes, after: str) -> None:
    grown = growth_of(f"""
push(b"{before}", 1)
assert push({flood!r} * (MIB // {len(flood)}), 200) == []
[value] = push(b"{after}", 1)
assert value[-1] == 2, value
""")
    assert grown < 12 * MIB


def test_many_errors_leave_nothing_behind() -> None:
    grown = growth_of("""
for _ in range(50):
    items = push(b"\\xff" * 1000, 1) + push(b"}" * 1000, 1) + push(b'{"a":"' + b"x" * 40000 + b"\\n", 1)
    assert len(items) == 2001 and all(type(item) is ParseError for item in items), items[:3]
""")
    assert grown < 6 * MIB


# --- time


def cpu_time(stream: bytes, chunk: int) -> float:
    """CPU seconds to frame the stream in pieces of `chunk` bytes; the better of two runs."""
    times = []
    for _ in range(2):
        framer, items = Framer(), 0
        start = time.process_time()
        for index in range(0, len(stream), chunk):
            framer.feed(stream[index : index + chunk])
            for _ in framer:
                items += 1
        times.append(time.process_time() - start)
        assert items
    return min(times)


def long_string(size: int) -> bytes:
    return b'{"a":"' + b"x" * size + b'"}'


def escapes(size: int) -> bytes:
    return b'{"a":"' + rb"\u00e9" * (size // 6) + b'"}'


def many_tokens(size: int) -> bytes:
    return b"[1" + b",12345" * (size // 6) + b"]"


def many_members(size: int) -> bytes:
    return b"{" + b",".join(b'"%06d":1' % number for number in range(size // 11)) + b"}"


def blanks(size: int) -> bytes:
    return b"[1," + b" " * size + b"2]"


def blanks_after_tokens(size: int) -> bytes:
    return b'["' + b"x" * (size // 3) + b'",' + b" " * (2 * size // 3) + b"2]"


def many_requests(size: int) -> bytes:
    return PING * (size // len(PING))


def errors(size: int) -> bytes:
    return b'}\xff{"a":@not JSON, at all}\n[\n\0]' * (size // 32)


@pytest.mark.parametrize(
    "make",
    [long_string, escapes, many_tokens, many_members, blanks, blanks_after_tokens, many_requests, errors],
    ids=lambda make: make.__name__,
)
@pytest.mark.parametrize(("small", "chunk"), [(128 << 10, 1), (1 << 20, 4096)])
def test_time_is_linear_in_the_size(make: Any, small: int, chunk: int) -> None:
    # Four times the bytes; sixteen times the time would be quadratic.
    floor = 0.002
    assert cpu_time(make(small * 4), chunk) < 9 * max(cpu_time(make(small), chunk), floor)


def test_request_of_a_mib_byte_by_byte_takes_about_a_second_at_most() -> None:
    assert cpu_time(long_string(MIB), 1) < 4
