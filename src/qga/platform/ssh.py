# SPDX-License-Identifier: Apache-2.0
"""The authorized_keys file of a user, read and replaced by a root process that trusts nothing of the user's.

The user owns the home directory and can exchange anything in it at any moment, so no name is looked up twice and none
is trusted after a check:

* The home directory is opened once. It may be reached through symbolic links if it then belongs to the user; another's
  directory (usually root's) is taken only if no link leads there, or whoever owns a part of the way could choose it.
* `.ssh` is opened relative to it without following a link, and has to belong to the user or root. From here on there
  are descriptors only: exchanging `.ssh` afterwards changes nothing. It is given to the user only if it was just made
  and is empty and root's: whatever was put in its place is not given away.
* The key file is found with O_PATH, which opens nothing: a FIFO cannot block and a device is not touched. The inode
  that was examined, no other, is then opened through /proc/self/fd. It has to be a regular file that the user may read
  anyway, since its lines go into a file of the user's: neither a link nor a hard link leads to another's secret. A link
  is followed if it ends at a file of the user's.
* It is never written. A new file with an unguessable name and O_EXCL gets the content, owner and mode through its
  descriptor and takes the name by rename(2) in the directory opened above, which replaces a link instead of following
  it. All that the user can exchange meanwhile is which of his own files has which name.

Sources: openat(2), O_PATH in open(2), sshd(8) on AUTHORIZED_KEYS.
"""

import errno
import os
import pwd
import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from ..errors import CommandError, from_os, strerror

FILE_MAX = 4 << 20
"""Bytes of a key file that is taken into memory: ten thousand long keys."""

LOCK_SECONDS = 10.0
"""How long a change waits for another one, which may hang in a dead network file system."""

_DIRECTORY = ".ssh"
_FILE = "authorized_keys"
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_BLOCK = 65536

_changing = threading.Lock()

User = pwd.struct_passwd


def find_user(name: bytes) -> User | None:
    """The passwd entry of a user, None if there is none."""
    try:
        return pwd.getpwnam(os.fsdecode(name))
    except KeyError:
        return None


def read_keys(user: User) -> list[bytes]:
    """The keys in the order of the file, without comments, blank lines and surrounding blanks; CommandError."""
    try:
        with _opened(user) as directory:
            stripped = [line.strip() for line in _lines(directory, user)]
    except OSError as exc:
        path = _path(user)
        raise CommandError(f"failed to read '{path}': Failed to open file “{path}”: {strerror(exc)}") from exc
    return [line for line in stripped if line and not line.startswith(b"#")]


def add_keys(user: User, keys: Sequence[bytes], reset: bool) -> None:
    """Append the keys that are not there as whole lines yet, each once; CommandError.

    reset: start with an empty file. `.ssh` is made if need be, its parents are not.
    """
    with _exclusively(), _failing(user), _opened(user, make=True) as directory:
        lines: list[bytes] = []
        if not reset:
            with suppress(FileNotFoundError):
                lines = _lines(directory, user)
        _replace(directory, user, list(dict.fromkeys(keys)) if reset else _merged(lines, keys))


def remove_keys(user: User, keys: Sequence[bytes]) -> None:
    """Remove every line that equals one of the keys; without a file there is nothing to do. CommandError."""
    with _exclusively(), _failing(user), suppress(FileNotFoundError), _opened(user) as directory:
        unwanted = frozenset(keys)
        _replace(directory, user, [line for line in _lines(directory, user) if line not in unwanted])


def _path(user: User) -> str:
    return os.path.join(user.pw_dir, _DIRECTORY, _FILE)


def _merged(lines: list[bytes], keys: Sequence[bytes]) -> list[bytes]:
    present = set(lines)
    return lines + [key for key in dict.fromkeys(keys) if key not in present]


@contextmanager
def _exclusively() -> Iterator[None]:
    if not _changing.acquire(timeout=LOCK_SECONDS):
        raise CommandError("another change of SSH keys has not ended yet")
    try:
        yield
    finally:
        _changing.release()


@contextmanager
def _failing(user: User) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise from_os(f"failed to change '{_path(user)}'", exc) from exc


# --- directories


@contextmanager
def _opened(user: User, make: bool = False) -> Iterator[int]:
    """A descriptor of the user's `.ssh`. OSError; CommandError if it is not to be used."""
    path = os.path.join(user.pw_dir, _DIRECTORY)
    try:
        home = _open_home(user)
    except FileNotFoundError as exc:
        if make:
            raise from_os(f"failed to create directory '{path}'", exc) from exc
        raise
    try:
        made = make and _make(home, path)
        directory = _open_ssh(home, path)
    finally:
        os.close(home)
    try:
        if made:
            _give(directory, user)
        if os.fstat(directory).st_uid not in (user.pw_uid, 0):
            raise CommandError(f"'{path}' belongs neither to the user nor to root")
        yield directory
    finally:
        os.close(directory)


def _open_home(user: User) -> int:
    home = os.open(user.pw_dir, _OPEN_DIRECTORY)
    if os.fstat(home).st_uid == user.pw_uid:
        return home
    os.close(home)
    try:
        return _open_without_links(user.pw_dir)
    except NotADirectoryError as exc:
        raise CommandError(f"'{user.pw_dir}' belongs to another user and is reached through a symbolic link") from exc


def _open_without_links(path: str) -> int:
    directory = os.open("/", _OPEN_DIRECTORY)
    for name in filter(None, path.split("/")):
        outer = directory
        try:
            directory = os.open(name, _OPEN_DIRECTORY | os.O_NOFOLLOW, dir_fd=outer)
        finally:
            os.close(outer)
    return directory


def _make(home: int, path: str) -> bool:
    try:
        os.mkdir(_DIRECTORY, 0o700, dir_fd=home)
    except FileExistsError:
        return False
    except OSError as exc:
        raise from_os(f"failed to create directory '{path}'", exc) from exc
    return True


def _open_ssh(home: int, path: str) -> int:
    try:
        return os.open(_DIRECTORY, _OPEN_DIRECTORY | os.O_NOFOLLOW, dir_fd=home)
    except NotADirectoryError as exc:
        raise CommandError(f"'{path}' is a symbolic link, which is not followed, or no directory") from exc


def _give(directory: int, user: User) -> None:
    if os.fstat(directory).st_uid == os.geteuid() and not os.listdir(directory):
        os.fchown(directory, user.pw_uid, user.pw_gid)
        os.fchmod(directory, 0o700)


# --- the key file


def _lines(directory: int, user: User) -> list[bytes]:
    """The lines without their newlines; OSError, CommandError if the file is not to be used."""
    pin, followed = _pin(directory)
    try:
        refusal = _refusal(os.fstat(pin), user, followed)
        if refusal:
            raise CommandError(f"failed to read '{_path(user)}': {refusal}")
        data = _read(f"/proc/self/fd/{pin}")
    finally:
        os.close(pin)
    lines = data.split(b"\n")
    return lines if lines[-1] else lines[:-1]


def _pin(directory: int) -> tuple[int, bool]:
    # Whether a link was followed is decided on the inode: the name may be another thing by the second call.
    pin = os.open(_FILE, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    if not stat.S_ISLNK(os.fstat(pin).st_mode):
        return pin, False
    os.close(pin)
    return os.open(_FILE, os.O_PATH | os.O_CLOEXEC, dir_fd=directory), True


def _refusal(info: os.stat_result, user: User, followed: bool) -> str | None:
    if not stat.S_ISREG(info.st_mode):
        return "it is not a regular file"
    if info.st_uid == user.pw_uid:
        return None
    if followed:
        return "it is a symbolic link to a file that does not belong to the user"
    if info.st_mode & stat.S_IROTH or (info.st_mode & stat.S_IRGRP and info.st_gid == user.pw_gid):
        return None
    return "it is a file that the user may not read"


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    data = b""
    with open(fd, "rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            data += block
            if len(data) > FILE_MAX:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    return data


def _replace(directory: int, user: User, lines: Sequence[bytes]) -> None:
    temporary = f".{_FILE}.{os.urandom(8).hex()}"
    fd = os.open(temporary, _NEW_FILE, 0o600, dir_fd=directory)
    try:
        with open(fd, "wb") as file:
            file.writelines(line + b"\n" for line in lines)
            file.flush()
            os.fchown(fd, user.pw_uid, user.pw_gid)
            os.fchmod(fd, 0o600)
            os.fsync(fd)
        os.rename(temporary, _FILE, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=directory)
        raise
    os.fsync(directory)
