# SPDX-License-Identifier: Apache-2.0
"""Going into the background and the pid file, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qga.daemon import PidFile
from qga.errors import ConfigError

HOLD = """
import sys
from qga.daemon import PidFile
held = PidFile(sys.argv[1])
print(flush=True)
sys.stdin.read()
held.remove()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the pid file; closing its standard input ends it."""
    argv = [sys.executable, "-c", HOLD, str(tmp_path / "pid")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"\n"
        yield process


def test_a_pid_file_holds_the_process_id_and_is_private(tmp_path):
    held = PidFile(str(tmp_path / "pid"))
    assert (tmp_path / "pid").read_text() == f"{os.getpid()}\n"
    assert (tmp_path / "pid").stat().st_mode & 0o777 == 0o600
    held.remove()
    assert not (tmp_path / "pid").exists()


def test_a_pid_file_left_behind_is_taken_over(tmp_path):
    (tmp_path / "pid").write_text("1234567890 and more\n")
    held = PidFile(str(tmp_path / "pid"))
    assert (tmp_path / "pid").read_text() == f"{os.getpid()}\n"
    held.remove()


def test_a_pid_file_of_a_running_process_is_refused_and_left_alone(tmp_path, holder):
    with pytest.raises(ConfigError, match=r"^Cannot lock pid file: Resource temporarily unavailable$"):
        PidFile(str(tmp_path / "pid"))
    assert (tmp_path / "pid").read_text() == f"{holder.pid}\n"
    holder.communicate()
    PidFile(str(tmp_path / "pid")).remove()


def test_a_pid_file_that_another_process_put_in_place_is_not_removed(tmp_path):
    held = PidFile(str(tmp_path / "pid"))
    (tmp_path / "pid").rename(tmp_path / "moved")
    (tmp_path / "pid").write_text("4711\n")
    held.remove()
    assert (tmp_path / "pid").read_text() == "4711\n"


def test_a_pid_file_that_is_gone_already_is_no_error(tmp_path):
    held = PidFile(str(tmp_path / "pid"))
    (tmp_path / "pid").unlink()
    held.remove()


def test_a_pid_file_in_a_missing_directory_is_named(tmp_path):
    with pytest.raises(ConfigError, match=f"^Could not create '{tmp_path}/none/pid': No such file or directory$"):
        PidFile(str(tmp_path / "none" / "pid"))


def test_a_link_in_place_of_the_pid_file_is_not_followed(tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "pid").symlink_to("victim")
    with pytest.raises(ConfigError, match="Too many levels of symbolic links"):
        PidFile(str(tmp_path / "pid"))
    assert (tmp_path / "victim").read_text() == "precious"


DAEMON = """
import os, sys
from qga.daemon import daemonize
from qga.errors import ConfigError
try:
    held = daemonize(sys.argv[1] or None)
except ConfigError as exc:
    sys.exit(f"no daemon: {exc}")
print("lost")
with open(sys.argv[2], "w") as report:
    print(os.getcwd(), os.getsid(0) == os.getpid(), oct(os.umask(0)), held is not None, file=report)
if held:
    held.remove()
"""


def daemonized(tmp_path: Path, pid_file: str) -> tuple[int, str, str, str]:
    """Status and output of the calling process, and what the daemon reported through a FIFO."""
    report = tmp_path / "report"
    os.mkfifo(report)
    argv = [sys.executable, "-c", DAEMON, pid_file, str(report)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    return done.returncode, done.stdout, done.stderr, report.read_text() if done.returncode == 0 else ""


def test_the_caller_ends_when_the_daemon_is_ready(tmp_path):
    assert daemonized(tmp_path, str(tmp_path / "pid")) == (0, "", "", "/ True 0o77 True\n")


def test_a_daemon_without_pid_file(tmp_path):
    assert daemonized(tmp_path, "") == (0, "", "", "/ True 0o77 False\n")


def test_the_caller_fails_with_the_daemon_and_shows_why(tmp_path, holder):
    complaint = "no daemon: Cannot lock pid file: Resource temporarily unavailable\n"
    assert daemonized(tmp_path, str(tmp_path / "pid")) == (1, "", complaint, "")
    assert (tmp_path / "pid").read_text() == f"{holder.pid}\n"
