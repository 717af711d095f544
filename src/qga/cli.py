# SPDX-License-Identifier: Apache-2.0
"""The console script `qga`: the options of qemu-ga, and its exit statuses."""

import contextlib
import os
import signal
import sys

from ._version import PROTOCOL_LEVEL
from .config import Config, UsageError, dump, load, usage
from .errors import QgaError


def main(argv: list[str] | None = None) -> int:
    """Run the program; `argv` without its name. Returns the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["--service"]:
        from .provisioning import main as service_main  # only administrators need it

        return service_main(arguments[1:])
    _open_standard_streams()
    _shed_inheritance()
    # Nothing may be written while file systems are frozen, least of all by an import.
    sys.dont_write_bytecode = True
    try:
        return _act(load(arguments, os.environ))
    except UsageError as exc:
        print(f"{sys.argv[0]}: {exc}", file=sys.stderr)
        print(f"Unknown option, try '{sys.argv[0]} --help' for more information.")
    except QgaError as exc:
        print(exc, file=sys.stderr)
    return 1


def _open_standard_streams() -> None:
    # Started with one of them closed, a channel could become descriptor 2, and get what is meant for the log.
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


def _shed_inheritance() -> None:
    # What whoever started the agent ignores may include the end of children, and then nobody could wait for them.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # The programs that the agent starts get none of the descriptors that it was started with.
    for name in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        with contextlib.suppress(OSError):  # the listing itself is closed by now
            if int(name) > 2:
                os.set_inheritable(int(name), False)


def _act(config: Config) -> int:
    if config.action == "help":
        _print(usage(sys.argv[0]))
    elif config.action == "version":
        print(f"QEMU Guest Agent {PROTOCOL_LEVEL}")
    elif config.action == "dump":
        _print(dump(config))
    else:
        return _run(config)
    return 0


def _print(text: str) -> None:
    # Paths from the command line need not be UTF-8.
    sys.stdout.buffer.write(os.fsencode(text))


def _run(config: Config) -> int:
    from ._lean import import_event_loop

    import_event_loop()
    from . import service
    from .commands import REGISTRY

    if config.action == "list-commands":
        print("\n".join(REGISTRY))
        return 0
    return service.run(config)
