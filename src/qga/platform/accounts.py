# SPDX-License-Identifier: Apache-2.0
"""Who is logged in, and setting a password."""

import os
from collections.abc import Iterable, Iterator
from struct import Struct
from typing import NamedTuple

from .osinfo import unquote
from .proc import calling, read_or_none
from .run import run

UTMP = "/var/run/utmp"
SESSIONS = "/run/systemd/sessions"

_USER_PROCESS = 7
_LAST_TYPE = 9

# utmp(5), without what is not wanted: type, user, seconds, microseconds. The time has 32 bits where 32-bit programs
# share the file (x86, ppc64, riscv64), which new releases of glibc read as unsigned, and 64 bits elsewhere (arm64).
_RECORD_TIME32 = Struct("=h2x4x32x4x32s256x4x4xII16x20x")
_RECORD_TIME64 = Struct("=h2x4x32x4x32s256x4x8xqq16x20x4x")

_PEOPLE = (b"user", b"user-early", b"user-light", b"user-early-light")
"""Classes of sessions with somebody at the other end; not the greeter, cron, or the user's own service manager."""


class Login(NamedTuple):
    """A user and the earliest login that lasts, in seconds since the epoch."""

    user: str
    time: float


def list_logins(utmp: str = UTMP, sessions: str = SESSIONS) -> list[Login]:
    """One entry for each user who is logged in, in the order of the source: utmp, else (no such file) systemd-logind.

    utmp: the file of utmp(5); sessions: the directory in which logind keeps a file for each session.
    CallError if one exists and cannot be read. Neither existing gives an empty list.
    """
    data = read_or_none(utmp)
    return _earliest(_from_logind(sessions) if data is None else _from_utmp(data))


def set_password(user: bytes, password: bytes, crypted: bool) -> None:
    """Set a password through chpasswd(8), which PATH has to lead to; CommandError with what it wrote.

    user: no colon or newline; password: no newline, already a hash if `crypted`. The caller has checked them.
    """
    run(["chpasswd", "-e"] if crypted else ["chpasswd"], "set user password", b"%s:%s\n" % (user, password))


def _earliest(logins: Iterable[Login]) -> list[Login]:
    first: dict[str, Login] = {}
    for login in logins:
        known = first.get(login.user)
        if known is None or login.time < known.time:
            first[login.user] = login
    return list(first.values())


def _from_utmp(data: bytes) -> Iterator[Login]:
    # No lock, unlike getutxent(3): anyone may hold one for ever, and a record is written at once.
    record = _layout(data)
    for kind, user, seconds, micros in record.iter_unpack(data[: len(data) // record.size * record.size]):
        if kind == _USER_PROCESS:
            yield Login(user.partition(b"\0")[0].decode(errors="replace"), seconds + micros / 1e6)


def _layout(data: bytes) -> Struct:
    # Nothing in the file tells; read with the wrong size, names are soon taken for types.
    for record in (_RECORD_TIME32, _RECORD_TIME64):
        if len(data) % record.size == 0 and all(0 <= fields[0] <= _LAST_TYPE for fields in record.iter_unpack(data)):
            return record
    return _RECORD_TIME32


def _from_logind(directory: str) -> Iterator[Login]:
    # The files themselves, as sd-login(3) reads them: a call over D-Bus would need a client library or a process, and
    # would wait for logind. They are small and in memory, and logind replaces them by rename.
    with calling(f'opendir("{directory}")'):
        names = os.listdir(directory) if os.path.exists(directory) else []
    # A name with anything but letters and digits is a session's pipe (ID.ref) or a file that is being written.
    opened = (_read_session(os.path.join(directory, name)) for name in sorted(names) if name.isalnum())
    yield from sorted((login for login in map(_login_of, opened) if login), key=lambda login: login.time)


def _login_of(session: dict[bytes, bytes]) -> Login | None:
    micros = session.get(b"REALTIME", b"")
    if session.get(b"CLASS") not in _PEOPLE or session.get(b"STATE") == b"closing" or not micros.isdigit():
        return None
    # logind quotes as os-release does: DOMAIN\user is written "DOMAIN\\user".
    return Login(unquote(session.get(b"USER", b"").decode(errors="replace")), int(micros) / 1e6)


def _read_session(path: str) -> dict[bytes, bytes]:
    text = read_or_none(path) or b""  # None: logged out meanwhile
    pairs = (line.partition(b"=") for line in text.split(b"\n"))
    return {key: value for key, _, value in pairs}
