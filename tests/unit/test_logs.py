# SPDX-License-Identifier: Apache-2.0
"""The log file, standard error and syslog: what is written, and that nothing waits or fails."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qga import logs
from qga.config import Config
from qga.errors import ConfigError

logger = logging.getLogger("qga.test")
LINE = re.compile(r"(\d+)\.(\d{6}): (\w+): (.*)")


@pytest.fixture(autouse=True)
def _own_logging(monkeypatch, tmp_path):
    """Undo what `setup` does to this process, and keep accounting lines away from this machine's syslog."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.setattr(logs, "_log_file", logs.LogFile(None))
    monkeypatch.setattr(logs, "_gate", logs.Gate())
    monkeypatch.setattr(logs, "_syslog", logs.Syslog(str(tmp_path / "dev-log")))
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logs._log_file.close()
    logs._syslog.close()


@pytest.fixture
def daemon(tmp_path):
    """A syslog daemon's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "dev-log"))
        receiver.setblocking(False)
        yield receiver


def start(log: Path | None = None, *, verbose: bool = False, frozen: bool = False) -> None:
    logs.setup(Config(logfile=log and str(log), verbose=verbose), frozen=frozen)


def test_a_line_has_the_time_the_level_and_the_text(tmp_path):
    start(tmp_path / "log", verbose=True)
    before = time.time()
    for level in ("debug", "info", "warning", "error", "critical"):
        getattr(logger, level)("%s of %d", level, 5)
    lines = [LINE.fullmatch(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [line[3] for line in lines] == ["debug", "info", "warning", "error", "critical"]
    assert [line[4] for line in lines] == [f"{line[3]} of 5" for line in lines]
    assert before - 0.001 <= float(f"{lines[0][1]}.{lines[0][2]}") <= time.time() + 0.001


def test_only_errors_are_logged_unless_verbose(tmp_path):
    start(tmp_path / "log")
    logger.warning("w")
    logger.error("e")
    logger.critical("c")
    assert [line[-1] for line in (tmp_path / "log").read_text().splitlines()] == ["e", "c"]


def test_the_log_file_is_appended_to(tmp_path):
    (tmp_path / "log").write_text("before\n")
    start(tmp_path / "log")
    logger.error("after")
    assert re.fullmatch(r"before\n.*: error: after\n", (tmp_path / "log").read_text())


def test_text_from_clients_cannot_look_like_another_line(tmp_path):
    start(tmp_path / "log")
    logger.error("name %s", "a\n1.000000: error: b\x1b[2J\udcff")
    assert (tmp_path / "log").read_text().endswith("error: name a\\n1.000000: error: b\\x1b[2J\\udcff\n")


def test_a_traceback_follows_its_message(tmp_path):
    start(tmp_path / "log")
    try:
        raise RuntimeError("why")
    except RuntimeError:
        logger.exception("what")
    text = (tmp_path / "log").read_text()
    assert re.match(r"\d+\.\d{6}: error: what\nTraceback", text)
    assert text.endswith("RuntimeError: why\n")


def test_a_log_file_that_cannot_be_opened_prevents_the_start(tmp_path):
    with pytest.raises(ConfigError, match=r"^unable to open specified log file: No such file or directory$"):
        start(tmp_path / "none" / "log")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigError, match="No such device or address"):
        start(tmp_path / "fifo")


def test_reopening_follows_a_rotated_file(tmp_path):
    start(tmp_path / "log")
    logger.error("one")
    (tmp_path / "log").rename(tmp_path / "log.1")
    logger.error("two")
    logs.reopen()
    logger.error("three")
    assert (tmp_path / "log.1").read_text().count("\n") == 2
    assert (tmp_path / "log").read_text().endswith(": error: three\n")


def test_reopening_that_fails_keeps_the_former_file(tmp_path):
    (tmp_path / "dir").mkdir()
    start(tmp_path / "dir" / "log")
    (tmp_path / "dir").rename(tmp_path / "moved")
    logs.reopen()
    logger.error("still here")
    first, second = (tmp_path / "moved" / "log").read_text().splitlines()
    assert first.endswith("error: cannot open the log file again: No such file or directory")
    assert second.endswith("error: still here")


def test_reopening_leaks_no_descriptor(tmp_path):
    start(tmp_path / "log")
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        logs.reopen()
        logs.suspend()
        logs.resume()
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_full_disk_loses_lines_and_nothing_else():
    start(Path("/dev/full"))
    logger.error("lost")


def test_nothing_is_written_while_suspended_and_all_of_it_afterwards(tmp_path, daemon):
    start(tmp_path / "log")
    logs.suspend()
    before = time.time()
    logger.error("first")
    logs.account("second")
    logger.error("third")
    time.sleep(0.02)
    assert (tmp_path / "log").read_bytes() == b""
    with pytest.raises(BlockingIOError):
        daemon.recv(1)
    resumed = time.time()
    logs.resume()
    first, third = (LINE.fullmatch(line) for line in (tmp_path / "log").read_text().splitlines())
    assert (first[4], third[4]) == ("first", "third")
    assert before - 0.001 < float(f"{first[1]}.{first[2]}") < resumed - 0.01, "not the time at which it happened"
    assert daemon.recv(100).endswith(b"info: second")
    logger.error("fourth")
    assert (tmp_path / "log").read_text().endswith("fourth\n")


def test_while_suspended_only_the_last_lines_are_kept(tmp_path):
    start(tmp_path / "log")
    logs.suspend()
    for number in range(logs.PENDING_MAX + 10):
        logger.error("%d", number)
    logs.resume()
    numbers = [int(line.rpartition(" ")[2]) for line in (tmp_path / "log").read_text().splitlines()]
    assert numbers == list(range(10, logs.PENDING_MAX + 10))


def test_an_agent_that_starts_frozen_opens_its_log_after_the_thaw(tmp_path):
    start(tmp_path / "log", frozen=True)
    logger.error("early")
    logs.reopen()
    assert not (tmp_path / "log").exists()
    logs.resume()
    assert (tmp_path / "log").read_text().endswith("error: early\n")


def test_a_log_that_cannot_be_opened_after_the_thaw_is_replaced_by_standard_error(tmp_path, capfd):
    start(tmp_path / "none" / "log", frozen=True)
    logger.error("early")
    logs.resume()
    early, complaint = capfd.readouterr().err.splitlines()
    assert early.endswith("error: early")
    assert complaint.endswith("error: cannot open the log file again: No such file or directory")


def test_a_reader_of_standard_error_that_does_not_read_stops_nobody():
    script = (
        "import logging\nfrom qga import logs\nfrom qga.config import Config\n"
        "logs.setup(Config())\n"
        "for _ in range(3000): logging.error('x' * 100)\n"
        "print('done')"
    )
    reader, writer = os.pipe()
    try:
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
        done = subprocess.run(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=writer, timeout=20, check=True
        )
        assert done.stdout == b"done\n"
        first, *_ = os.read(reader, 4096).splitlines()
        assert LINE.fullmatch(first.decode())[4] == "x" * 100
    finally:
        os.close(reader)
        os.close(writer)


def test_an_accounting_line_is_what_syslog_daemons_expect(daemon):
    logs.account("guest-file-open called, filepath: %s, mode: %s", "/a 100%", "r")
    assert daemon.recv(200) == b"<14>qga[%d]: info: guest-file-open called, filepath: /a 100%%, mode: r" % os.getpid()


def test_accounting_lines_are_not_in_the_log_file(tmp_path, daemon):
    start(tmp_path / "log", verbose=True)
    logs.account("guest-ping called")
    assert (tmp_path / "log").read_bytes() == b""
    assert daemon.recv(100).endswith(b"guest-ping called")


def test_an_accounting_line_is_one_line_of_bounded_length(daemon):
    logs.account("%s", "a\nb\0c\udcffä" + "x" * 100_000)
    line = daemon.recv(200_000)
    assert len(line) == logs.LINE_MAX
    assert b"info: a\\nb\\x00c\\udcff\xc3\xa4xxx" in line


def test_without_a_syslog_daemon_lines_are_lost_until_one_appears(tmp_path):
    logs.account("lost")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(str(tmp_path / "dev-log"))
        daemon.settimeout(0.05)
        logs.account("lost too, as the last attempt was just now")
        with pytest.raises(TimeoutError):
            daemon.recv(100)
        time.sleep(logs.RECONNECT_SECONDS)
        logs.account("found")
        assert daemon.recv(100).endswith(b"info: found")


def test_a_restarted_syslog_daemon_is_found_again(tmp_path, daemon):
    logs.account("one")
    time.sleep(logs.RECONNECT_SECONDS)
    daemon.close()
    (tmp_path / "dev-log").unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as successor:
        successor.bind(str(tmp_path / "dev-log"))
        logs.account("two")
        assert successor.recv(100).endswith(b"info: two")


def test_a_syslog_daemon_that_does_not_read_stops_nobody(daemon):
    for _ in range(2000):
        logs.account("x" * 1000)
    received = 0
    while True:
        try:
            received += len(daemon.recv(2000)) > 0
        except BlockingIOError:
            break
    assert 0 < received < 2000


def test_a_long_text_that_cannot_be_printed_takes_no_time(tmp_path, daemon):
    start(tmp_path / "log", verbose=True)
    began = time.monotonic()
    logs.account("%s", "\u4e00\n" * 5_000_000)
    logging.getLogger("qga").debug("%s", "\u4e00\n" * 5_000_000)
    assert time.monotonic() - began < 1
    assert (tmp_path / "log").stat().st_size < 100_000
