# SPDX-License-Identifier: Apache-2.0
"""authorized_keys of scratch users, some of whom do not play fair. Homes are real, so are their owners."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qga.errors import CommandError
from qga.platform import ssh
from tests.scratch import make_home, scratch_user

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pwd.struct_passwd]:
    with scratch_user(tmp_path_factory.mktemp("homes")) as entry:
        yield entry


@pytest.fixture
def user(account: pwd.struct_passwd) -> pwd.struct_passwd:
    """A user with an empty home in an otherwise empty directory."""
    home = Path(account.pw_dir)
    shutil.rmtree(home.parent)
    home.parent.mkdir()
    make_home(account)
    return account


@pytest.fixture
def home(user: pwd.struct_passwd) -> Path:
    return Path(user.pw_dir)


@pytest.fixture
def keys(user: pwd.struct_passwd, home: Path) -> Path:
    """The key file, not there yet, in a `.ssh` of the user's."""
    directory = home / ".ssh"
    directory.mkdir(mode=0o700)
    os.chown(directory, user.pw_uid, user.pw_gid)
    return directory / "authorized_keys"


def owned(path: Path, content: bytes, user: pwd.struct_passwd) -> Path:
    """Write a file of the user's."""
    path.write_bytes(content)
    os.chown(path, user.pw_uid, user.pw_gid)
    return path


def state(path: Path) -> tuple[str, int, int]:
    info = path.lstat()
    return stat.filemode(info.st_mode), info.st_uid, info.st_gid


def refusal(call: object, *arguments: object) -> str:
    assert callable(call)
    with pytest.raises(CommandError) as caught:
        call(*arguments)
    return str(caught.value)


# --- what the file says afterwards


def test_users_are_found_by_name() -> None:
    root = ssh.find_user(b"root")
    assert root is not None
    assert root.pw_uid == 0
    assert ssh.find_user(b"qga-nobody\xc0\x80") is None


def test_keys_are_read_in_file_order_without_comments_and_blanks(user: pwd.struct_passwd, keys: Path) -> None:
    owned(keys, b"one\n# comment\n\n  two \t\r\n   # also a comment\n \n\xffthree", user)
    assert ssh.read_keys(user) == [b"one", b"two", b"\xffthree"]


@pytest.mark.parametrize(
    ("before", "added", "after"),
    [
        (b"", [b"a"], b"a\n"),
        (b"a\n", [b"b", b"a", b"b"], b"a\nb\n"),
        (b"a", [b"b"], b"a\nb\n"),
        (b"# c\n\n a\n", [b"a"], b"# c\n\n a\na\n"),
        (b"a\r\n", [b"a"], b"a\r\na\n"),
        (b"a\n\n", [b"b"], b"a\n\nb\n"),
        (b"a", [], b"a\n"),
        (b"\xff\n", [b"a\xc3\xa9"], b"\xff\na\xc3\xa9\n"),
    ],
)
def test_adding_keeps_every_line_and_ends_in_a_newline(
    user: pwd.struct_passwd, keys: Path, before: bytes, added: list[bytes], after: bytes
) -> None:
    owned(keys, before, user)
    ssh.add_keys(user, added, reset=False)
    assert keys.read_bytes() == after


@pytest.mark.parametrize(("added", "after"), [([b"b", b"c", b"b"], b"b\nc\n"), ([], b"")])
def test_reset_leaves_only_the_given_keys(
    user: pwd.struct_passwd, keys: Path, added: list[bytes], after: bytes
) -> None:
    owned(keys, b"a\n# comment\n", user)
    ssh.add_keys(user, added, reset=True)
    assert keys.read_bytes() == after


def test_removing_takes_out_equal_lines_and_nothing_else(user: pwd.struct_passwd, keys: Path) -> None:
    owned(keys, b"a\n# c\n\na \nb\na\n", user)
    ssh.remove_keys(user, [b"a", b"zzz"])
    assert keys.read_bytes() == b"# c\n\na \nb\n"
    ssh.remove_keys(user, [b"b", b"a ", b"# c", b""])
    assert keys.read_bytes() == b""


def test_new_directory_and_file_are_the_users(user: pwd.struct_passwd, home: Path) -> None:
    ssh.add_keys(user, [b"a"], reset=False)
    assert state(home / ".ssh") == ("drwx------", user.pw_uid, user.pw_gid)
    assert state(home / ".ssh/authorized_keys") == ("-rw-------", user.pw_uid, user.pw_gid)
    assert os.listdir(home / ".ssh") == ["authorized_keys"]


def test_owner_and_mode_of_an_existing_file_are_put_right(user: pwd.struct_passwd, keys: Path) -> None:
    keys.write_bytes(b"a\n")
    keys.chmod(0o644)
    ssh.remove_keys(user, [b"no such key"])
    assert state(keys) == ("-rw-------", user.pw_uid, user.pw_gid)


def test_mode_of_an_existing_directory_is_the_users_affair(user: pwd.struct_passwd, keys: Path) -> None:
    keys.parent.chmod(0o755)
    ssh.add_keys(user, [b"a"], reset=False)
    assert state(keys.parent) == ("drwxr-xr-x", user.pw_uid, user.pw_gid)


def test_directory_of_root_is_used_and_stays_roots(user: pwd.struct_passwd, keys: Path) -> None:
    os.chown(keys.parent, 0, 0)
    ssh.add_keys(user, [b"a"], reset=False)
    assert state(keys.parent)[1:] == (0, 0)
    assert state(keys)[1:] == (user.pw_uid, user.pw_gid)


def test_without_a_file_reading_fails_and_removing_does_nothing(user: pwd.struct_passwd, home: Path) -> None:
    path = f"{home}/.ssh/authorized_keys"
    text = f"failed to read '{path}': Failed to open file “{path}”: No such file or directory"
    assert refusal(ssh.read_keys, user) == text
    ssh.remove_keys(user, [b"a"])
    assert os.listdir(home) == []
    (home / ".ssh").mkdir()
    assert refusal(ssh.read_keys, user) == text
    ssh.remove_keys(user, [b"a"])
    assert os.listdir(home / ".ssh") == []


def test_missing_home_is_not_made(user: pwd.struct_passwd, home: Path) -> None:
    home.rmdir()
    assert refusal(ssh.add_keys, user, [b"a"], False) == (
        f"failed to create directory '{home}/.ssh': No such file or directory"
    )
    assert refusal(ssh.read_keys, user).endswith(": No such file or directory")
    ssh.remove_keys(user, [b"a"])
    assert not home.exists()


def test_changes_at_the_same_time_do_not_lose_each_other(user: pwd.struct_passwd, keys: Path) -> None:
    def add(number: int) -> None:
        for part in range(5):
            ssh.add_keys(user, [b"key %d %d" % (number, part)], reset=False)

    threads = [threading.Thread(target=add, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ssh.read_keys(user)) == sorted(b"key %d %d" % (n, part) for n in range(4) for part in range(5))


# --- users who do not play fair


@pytest.fixture
def secret(home: Path) -> Path:
    """A file that only root may read, in a directory that is not the user's."""
    directory = home.parent / "secrets"
    directory.mkdir(mode=0o700)
    (directory / "authorized_keys").write_bytes(b"root's key\n")
    (directory / "authorized_keys").chmod(0o600)
    return directory / "authorized_keys"


@contextmanager
def untouched(path: Path) -> Iterator[None]:
    """Whatever happens inside, the file and its directory stay as they are."""

    def snapshot() -> object:
        return path.read_bytes(), state(path), path.lstat().st_ino, state(path.parent), os.listdir(path.parent)

    before = snapshot()
    yield
    assert snapshot() == before


def test_directory_that_is_a_link_is_refused(user: pwd.struct_passwd, home: Path, secret: Path) -> None:
    (home / ".ssh").symlink_to(secret.parent)
    text = f"'{home}/.ssh' is a symbolic link, which is not followed, or no directory"
    with untouched(secret):
        assert refusal(ssh.add_keys, user, [b"a"], False) == text
        assert refusal(ssh.add_keys, user, [b"a"], True) == text
        assert refusal(ssh.remove_keys, user, [b"root's key"]) == text
        assert refusal(ssh.read_keys, user) == text


def test_dangling_link_for_a_directory_makes_nothing(user: pwd.struct_passwd, home: Path) -> None:
    (home / ".ssh").symlink_to(home.parent / "made")
    assert refusal(ssh.add_keys, user, [b"a"], True).endswith("not followed, or no directory")
    assert not (home.parent / "made").exists()


def test_directory_of_another_user_is_refused(user: pwd.struct_passwd, keys: Path) -> None:
    os.chown(keys.parent, user.pw_uid + 1, user.pw_gid)
    text = f"'{keys.parent}' belongs neither to the user nor to root"
    assert refusal(ssh.add_keys, user, [b"a"], True) == text
    assert refusal(ssh.read_keys, user) == text
    assert os.listdir(keys.parent) == []


def test_link_to_a_file_of_the_users_is_replaced_by_a_file(user: pwd.struct_passwd, keys: Path, home: Path) -> None:
    target = owned(home / "dotfile", b"a\n", user)
    keys.symlink_to("../dotfile")
    assert ssh.read_keys(user) == [b"a"]
    with untouched(target):
        ssh.add_keys(user, [b"b"], reset=False)
    assert keys.read_bytes() == b"a\nb\n"
    assert state(keys) == ("-rw-------", user.pw_uid, user.pw_gid)


def test_link_to_a_file_of_anothers_is_not_followed(user: pwd.struct_passwd, keys: Path, secret: Path) -> None:
    secret.chmod(0o644)  # readable, but for the directory
    keys.symlink_to(secret)
    text = f"failed to read '{keys}': it is a symbolic link to a file that does not belong to the user"
    with untouched(secret):
        assert refusal(ssh.read_keys, user) == text
        assert refusal(ssh.add_keys, user, [b"a"], False) == text
        assert refusal(ssh.remove_keys, user, [b"root's key"]) == text
        assert keys.is_symlink()
        ssh.add_keys(user, [b"a"], reset=True)
    assert not keys.is_symlink()
    assert keys.read_bytes() == b"a\n"


def test_dangling_link_counts_as_no_file(user: pwd.struct_passwd, keys: Path, home: Path) -> None:
    keys.symlink_to(home.parent / "made")
    ssh.remove_keys(user, [b"a"])
    ssh.add_keys(user, [b"a"], reset=False)
    assert not (home.parent / "made").exists()
    assert state(keys)[0] == "-rw-------"


def test_hard_link_to_a_secret_is_not_copied_into_a_file_of_the_users(
    user: pwd.struct_passwd, keys: Path, secret: Path
) -> None:
    os.link(secret, keys)
    text = f"failed to read '{keys}': it is a file that the user may not read"
    with untouched(secret):
        assert refusal(ssh.add_keys, user, [b"a"], False) == text
        assert refusal(ssh.remove_keys, user, [b"a"]) == text
        assert refusal(ssh.read_keys, user) == text
        ssh.add_keys(user, [b"a"], reset=True)
    assert keys.read_bytes() == b"a\n"


@pytest.mark.parametrize("mode", [0o604, 0o640])
def test_file_of_roots_that_the_user_may_read_is_used(user: pwd.struct_passwd, keys: Path, mode: int) -> None:
    keys.write_bytes(b"a\n")
    keys.chmod(mode)
    os.chown(keys, 0, user.pw_gid)
    assert ssh.read_keys(user) == [b"a"]


@pytest.mark.parametrize("kind", [stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR])
def test_what_is_no_file_is_not_opened_but_can_be_replaced(user: pwd.struct_passwd, keys: Path, kind: int) -> None:
    os.mknod(keys, kind | 0o666, os.makedev(1, 5))  # 1:5 is /dev/zero, which has no end
    text = f"failed to read '{keys}': it is not a regular file"
    assert refusal(ssh.read_keys, user) == text
    assert refusal(ssh.add_keys, user, [b"a"], False) == text
    assert refusal(ssh.remove_keys, user, [b"a"]) == text
    ssh.add_keys(user, [b"a"], reset=True)
    assert keys.read_bytes() == b"a\n"


def test_link_to_a_fifo_does_not_block(user: pwd.struct_passwd, keys: Path, home: Path) -> None:
    os.mkfifo(home / "fifo")
    os.chown(home / "fifo", user.pw_uid, user.pw_gid)
    keys.symlink_to("../fifo")
    assert refusal(ssh.add_keys, user, [b"a"], False).endswith("it is not a regular file")


def test_directory_in_place_of_the_file_is_an_error(user: pwd.struct_passwd, keys: Path) -> None:
    keys.mkdir()
    assert refusal(ssh.add_keys, user, [b"a"], True) == f"failed to change '{keys}': Is a directory"
    assert os.listdir(keys.parent) == ["authorized_keys"]


def test_file_without_end_is_refused(user: pwd.struct_passwd, keys: Path) -> None:
    owned(keys, b"a\n", user)
    os.truncate(keys, 1 << 40)
    assert refusal(ssh.read_keys, user).endswith(": File too large")
    assert refusal(ssh.add_keys, user, [b"a"], False) == f"failed to change '{keys}': File too large"


def test_home_reached_through_a_link_is_used_if_it_is_the_users(user: pwd.struct_passwd, home: Path) -> None:
    home.rename(home.parent / "moved")
    home.symlink_to("moved")
    ssh.add_keys(user, [b"a"], reset=False)
    assert (home.parent / "moved/.ssh/authorized_keys").read_bytes() == b"a\n"


def test_home_of_anothers_reached_through_a_link_is_refused(user: pwd.struct_passwd, home: Path) -> None:
    home.rename(home.parent / "moved")
    home.symlink_to("moved")
    os.chown(home.parent / "moved", 0, 0)
    text = f"'{home}' belongs to another user and is reached through a symbolic link"
    assert refusal(ssh.add_keys, user, [b"a"], False) == text
    assert os.listdir(home.parent / "moved") == []


def test_home_of_roots_is_used(user: pwd.struct_passwd, home: Path) -> None:
    os.chown(home, 0, 0)
    ssh.add_keys(user, [b"a"], reset=False)
    assert ssh.read_keys(user) == [b"a"]
    assert state(home / ".ssh")[1:] == (user.pw_uid, user.pw_gid)


ATTACK = """
import itertools, os, sys, time

uid, gid, home, mode = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
os.chdir(home)
os.setgroups([]), os.setgid(gid), os.setuid(uid)
os.close(1)

def attempt(call, *arguments):
    try:
        call(*arguments)
    except OSError:
        pass

for number in itertools.count():
    if mode == "directory":
        attempt(os.rename, ".ssh", f"old{number}")
        attempt(os.symlink, "../secrets", ".ssh")
        time.sleep(number % 50 * 1e-5)
        attempt(os.unlink, ".ssh")
        time.sleep(number % 50 * 1e-5)
    else:
        attempt(os.symlink, "../../secrets/authorized_keys", "link")
        attempt(os.rename, "link", ".ssh/authorized_keys")
        attempt(os.rename, "hard", ".ssh/authorized_keys")
        attempt(os.rename, ".ssh/authorized_keys", "hard")
"""


@contextmanager
def attacker(user: pwd.struct_passwd, mode: str) -> Iterator[None]:
    """A process of the user's that exchanges things in the home directory as fast as it can."""
    argv = [sys.executable, "-I", "-S", "-c", ATTACK, str(user.pw_uid), str(user.pw_gid), user.pw_dir, mode]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        process.stdout.read()  # ends when it is no longer root
        yield
        assert process.poll() is None, "the attacker gave up"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def race(user: pwd.struct_passwd) -> None:
    """Add keys until this has often worked and often met something that was refused."""
    outcomes = {True: 0, False: 0}
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            ssh.add_keys(user, [b"key %d" % (outcomes[True] % 10)], reset=False)
            outcomes[True] += 1
        except CommandError:
            outcomes[False] += 1
        if min(outcomes.values()) >= 20:
            return
    raise AssertionError(f"the race was not on: {outcomes}")


def test_exchanging_the_directory_for_a_link_leads_nowhere(user: pwd.struct_passwd, secret: Path) -> None:
    with untouched(secret), attacker(user, "directory"):
        race(user)


def test_exchanging_the_file_for_a_link_gives_nothing_away(
    user: pwd.struct_passwd, keys: Path, home: Path, secret: Path
) -> None:
    owned(keys, b"mine\n", user)
    os.link(secret, home / "hard")
    with attacker(user, "file"):
        race(user)
    assert secret.read_bytes() == b"root's key\n"
    assert state(secret) == ("-rw-------", 0, 0)
    for path in [*home.iterdir(), *keys.parent.iterdir()]:
        if path.is_file() and not path.samefile(secret):
            assert b"root's key" not in path.read_bytes(), path


def test_what_was_put_in_place_of_a_new_directory_is_not_given_away(user: pwd.struct_passwd, home: Path) -> None:
    for name, owner, content in (("roots", 0, ["private"]), ("anothers", user.pw_uid + 1, [])):
        place = home / name
        place.mkdir(mode=0o500)
        os.chown(place, owner, 0)
        for file in content:
            (place / file).touch()
        directory = os.open(place, os.O_RDONLY)
        ssh._give(directory, user)  # the moment between mkdir and open is too short to be hit by a test
        os.close(directory)
        assert state(place) == ("dr-x------", owner, 0)


def test_nothing_is_left_open(user: pwd.struct_passwd, keys: Path) -> None:
    before = os.listdir("/proc/self/fd")
    ssh.add_keys(user, [b"a"], reset=False)
    keys.unlink()
    keys.symlink_to("/etc/shadow")
    refusal(ssh.read_keys, user)
    keys.unlink()
    os.mkfifo(keys)
    refusal(ssh.remove_keys, user, [b"a"])
    os.chown(keys.parent, 1, 1)
    refusal(ssh.add_keys, user, [b"a"], True)
    assert os.listdir("/proc/self/fd") == before
