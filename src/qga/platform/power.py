# SPDX-License-Identifier: Apache-2.0
"""Shutting down and suspending, through the programs that the guest has for it.

Sources: systemctl(1), pm-is-supported(1), Linux Documentation/admin-guide/pm/sleep-states.rst.
"""

import os
from collections.abc import Iterator
from typing import Literal, NamedTuple

from ..errors import CommandError, from_os
from . import proc
from .run import exit_status, run

Suspend = Literal["disk", "ram", "hybrid"]

STATE = "/sys/power/state"


class _Programs(NamedTuple):
    direct: str
    flag: str
    """The option of shutdown(8) that means the same."""


SHUTDOWN_MODES: dict[str, _Programs] = {
    "halt": _Programs("halt", "-H"),
    "powerdown": _Programs("poweroff", "-P"),
    "reboot": _Programs("reboot", "-r"),
}


class _Names(NamedTuple):
    unit: str
    verb: str
    pm: str
    pm_flag: str
    word: str | None
    """What is written to /sys/power/state, None if the kernel has no word for it."""


_SUSPEND: dict[str, _Names] = {
    "disk": _Names("systemd-hibernate", "hibernate", "pm-hibernate", "--hibernate", "disk"),
    "ram": _Names("systemd-suspend", "suspend", "pm-suspend", "--suspend", "mem"),
    "hybrid": _Names("systemd-hybrid-sleep", "hybrid-sleep", "pm-suspend-hybrid", "--suspend-hybrid", None),
}


def shut_down(mode: str, directory: str = "/sbin") -> None:
    """Run the guest's own program for one of SHUTDOWN_MODES, found in `directory`; CommandError if it fails."""
    programs = SHUTDOWN_MODES[mode]
    direct = f"{directory}/{programs.direct}"
    if os.access(direct, os.X_OK):
        run([direct], "shutdown")
    else:
        run([f"{directory}/shutdown", "-h", programs.flag, "+0", "hypervisor initiated shutdown"], "shutdown")


def suspend(mode: Suspend, state: str = STATE) -> None:
    """Suspend through systemd, else pm-utils, else the kernel; returns after the wake-up. CommandError if none can.

    A way that claims to support the mode and then fails is followed by the next one.
    """
    names = _SUSPEND[mode]
    failure = "the requested suspend mode is not supported by the guest"
    for argv in _supported(names):
        status = exit_status(argv)
        if status == 0:
            return
        failure = f"failed to suspend: '{' '.join(argv)}' ended with status {status}"
    if names.word is None or names.word not in _words(state):
        raise CommandError(failure)
    try:
        _write(state, names.word)
    except OSError as exc:
        raise from_os(f"suspend: cannot write to '{state}'", exc) from exc


def _supported(names: _Names) -> Iterator[list[str]]:
    # systemctl says 1 to 3 for a unit that exists and does not run, 4 for one that does not exist.
    if exit_status(["systemctl", "status", names.unit]) in (1, 2, 3):
        yield ["systemctl", names.verb]
    if exit_status(["pm-is-supported", names.pm_flag]) == 0:
        yield [names.pm]


def _words(state: str) -> list[str]:
    try:
        return proc.read(state).decode(errors="replace").split()
    except OSError:
        return []


def _write(state: str, word: str) -> None:
    fd = os.open(state, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, word.encode())
    finally:
        os.close(fd)
