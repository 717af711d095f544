# SPDX-License-Identifier: Apache-2.0
"""Logins from made-up utmp files and session directories; passwords of scratch users."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qga.errors import CallError, CommandError
from qga.platform.accounts import Login, list_logins, set_password
from tests.scratch import scratch_user, shadow_hash

Record = Callable[..., bytes]
USER_PROCESS, LOGIN_PROCESS, DEAD_PROCESS, BOOT_TIME = 7, 6, 8, 2


def record32(kind: int, user: bytes, seconds: int, micros: int = 0) -> bytes:
    """A record as on x86-64 (glibc: bits/utmp.h with 32-bit times)."""
    head = struct.pack("=hxxi32s4s32s256shh", kind, 4711, b"pts/0", b"ts/0", user, b"host", 0, 0)
    return head + struct.pack("=iII4i20x", 4000, seconds, micros, 1, 2, 3, 4)


def record64(kind: int, user: bytes, seconds: int, micros: int = 0) -> bytes:
    """A record as on arm64 (the same with 64-bit times)."""
    head = struct.pack("=hxxi32s4s32s256shh", kind, 4711, b"pts/0", b"ts/0", user, b"host", 0, 0)
    return head + struct.pack("=qqq4i20x4x", 4000, seconds, micros, 1, 2, 3, 4)


@pytest.fixture
def logins(tmp_path: Path) -> LoginFiles:
    return LoginFiles(tmp_path)


class LoginFiles:
    """A utmp file and a session directory, both missing at first."""

    def __init__(self, directory: Path) -> None:
        self.utmp = directory / "utmp"
        self.sessions = directory / "sessions"

    def list(self) -> list[Login]:
        return list_logins(str(self.utmp), str(self.sessions))

    def session(self, name: str, **fields: object) -> None:
        """Write a session file as logind does."""
        self.sessions.mkdir(exist_ok=True)
        known = {"UID": 1000, "USER": "ann", "ACTIVE": 1, "IS_DISPLAY": 0, "STATE": "active", "REMOTE": 1,
                 "LEADER_FD_SAVED": 1, "TYPE": "tty", "CLASS": "user", "SCOPE": f"session-{name}.scope",
                 "SERVICE": "sshd", "LEADER": 812, "REALTIME": 1700000000000000, "MONOTONIC": 99}  # fmt: skip
        lines = [f"{key}={value}\n" for key, value in {**known, **fields}.items()]
        (self.sessions / name).write_text("# This is private data. Do not parse.\n" + "".join(lines))


@pytest.mark.parametrize("record", [record32, record64])
def test_users_of_utmp_in_order_of_first_appearance_with_their_earliest_login(
    logins: LoginFiles, record: Record
) -> None:
    logins.utmp.write_bytes(
        record(BOOT_TIME, b"reboot", 1600000000)
        + record(USER_PROCESS, b"zoe", 1700000300, 250000)
        + record(USER_PROCESS, b"ann", 1700000100, 5)
        + record(LOGIN_PROCESS, b"LOGIN", 1600000000)
        + record(DEAD_PROCESS, b"", 1600000000)
        + record(USER_PROCESS, b"zoe", 1700000200, 999999)
        + record(USER_PROCESS, b"ann", 1700000200)
    )
    assert logins.list() == [Login("zoe", 1700000200.999999), Login("ann", 1700000100.000005)]


@pytest.mark.parametrize("record", [record32, record64])
@pytest.mark.parametrize("count", [1, 24, 25, 48, 50, 600])  # 25 of 384 bytes are as long as 24 of 400
def test_size_of_a_record_is_found_for_any_number_of_them(logins: LoginFiles, record: Record, count: int) -> None:
    logins.utmp.write_bytes(b"".join(record(USER_PROCESS, b"user%d" % n, 1700000000 + n) for n in range(count)))
    assert logins.list() == [Login(f"user{n}", 1700000000.0 + n) for n in range(count)]


def test_times_after_2038(logins: LoginFiles) -> None:
    logins.utmp.write_bytes(record32(USER_PROCESS, b"ann", 4000000000))
    assert logins.list() == [Login("ann", 4000000000.0)]


def test_record_cut_off_is_left_out(logins: LoginFiles) -> None:
    logins.utmp.write_bytes(record32(USER_PROCESS, b"ann", 1700000000) + record32(USER_PROCESS, b"bob", 1)[:100])
    assert logins.list() == [Login("ann", 1700000000.0)]


def test_name_that_fills_its_field_or_is_not_utf8(logins: LoginFiles) -> None:
    logins.utmp.write_bytes(record32(USER_PROCESS, b"a" * 32, 1) + record32(USER_PROCESS, b"b\xff", 2))
    assert logins.list() == [Login("a" * 32, 1.0), Login("b\ufffd", 2.0)]


def test_empty_utmp_means_nobody_whatever_logind_says(logins: LoginFiles) -> None:
    logins.utmp.touch()
    logins.session("1")
    assert logins.list() == []


def test_file_that_cannot_be_read_is_an_error(logins: LoginFiles) -> None:
    logins.utmp.mkdir()
    with pytest.raises(CallError) as caught:
        logins.list()
    assert (caught.value.call, caught.value.errno) == (f'open("{logins.utmp}")', errno.EISDIR)


def test_without_utmp_sessions_of_logind_count(logins: LoginFiles) -> None:
    logins.session("7", USER="zoe", REALTIME=1700000300000001)
    logins.session("c12", USER="ann", REALTIME=1700000100500000)
    logins.session("9", USER="zoe", REALTIME=1700000200000000, STATE="online")
    assert logins.list() == [Login("ann", 1700000100.5), Login("zoe", 1700000200.0)]


def test_name_that_logind_quotes(logins: LoginFiles) -> None:
    logins.session("1", USER='"DOMAIN\\\\ann"')
    assert logins.list() == [Login("DOMAIN\\ann", 1700000000.0)]


def test_sessions_without_somebody_logged_in_do_not_count(logins: LoginFiles) -> None:
    logins.session("1", CLASS="greeter", USER="gdm")
    logins.session("2", CLASS="manager", USER="eve")
    logins.session("3", CLASS="background", USER="cron")
    logins.session("4", STATE="closing", USER="gone")
    logins.session("5", CLASS="user-early", USER="root")
    (logins.sessions / "6").write_bytes(b"UID=0\n\xff=\nUSER=x\nCLASS=user\n")
    assert logins.list() == [Login("root", 1700000000.0)]


def test_pipes_and_unfinished_files_beside_the_sessions_are_left_alone(logins: LoginFiles) -> None:
    logins.session("1")
    os.mkfifo(logins.sessions / "1.ref")
    (logins.sessions / ".#2abc").write_bytes((logins.sessions / "1").read_bytes())
    (logins.sessions / "8").symlink_to("gone meanwhile")
    assert logins.list() == [Login("ann", 1700000000.0)]


def test_neither_source_means_nobody(logins: LoginFiles) -> None:
    assert logins.list() == []


# --- passwords


@pytest.fixture
def user(tmp_path: Path) -> Iterator[str]:
    with scratch_user(tmp_path) as entry:
        yield entry.pw_name


def hash_of(password: str, like: str) -> str:
    """The hash that crypt(3) gives for `password` with the salt of the SHA-512 hash `like`."""
    _, method, *rest = like.split("$")
    assert method == "6"
    salt = "$".join(rest[:-1])
    argv = ["openssl", "passwd", "-6", "-salt", salt, "-stdin"]
    return subprocess.run(argv, input=password + "\n", capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.root
def test_crypted_password_is_stored_as_it_is(user: str) -> None:
    hashed = hash_of("geheim", "$6$abcdefgh$")
    set_password(user.encode(), hashed.encode(), crypted=True)
    assert shadow_hash(user) == hashed


@pytest.mark.root
def test_refusal_of_chpasswd_is_told(user: str) -> None:
    with pytest.raises(CommandError, match=r"^child process has failed to set user password: ") as caught:
        set_password(user.encode() + b"-none", b"x", crypted=True)
    assert f"{user}-none" in str(caught.value)


@pytest.mark.root
def test_chpasswd_is_looked_for_in_path(user: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = tmp_path / "chpasswd"
    stand_in.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/args\n/bin/cat > {tmp_path}/input\n')
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    set_password(b"ann\xff", b"pa:ss", crypted=False)
    assert (tmp_path / "args").read_text() == "\n"
    assert (tmp_path / "input").read_bytes() == b"ann\xff:pa:ss\n"
