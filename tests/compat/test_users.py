# SPDX-License-Identifier: Apache-2.0
"""Users, passwords and SSH keys: the same requests to qga and qemu-ga, about a scratch user."""

from __future__ import annotations

import os
import pwd
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agents import NO_QEMU_GA, QEMU_GA, QGA, AgentProcess
from tests.scratch import make_home, scratch_user, shadow_hash
from tests.sides import Side, Sides, b64, both

pytestmark = [pytest.mark.skipif(QEMU_GA is None, reason=NO_QEMU_GA), pytest.mark.root]

USER_PROCESS, DEAD_PROCESS, BOOT_TIME = 7, 8, 2


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sides]:
    with both(tmp_path_factory.mktemp("users")) as sides:
        yield sides


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pwd.struct_passwd]:
    with scratch_user(tmp_path_factory.mktemp("homes")) as entry:
        yield entry


# --- guest-get-users


def record(kind: int, user: bytes, seconds: int, micros: int = 0) -> bytes:
    """A record of utmp(5) as the C library of this machine has it."""
    head = struct.pack("=hxxi32s4s32s256shh", kind, os.getpid(), b"pts/0", b"ts/0", user, b"host", 0, 0)
    short_times = os.uname().machine in ("x86_64", "i686", "ppc64le", "riscv64")
    return head + struct.pack("=iII4i20x" if short_times else "=qqq4i20x4x", 1, seconds, micros, 0, 0, 0, 0)


def users_of(argv: list[str], directory: Path, utmp: Path | None) -> Any:
    """What an agent answers for whom the file is /run/utmp, and nothing else is in /run."""
    directory.mkdir()
    copy = f"cp {utmp} /run/utmp && " if utmp else ""
    namespace = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none /run && {copy}exec "$@"', "sh"]
    with AgentProcess([*namespace, *argv], directory) as agent, agent.connect() as client:
        return client.call("guest-get-users")


@pytest.mark.parametrize(
    "records",
    [
        record(BOOT_TIME, b"reboot", 1700000000),
        record(USER_PROCESS, b"ann", 1700000000),
        record(USER_PROCESS, b"zoe", 1700000100, 250000)
        + record(USER_PROCESS, b"ann", 1700000300, 123456)
        + record(DEAD_PROCESS, b"ann", 1600000000)
        + record(USER_PROCESS, b"zoe", 1700000200)
        + record(USER_PROCESS, b"ann", 1700000300, 123455)
        + record(USER_PROCESS, b"b\xffb", 1700000300, 1),
        b"".join(record(USER_PROCESS, b"user%d" % (n % 20), 1700000000 - n, n) for n in range(300)),
        b"",
        None,
    ],
)
def test_logged_in_users(tmp_path: Path, records: bytes | None) -> None:
    utmp = None
    if records is not None:
        utmp = tmp_path / "utmp"
        utmp.write_bytes(records)
    assert users_of(QGA, tmp_path / "qga", utmp) == users_of([str(QEMU_GA)], tmp_path / "qemu-ga", utmp)


# --- guest-set-user-password


def set_password(sides: Sides, side: Side, **arguments: Any) -> None:
    """Note the reply of guest-set-user-password as far as qemu-ga 7.2 has it, or all of it for a later reference."""
    reply = side.client.call("guest-set-user-password", **arguments)
    head = "child process has failed to set user password"
    if "error" in reply and sides.reference_version < (9, 0) and reply["error"]["desc"].startswith(head):
        reply["error"]["desc"] = head
    side.note(str(arguments), reply)


def password_scenario(
    sides: Sides, user: pwd.struct_passwd, password: bytes, check: str | None = None
) -> Callable[[Side], None]:
    def scenario(side: Side) -> None:
        subprocess.run(["usermod", "--password", "*", user.pw_name], check=True)
        set_password(sides, side, username=user.pw_name, password=b64(password), crypted=False)
        if check is not None:
            side.note("is the password", is_password(check, shadow_hash(user.pw_name)))

    return scenario


def is_password(password: str, hashed: str) -> bool:
    """Whether a password has this hash, by the crypt(3) of perl, which knows whatever the system uses."""
    script = "print crypt($ARGV[0], $ARGV[1]) eq $ARGV[1] ? 1 : 0"
    done = subprocess.run(["perl", "-e", script, password, hashed], capture_output=True, text=True, check=True)
    return done.stdout == "1"


@pytest.mark.parametrize(
    ("password", "check"),
    [(b"Kx9!vprtq", "Kx9!vprtq"), (b"with:colon7", "with:colon7"), (b"Kx9!vprtq\0rest", "Kx9!vprtq"), (b"", None)],
)
def test_plain_password(sides: Sides, user: pwd.struct_passwd, password: bytes, check: str | None) -> None:
    sides.compare(password_scenario(sides, user, password, check))
    if check is not None:
        assert is_password(check, shadow_hash(user.pw_name))
        assert not is_password(check + "x", shadow_hash(user.pw_name))


def test_crypted_password(sides: Sides, user: pwd.struct_passwd) -> None:
    argv = ["openssl", "passwd", "-6", "-salt", "abcdefgh", "secret"]
    hashed = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()

    def scenario(side: Side) -> None:
        subprocess.run(["usermod", "--password", "*", user.pw_name], check=True)
        set_password(sides, side, username=user.pw_name, password=b64(hashed.encode()), crypted=True)
        side.note("shadow", shadow_hash(user.pw_name))

    sides.compare(scenario)
    assert shadow_hash(user.pw_name) == hashed


def test_refused_passwords(sides: Sides, user: pwd.struct_passwd) -> None:
    def scenario(side: Side) -> None:
        before = shadow_hash(user.pw_name)
        for name, password in (
            (user.pw_name, "!!!"),
            (user.pw_name + ":x", "!!!"),
            (user.pw_name + ":x", b64(b"a\nb")),
            (user.pw_name, b64(b"a\nb")),
            (user.pw_name + ":x", b64(b"ab")),
            (user.pw_name + "\nx", b64(b"ab")),
            (user.pw_name + "-none", b64(b"ab")),
            ("", b64(b"ab")),
            ("-none\u00e9", b64(b"ab")),
        ):
            for crypted in (True, False):
                set_password(sides, side, username=name, password=password, crypted=crypted)
        set_password(sides, side, username=user.pw_name, password=b64(b"ab"))
        side.note("unchanged", shadow_hash(user.pw_name) == before)

    sides.compare(scenario)


# --- guest-ssh-*


def lay_out(user: pwd.struct_passwd, content: bytes | None) -> Path:
    """Make a fresh home, with a key file unless `content` is None; returns that file's path."""
    home = Path(user.pw_dir)
    shutil.rmtree(home, ignore_errors=True)
    make_home(user)
    keys = home / ".ssh/authorized_keys"
    if content is not None:
        keys.parent.mkdir(0o750)
        keys.write_bytes(content)
        for path in (keys.parent, keys):
            os.chown(path, user.pw_uid, user.pw_gid)
    return keys


def note_files(side: Side, user: pwd.struct_passwd) -> None:
    """Note owners and modes in the home, and the lines of the key file except empty ones (final newlines differ)."""
    home = Path(user.pw_dir)
    for path in sorted(home.rglob("*")):
        info = path.lstat()
        side.note(str(path), [oct(info.st_mode), info.st_uid, info.st_gid])
    keys = home / ".ssh/authorized_keys"
    lines = keys.read_bytes().decode("latin-1").split("\n") if keys.exists() else ["no file"]
    side.note("lines", [line for line in lines if line])


CONTENTS = [None, b"", b"a\n", b"# comment\n\n a \nb\nb\r\n\xff\nlast without newline", b"\n\n\n", b"#\n"]


@pytest.mark.parametrize("content", CONTENTS)
def test_keys_of_a_user(sides: Sides, user: pwd.struct_passwd, content: bytes | None) -> None:
    def scenario(side: Side) -> None:
        lay_out(user, content)
        reply = side.client.call("guest-ssh-get-authorized-keys", username=user.pw_name)
        if "return" in reply:
            reply["return"]["keys"].sort()  # theirs are in reverse order
        side.note("get", reply)
        note_files(side, user)

    sides.compare(scenario)


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("arguments", [{}, {"reset": False}, {"reset": True}])
@pytest.mark.parametrize("keys", [[], ["a"], ["new", "a", "b ", "new", "x\u00e9\t\u0001"]])
def test_added_keys(
    sides: Sides, user: pwd.struct_passwd, content: bytes | None, arguments: dict[str, bool], keys: list[str]
) -> None:
    def scenario(side: Side) -> None:
        lay_out(user, content)
        side.call("guest-ssh-add-authorized-keys", username=user.pw_name, keys=keys, **arguments)
        note_files(side, user)

    sides.compare(scenario)


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("keys", [[], ["a"], [" a ", "b", "zzz", "last without newline"]])
def test_removed_keys(sides: Sides, user: pwd.struct_passwd, content: bytes | None, keys: list[str]) -> None:
    def scenario(side: Side) -> None:
        lay_out(user, content)
        side.call("guest-ssh-remove-authorized-keys", username=user.pw_name, keys=keys)
        note_files(side, user)

    sides.compare(scenario)


def test_refused_keys(sides: Sides, user: pwd.struct_passwd) -> None:
    def scenario(side: Side) -> None:
        lay_out(user, b"a\n")
        for key in ("# a", "#", "a\nb", "a\n", "\n", "", " # a", "a\r", "\t"):
            for name in (user.pw_name, "" if key.startswith("#") else user.pw_name):
                side.call("guest-ssh-add-authorized-keys", username=name, keys=["fine", key])
                side.call("guest-ssh-remove-authorized-keys", username=name, keys=["fine", key])
        note_files(side, user)

    sides.compare(scenario)


def test_unknown_user(sides: Sides) -> None:
    def scenario(side: Side) -> None:
        for execute, arguments in (
            ("guest-ssh-get-authorized-keys", {}),
            ("guest-ssh-add-authorized-keys", {"keys": ["a"]}),
            ("guest-ssh-remove-authorized-keys", {"keys": ["a"]}),
        ):
            reply = side.client.call(execute, username="qga-no-such-user", **arguments)
            head, _, _ = reply["error"]["desc"].rpartition(": ")  # the reason is `Success` or the like in theirs
            side.note(execute, [reply["error"]["class"], head])

    sides.compare(scenario)


def test_link_in_place_of_the_file_is_replaced(sides: Sides, user: pwd.struct_passwd) -> None:
    def scenario(side: Side) -> None:
        keys = lay_out(user, b"a\n")
        keys.rename(keys.parent / "target")
        keys.symlink_to("target")
        side.call("guest-ssh-get-authorized-keys", username=user.pw_name)
        side.call("guest-ssh-add-authorized-keys", username=user.pw_name, keys=["b"])
        note_files(side, user)
        side.note("target", (keys.parent / "target").read_text())

    sides.compare(scenario)


def test_missing_home(sides: Sides, user: pwd.struct_passwd) -> None:
    def scenario(side: Side) -> None:
        lay_out(user, None)
        os.rmdir(user.pw_dir)
        side.call("guest-ssh-get-authorized-keys", username=user.pw_name)
        side.call("guest-ssh-add-authorized-keys", username=user.pw_name, keys=["b"])
        side.call("guest-ssh-remove-authorized-keys", username=user.pw_name, keys=["b"])
        side.note("home", os.path.exists(user.pw_dir))

    sides.compare(scenario)


@pytest.mark.parametrize("execute", ["get", "add", "remove"])
def test_arguments(sides: Sides, execute: str) -> None:
    def scenario(side: Side) -> None:
        command = f"guest-ssh-{execute}-authorized-keys"
        known: dict[str, Any] = {"username": "qga-no-such-user"}
        for arguments in (
            {},
            {"username": 1},
            known,
            {**known, "zzz": 0},
            {**known, "keys": "a"},
            {**known, "keys": [1]},
            {**known, "keys": [], "reset": 0},
            {**known, "keys": [], "zzz": 0},
        ):
            if execute == "get":
                arguments = {name: value for name, value in arguments.items() if name != "keys"}
            reply = side.client.call(command, **arguments)
            if "failed to lookup" not in reply["error"]["desc"]:  # see test_unknown_user
                side.note(str(arguments), reply)

    sides.compare(scenario)
