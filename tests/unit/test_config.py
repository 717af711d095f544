# SPDX-License-Identifier: Apache-2.0
"""The settings table: command line, configuration file, dump. What qemu-ga does is compared in tests/compat."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qga.config import DEFAULT_HOOK, SETTINGS, Config, UsageError, dump, load, usage
from qga.errors import ConfigError

NO_FILE = {"QGA_CONF": "/nonexistent/qga.conf"}


def options(*argv: str) -> Config:
    return load(list(argv), NO_FILE)


@pytest.fixture
def from_file(tmp_path):
    """Load a configuration file with the given text, and options."""

    def read(text: str | bytes, *argv: str) -> Config:
        path = tmp_path / "qga.conf"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load(["-c", str(path), *argv], {})

    return read


def test_without_options_and_file_the_defaults_hold():
    assert options() == Config()


def test_every_field_has_one_row_and_every_row_a_help_text():
    fields = [row.field for row in SETTINGS if row.key]
    assert sorted(fields) == sorted(set(Config._fields) - {"action"})
    assert all(row.help for row in SETTINGS)


def test_help_names_every_option_and_every_key():
    text = usage("agent")
    for row in SETTINGS:
        assert f"--{row.long}" in text if row.long else f"  {row.key}=" in text
        assert not row.short or f"-{row.short}," in text
    assert "--service install" in text
    assert max(map(len, text.splitlines())) < 80


@pytest.mark.parametrize(
    ("argv", "changed"),
    [
        (["-d"], {"daemon": True}),
        (["--verbose", "--retry-path"], {"verbose": True, "retry_path": True}),
        (["-vr"], {"verbose": True, "retry_path": True}),
        (["-p", "/x"], {"path": "/x"}),
        (["-p/x"], {"path": "/x"}),
        (["-vp", "/x"], {"path": "/x", "verbose": True}),
        (["-p", "-v"], {"path": "-v"}),
        (["--path", "/x"], {"path": "/x"}),
        (["--pa=/x"], {"path": "/x"}),
        (["--path="], {"path": ""}),
        (["-p", "/x", "-p", "/y"], {"path": "/y"}),
        (["-m", "isa-serial"], {"method": "isa-serial", "path": "/dev/ttyS0"}),
        (["-m", "stdio"], {"method": "stdio", "path": None}),
        (["-m", "unix-listen", "-p", "/s"], {"method": "unix-listen", "path": "/s"}),
        (["-F"], {"fsfreeze_hook": DEFAULT_HOOK}),
        (["-F", "/h"], {"fsfreeze_hook": DEFAULT_HOOK}),
        (["-F/h"], {"fsfreeze_hook": "/h"}),
        (["-vF/h"], {"fsfreeze_hook": "/h", "verbose": True}),
        (["--fsfreeze-hook=/h"], {"fsfreeze_hook": "/h"}),
        (["--f=/h"], {"fsfreeze_hook": "/h"}),
        (["-b", "a,b", "--block-rpcs=c"], {"block_rpcs": ("b", "a", "c")}),
        (["-a", "a, b"], {"allow_rpcs": (" b", "a")}),
        (["-b", ""], {}),
        (["-b", "a,help"], {"block_rpcs": ("help", "a")}),
        (["one", "-v", "two", "-"], {"verbose": True}),
        (["--", "-v"], {}),
        (["--freeze-timeout", "2.5"], {"freeze_timeout": 2.5}),
        (["--fr=0"], {}),
    ],
)
def test_options(argv, changed):
    assert options(*argv) == Config()._replace(**changed)


@pytest.mark.parametrize(
    ("argv", "action"),
    [
        (["-h"], "help"),
        (["-v", "--help", "--bogus"], "help"),
        (["-V", "-h"], "version"),
        (["-b", "help"], "list-commands"),
        (["-a?"], "list-commands"),
        (["-D"], "dump"),
        (["-D", "-V"], "version"),
    ],
)
def test_options_that_ask_for_something_else_than_running(argv, action):
    assert options(*argv).action == action


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["--bogus=1"], "unrecognized option '--bogus=1'"),
        (["-vx"], "invalid option -- 'x'"),
        (["-p"], "option requires an argument -- 'p'"),
        (["--path"], "option '--path' requires an argument"),
        (["--daem=1"], "option '--daemonize' doesn't allow an argument"),
        (["--ver"], "option '--ver' is ambiguous; possibilities: '--verbose' '--version'"),
        (["--blacklist=x"], "unrecognized option '--blacklist=x'"),
        (["--socket-mode=0600"], "unrecognized option '--socket-mode=0600'"),
    ],
)
def test_bad_options(argv, complaint):
    with pytest.raises(UsageError) as caught:
        options(*argv)
    assert str(caught.value) == complaint


@pytest.mark.parametrize("value", ["", "x", "-1", "1e3", "nan", "inf", "1_0", "٣", "31536001", "1.2.3", "."])
def test_a_time_that_is_none_is_refused(value):
    with pytest.raises(ConfigError, match=r"for --freeze-timeout, expected seconds from 0 to 31536000$"):
        options("--freeze-timeout", value)


@pytest.mark.parametrize("method", ["unix-listen", "vsock-listen", "bogus", ""])
def test_a_method_without_a_usual_path_needs_one(method):
    with pytest.raises(ConfigError, match=r"^must specify a path for this channel$"):
        options("-m", method)


def test_keys_of_the_file(from_file):
    config = from_file(
        "[general]\ndaemon=0\nmethod=unix-listen\npath=/s\nlogfile=/l\npidfile=/p\nfsfreeze-hook=/h\nstatedir=/t\n"
        "verbose=true\nretry-path=1\nblock-rpcs=a,b\nallow-rpcs=c\nsocket-mode=0660\nnew-file-mode=640\n"
        "command-timeout=0\nfreeze-timeout=90\nvsock-peers=2, 4294967295\n"
    )
    assert config == Config(
        method="unix-listen",
        path="/s",
        logfile="/l",
        pidfile="/p",
        fsfreeze_hook="/h",
        statedir="/t",
        verbose=True,
        retry_path=True,
        block_rpcs=("b", "a"),
        allow_rpcs=("c",),
        socket_mode=0o660,
        new_file_mode=0o640,
        command_timeout=0.0,
        freeze_timeout=90.0,
        vsock_peers=frozenset((2, 0xFFFFFFFF)),
    )


def test_the_command_line_wins_over_the_file_but_lists_add_up(from_file):
    config = from_file("[general]\npath=/a\nverbose=true\nblock-rpcs=a,b\n", "-p", "/b", "-b", "c,d")
    assert (config.path, config.verbose, config.block_rpcs) == ("/b", True, ("b", "a", "d", "c"))


def test_any_vsock_peer(from_file):
    assert from_file("[general]\nvsock-peers=any\n").vsock_peers is None


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("verbose=True", "line 2: bad value 'True' for verbose, expected true, false, 1 or 0"),
        ("daemon=", "line 2: bad value '' for daemon, expected true, false, 1 or 0"),
        ("socket-mode=0800", "line 2: bad value '0800' for socket-mode, expected an octal mode from 0 to 0777"),
        ("socket-mode=1777", "line 2: bad value '1777' for socket-mode, expected an octal mode from 0 to 0777"),
        ("new-file-mode=", "line 2: bad value '' for new-file-mode, expected an octal mode from 0 to 0777"),
        ("command-timeout=soon", "line 2: bad value 'soon' for command-timeout, expected seconds from 0 to 31536000"),
        (
            "vsock-peers=host",
            "line 2: bad value 'host' for vsock-peers, expected 'any' or context ids separated by commas",
        ),
        ("vsock-peers=4294967296", "line 2: bad value '4294967296' for vsock-peers, expected 'any' or context ids "),
        ("path=a\\qb", "line 2: a backslash in a value must be followed by one of s t n r \\ "),
        ("path=\\", "line 2: a backslash"),
        ("path=\udcff", "line 2: the value is not UTF-8"),
        ("path", "line 2: 'path' is not [group], key=value or # comment"),
        ("; path", "line 2: '; path' is not "),
        ("=x", "line 2: '=x' is not "),
        ("[a]b", "line 2: '[a]b' is not "),
        ("[a", "line 2: '[a' is not "),
        ("[]", "line 2: '[]' is not "),
        ("a[b=x", "line 2: 'a[b=x' is not "),
        ("a[b c]=x", "line 2: 'a[b c]=x' is not "),
        ("path=a\0b", "line 2: 'path=a\0b' is not "),
    ],
)
def test_a_bad_line_is_named_with_file_number_and_reason(from_file, tmp_path, line, reason):
    with pytest.raises(ConfigError) as caught:
        from_file(f"[general]\n{line}\n".encode(errors="surrogateescape"))
    assert str(caught.value).startswith(f"error loading configuration from path: {tmp_path}/qga.conf, {reason}")


def test_a_key_before_the_first_group_is_refused(from_file):
    with pytest.raises(ConfigError, match=r"line 2: there is no \[group\] before the first key$"):
        from_file("# comment\npath=/x\n[general]\n")


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("[general]\n  path \t= /a b \n", "/a b "),
        ("[general]\r\npath=/x\r\n", "/x"),
        ("[general]\npath=/without-newline", "/without-newline"),
        ("# c\n\n \t\n  # c\n [general] \npath=/x # no comment\n", "/x # no comment"),
        ("[general]\npath=/first\npath=/last\n", "/last"),
        ("[general]\npath=/x\n[other]\npath=/y\n[general]\nverbose=0\n", "/x"),
        ("[general]\npath=\\s\\t\\n\\r\\\\=\n", " \t\n\r\\="),
        ("[general]\npath=/ä;#\n", "/ä;#"),
        ("[general]\npath[de]=/y\npath=/x\npath[]=/z\n", "/x"),
        ("[general]\npa/th q=1\nunknown=\\q\npath=/x\n", "/x"),
        (b"[general]\nunknown=\xff\n\xff=1\npath=/x\n", "/x"),
        ("[General]\npath=/y\n[ general]\npath=/z\n[general]\nPath=/y\n", Config().path),
        ("", Config().path),
    ],
)
def test_what_a_file_may_look_like(from_file, text, path):
    assert from_file(text) == Config(path=path)


def test_a_file_named_by_option_must_be_a_regular_file(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path, reason in [
        ("none", "No such file or directory"),
        ("fifo", "Not a regular file"),
        (".", "Not a regular file"),
    ]:
        with pytest.raises(ConfigError, match=reason) as caught:
            load(["-c", str(tmp_path / path)], {})
        assert str(caught.value).startswith("error loading configuration from path: ")


def test_the_environment_names_a_file_that_may_be_absent_and_gives_way_to_the_option(tmp_path):
    (tmp_path / "a").write_text("[general]\nstatedir=/a\n")
    (tmp_path / "b").write_text("[general]\nstatedir=/b\n")
    environ = {"QGA_CONF": str(tmp_path / "a")}
    assert load([], environ).statedir == "/a"
    assert load(["-c", str(tmp_path / "b")], environ).statedir == "/b"
    assert load([], {"QGA_CONF": str(tmp_path / "c")}).statedir == Config().statedir
    with pytest.raises(ConfigError, match="Not a regular file"):
        load([], {"QGA_CONF": str(tmp_path)})


def test_the_dump_of_the_defaults_names_no_key_of_ours():
    assert dump(Config()) == (
        "[general]\ndaemon=false\nmethod=virtio-serial\npath=/dev/virtio-ports/org.qemu.guest_agent.0\n"
        "pidfile=/var/run/qemu-ga.pid\nstatedir=/var/run\nverbose=false\nretry-path=false\nblock-rpcs=\nallow-rpcs=\n"
    )


def test_a_daemon_has_absolute_paths_but_its_dump_is_what_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = ["-d", "-m", "unix-listen", "-p", "s", "-t", "state", "-f", "pid", "-l", "log", "-Fhook"]
    config = options(*argv)
    assert config[2:8] == ("unix-listen", *(f"{tmp_path}/{name}" for name in ("s", "log", "pid", "hook", "state")))
    assert "\npath=s\nlogfile=log\n" in dump(options(*argv, "-D"))
    assert options("-d", "-m", "vsock-listen", "-p", "3:1234").path == "3:1234"


ACTIVATION = """
import os, socket, sys
sock = socket.socket(getattr(socket, sys.argv[1]))
os.dup2(sock.fileno(), 3)
from qga.config import load
environ = {"LISTEN_PID": str(os.getpid() + int(sys.argv[2])), "LISTEN_FDS": "1", "QGA_CONF": "/nonexistent"}
config = load(["-m", "isa-serial"], environ)
print(config.method, config.path, socket.socket(fileno=3).family.name)
"""


@pytest.mark.parametrize(
    ("family", "pid_offset", "result"),
    [
        ("AF_UNIX", 0, "unix-listen None AF_UNIX"),
        ("AF_INET", 0, "isa-serial /dev/ttyS0 AF_INET"),
        ("AF_UNIX", 1, "isa-serial /dev/ttyS0 AF_UNIX"),
    ],
)
def test_a_socket_passed_by_systemd_decides_the_method_and_stays_open(family, pid_offset, result):
    argv = [sys.executable, "-c", ACTIVATION, family, str(pid_offset)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == result


def test_a_vsock_passed_by_systemd_decides_the_method():
    try:
        socket.socket(socket.AF_VSOCK).close()
    except OSError:
        pytest.skip("this kernel has no vsock")
    argv = [sys.executable, "-c", ACTIVATION, "AF_VSOCK", "0"]
    assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout == "vsock-listen None AF_VSOCK\n"


# A form feed at the front of a value is a blank, and the format has no escape for it: GLib loses it as well.
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0\f"))
NAMES = st.lists(TEXTS.filter(lambda text: text and "," not in text), max_size=4).map(tuple)
CONFIGS = st.builds(
    Config,
    action=st.just("dump"),
    daemon=st.booleans(),
    method=TEXTS,
    path=TEXTS,
    logfile=st.none() | TEXTS,
    pidfile=TEXTS,
    fsfreeze_hook=st.none() | TEXTS,
    statedir=TEXTS,
    verbose=st.booleans(),
    retry_path=st.booleans(),
    block_rpcs=NAMES,
    allow_rpcs=NAMES,
    socket_mode=st.integers(0, 0o777),
    new_file_mode=st.integers(0, 0o777),
    command_timeout=st.none()
    | st.integers(0, 10**9).map(lambda number: number / 1000).filter(lambda t: t <= 31_536_000),
    freeze_timeout=st.integers(0, 31_536_000).map(float),
    vsock_peers=st.none() | st.frozensets(st.integers(0, 0xFFFFFFFF), min_size=1),
)


@given(CONFIGS)
def test_a_dump_is_a_configuration_file_with_the_same_settings(tmp_path_factory, config):
    path: Path = tmp_path_factory.getbasetemp() / f"{os.getpid()}.conf"
    path.write_bytes(dump(config).encode())
    # Reading collects lists back to front, and a dump shows them as they were collected.
    expected = config._replace(block_rpcs=config.block_rpcs[::-1], allow_rpcs=config.allow_rpcs[::-1])
    assert load(["-D", "-c", str(path)], {}) == expected
