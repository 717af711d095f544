# SPDX-License-Identifier: Apache-2.0
"""The settings: one table feeds the command line, the configuration file, --dump-conf and --help.

The command line wins over the file, except that lists of both add up. Names, defaults and the order of the dump are
those of qemu-ga 10.2; rows marked `ours` exist in qga only and are dumped only when they are not at their default.
"""

import os
import socket
import stat
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple

from ._version import PROTOCOL_LEVEL
from .errors import ConfigError, strerror
from .keyfile import Entry, KeyFileError, escape, parse

DEFAULT_CONFIG: Final = "/etc/qemu/qemu-ga.conf"
DEFAULT_HOOK: Final = "/etc/qemu/fsfreeze-hook"
DEFAULT_PATHS: Final = {"virtio-serial": "/dev/virtio-ports/org.qemu.guest_agent.0", "isa-serial": "/dev/ttyS0"}
"""Device of each method that has a usual one."""

HOST_CID: Final = 2
"""The vsock context id of the host (linux/vm_sockets.h, VMADDR_CID_HOST)."""

SECONDS_MAX: Final = 31_536_000.0
"""One year: longer times are typing errors, and infinite ones would upset timers."""


class UsageError(ConfigError):
    """A bad option; the text is what getopt_long(3) says after the program's name."""


class Config(NamedTuple):
    """Effective settings; the defaults here are the program's."""

    action: Literal["run", "help", "version", "dump", "list-commands"] = "run"
    daemon: bool = False
    method: str = "virtio-serial"
    path: str | None = DEFAULT_PATHS["virtio-serial"]
    """Device, socket or CID:PORT; None for stdio and for a socket passed by systemd."""
    logfile: str | None = None
    """None for standard error."""
    pidfile: str = "/var/run/qemu-ga.pid"
    fsfreeze_hook: str | None = None
    """Program to run around a freeze, None for none."""
    statedir: str = "/var/run"
    verbose: bool = False
    retry_path: bool = False
    block_rpcs: tuple[str, ...] = ()
    allow_rpcs: tuple[str, ...] = ()
    """Empty means that every command is allowed."""
    socket_mode: int = 0o600
    new_file_mode: int = 0o666
    command_timeout: float | None = None
    """Seconds; None leaves each command its own, 0 means that none is ever given up."""
    freeze_timeout: float = 0.0
    """Seconds after which a freeze is undone, 0 for never."""
    vsock_peers: frozenset[int] | None = frozenset((HOST_CID,))
    """Context ids that may connect, None for any."""


class Kind(NamedTuple):
    """A type of setting. `read` raises ValueError that says what is expected; `write` gives what `read` takes."""

    argument: Literal["none", "optional", "required"]
    read: Callable[[str], Any]
    write: Callable[[Any], str]


class Setting(NamedTuple):
    """One row of the table: its key in the file and its options, each "" if it has none. `ours`: not in qemu-ga."""

    key: str
    long: str
    short: str
    kind: Kind
    help: str
    ours: bool = False

    @property
    def field(self) -> str:
        """The name of the member of Config."""
        return (self.key or self.long).replace("-", "_")


def _read_flag(text: str) -> bool:
    words = {"true": True, "1": True, "false": False, "0": False}
    if (word := text.rstrip(" \t\r\f")) not in words:
        raise ValueError("true, false, 1 or 0")
    return words[word]


def _read_list(text: str) -> tuple[str, ...]:
    # The C agent collects each list by putting items in front, which --dump-conf shows.
    return tuple(reversed(text.split(","))) if text else ()


def _read_seconds(text: str) -> float:
    digits = text.strip()
    if not (digits.isascii() and digits.replace(".", "", 1).isdigit() and float(digits) <= SECONDS_MAX):
        raise ValueError(f"seconds from 0 to {SECONDS_MAX:.0f}")
    return float(digits)


def _read_mode(text: str) -> int:
    digits = text.strip()
    if not digits or digits.strip("01234567") or len(digits) > 6 or int(digits, 8) > 0o777:
        raise ValueError("an octal mode from 0 to 0777")
    return int(digits, 8)


def _read_cids(text: str) -> frozenset[int] | None:
    if text.strip() == "any":
        return None
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() and len(word) <= 10 and int(word) < 1 << 32 for word in words):
        raise ValueError("'any' or context ids separated by commas")
    return frozenset(map(int, words))


def _write_cids(cids: frozenset[int] | None) -> str:
    return "any" if cids is None else ",".join(map(str, sorted(cids)))


FLAG: Final = Kind("none", _read_flag, lambda value: "true" if value else "false")
TEXT: Final = Kind("required", str, escape)
HOOK: Final = Kind("optional", str, escape)
LIST: Final = Kind("required", _read_list, lambda items: escape(",".join(items)))
SECONDS: Final = Kind("required", _read_seconds, lambda value: f"{value:.6f}".rstrip("0").rstrip("."))
MODE: Final = Kind("required", _read_mode, lambda value: f"{value:04o}")
CIDS: Final = Kind("required", _read_cids, _write_cids)

SETTINGS: Final = (
    Setting("daemon", "daemonize", "d", FLAG, "run in the background"),
    Setting("method", "method", "m", TEXT, "virtio-serial (default), isa-serial, unix-listen, vsock-listen or stdio"),
    Setting(
        "path",
        "path",
        "p",
        TEXT,
        "device, socket or CID:PORT to serve (default for virtio-serial "
        f"{DEFAULT_PATHS['virtio-serial']}, for isa-serial {DEFAULT_PATHS['isa-serial']})",
    ),
    Setting("logfile", "logfile", "l", TEXT, "file to append the log to (default standard error)"),
    Setting("pidfile", "pidfile", "f", TEXT, f"file for the process id of a daemon (default {Config().pidfile})"),
    Setting(
        "fsfreeze-hook",
        "fsfreeze-hook",
        "F",
        HOOK,
        "run a program with the argument freeze before file systems are frozen and thaw after they are thawed; a path "
        f"has to follow without a blank, as in -F/path (default {DEFAULT_HOOK})",
    ),
    Setting("statedir", "statedir", "t", TEXT, f"directory that keeps state (default {Config().statedir})"),
    Setting("verbose", "verbose", "v", FLAG, "log everything, not only errors"),
    Setting("retry-path", "retry-path", "r", FLAG, "open the device again when it is missing or lost"),
    Setting("block-rpcs", "block-rpcs", "b", LIST, "comma-separated commands to refuse; 'help' lists all commands"),
    Setting("allow-rpcs", "allow-rpcs", "a", LIST, "comma-separated commands, the only ones allowed; 'help' lists all"),
    Setting("socket-mode", "", "", MODE, "permissions of the socket of unix-listen (default 0600)", ours=True),
    Setting("new-file-mode", "", "", MODE, "permissions of files that clients create (default 0666)", ours=True),
    Setting(
        "command-timeout",
        "",
        "",
        SECONDS,
        "seconds after which a command is given up, 0 for never (default 30 for queries; what may take long never is)",
        ours=True,
    ),
    Setting(
        "freeze-timeout",
        "freeze-timeout",
        "",
        SECONDS,
        "seconds after which frozen file systems are thawed by the agent itself (default 0, never)",
        ours=True,
    ),
    Setting("vsock-peers", "", "", CIDS, "context ids that may connect, or any (default 2, the host)", ours=True),
    Setting("", "config", "c", TEXT, f"configuration file (default $QGA_CONF, else {DEFAULT_CONFIG})"),
    Setting("", "dump-conf", "D", FLAG, "print the effective settings as a configuration file and exit"),
    Setting("", "version", "V", FLAG, "print the protocol level and exit"),
    Setting("", "help", "h", FLAG, "print this text and exit"),
)
"""Every setting, in the order of --dump-conf, then what exists on the command line only."""

_LONG: Final = {row.long: row for row in SETTINGS if row.long}
_SHORT: Final = {row.short: row for row in SETTINGS if row.short}
_KEYS: Final = {row.key: row for row in SETTINGS if row.key}

Given = tuple[Setting, str | None]
"""An option and its argument."""


def load(argv: list[str], environ: Mapping[str, str]) -> Config:
    """The effective settings for the command line `argv` (without the program's name).

    UsageError for a bad option, ConfigError for a bad value, an unusable configuration file, or a method without path.
    """
    given: list[Given] = []
    misuse = None
    try:
        given.extend(_options(argv))
    except UsageError as exc:
        misuse = exc
    # As in qemu-ga, even --help wants a configuration file that can be read.
    values = _from_file(given, environ)
    for setting, argument in given:
        if setting.long in ("help", "version"):
            return Config(action=setting.long)  # type: ignore[arg-type]
        if setting.kind is LIST and argument in ("help", "?"):
            return Config(action="list-commands")
        _store(values, setting, _read_argument(setting, argument))
    if misuse:
        raise misuse
    return _settle(values, environ)


def dump(config: Config) -> str:
    """The settings as the text of a configuration file."""
    lines = ["[general]"]
    for key, setting in _KEYS.items():
        value = getattr(config, setting.field)
        if value != Config._field_defaults[setting.field] if setting.ours else value is not None:
            lines.append(f"{key}={setting.kind.write(value)}")
    return "\n".join(lines) + "\n"


def usage(argv0: str) -> str:
    """The text of --help."""
    import textwrap  # only --help needs it

    lines = [f"Usage: {argv0} [-m METHOD -p PATH] [OPTION]...", f"       {argv0} --service install|uninstall|status"]
    lines += [f"QEMU guest agent, level {PROTOCOL_LEVEL}.", ""]
    only_keys = [row for row in SETTINGS if not row.long]
    for row in [*_LONG.values(), *only_keys]:
        if row is only_keys[0]:
            lines += ["", "Keys of the configuration file without an option:"]
        argument = {"none": "", "optional": "[=PATH]", "required": "=VALUE"}[row.kind.argument]
        option = f"{f'-{row.short},' if row.short else '   '} --{row.long}"
        lines.append(f"  {option if row.long else row.key}{argument}")
        lines += textwrap.wrap(row.help, 79, initial_indent=" " * 8, subsequent_indent=" " * 8)
    return "\n".join(lines) + "\n"


def _options(argv: list[str]) -> Iterator[Given]:
    """What getopt_long(3) finds in `argv`; positional arguments are passed over. UsageError at the first bad option."""
    rest = iter(argv)
    for word in rest:
        if word == "--":
            return
        if word.startswith("--"):
            yield _long_option(word, rest)
        elif word.startswith("-"):
            yield from _short_options(word[1:], rest)


def _long_option(word: str, rest: Iterator[str]) -> Given:
    name, equals, argument = word[2:].partition("=")
    setting = _LONG.get(name) or _by_prefix(name, word)
    if equals and setting.kind.argument == "none":
        raise UsageError(f"option '--{setting.long}' doesn't allow an argument")
    if equals or setting.kind.argument != "required":
        return setting, argument if equals else None
    if (following := next(rest, None)) is None:
        raise UsageError(f"option '--{setting.long}' requires an argument")
    return setting, following


def _by_prefix(prefix: str, word: str) -> Setting:
    found = [setting for name, setting in _LONG.items() if name.startswith(prefix)]
    # An option of ours does not make ambiguous what qemu-ga understands.
    found = [setting for setting in found if not setting.ours] or found
    if not found:
        raise UsageError(f"unrecognized option '{word}'")
    if len(found) > 1:
        possibilities = " ".join(f"'--{setting.long}'" for setting in found)
        raise UsageError(f"option '{word}' is ambiguous; possibilities: {possibilities}")
    return found[0]


def _short_options(letters: str, rest: Iterator[str]) -> Iterator[Given]:
    while letters:
        letter, letters = letters[0], letters[1:]
        if (setting := _SHORT.get(letter)) is None:
            raise UsageError(f"invalid option -- '{letter}'")
        if setting.kind.argument == "none":
            yield setting, None
            continue
        argument = letters or (next(rest, None) if setting.kind.argument == "required" else None)
        if argument is None and setting.kind.argument == "required":
            raise UsageError(f"option requires an argument -- '{letter}'")
        yield setting, argument
        return


def _read_argument(setting: Setting, argument: str | None) -> Any:
    if argument is None:
        return DEFAULT_HOOK if setting.kind is HOOK else True
    try:
        return setting.kind.read(argument)
    except ValueError as exc:
        raise ConfigError(f"bad value '{argument}' for --{setting.long}, expected {exc}") from exc


def _from_file(given: list[Given], environ: Mapping[str, str]) -> dict[str, Any]:
    explicit = [argument for setting, argument in given if setting.long == "config"]
    path = explicit[-1] if explicit else environ.get("QGA_CONF", DEFAULT_CONFIG)
    assert path is not None
    values: dict[str, Any] = {}
    try:
        for key, entry in parse(_read_regular(path)).get("general", {}).items():
            if setting := _KEYS.get(key):
                _store(values, setting, _read_entry(setting, entry))
    except FileNotFoundError as exc:
        if explicit:
            raise _bad_file(path, strerror(exc)) from exc
    except OSError as exc:
        raise _bad_file(path, strerror(exc)) from exc
    except KeyFileError as exc:
        raise _bad_file(path, str(exc)) from exc
    return values


def _bad_file(path: str, reason: str) -> ConfigError:
    return ConfigError(f"error loading configuration from path: {path}, {reason}")


def _read_regular(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO must not hang the start
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise _bad_file(path, "Not a regular file")
        with open(fd, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(fd)


def _read_entry(setting: Setting, entry: Entry) -> Any:
    text = entry.text()
    try:
        return setting.kind.read(text)
    except ValueError as exc:
        entry.fail(f"bad value '{text}' for {setting.key}, expected {exc}")


def _store(values: dict[str, Any], setting: Setting, value: Any) -> None:
    values[setting.field] = values.get(setting.field, ()) + value if setting.kind is LIST else value


def _settle(values: dict[str, Any], environ: Mapping[str, str]) -> Config:
    """Fill in what depends on other settings, and on a socket that systemd passed."""
    dumping = values.pop("dump_conf", False)
    values.pop("config", None)
    if activated := _activated_method(environ):
        values.update(method=activated, path=None)
    elif "path" not in values:
        method = values.get("method", Config().method)
        values["path"] = DEFAULT_PATHS.get(method)
        if method not in DEFAULT_PATHS and method != "stdio":
            raise ConfigError("must specify a path for this channel")
    config = Config(action="dump" if dumping else "run", **values)
    return _absolute(config) if config.daemon and not dumping else config


def _activated_method(environ: Mapping[str, str]) -> str | None:
    """The method for the one socket passed by systemd (sd_listen_fds(3)); whoever takes it over reports what is bad."""
    if environ.get("LISTEN_PID") != str(os.getpid()) or environ.get("LISTEN_FDS") != "1":
        return None
    try:
        passed = socket.socket(fileno=3)
    except OSError:
        return None
    family = passed.family
    passed.detach()
    return {socket.AF_UNIX: "unix-listen", socket.AF_VSOCK: "vsock-listen"}.get(family)


def _absolute(config: Config) -> Config:
    """`config` with paths that still hold after a change of directory."""
    fields = ["pidfile", "statedir", "logfile", "fsfreeze_hook", *(["path"] if config.method != "vsock-listen" else [])]
    paths = {field: getattr(config, field) for field in fields}
    return config._replace(**{field: os.path.abspath(path) for field, path in paths.items() if path})
