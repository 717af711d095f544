# SPDX-License-Identifier: Apache-2.0
"""guest-file-*: the same requests to qga and qemu-ga."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.agents import NO_QEMU_GA, QEMU_GA
from tests.sides import Side, Sides, both

pytestmark = pytest.mark.skipif(QEMU_GA is None, reason=NO_QEMU_GA)

MODES = ["r", "rb", "w", "wb", "a", "ab", "r+", "rb+", "r+b", "w+", "wb+", "w+b", "a+", "ab+", "a+b"]
NO_MODES = ["", "b", "br", "rr", "rt", "rbb", "r++", "+r", "wx", "x", "R", "r ", " r", "rb+b", "re"]


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sides]:
    with both(tmp_path_factory.mktemp("files")) as sides:
        yield sides


@pytest.mark.parametrize("mode", MODES)
def test_reads_writes_and_positions_in_every_mode(sides: Sides, mode: str) -> None:
    def scenario(side: Side) -> None:
        path = side.file("file", b"0123456789")
        side.open("file", mode)
        side.tell()
        side.read(3)
        side.tell()
        side.write(b"ab")
        side.tell()
        side.read(3)
        side.tell()
        side.seek(2, "set")
        side.write(b"XY")
        side.tell()
        side.seek(0, "set")
        side.read(100)
        side.read(1)
        side.flush()
        side.close()
        side.note("content", path.read_text())

    sides.compare(scenario)


@pytest.mark.parametrize("mode", MODES)
def test_what_every_mode_can_open(sides: Sides, mode: str) -> None:
    def scenario(side: Side) -> None:
        os.mkfifo(side.directory / "fifo")
        (side.directory / "dangling").symlink_to("nowhere")
        (side.directory / "loop").symlink_to("loop")
        side.file("file")
        absolute = "/tmp", "/proc/sys/kernel/ostype", "/dev/null", "/dev/tty", "/" + "x" * 300
        relative = "fifo", "dangling", "loop", "file/x", "file/", "missing/x", "missing/", "new", "new\u00e9", "new\0"
        for name in (*absolute, *relative):
            if side.open(name, mode):
                side.close()
        found = sorted((os.fsencode(entry.name).hex(), oct(entry.stat(follow_symlinks=False).st_mode)) for entry in
                       os.scandir(side.directory))  # fmt: skip
        side.note("directory afterwards", found)

    sides.compare(scenario)


def test_what_is_no_mode(sides: Sides) -> None:
    def scenario(side: Side) -> None:
        for mode in NO_MODES:
            side.open("new", mode)
            side.note("made", (side.directory / "new").exists())

    sides.compare(scenario)


def test_mode_is_read_by_default(sides: Sides) -> None:
    def scenario(side: Side) -> None:
        side.file("file", b"content")
        side.open("file")
        side.read()
        side.write(b"x")
        side.close()

    sides.compare(scenario)


def test_end_of_file_is_told_when_it_was_met(sides: Sides) -> None:
    def scenario(side: Side) -> None:
        path = side.file("file", b"0123456789")
        side.open("file")
        for count in (0, 4, 6, 1, 0, 1):
            side.read(count)
        with path.open("ab") as file:
            file.write(b"more")
        side.read(100)
        side.seek(0, "set")
        side.read(100)
        side.close()

    sides.compare(scenario)


def test_counts_of_a_read(sides: Sides) -> None:
    def scenario(side: Side) -> None:
        side.file("file", b"0123456789")
        side.open("file")
        for count in (-1, -(1 << 63), (48 << 20) + 1, (1 << 63) - 1, 48 << 20):
            side.read(count)
            side.tell()
        side.close()

    sides.compare(scenario)


def test_the_default_count_of_a_read(sides: Sides) -> None:
    def scenario(side: Side) -> None:
        side.file("file", bytes(10000))
        side.open("file")
        for _ in range(4):
            side.read()
        side.close()

    sides.compare(scenario)


def test_counts_of_a_write(sides: Sides) -> None:
    def scenario(side: Side) -> None:
        path = side.file("file")
        side.open("file", "w")
        for count in (-1, 4, 2, 0, 3, None, (1 << 63) - 1):
            side.write(b"abc", count)
        side.write("", 0)
        side.write("", 1)
        side.write("")
        side.close()
        side.note("content", path.read_text())

    sides.compare(scenario)


@pytest.mark.parametrize(
    "text", ["@@@@", "YWJj YWJj", "YWJj\r\n", "YWJj\t", "YW-j", "YW_j", "YWJj\u00e9", "a\0bc", "YWJj@"]
)
def test_characters_that_are_not_base64(sides: Sides, text: str) -> None:
    def scenario(side: Side) -> None:
        path = side.file("file")
        side.open("file", "w")
        side.write(text)
        side.write(text, 1)
        side.close()
        side.note("content", path.read_text())

    sides.compare(scenario)


@pytest.mark.parametrize("text", ["YWJj\nYWJj", "\nYWJj", "Y\nW\nJ\nj", "YWJjYQ==", "YW\nJjYWI=", "\n\n", "YWJjYW\nJj"])
def test_base64_with_newlines_and_padding(sides: Sides, text: str) -> None:
    def scenario(side: Side) -> None:
        path = side.file("file")
        side.open("file", "w")
        side.write(text)
        side.close()
        side.note("content", path.read_text())

    sides.compare(scenario)


def test_seeks(sides: Sides) -> None:
    moves = [(0, "set"), (-1, "set"), (5, "cur"), (-6, "cur"), (0, 2), (-3, "end"), (100, "end"), (-111, "end"), (3, 0)]
    far = [((1 << 63) - 1, 0), ((1 << 63) - 1, 1), (-(1 << 63), 0), (1 << 31, 0), (1 << 40, "cur"), (0, 1), (1, 1)]

    def scenario(side: Side) -> None:
        side.file("file", b"0123456789")
        side.open("file")
        for offset, whence in moves + far:
            side.seek(offset, whence)
            side.tell()
        side.close()

    sides.compare(scenario)


def test_what_is_no_whence(sides: Sides) -> None:
    def scenario(side: Side) -> None:
        side.file("file", b"0123456789")
        side.open("file")
        for whence in (3, -1, 1 << 40, 1 << 63, "", "SET", "x", 1.0, True, None, [], {}):
            side.seek(0, whence)
        side.close()

    sides.compare(scenario)


def test_a_hole_reads_as_zeros(sides: Sides) -> None:
    def scenario(side: Side) -> None:
        side.open("file", "w+")
        side.seek(100000, "set")
        side.write(b"end")
        side.seek(-13, "cur")
        side.read(100)
        side.close()

    sides.compare(scenario)


def test_a_directory_opens_and_does_not_read(sides: Sides) -> None:
    def scenario(side: Side) -> None:
        side.open("/")
        side.read(0)
        side.read(1)
        side.write(b"x")
        side.seek(0, "set")
        side.flush()
        side.close()

    sides.compare(scenario)


def test_devices(sides: Sides) -> None:
    def scenario(side: Side) -> None:
        for name in ("/dev/zero", "/dev/null", "/dev/full"):
            side.open(name, "r+")
            side.read(0)
            side.read(5)
            side.read(100000)
            side.tell()
            side.close()
        side.open("/dev/null", "w")
        side.write(b"abc")
        side.flush()
        side.close()

    sides.compare(scenario)


def test_files_of_proc(sides: Sides) -> None:
    def scenario(side: Side) -> None:
        side.open("/proc/sys/kernel/ostype")
        for count in (2, 0, 100, 1):
            side.read(count)
        side.seek(1, "set")
        side.read(100)
        side.close()
        side.open("/proc/self/mem")
        side.read(1)
        side.close()

    sides.compare(scenario)


def test_a_pipe_does_not_seek_and_has_its_end(sides: Sides) -> None:
    def scenario(side: Side) -> None:
        fifo = side.directory / "fifo"
        os.mkfifo(fifo)
        side.open("fifo")
        side.read(5)
        side.tell()
        writer = os.open(fifo, os.O_WRONLY)
        side.read(5)
        os.write(writer, b"12345678")
        side.read(5)
        os.close(writer)
        side.read(5)
        side.read(5)
        side.close()

    sides.compare(scenario)


def test_handles_that_are_none(sides: Sides) -> None:
    def scenario(side: Side) -> None:
        side.file("file", b"content")
        side.open("file")
        side.close()
        for handle in (side.handle, 0, -1, 1 << 40):
            side.call("guest-file-read", handle=handle)
            side.call("guest-file-read", handle=handle, count=-1)
            side.call("guest-file-write", handle=handle, buf_b64="@")
            side.call("guest-file-write", handle=handle, buf_b64="", count=5)
            side.call("guest-file-seek", handle=handle, offset=-1, whence=7)
            side.call("guest-file-flush", handle=handle)
            side.call("guest-file-close", handle=handle)

    sides.compare(scenario)


ARGUMENTS = {
    "guest-file-open": {"path": "/nonexistent/x", "mode": "r"},
    "guest-file-read": {"handle": 4242, "count": 1},
    "guest-file-write": {"handle": 4242, "buf_b64": "", "count": 0},
    "guest-file-seek": {"handle": 4242, "offset": 0, "whence": 0},
    "guest-file-flush": {"handle": 4242},
    "guest-file-close": {"handle": 4242},
}


@pytest.mark.parametrize("command", ARGUMENTS)
def test_arguments_of_every_type(sides: Sides, command: str) -> None:
    good = ARGUMENTS[command]

    def scenario(side: Side) -> None:
        side.call(command)
        side.call(command, **good, surplus=1)
        for name in good:
            side.call(command, **{other: good[other] for other in good if other != name})
            for value in (None, True, 1, -1, 1.5, 1e3, 1 << 63, 1 << 64, -(1 << 63) - 1, "", "x", [], {}):
                side.call(command, **{**good, name: value})

    sides.compare(scenario)
