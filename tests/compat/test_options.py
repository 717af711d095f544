# SPDX-License-Identifier: Apache-2.0
"""The command line, the configuration file and the start, compared with qemu-ga's, program by program.

An installed reference may be old: what 7.2 does otherwise (no -a and -c, --blacklist, lists of file and options
doubled, status 0 for some failed starts) is left out of the comparison for it, and for it only.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from qga.config import UsageError, dump, load
from qga.errors import ConfigError
from tests.agents import NO_QEMU_GA, QEMU_GA, QGA, AgentProcess

pytestmark = pytest.mark.skipif(QEMU_GA is None, reason=NO_QEMU_GA)

NOWHERE = "/nonexistent/qga"
# The reference deletes the pid file when it is told to dump with -d, so it must not be the machine's.
DUMP = ["-D", "-f", NOWHERE]


class Outcome(NamedTuple):
    status: int
    stdout: str
    complaints: list[str]
    """Lines of standard error without what differs by nature: time, program, repetitions, order of possibilities."""


def run(program: list[str], *argv: str, conf: str | Path = NOWHERE, cwd: Path | None = None) -> Outcome:
    done = subprocess.run(
        [*program, *argv],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        cwd=cwd,
        env={**os.environ, "QGA_CONF": str(conf), "LC_ALL": "C.UTF-8"},
        timeout=20,
        check=False,
    )
    stdout = re.sub(r"try '.*? --help'", "try 'PROGRAM --help'", os.fsdecode(done.stdout))
    return Outcome(done.returncode, stdout, complaints(os.fsdecode(done.stderr)))


def complaints(stderr: str) -> list[str]:
    found = []
    for line in filter(None, stderr.splitlines()):
        text = re.sub(
            r"^(\*\* \(process:\d+\): CRITICAL \*\*: [\d:.]+|\d+\.\d+: critical|\S+(?=: .*option)): ", "", line
        )
        text = re.sub(r"possibilities: (.*)", lambda match: " ".join(sorted(match[1].split())), text)
        if text not in found:
            found.append(text)
    return found


def reference(*argv: str, **kwargs) -> Outcome:
    assert QEMU_GA
    return run([QEMU_GA], *argv, **kwargs)


def qga(*argv: str, **kwargs) -> Outcome:
    return run(QGA, *argv, **kwargs)


@pytest.fixture(scope="session")
def level() -> tuple[int, ...]:
    """The reference's version."""
    return tuple(map(int, re.findall(r"\d+", reference("-V").stdout)))


@pytest.fixture(scope="session")
def is_old(level) -> bool:
    return level < (8,)


def comparable(stdout: str, is_old: bool) -> str:
    if not is_old:
        return stdout
    stdout = re.sub(r"(?m)^allow-rpcs=.*\n", "", stdout)
    return re.sub(r"(?m)^block-rpcs=(.*)", lambda match: f"block-rpcs={sorted(set(match[1].split(',')))}", stdout)


def needs_level_8(argv: list[str]) -> bool:
    return any(re.match(r"-c|-a|--c|--a|--blacklist", word) for word in argv)


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["-d"],
        ["-dvr"],
        ["-m", "isa-serial"],
        ["-m", "unix-listen", "-p", "/x"],
        ["-m", "bogus", "-p", "/x"],
        ["-m", "unix-listen"],
        ["-m", "vsock-listen"],
        ["-m", ""],
        ["--method=vsock-listen", "--path=3:9999"],
        ["-p", ""],
        ["-p", " a b "],
        ["-l", "\ta\tb\nc\\d\re"],
        ["-l", ""],
        ["-l", os.fsdecode(b"/\xff")],
        ["-p/a", "-p", "/b"],
        ["-F"],
        ["-F", "/h"],
        ["-F/h"],
        ["-vF/h"],
        ["-F/h", "-F"],
        ["--fsfreeze-hook=/h"],
        ["--fsfreeze-hook", "/h"],
        ["--f"],
        ["--fs="],
        ["-t", "relative"],
        ["-b", "a,b", "-b", "c"],
        ["-b", ""],
        ["-b", "a,,b, c,"],
        ["-b", ","],
        ["-b", "a b;c\\d"],
        ["-b", "a,help"],
        ["-a", "a,b", "--allow=c", "-b", "d"],
        ["word", "-v", "other", "-"],
        ["--", "-v", "--bogus"],
        ["--verb", "--retry", "--pid", NOWHERE],
        ["-V"],
        ["-c", NOWHERE],
        ["-c", "/dev/null"],
        ["-c", "/"],
        ["-c", ""],
        ["-c", NOWHERE, "-h"],
        ["--bogus"],
        ["--bogus=1"],
        ["-x"],
        ["-vx"],
        ["-p"],
        ["--path"],
        ["--p", "/x"],
        ["--ver"],
        ["--verbose="],
        ["--daemon=1"],
        ["--blacklist=a"],
        ["-v", "--bogus", "-h"],
    ],
    ids=" ".join,
)
def test_options_are_understood_alike(argv, is_old):
    if is_old and needs_level_8(argv):
        pytest.skip("the reference has neither -a nor -c, and still --blacklist")
    theirs, ours = reference(*DUMP, *argv), qga(*DUMP, *argv)
    if argv == ["-V"]:
        assert re.sub(r"\d+\.\d+\.\d+", "10.2.0", theirs.stdout) == ours.stdout == "QEMU Guest Agent 10.2.0\n"
    else:
        assert comparable(ours.stdout, is_old) == comparable(theirs.stdout, is_old)
    assert (ours.status, ours.complaints) == (theirs.status, theirs.complaints)


def test_help_comes_on_standard_output_and_names_the_same_options():
    theirs, ours = reference("-h"), qga("-h")
    assert (theirs.status, ours.status) == (0, 0)
    assert (theirs.complaints, ours.complaints) == ([], [])
    options = re.compile(r"^  (-\w), +(--[\w-]+)", re.MULTILINE)
    missing = set(options.findall(theirs.stdout)) - set(options.findall(ours.stdout))
    assert not missing


@pytest.mark.parametrize("argv", [["-b", "help"], ["-b", "?"], ["-bhelp"], ["-v", "-b", "help", "--bogus"]])
def test_the_list_of_commands_holds_those_of_the_reference(argv, level):
    theirs, ours = reference(*argv), qga(*argv)
    assert (theirs.status, ours.status) == (0, 0)
    wanted, found = theirs.stdout.split(), ours.stdout.split()
    assert len(found) == len(set(found))
    assert set(wanted) - {"guest-get-devices"} - set(found) == set()  # for Windows; 7.2 lists it everywhere
    if level >= (10,):
        extensions = {name for name in found if not name.startswith("guest-")}
        assert set(found) - extensions - set(wanted) == set()


WORD_LIST = """
    -d -v -r -vr -F -F/h --fsfreeze-hook --fsfreeze-hook= --f=/h -p -p/x --path=/y --pa --p -m unix-listen isa-serial
    bogus -b -bc a,b a,,c --block --block-rpcs=d help ? -l log --log=x -t rel --state word -- - --verbose --verb --ver
    --verbose=1 -x -vx -vp --bogus --retry -V
"""
WORDS = st.sampled_from([*WORD_LIST.split(), ""])


def ours_in_process(argv: list[str], conf: str) -> tuple[int, str | None]:
    """Exit status and output of -D; the output is None where another test compares it."""
    try:
        config = load(argv, {"QGA_CONF": conf})
    except UsageError:
        return 1, "Unknown option, try 'PROGRAM --help' for more information.\n"
    except ConfigError:
        return 1, ""
    return 0, dump(config) if config.action == "dump" else None


@settings(max_examples=100, deadline=None)
@given(st.lists(WORDS, max_size=8))
@example(["-p", "-p", "-b", "-b", "-v"])
def test_any_mix_of_options_is_understood_alike(is_old, argv):
    theirs = reference(*DUMP, *argv)
    # It parses twice, and the first time moves a word to where the second time takes it for a missing argument.
    assume("requires an argument" not in str(theirs.complaints) or theirs.stdout.startswith("Unknown option"))
    status, stdout = ours_in_process([*DUMP, *argv], NOWHERE)
    assert status == theirs.status
    assert stdout is None or comparable(stdout, is_old) == comparable(theirs.stdout, is_old)


KEYS = "daemon method path logfile pidfile fsfreeze-hook statedir verbose retry-path block-rpcs allow-rpcs unknown a[b"
BLANKS = st.text(" \t", max_size=2)
TEXTS = st.text("ab/,;#=[] \t\\snrt\rä", max_size=6)
VALUE_LIST = r"true false 1 0 yes True /x unix-listen isa-serial a,b\s\t\n \q"
VALUES = TEXTS | st.sampled_from(VALUE_LIST.split())
SETTING_LINES = st.tuples(BLANKS, st.sampled_from(KEYS.split()), BLANKS, st.just("="), BLANKS, VALUES).map("".join)
GROUP_LINES = st.sampled_from(["[general]", "[general] ", " [general]", "[general]\r", "[other]", "[general", "[]"])
LINES = SETTING_LINES | SETTING_LINES | SETTING_LINES | GROUP_LINES | st.sampled_from(["", "# c", " #", ";"]) | TEXTS


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["[general]\n", ""]), st.lists(LINES, max_size=6), st.sampled_from(["\n", ""]))
@example("[general]\n", ["verbose = true \r", "path=\\s /x \\\\", "path[de]=/y", "block-rpcs=a,, b,"], "\n")
@example("[general]\n", ["path=a=b # c", "", "[other]", "path=/y", "[general]", "logfile=\\t \\n"], "")
def test_any_configuration_file_is_understood_alike(tmp_path_factory, is_old, head, lines, tail):
    path = tmp_path_factory.getbasetemp() / f"{os.getpid()}.conf"
    path.write_bytes((head + "\n".join(lines) + tail).encode())
    theirs = reference(*DUMP, conf=path)
    assume(theirs.status in (0, 1))  # it crashes on a list with an unknown escape
    status, stdout = ours_in_process(DUMP, str(path))
    assert (status, comparable(stdout or "", is_old)) == (theirs.status, comparable(theirs.stdout, is_old))


@pytest.mark.parametrize("line", ["verbose=yes", "daemon=", "path=\\q", "nonsense", "[", "=1", "method=\udcff"])
def test_a_bad_configuration_file_is_fatal_and_named(tmp_path, line):
    path = tmp_path / "qga.conf"
    path.write_bytes(os.fsencode(f"[general]\n{line}\n"))
    theirs, ours = reference(*DUMP, conf=path), qga(*DUMP, conf=path)
    for outcome in (theirs, ours):
        assert (outcome.status, outcome.stdout) == (1, "")
        assert len(outcome.complaints) == 1
        assert outcome.complaints[0].startswith(f"error loading configuration from path: {path}, ")
    assert f"{path}, line 2: " in ours.complaints[0]


@pytest.mark.parametrize("name", [".", "missing", "qga.conf"])
def test_the_file_of_the_environment(tmp_path, name):
    (tmp_path / "qga.conf").write_text("[general]\nverbose=true\nblock-rpcs=a,b\nfsfreeze-hook=/h\n")
    theirs, ours = (program(*DUMP, conf=tmp_path / name) for program in (reference, qga))
    assert (ours.status, ours.complaints) == (theirs.status, theirs.complaints)
    assert ours.stdout.replace("allow-rpcs=\n", "") == theirs.stdout.replace("allow-rpcs=\n", "")


def test_options_win_over_the_file_and_lists_add_up(tmp_path, is_old):
    (tmp_path / "qga.conf").write_text("[general]\npath=/a\nblock-rpcs=a,b\nlogfile=/l\nverbose=true\n")
    argv = [*DUMP, "-p", "/b", "-b", "c,d", "-b", "e"]
    theirs, ours = (program(*argv, conf=tmp_path / "qga.conf") for program in (reference, qga))
    assert comparable(ours.stdout, is_old) == comparable(theirs.stdout, is_old)
    assert "path=/b\n" in ours.stdout
    assert "block-rpcs=b,a,d,c,e\n" in ours.stdout


@pytest.mark.parametrize(
    "argv",
    [
        ["-m", "bogus", "-p", "/x"],
        ["-p", NOWHERE],
        ["-m", "isa-serial", "-p", NOWHERE],
        ["-m", "unix-listen", "-p", f"{NOWHERE}/s"],
        ["-m", "unix-listen", "-p", "x" * 200],
        ["-m", "vsock-listen", "-p", "nonsense"],
        ["-m", "vsock-listen", "-p", "x:1"],
        ["-m", "vsock-listen", "-p", "1:x"],
        ["-m", "vsock-listen", "-p", "1:2:3"],
        ["-m", "unix-listen", "-p", "s", "-l", f"{NOWHERE}/log"],
    ],
    ids=" ".join,
)
def test_a_start_that_fails_says_why_and_leaves_nothing(tmp_path, argv, level):
    (ours_dir := tmp_path / "qga").mkdir()
    (theirs_dir := tmp_path / "reference").mkdir()
    theirs = reference("-t", str(theirs_dir), *argv, cwd=theirs_dir)
    ours = qga("-t", str(ours_dir), *argv, cwd=ours_dir)
    assert ours.complaints == theirs.complaints[:1]
    assert ours.status == 1
    if level >= (10,):
        assert theirs.status == 1
    assert set(os.listdir(ours_dir)) <= {"qga.state"}


def test_a_missing_state_directory_prevents_the_start_and_is_not_created(tmp_path):
    state = tmp_path / "state"
    outcome = qga("-m", "unix-listen", "-p", "s", "-t", str(state), cwd=tmp_path)
    assert outcome.status == 1
    assert str(state) in outcome.complaints[0]
    assert outcome.complaints[0].endswith("No such file or directory")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "first"),
    [
        (None, 1000),
        ("", 1000),
        ("[other]\nfd_counter=5\n", 1000),
        ("[global]\nfd_counter = 5 \n", 5),
        ("#\n[global]\nx=1\nfd_counter=5 x\n", 5),
        ("[global]\nfd_counter=5x\n", 0),
        ("[global]\nfd_counter=2147483648\n", 0),
    ],
)
def test_handles_go_on_from_the_state_file(tmp_path, content, first):
    assert QEMU_GA
    for name, program in (("qga", QGA), ("reference", [QEMU_GA])):
        (state := tmp_path / name / "state").mkdir(parents=True)
        if content is not None:
            (state / "qga.state").write_text(content)
        with AgentProcess(program, tmp_path / name) as agent, agent.connect() as client:
            assert client.ok("guest-file-open", path="/etc/passwd") == first, name
            recorded = re.fullmatch(r"(?s).*fd_counter=(\d+)\n", (state / "qga.state").read_text())
            assert recorded, name
            assert int(recorded[1]) > first, name


def test_a_state_file_of_another_kind_prevents_the_start(tmp_path, level):
    (tmp_path / "qga.state").write_text("garbage\n")
    argv = ["-m", "unix-listen", "-p", "s", "-t", str(tmp_path)]
    theirs, ours = reference(*argv, cwd=tmp_path), qga(*argv, cwd=tmp_path)
    wanted = f"error loading persistent state from path: {tmp_path}/qga.state, "
    assert theirs.complaints[0].startswith(wanted)
    assert ours.complaints[0].startswith(wanted + "line 1: ")
    assert ours.status == 1
    if level >= (10,):
        assert theirs.status == 1
    assert (tmp_path / "qga.state").read_text() == "garbage\n"


class Daemon(NamedTuple):
    pid: int
    directory: Path

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGTERM)
        wait_for(lambda: not Path(f"/proc/{self.pid}").exists())


def wait_for(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def start_daemon(tmp_path):
    """Start a program with -d in a directory of its own; all are stopped at the end."""
    started: list[Daemon] = []

    def start(program: list[str], name: str) -> Daemon:
        (directory := tmp_path / name).mkdir()
        argv = ["-d", "-m", "unix-listen", "-p", f"{directory}/s", "-t", str(directory), "-f", f"{directory}/pid"]
        outcome = run(program, *argv, cwd=directory)
        assert outcome == (0, "", [])
        if program != QGA:  # the reference's parent does not wait for it
            wait_for(lambda: (directory / "pid").exists() and (directory / "pid").read_text())
        started.append(Daemon(int((directory / "pid").read_text()), directory))
        return started[-1]

    yield start
    for daemon in started:
        if Path(f"/proc/{daemon.pid}").exists():
            daemon.stop()


def surroundings(daemon: Daemon) -> dict[str, object]:
    proc = Path(f"/proc/{daemon.pid}")
    umask = re.search(r"Umask:\s+(\d+)", (proc / "status").read_text())
    session = (proc / "stat").read_text().rpartition(")")[2].split()[3]
    return {
        "directory": os.readlink(proc / "cwd"),
        "umask": umask and umask[1],
        "leads its session": int(session) == daemon.pid,
        "streams": [os.readlink(proc / "fd" / str(fd)) for fd in (0, 1, 2)],
        "pid file": (daemon.directory / "pid").read_text() == f"{daemon.pid}\n",
        "mode of the pid file": oct((daemon.directory / "pid").stat().st_mode),
        "mode of the state file": oct((daemon.directory / "qga.state").stat().st_mode),
    }


def test_a_daemon_finds_itself_in_the_same_surroundings(start_daemon, is_old):
    assert QEMU_GA
    theirs, ours = start_daemon([QEMU_GA], "reference"), start_daemon(QGA, "qga")
    expected, found = surroundings(theirs), surroundings(ours)
    if is_old:  # it makes the state file after the fork, with the daemon's umask
        expected["mode of the state file"] = found["mode of the state file"]
    assert found == expected
    for daemon in (theirs, ours):
        daemon.stop()
        assert not (daemon.directory / "pid").exists()


@pytest.mark.parametrize("holder", ["qga", "reference"])
def test_a_second_daemon_with_the_same_pid_file_fails_and_leaves_the_first_alone(start_daemon, tmp_path, holder):
    assert QEMU_GA
    daemon = start_daemon(QGA if holder == "qga" else [QEMU_GA], holder)
    pid_file = daemon.directory / "pid"
    argv = ["-d", "-m", "unix-listen", "-p", f"{tmp_path}/second", "-t", str(tmp_path), "-f", str(pid_file)]
    outcome = qga(*argv)
    assert outcome == (1, "", ["Cannot lock pid file: Resource temporarily unavailable"])
    assert pid_file.read_text() == f"{daemon.pid}\n"
    assert not (tmp_path / "second").exists()


def test_a_pid_file_that_cannot_be_made_is_an_error_that_the_caller_sees(tmp_path):
    argv = ["-d", "-m", "unix-listen", "-p", f"{tmp_path}/s", "-t", str(tmp_path), "-f", f"{NOWHERE}/pid"]
    theirs = reference(*argv)
    (tmp_path / "s").unlink(missing_ok=True)
    assert qga(*argv) == (1, "", theirs.complaints)
    assert not (tmp_path / "s").exists()


def test_in_the_foreground_there_is_no_pid_file(tmp_path):
    with AgentProcess(QGA, tmp_path, "-f", str(tmp_path / "pid")) as agent, agent.connect() as client:
        assert client.ok("guest-ping") == {}
        assert not (tmp_path / "pid").exists()
