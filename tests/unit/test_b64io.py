# SPDX-License-Identifier: Apache-2.0
"""The compiled base64 streams against Python's base64 module."""

from __future__ import annotations

import base64
import fcntl
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from qga._b64io import Encoder, decode, spawn
from qga._framing import Framer, Span

RAW_BLOCK = 96 * 1024
TEXT_BLOCK = 128 * 1024
PATIENCE = 10_000

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
sizes_near_blocks = st.builds(
    lambda blocks, more: max(0, blocks * RAW_BLOCK + more), st.integers(0, 3), st.integers(-4, 4)
) | st.integers(0, 3 * RAW_BLOCK)

RANDOM = os.urandom(4 * RAW_BLOCK)


class Tail:
    """Notes how the data ended."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, bool]] = []

    def __call__(self, count: int, eof: bool) -> bytes:
        self.calls.append((count, eof))
        return b'","tail"}\n'


@contextmanager
def file_with(content: bytes) -> Iterator[int]:
    fd = os.memfd_create("test")
    try:
        os.write(fd, content)
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)


@contextmanager
def pipe_with(*pieces: bytes, ended: bool = True, pause: float = 0) -> Iterator[int]:
    """The reading end of a pipe into which a thread writes the pieces."""
    read_end, write_end = os.pipe()

    def write() -> None:
        for piece in pieces:
            left = piece
            while left:
                left = left[os.write(write_end, left) :]
            time.sleep(pause)
        if ended:
            os.close(write_end)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield read_end
    finally:
        os.close(read_end)
        writer.join()
        if not ended:
            os.close(write_end)


@contextmanager
def sink(buffer: int | None = None, pace: Callable[[], object] = lambda: None) -> Iterator[tuple[int, list[bytes]]]:
    """A non-blocking descriptor to write to, and what arrives at its other end."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    if buffer:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
    arrived: list[bytes] = []

    def read() -> None:
        while piece := theirs.recv(70_001):
            arrived.append(piece)
            pace()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield ours.fileno(), arrived
    finally:
        ours.close()
        reader.join()
        theirs.close()


def encoded(source: int, count: int, tail: Tail, buffer: int | None = None, prime: bool = True) -> bytes:
    """All that the encoder writes."""
    with sink(buffer) as (out, arrived):
        encoder = Encoder(source, count, b'{"head":"', tail)
        if prime:
            encoder.prime()
        assert encoder.pump(out, PATIENCE)
        assert (encoder.count, encoder.eof) == tail.calls[0]
    return b"".join(arrived)


def expected(content: bytes) -> bytes:
    return b'{"head":"' + base64.b64encode(content) + b'","tail"}\n'


# --- Encoder


@quick
@given(
    size=sizes_near_blocks, missing=st.sampled_from([0, 0, 1, 2, 3, 4096]), buffer=st.sampled_from([None, 1, 70_000])
)
@example(size=0, missing=0, buffer=None)
@example(size=0, missing=1, buffer=None)
@example(size=RAW_BLOCK, missing=0, buffer=1)
@example(size=RAW_BLOCK, missing=1, buffer=None)
def test_a_file_is_encoded(size: int, missing: int, buffer: int | None) -> None:
    content = RANDOM[:size]
    tail = Tail()
    with file_with(content) as source:
        assert encoded(source, size + missing, tail, buffer) == expected(content)
        assert os.lseek(source, 0, os.SEEK_CUR) == size
    assert tail.calls == [(size, missing > 0)]


@quick
@given(size=sizes_near_blocks, count=sizes_near_blocks, start=st.integers(0, 1000))
def test_a_part_of_a_file_is_encoded_from_its_position(size: int, count: int, start: int) -> None:
    content = RANDOM[:size]
    start = min(start, size)
    tail = Tail()
    with file_with(content) as source:
        os.lseek(source, start, os.SEEK_SET)
        assert encoded(source, count, tail) == expected(content[start : start + count])
    wanted_more = count > size - start
    assert tail.calls == [(min(count, size - start), wanted_more)]


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(1, 2 * RAW_BLOCK), max_size=6), more=st.sampled_from([0, 1]))
def test_pieces_of_a_pipe_are_joined(cuts: list[int], more: int) -> None:
    pieces = [RANDOM[:cut] for cut in cuts]
    content = b"".join(pieces)
    tail = Tail()
    with pipe_with(*pieces) as source:
        assert encoded(source, len(content) + more, tail) == expected(content)
    assert tail.calls == [(len(content), more > 0)]


def test_priming_is_not_required() -> None:
    tail = Tail()
    with file_with(RANDOM) as source:
        assert encoded(source, len(RANDOM), tail, prime=False) == expected(RANDOM)


@pytest.mark.parametrize("size", [10, RAW_BLOCK - 1, RAW_BLOCK, RAW_BLOCK + 1, 2 * RAW_BLOCK + 10])
def test_a_pipe_that_is_empty_for_now_ends_the_data_but_not_the_file(size: int) -> None:
    tail = Tail()
    with pipe_with(RANDOM[:size], ended=False) as source:
        fcntl.fcntl(source, fcntl.F_SETPIPE_SZ, 1 << 20)
        time.sleep(0.05)
        os.set_blocking(source, False)
        assert encoded(source, 1 << 20, tail) == expected(RANDOM[:size])
    assert tail.calls == [(size, False)]


def test_a_slow_reader_gets_everything() -> None:
    tail = Tail()
    with file_with(RANDOM) as source, sink(1, lambda: time.sleep(0.005)) as (out, arrived):
        encoder = Encoder(source, len(RANDOM), b'{"head":"', tail)
        turns = 1
        while not encoder.pump(out, 1):
            turns += 1
    assert b"".join(arrived) == expected(RANDOM)
    assert turns > 1
    assert tail.calls == [(len(RANDOM), False)]


@pytest.mark.parametrize("patience", [0, 40, 200])
def test_patience_is_spent_once(patience: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, file_with(RANDOM) as source:
        ours.setblocking(False)
        encoder = Encoder(source, len(RANDOM), b"", Tail())
        began = time.monotonic()
        assert not encoder.pump(ours.fileno(), patience)
        waited = (time.monotonic() - began) * 1000
        assert patience - 2 <= waited < patience + 150
        assert encoder.count < len(RANDOM), "nothing is read ahead"


def test_waiting_leaves_other_threads_alone() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, file_with(RANDOM) as source:
        ours.setblocking(False)
        encoder = Encoder(source, len(RANDOM), b"", Tail())
        thread = threading.Thread(target=encoder.pump, args=(ours.fileno(), 300))
        thread.start()
        turns = 0
        while thread.is_alive():
            time.sleep(0.001)
            turns += 1
        assert turns > 50


@pytest.mark.parametrize(
    ("opened", "error"),
    [
        (lambda path: os.open(path, os.O_RDONLY), IsADirectoryError),
        (lambda path: os.open(path / "file", os.O_WRONLY | os.O_CREAT), OSError),
        (lambda path: os.open("/proc/self/mem", os.O_RDONLY), OSError),
    ],
    ids=["directory", "write-only", "unreadable"],
)
def test_a_source_that_cannot_be_read_fails_before_anything_is_sent(
    tmp_path: Path, opened: Callable[[Path], int], error: type[OSError]
) -> None:
    source = opened(tmp_path)
    try:
        with pytest.raises(error):
            Encoder(source, 10, b"", Tail()).prime()
    finally:
        os.close(source)


def test_a_source_with_nothing_yet_fails_before_anything_is_sent() -> None:
    with pipe_with(ended=False) as source:
        os.set_blocking(source, False)
        with pytest.raises(BlockingIOError):
            Encoder(source, 10, b"", Tail()).prime()


def test_a_reader_that_is_gone_is_an_error() -> None:
    ours, theirs = socket.socketpair()
    with ours, file_with(RANDOM) as source:
        theirs.close()
        encoder = Encoder(source, len(RANDOM), b"head", Tail())
        with pytest.raises(BrokenPipeError):
            encoder.pump(ours.fileno(), PATIENCE)


def test_an_error_of_the_tail_comes_through() -> None:
    def tail(count: int, eof: bool) -> bytes:
        raise LookupError(count)

    with file_with(b"content") as source, sink() as (out, _), pytest.raises(LookupError, match="7"):
        Encoder(source, 7, b"", tail).pump(out, PATIENCE)


@pytest.mark.parametrize("size", [0, 1, 4096, RAW_BLOCK])
def test_what_is_in_memory_is_queued_at_once(tmp_path: Path, size: int) -> None:
    (tmp_path / "file").write_bytes(RANDOM[: size + 5])
    tail = Tail()
    with (tmp_path / "file").open("rb", buffering=0) as source, sink() as (out, arrived):
        try:
            os.preadv(source.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT)
        except OSError as exc:
            pytest.skip(f"files here cannot be read from memory only ({exc})")
        encoder = Encoder(source.fileno(), size, b'{"head":"', tail)
        assert encoder.prime_cached()
        assert source.tell() == size
        assert encoder.pump(out, 0)
    assert b"".join(arrived) == expected(RANDOM[:size])
    assert tail.calls == [(size, False)]


@pytest.mark.parametrize(("size", "count"), [(10, 11), (0, 1), (2 * RAW_BLOCK, RAW_BLOCK + 1), (RAW_BLOCK, 48 << 20)])
def test_what_may_need_the_disk_or_more_than_a_block_is_not_queued(tmp_path: Path, size: int, count: int) -> None:
    (tmp_path / "file").write_bytes(RANDOM[:size])
    source = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        tail = Tail()
        encoder = Encoder(source, count, b'{"head":"', tail)
        assert not encoder.prime_cached()
        assert (os.lseek(source, 0, os.SEEK_CUR), tail.calls) == (0, [])
        with sink() as (out, arrived):
            assert encoder.pump(out, PATIENCE)
        assert b"".join(arrived) == expected(RANDOM[: min(size, count)])
    finally:
        os.close(source)


def test_a_pipe_is_never_queued_at_once() -> None:
    with pipe_with(b"content") as source:
        assert not Encoder(source, 3, b"", Tail()).prime_cached()
        assert os.read(source, 100) == b"content"


# --- decode

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="
WRONG_CHARACTER = "Base64 data contains invalid characters"
NOT_VALID = "Base64 data is not valid"


def oracle(text: str) -> bytes | str:
    """The bytes, or the text of the error."""
    if set(text) - set(ALPHABET + "\n"):
        return WRONG_CHARACTER
    digits = text.replace("\n", "")
    if len(digits) % 4 or not re.fullmatch("[^=]*={0,2}", digits):
        return NOT_VALID
    return base64.b64decode(digits)


def as_span(text: str) -> Span | None:
    """The text as the framer gives it to a handler: only a long one without escapes stays in the buffer."""
    if len(text) < 40_000 or "\n" in text or not text.isascii() or not text.isprintable():
        return None
    framer = Framer()
    framer.feed(b'["' + text.replace("\\", "\\\\").replace('"', '\\"').encode() + b'"]')
    value = next(framer)[0]
    return value if isinstance(value, Span) else None


def decoded(text: str | bytearray | Span) -> bytes | str:
    try:
        return bytes(decode(text))
    except ValueError as exc:
        return str(exc)


def check(text: str) -> None:
    wanted = oracle(text)
    assert decoded(text) == wanted
    if text.isascii():
        assert decoded(bytearray(text, "ascii")) == wanted
    if (span := as_span(text)) is not None:
        assert decoded(span) == wanted


@settings(max_examples=400, deadline=None)
@given(st.text(alphabet=ALPHABET + "\n", max_size=40))
def test_short_texts_of_the_alphabet(text: str) -> None:
    check(text)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="AQb=\n", max_size=9))
def test_padding_and_newlines(text: str) -> None:
    check(text)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=20))
def test_any_short_text(text: str) -> None:
    check(text)


@given(st.binary(max_size=300))
def test_what_was_encoded_comes_back(content: bytes) -> None:
    text = base64.b64encode(content).decode()
    assert bytes(decode(text)) == content
    assert bytes(decode(base64.encodebytes(content).decode())) == content


positions = st.builds(lambda blocks, more: blocks * TEXT_BLOCK + more, st.integers(0, 3), st.integers(-5, 5))
mutations = st.lists(
    st.tuples(positions, st.sampled_from(["\n", "=", "@", "\u00e9", "\r", "A", "\n\n", ""])), max_size=4
)
LONG = base64.b64encode(RANDOM[: 9 * TEXT_BLOCK // 4]).decode()


@quick
@given(size=positions.filter(lambda size: size >= 0), mutated=mutations, insert=st.booleans())
@example(size=TEXT_BLOCK, mutated=[(TEXT_BLOCK - 1, "=")], insert=False)
@example(size=2 * TEXT_BLOCK, mutated=[(TEXT_BLOCK - 1, "=")], insert=False)
@example(size=2 * TEXT_BLOCK, mutated=[(TEXT_BLOCK - 1, "="), (2 * TEXT_BLOCK - 1, "@")], insert=False)
@example(size=2 * TEXT_BLOCK + 1, mutated=[(TEXT_BLOCK, "\n")], insert=True)
@example(size=3 * TEXT_BLOCK, mutated=[(2 * TEXT_BLOCK + 1, "\n")], insert=True)
def test_long_texts_with_defects_at_the_edges_of_blocks(
    size: int, mutated: list[tuple[int, str]], insert: bool
) -> None:
    text = LONG[:size]
    for position, character in mutated:
        position = max(0, position)
        text = text[:position] + character + text[position + (0 if insert else len(character)) :]
    check(text)


@pytest.mark.parametrize("width", [1, 4, 60, 64, 76, TEXT_BLOCK - 1, TEXT_BLOCK, TEXT_BLOCK + 1])
def test_lines_of_any_width(width: int) -> None:
    text = LONG[: 2 * TEXT_BLOCK + 8]
    check("\n".join(text[start : start + width] for start in range(0, len(text), width)) + "\n")


def test_a_span_is_decoded_where_it_is() -> None:
    framer = Framer()
    framer.feed(b'["' + base64.b64encode(RANDOM) + b'"]')
    span = next(framer)[0]
    assert isinstance(span, Span)
    result = decode(span)
    assert bytes(result) == RANDOM
    assert bytes(memoryview(span)[: len(RANDOM)]) == RANDOM


def test_decoding_leaves_other_threads_alone() -> None:
    text = base64.b64encode(RANDOM * 60).decode()
    gaps = []
    over = threading.Event()

    def watch() -> None:
        last = time.monotonic()
        while not over.is_set():
            time.sleep(0)
            now = time.monotonic()
            gaps.append(now - last)
            last = now

    watcher = threading.Thread(target=watch)
    watcher.start()
    payload = bytearray(text, "ascii")
    decode(payload)
    over.set()
    watcher.join()
    assert len(gaps) > 20


# --- spawn


def outcome(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_program_is_started() -> None:
    with pipe_with(b"input") as stdin:
        read_end, write_end = os.pipe()
        pid = spawn(b"/bin/sh", [b"name", b"-c", b'cat; echo "$0" "$@" >&2; env; exit 5', b"x\xff"], [b"A=\xfe"], stdin,
                    write_end, write_end)  # fmt: skip
        os.close(write_end)
        with os.fdopen(read_end, "rb") as output:
            text = output.read()
    assert outcome(pid) == 5
    assert text.startswith(b"inputx\xff\n")
    assert b"A=\xfe\n" in text


@pytest.mark.parametrize(("path", "error"), [(b"/nonexistent", FileNotFoundError), (b"/etc/passwd", PermissionError)])
def test_a_program_that_cannot_be_started(path: bytes, error: type[OSError]) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    try:
        with pytest.raises(error):
            spawn(path, [path], None, null, null, null)
    finally:
        os.close(null)


@pytest.mark.parametrize("argv", [["text"], [b"/bin/true", None], [1]])
def test_arguments_have_to_be_bytes(argv: list[object]) -> None:
    with pytest.raises(TypeError):
        spawn(b"/bin/true", argv, None, 5, 5, 5)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        spawn(b"/bin/true", [b"true"], argv, 5, 5, 5)  # type: ignore[arg-type]
