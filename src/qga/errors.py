# SPDX-License-Identifier: Apache-2.0
"""Every exception of qga, and the one place where an OSError becomes text.

QgaError
├── CommandError        goes to the client: `error_class` and `desc` are the reply
│   └── CommandNotFound unknown, or not allowed now
├── ConfigError         an option, the configuration file or the state directory; the agent does not start
└── ChannelError        the path to the host cannot be opened or was lost

OSError
└── CallError           a failed system call, named as the C agent names it; the dispatcher makes the reply of it
"""

import os


class QgaError(Exception):
    """Base of all errors that qga raises on purpose."""


class CommandError(QgaError):
    """A failed request; the text is what the client reads as `desc`."""

    error_class = "GenericError"


class CommandNotFound(CommandError):
    """The command does not exist here, or is switched off."""

    error_class = "CommandNotFound"


class ConfigError(QgaError):
    """The agent cannot start as it was configured."""


class ChannelError(QgaError):
    """A channel cannot be opened, or broke."""


class CallError(OSError):
    """A failed system call on a named file; `call` reads like `open("/proc/stat")`."""

    def __init__(self, call: str, cause: OSError) -> None:
        super().__init__(cause.errno, cause.strerror)
        self.call = call


def strerror(exc: OSError) -> str:
    """The C library's English text for `exc`, without Python's decoration."""
    return os.strerror(exc.errno) if exc.errno is not None else str(exc)


def from_os(doing: str, exc: OSError) -> CommandError:
    """Turn a failed system call into a reply: `from_os("failed to seek file", exc)`."""
    return CommandError(f"{doing}: {strerror(exc)}")
