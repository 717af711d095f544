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
    """One row of the table. `ours`: not in qemu-ga. `option`, `key`: whether the command line and the file have it."""

    name: str
    kind: Kind
    help: str
    short: str = ""
    option: bool = True
    key: bool = True
    ours: bool = False

    @property
    def field(self) -> str:
        """The name of the member of Config."""
        return self.name.replace("-", "_")


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
    Setting("daemon", FLAG, "", option=False),
    Setting("daemonize", FLAG, "run in the background", "d", key=False),
    Setting("method", TEXT, "virtio-serial (default), isa-serial, unix-listen, vsock-listen or stdio", "m"),
    Setting(
        "path",
        TEXT,
        "device, socket or CID:PORT to serve (default for virtio-serial "
        f"{DEFAULT_PATHS['virtio-serial']}, for isa-serial {DEFAULT_PATHS['isa-serial']})",
        "p",
    ),
    Setting("logfile", TEXT, "file to append the log to (default standard error)", "l"),
    Setting("pidfile", TEXT, f"file for the process id with --daemonize (default {Config().pidfile})", "f"),
    Setting(
        "fsfreeze-hook",
        HOOK,
        "run a program with the argument freeze before file systems are frozen and thaw after they are thawed; a path "
        f"has to follow without a blank, as in -F/path (default {DEFAULT_HOOK})",
        "F",
    ),
    Setting("statedir", TEXT, f"directory that keeps state across restarts (default {Config().statedir})", "t"),
    Setting("verbose", FLAG, "log everything, not only errors", "v"),
    Setting("retry-path", FLAG, "open the device again, every few seconds, when it is missing or lost", "r"),
    Setting("block-rpcs", LIST, "comma-separated commands to refuse; 'help' lists all commands", "b"),
    Setting("allow-rpcs", LIST, "comma-separated commands, all others are refused; 'help' lists all commands", "a"),
    Setting("socket-mode", MODE, "", option=False, ours=True),
    Setting("new-file-mode", MODE, "", option=False, ours=True),
    Setting("command-timeout", SECONDS, "", option=False, ours=True),
    Setting("freeze-timeout", SECONDS, "thaw by itself after so many seconds (default 0: never)", ours=True),
    Setting("vsock-peers", CIDS, "", option=False, ours=True),
    Setting("config", TEXT, f"configuration file (default $QGA_CONF, else {DEFAULT_CONFIG})", "c", key=False),
    Setting("dump-conf", FLAG, "print the effective settings as a configuration file and exit", "D", key=False),
    Setting("version", FLAG, "print the protocol level and exit", "V", key=False),
    Setting("help", FLAG, "print this text and exit", "h", key=False),
)
"""Every setting, in the order of --dump-conf, then what exists on the command line only."""

_OPTIONS: Final = {row.name: row for row in SETTINGS if row.option}
_SHORT: Final = {row.short: row for row in SETTINGS if row.short}
_KEYS: Final = {row.name: row for row in SETTINGS if row.key}

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
        if setting.name in ("help", "version"):
            return Config(action=setting.name)  # type: ignore[arg-type]
        if setting.kind is LIST and argument in ("help", "?"):
            return Config(action="list-commands")
        _store(values, setting, _read_argument(setting, argument))
    if misuse:
        raise misuse
    return _settle(values, environ)


def dump(config: Config) -> str:
    """The settings as the text of a configuration file."""
    lines = ["[general]"]
    for setting in _KEYS.values():
        value = getattr(config, setting.field)
        if value != Config._field_defaults[setting.field] if setting.ours else value is not None:
            lines.append(f"{setting.name}={setting.kind.write(value)}")
    return "\n".join(lines) + "\n"


def usage(argv0: str) -> str:
    """The text of --help."""
    import textwrap  # only --help needs it

    lines = [f"Usage: {argv0} [-m METHOD -p PATH] [OPTION]...", f"QEMU guest agent, protocol level {PROTOCOL_LEVEL}.", ""]
    for setting in _OPTIONS.values():
        argument = {"none": "", "optional": "[=PATH]", "required": "=VALUE"}[setting.kind.argument]
        lines.append(f"  {f'-{setting.short},' if setting.short else '   '} --{setting.name}{argument}")
        lines.extend(textwrap.wrap(setting.help, 79, initial_indent=" " * 8, subsequent_indent=" " * 8))
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
    setting = _OPTIONS.get(name) or _by_prefix(name, word)
    if equals and setting.kind.argument == "none":
        raise UsageError(f"option '--{setting.name}' doesn't allow an argument")
    if equals or setting.kind.argument != "required":
        return setting, argument if equals else None
    if (following := next(rest, None)) is None:
        raise UsageError(f"option '--{setting.name}' requires an argument")
    return setting, following


def _by_prefix(prefix: str, word: str) -> Setting:
    found = [setting for name, setting in _OPTIONS.items() if name.startswith(prefix)]
    # An option of ours does not make ambiguous what qemu-ga understands.
    found = [setting for setting in found if not setting.ours] or found
    if not found:
        raise UsageError(f"unrecognized option '{word}'")
    if len(found) > 1:
        possibilities = " ".join(f"'--{setting.name}'" for setting in found)
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
        raise ConfigError(f"bad value '{argument}' for --{setting.name}, expected {exc}") from exc


def _from_file(given: list[Given], environ: Mapping[str, str]) -> dict[str, Any]:
    explicit = [argument for setting, argument in given if setting.name == "config"]
    path = explicit[-1] if explicit else environ.get("QGA_CONF", DEFAULT_CONFIG)
    assert path is not None
    values: dict[str, Any] = {}
    try:
        for name, entry in parse(_read_regular(path)).get("general", {}).items():
            if setting := _KEYS.get(name):
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
    # Without O_NONBLOCK a FIFO would hang the start.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise _bad_file(path, "Not a regular file")
        return file.read()


def _read_entry(setting: Setting, entry: Entry) -> Any:
    text = entry.text()
    try:
        return setting.kind.read(text)
    except ValueError as exc:
        entry.fail(f"bad value '{text}' for {setting.name}, expected {exc}")


def _store(values: dict[str, Any], setting: Setting, value: Any) -> None:
    field = "daemon" if setting.name == "daemonize" else setting.field
    values[field] = values.get(field, ()) + value if setting.kind is LIST else value


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
