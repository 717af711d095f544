# SPDX-License-Identifier: Apache-2.0
"""The state file: the number that the next file handle gets, kept across restarts of the agent."""

import os
from typing import Final

from ..errors import ConfigError
from ..keyfile import KeyFileError, parse
from ..limits import FIRST_HANDLE

_NAME: Final = "qga.state"
_INT32_MAX: Final = (1 << 31) - 1


def read(statedir: str) -> int:
    """The recorded number; FIRST_HANDLE if none is recorded yet, 0 if what is recorded is not a number below 2**31.

    ConfigError if the file is no key file, OSError if it cannot be read. The C agent reads a negative number as it is
    and then gives out handles that are taken for errors.
    """
    path = os.path.join(statedir, _NAME)
    try:
        with open(path, "rb") as file:
            entry = parse(file.read()).get("global", {}).get("fd_counter")
    except FileNotFoundError:
        return FIRST_HANDLE
    except KeyFileError as exc:
        raise ConfigError(f"error loading persistent state from path: {path}, {exc}") from exc
    return FIRST_HANDLE if entry is None else _number(entry.raw)


def write(statedir: str, counter: int) -> None:
    """Record `counter`; the file has the old or the new content, whenever the machine stops. OSError."""
    path = os.path.join(statedir, _NAME)
    fresh = f"{path}.{os.getpid()}"
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        with open(fd, "wb") as file:
            file.write(b"[global]\nfd_counter=%d\n" % counter)
            file.flush()
            os.fsync(fd)
        os.rename(fresh, path)
    except OSError:
        os.unlink(fresh)
        raise


def _number(value: bytes) -> int:
    digits = value.split(maxsplit=1)[0].removeprefix(b"+") if value.split() else b""
    return int(digits) if digits.isdigit() and len(digits) < 20 and int(digits) <= _INT32_MAX else 0
