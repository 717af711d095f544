# SPDX-License-Identifier: Apache-2.0
"""guest-exec and guest-exec-status: the same requests to qga and qemu-ga.

The capture modes "stdout" and "stderr" make qemu-ga's later programs misbehave, so each of them gets agents of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agents import NO_QEMU_GA, QEMU_GA
from tests.sides import Side, Sides, b64, both, plain

pytestmark = pytest.mark.skipif(QEMU_GA is None, reason=NO_QEMU_GA)

SHELL = "/bin/sh"
CHATTY = ("-c", "echo out; echo err >&2; echo more; exit 3")
OUTPUT_MAX = 16 << 20
NO_PROGRAMS = [
    "", "/", "/tmp", ".", "..", "/etc/passwd", "/etc/passwd/x", "/bin/sh/", "nosuch", "./nosuch", "/nosuch", "no/such",
    "sh/x", "x" * 300, "/" + "x" * 300, "\0", "/bin/sh\0", "\u00e9", "bin/", "/bin/",
]  # fmt: skip
SEARCH_PATHS = [
    "", "/nonexistent", "/bin", "/etc/passwd:/bin", "/nonexistent::/bin", ":", "/nonexistent:/etc", "/bin:/nonexistent",
    "/etc/passwd", "DIRECTORY:/bin", "/bin:DIRECTORY", "DIRECTORY/", "DIRECTORY/x:/nonexistent",
]  # fmt: skip
ENVIRONMENTS = [
    [], ["A=1"], ["A=1", "A=2"], ["WORD"], ["", "=x"], ["PATH=/bin", "PATH=/nonexistent"], ["PATH"], ["PATHS=/x"],
    ["B=\u00e9\0z"], ["PATH=/nonexistent", "A="],
]  # fmt: skip


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sides]:
    with both(tmp_path_factory.mktemp("exec")) as sides:
        yield sides


@pytest.mark.parametrize("options", [{}, {"capture_output": False}, {"capture_output": True}], ids=str)
def test_capture_or_not(sides: Sides, options: dict[str, Any]) -> None:
    sides.compare(lambda side: side.run(SHELL, *CHATTY, **options))


@pytest.mark.parametrize("mode", ["none", "separated", "merged"])
def test_capture_by_name(sides: Sides, mode: str) -> None:
    if sides.reference_version < (8, 0):
        pytest.skip("this qemu-ga knows no names for what is captured")
    sides.compare(lambda side: side.run(SHELL, *CHATTY, capture_output=mode))


@pytest.mark.parametrize("mode", ["stdout", "stderr"])
def test_capture_of_one_stream(tmp_path: Path, mode: str) -> None:
    with both(tmp_path) as sides:
        if sides.reference_version < (8, 0):
            pytest.skip("this qemu-ga knows no names for what is captured")
        sides.compare(lambda side: side.run(SHELL, *CHATTY, capture_output=mode))


@pytest.mark.parametrize("number", [1, 2, 6, 9, 11, 15])
def test_programs_that_a_signal_ends(sides: Sides, number: int) -> None:
    sides.compare(lambda side: side.run(SHELL, "-c", f"echo before; kill -{number} $$", capture_output=True))


@pytest.mark.parametrize("code", [0, 1, 127, 255, 256])
def test_exit_codes(sides: Sides, code: int) -> None:
    sides.compare(lambda side: side.run(SHELL, "-c", f"exit {code}"))


@pytest.mark.parametrize("size", [0, 1, 65536, 65537, 3_000_000])
def test_input_comes_back_from_cat(sides: Sides, size: int) -> None:
    sides.compare(lambda side: side.run("cat", input_data=b64(b"0123456789abcde\n" * (size // 16) + b"x" * (size % 16)),
                                        capture_output=True))  # fmt: skip


def test_input_that_is_not_read(sides: Sides) -> None:
    sides.compare(lambda side: side.run("true", input_data=b64(bytes(3_000_000)), capture_output=True))


def test_no_input_is_empty_input(sides: Sides) -> None:
    def scenario(side: Side) -> None:
        side.run("cat", capture_output=True)
        side.run("readlink", "/proc/self/fd/0", capture_output=True)

    sides.compare(scenario)


@pytest.mark.parametrize("text", ["@", "a b", "YQ==\r", "Y-Q="])
def test_input_that_is_not_base64(sides: Sides, text: str) -> None:
    sides.compare(lambda side: side.run("cat", input_data=text, capture_output=True))


@pytest.mark.parametrize("path", NO_PROGRAMS)
def test_what_cannot_be_executed(sides: Sides, path: str) -> None:
    def scenario(side: Side) -> None:
        (side.directory / "loop").symlink_to("loop")
        side.run(path)
        side.run(path, capture_output=True, input_data="")
        side.run(path, env=["PATH=/tmp:/bin"])
        side.run(path, env=["PATH=/bin:/etc/passwd"])
        side.run(path, env=[])
        side.run(str(side.directory / "loop"))

    sides.compare(scenario)


@pytest.mark.parametrize("path", SEARCH_PATHS)
def test_where_programs_are_looked_for(sides: Sides, path: str) -> None:
    def scenario(side: Side) -> None:
        executable(side, "only-here", b"#!/bin/sh\necho here\n")
        executable(side, "true", b"#!/bin/sh\nexit 42\n")
        side.file("ls", b"#!/bin/sh\nexit 43\n")
        env = ["PATH=" + path.replace("DIRECTORY", str(side.directory))]
        for name in ("true", "ls", "only-here", "nosuch"):
            side.run(name, "-d", "/", env=env, capture_output=True)

    sides.compare(scenario)


@pytest.mark.parametrize("env", ENVIRONMENTS, ids=str)
def test_environments(sides: Sides, env: list[str]) -> None:
    def scenario(side: Side) -> None:
        side.run("/usr/bin/env", env=env, capture_output=True)
        side.run("env", env=env, capture_output=True)

    sides.compare(scenario)


@pytest.mark.parametrize(
    "content", [b'echo "$0" "$@"\n', b"", b"\0\1\2\3", b"#!/nonexistent/x\n", b'#!/bin/sh\necho "$0" "$@"\n']
)
def test_executable_files_that_are_no_programs(sides: Sides, content: bytes) -> None:
    def scenario(side: Side) -> None:
        path = executable(side, "qga-script", content)
        side.run(str(path), "a", "b c", "", capture_output=True)
        side.run("qga-script", "a", env=[f"PATH={side.directory}:/bin"], capture_output=True)
        side.run("qga-script", "a", env=[f"PATH=/nonexistent:{side.directory}"], capture_output=True)

    sides.compare(scenario)


@pytest.mark.parametrize("size", [1, OUTPUT_MAX, OUTPUT_MAX + 1])
def test_output_is_cut_at_16_mib(sides: Sides, size: int) -> None:
    sides.compare(lambda side: side.run("head", "-c", str(size), "/dev/zero", capture_output=True))


def test_what_a_program_inherits(sides: Sides) -> None:
    # Signals 32 and 33 belong to the C library, which ignores them for posix_spawn(3).
    script = """
        echo /proc/self/fd/*; umask; pwd; nice; echo "$0" "$@"
        sed -n 's/^Sig\\(Blk\\|Cgt\\):/\\1/p; s/^SigIgn:.*\\(.......\\)$/\\1/p' /proc/self/status
        ulimit -a
    """
    sides.compare(lambda side: side.run(SHELL, "-c", script, "name", "x y", "", capture_output=True))


def test_a_background_process_keeps_the_output_open(sides: Sides) -> None:
    sides.compare(lambda side: side.run(SHELL, "-c", "(sleep 0.2; echo late) & echo early", capture_output=True))


def test_odd_arguments(sides: Sides) -> None:
    sides.compare(lambda side: side.run("echo", "a\0b", "\u00e9\U0001f600", "", "--", "\x01", capture_output=True))


@pytest.mark.parametrize(
    "arg", [["x" * 131071], ["x" * 131072], ["x" * 100000] * 50], ids=["fits", "too long", "too many"]
)
def test_long_arguments(sides: Sides, arg: list[str]) -> None:
    sides.compare(lambda side: side.run("/bin/echo", *arg, capture_output=True))


def test_status_is_told_once(sides: Sides) -> None:
    def scenario(side: Side) -> None:
        side.run("true")
        pid = side.client.ok("guest-exec", path="true")["pid"]
        while not side.client.ok("guest-exec-status", pid=pid)["exited"]:
            pass
        side.note("error class", side.client.call("guest-exec-status", pid=pid)["error"]["class"])

    sides.compare(scenario)


ARGUMENTS: dict[str, dict[str, Any]] = {
    "guest-exec": {"path": "/nonexistent/x", "arg": [], "env": [], "input_data": "", "capture_output": True},
    "guest-exec-status": {"pid": 4_000_000},
}


@pytest.mark.parametrize(("command", "name"), [(command, name) for command in ARGUMENTS for name in ARGUMENTS[command]])
def test_arguments_of_every_type(sides: Sides, command: str, name: str) -> None:
    if sides.reference_version < (8, 0) and name == "capture_output":
        pytest.skip("this qemu-ga knows no names for what is captured")
    good = ARGUMENTS[command]

    def ask(side: Side, **arguments: Any) -> None:
        reply = side.client.call(command, **arguments)
        text = plain(reply["error"]["desc"])
        # qemu-ga leaves the number out, or says no more than that it is wrong.
        if text in ("PID ld does not exist", "Invalid parameter 'pid'"):
            text = f"PID {arguments['pid']} does not exist"
        side.note(f"{command} {arguments}", text)

    def scenario(side: Side) -> None:
        ask(side, **good, surplus=1)
        ask(side, **{other: good[other] for other in good if other != name})
        for value in (None, True, 1, -1, 1.5, 1 << 63, "", "YQ==", "none?", "None", [], {}, [1], ["a", None], [["a"]]):
            ask(side, **{**good, name: value})

    sides.compare(scenario)


def executable(side: Side, name: str, content: bytes) -> Path:
    path = side.file(name, content)
    path.chmod(0o755)
    return path
