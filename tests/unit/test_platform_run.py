# SPDX-License-Identifier: Apache-2.0
"""Helper programs run to their end, with the C agent's texts for each way of failing."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qga.errors import CommandError
from qga.platform.run import OUTPUT_MAX, run

HEAD = "child process has failed to do it: "


def shell(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


def failure(argv: list[str], stdin: bytes | None = None, timeout: float | None = None) -> str:
    with pytest.raises(CommandError) as caught:
        run(argv, "do it", stdin, timeout)
    return str(caught.value)


def test_success_discards_the_output() -> None:
    run(shell("echo fine"), "do it")


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ("echo one; echo two >&2; exit 3", HEAD + "one\ntwo\n"),
        ("exit 3", HEAD + "exit status 3"),
        ("exit 255", HEAD + "exit status 255"),
        ("kill -9 $$", "child process has terminated abnormally"),
        ("echo last words; kill -15 $$", "child process has terminated abnormally: last words\n"),
        (r"printf '\377x'; exit 1", HEAD + "\ufffdx"),
    ],
)
def test_text_of_a_failure(script: str, text: str) -> None:
    assert failure(shell(script)) == text


def test_program_that_is_missing_or_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert failure(["/nonexistent/x"]) == HEAD + "failed to exec '/nonexistent/x': No such file or directory\n"
    assert failure(["qga-no-such"]) == HEAD + "failed to exec 'qga-no-such': No such file or directory\n"
    assert failure([str(tmp_path)]) == HEAD + f"failed to exec '{tmp_path}': Permission denied\n"


def test_script_without_an_interpreter_line_is_run_by_the_shell(tmp_path: Path) -> None:
    script = tmp_path / "hook"
    script.write_text('echo "$1"; exit 1\n')
    script.chmod(0o755)
    assert failure([str(script), "freeze"]) == HEAD + "freeze\n"


def test_program_without_a_slash_is_found_through_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "qga-helper"
    script.write_text("#!/bin/sh\necho found; exit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"/nonexistent:{tmp_path}:{os.environ['PATH']}")
    assert failure(["qga-helper"]) == HEAD + "found\n"


def test_input_is_read_to_its_end() -> None:
    data = bytes(range(1, 128)) * 2000
    assert failure(shell("cat | cksum; exit 1"), data) == failure(shell("head -c 254000 | cksum; exit 1"), data)
    assert failure(shell("wc -c; exit 1"), data).split()[-1] == "254000"


def test_input_that_is_not_read_does_not_matter() -> None:
    assert failure(shell("exit 4"), b"x" * 1_000_000) == HEAD + "exit status 4"


def test_no_input_is_the_null_device() -> None:
    assert failure(shell("readlink /proc/self/fd/0; exit 1")) == HEAD + "/dev/null\n"


def test_program_leads_a_session_of_its_own() -> None:
    pid, session = failure(shell("read -r line < /proc/$$/stat; set -- $line; echo $1 $6; exit 1")).split()[-2:]
    assert pid == session != str(os.getsid(0))


SLOW_TO_LOAD = """
import ctypes, os, struct, sys, threading, time
from qga.platform.run import run

FAN_CLASS_CONTENT, FAN_MARK_ADD, FAN_OPEN_EXEC_PERM, FAN_ALLOW, AT_FDCWD = 4, 1, 0x40000, 1, -100
libc = ctypes.CDLL(None)
watch = libc.fanotify_init(FAN_CLASS_CONTENT, os.O_RDONLY)
libc.fanotify_mark(watch, FAN_MARK_ADD, ctypes.c_uint64(FAN_OPEN_EXEC_PERM), AT_FDCWD, sys.argv[1].encode())
seen = []

def allow_later():
    seen.append(struct.unpack_from("i", os.read(watch, 4096), 16)[0])
    time.sleep(0.2)
    os.write(watch, struct.pack("iI", seen[0], FAN_ALLOW))

threading.Thread(target=allow_later, daemon=True).start()
run([sys.argv[1]], "do it")
assert seen
"""


@pytest.mark.root
def test_other_threads_go_on_while_the_kernel_loads_the_program(tmp_path: Path) -> None:
    """Of fanotify(7): nobody executes the file until another thread of the same process allows it."""
    script = tmp_path / "helper"
    script.write_text("#!/bin/sh\nexit 0\n")
    script.chmod(0o755)
    subprocess.run([sys.executable, "-c", SLOW_TO_LOAD, str(script)], check=True, timeout=30)


def test_much_output_is_read_but_not_kept() -> None:
    text = failure(shell("head -c 3000000 /dev/zero | tr '\\0' x; exit 1"))
    assert text == HEAD + "x" * OUTPUT_MAX


def test_end_of_the_output_is_waited_for() -> None:
    assert failure(shell("(sleep 0.2; echo late) & exit 1")) == HEAD + "late\n"


def test_time_limit_ends_the_program_and_its_children(tmp_path: Path) -> None:
    began = time.monotonic()
    pids = tmp_path / "pids"
    assert failure(shell(f"sleep 60 & echo $! $$ > {pids}; wait"), timeout=0.3) == HEAD + "timed out after 0.3 s"
    assert time.monotonic() - began < 5
    for pid in pids.read_text().split():
        assert not is_running(int(pid))


def test_time_limit_holds_for_a_program_that_closed_its_output() -> None:
    assert failure(shell("exec >&- 2>&-; sleep 60"), timeout=0.2) == HEAD + "timed out after 0.2 s"


def test_time_limit_holds_for_a_daemon_that_keeps_the_output_open(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = shell(f"setsid sleep 60 & echo $! > {pids}; exit 0")
    try:
        assert failure(script, timeout=0.3) == HEAD + "timed out after 0.3 s"
    finally:
        os.kill(int(pids.read_text()), 9)


def test_nothing_is_left_open() -> None:
    before = os.listdir("/proc/self/fd")
    failure(shell("exit 1"), b"input")
    failure(["/nonexistent"], b"input")
    failure(shell("sleep 60"), timeout=0.05)
    assert os.listdir("/proc/self/fd") == before


def is_running(pid: int) -> bool:
    """Whether a process is still there, other than as a zombie; what was killed gets a moment to be gone."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return False
        if state == "Z":
            return False
        time.sleep(0.02)
    return True
