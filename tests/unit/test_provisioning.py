# SPDX-License-Identifier: Apache-2.0
"""`qga --service`: what it writes below a root directory, what it leaves alone, and what the hook script does."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qga import provisioning
from qga.provisioning import HOOK_DIRECTORY, command_line, device_unit, main

UNIT = "etc/systemd/system/qga.service"
RULE = "etc/udev/rules.d/99-qga.rules"
CONFIG = "etc/qemu/qemu-ga.conf"
HOOK = "etc/qemu/qga-fsfreeze-hook"
ALL = [UNIT, RULE, CONFIG, HOOK]


def tree(root: Path) -> dict[str, bytes]:
    """All files below `root`."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def service(action: str, root: Path, *options: str) -> int:
    return main([action, "--root", str(root), *options])


def test_install_writes_the_four_files_and_the_hook_directory(tmp_path: Path) -> None:
    assert service("install", tmp_path) == 0
    assert sorted(tree(tmp_path)) == sorted(ALL)
    assert (tmp_path / HOOK_DIRECTORY[1:]).is_dir()
    modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ALL}
    assert modes == {UNIT: 0o644, RULE: 0o644, CONFIG: 0o644, HOOK: 0o755}


def test_modes_do_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        service("install", tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / HOOK).stat().st_mode) == 0o755


def test_unit_is_bound_to_the_port_and_excludes_the_c_agent(tmp_path: Path) -> None:
    service("install", tmp_path)
    lines = (tmp_path / UNIT).read_text().splitlines()
    assert r"BindsTo=dev-virtio\x2dports-org.qemu.guest_agent.0.device" in lines
    assert "Type=notify" in lines
    assert "Restart=always" in lines
    assert "Conflicts=qemu-guest-agent.service" in lines
    assert r"After=dev-virtio\x2dports-org.qemu.guest_agent.0.device qemu-guest-agent.service" in lines


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze (Debian: systemd)")
def test_unit_is_one_that_systemd_understands(tmp_path: Path) -> None:
    service("install", tmp_path)
    found = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(tmp_path / UNIT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert [line for line in found.stderr.splitlines() if "qga.service" in line] == []


def test_rule_starts_the_unit_for_the_agents_port_only(tmp_path: Path) -> None:
    service("install", tmp_path)
    (rule,) = [line for line in (tmp_path / RULE).read_text().splitlines() if not line.startswith("#")]
    assert rule.split(", ") == [
        'SUBSYSTEM=="virtio-ports"',
        'ATTR{name}=="org.qemu.guest_agent.0"',
        'TAG+="systemd"',
        'ENV{SYSTEMD_WANTS}="qga.service"',
    ]


def test_installed_configuration_is_valid_and_names_the_hook(tmp_path: Path) -> None:
    service("install", tmp_path)
    command = [sys.executable, "-m", "qga", "--config", str(tmp_path / CONFIG), "--dump-conf"]
    dumped = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "fsfreeze-hook=/etc/qemu/qga-fsfreeze-hook" in dumped.splitlines()


def test_second_install_changes_nothing(tmp_path: Path) -> None:
    service("install", tmp_path)
    before = {path: (tmp_path / path).stat() for path in ALL}
    assert service("install", tmp_path) == 0
    assert {path: (tmp_path / path).stat() for path in ALL} == before


@pytest.mark.parametrize("name", ALL)
def test_edited_file_survives_install_and_uninstall(tmp_path: Path, name: str) -> None:
    service("install", tmp_path)
    path = tmp_path / name
    edited = path.read_bytes().replace(b"#", b"# mine:", 1)
    path.write_bytes(edited)
    assert service("install", tmp_path) == 0
    assert path.read_bytes() == edited
    hook = {HOOK: (tmp_path / HOOK).read_bytes()} if name == CONFIG else {}
    assert service("uninstall", tmp_path) == 0
    assert tree(tmp_path) == hook | {name: edited}, "a configuration that stays still has its hook"


@pytest.mark.parametrize("content", [b"", b"\n", b"[general]\nverbose=true\n", b"\xff\xfe", b"# qga: unedited 0\n"])
def test_file_of_somebody_else_is_never_touched(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / CONFIG
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    service("install", tmp_path)
    assert path.read_bytes() == content
    service("uninstall", tmp_path)
    assert tree(tmp_path) == {CONFIG: content}


@pytest.mark.parametrize(
    ("path", "text", "note"),
    [
        (CONFIG, "[general]\nverbose=true\n", "names no fsfreeze-hook"),
        (
            "etc/sysconfig/qemu-ga",
            '# Options\nFILTER_RPC_ARGS="--allow-rpcs=guest-ping"\n',
            "their place is",
        ),
        ("etc/default/qemu-guest-agent", "DAEMON_ARGS='-v'\n", "their place is"),
        ("etc/qemu-ga/fsfreeze-hook.d/db.sh", "", "will not run"),
    ],
)
def test_install_tells_what_it_does_not_take_over(
    path: str, text: str, note: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(text)
    service("install", tmp_path)
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note ")]
    assert len(told) == 2
    assert note in told[0]
    assert str(tmp_path / sys.executable[1:]) in told[1]


@pytest.mark.parametrize("text", ["", "# BLACKLIST_RPC=x\n", 'DAEMON_ARGS=""\n', "DAEMON_ARGS=\n"])
def test_install_is_silent_about_options_that_are_not_set(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "etc/default").mkdir(parents=True)
    (tmp_path / "etc/default/qemu-guest-agent").write_text(text)
    service("install", tmp_path)
    assert "qemu-guest-agent" not in capsys.readouterr().out


def test_unedited_file_of_another_version_is_replaced(tmp_path: Path) -> None:
    service("install", tmp_path)
    current = (tmp_path / UNIT).read_bytes()
    (tmp_path / UNIT).write_text(provisioning.stamp("[Service]\nExecStart=/old/bin/qga\n"))
    service("install", tmp_path)
    assert (tmp_path / UNIT).read_bytes() == current


def test_configuration_of_another_version_is_kept_until_uninstall(tmp_path: Path) -> None:
    path = tmp_path / CONFIG
    path.parent.mkdir(parents=True)
    path.write_text(provisioning.stamp("[general]\n"))
    before = path.read_bytes()
    service("install", tmp_path)
    assert path.read_bytes() == before
    service("uninstall", tmp_path)
    assert tree(tmp_path) == {}


def test_uninstall_removes_everything_it_made(tmp_path: Path) -> None:
    service("install", tmp_path)
    assert service("uninstall", tmp_path) == 0
    assert tree(tmp_path) == {}
    assert not (tmp_path / HOOK_DIRECTORY[1:]).exists()


def test_uninstall_keeps_hook_programs(tmp_path: Path) -> None:
    service("install", tmp_path)
    (tmp_path / HOOK_DIRECTORY[1:] / "database").write_text("#!/bin/sh\n")
    service("uninstall", tmp_path)
    assert list(tree(tmp_path)) == [f"{HOOK_DIRECTORY[1:]}/database"]


@pytest.mark.parametrize("action", ["install", "uninstall"])
def test_dry_run_names_every_file_and_does_nothing(
    tmp_path: Path, action: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if action == "uninstall":
        service("install", tmp_path)
    before = tree(tmp_path)
    capsys.readouterr()
    assert service(action, tmp_path, "--dry-run") == 0
    assert tree(tmp_path) == before
    told = capsys.readouterr().out
    assert all(str(tmp_path / path) in told for path in ALL)


def test_status_tells_missing_installed_and_edited(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert service("status", tmp_path) == 4
    service("install", tmp_path)
    (tmp_path / RULE).write_text("# mine\n")
    capsys.readouterr()
    assert service("status", tmp_path) == 3
    told = capsys.readouterr().out.splitlines()
    assert f"{tmp_path / UNIT}: installed" in told
    assert f"{tmp_path / RULE}: changed by the administrator" in told


def test_unwritable_root_is_an_error_that_names_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "etc").write_text("a file where a directory is wanted")
    assert service("install", tmp_path) == 1
    assert capsys.readouterr().err == f"qga: {tmp_path / UNIT}: Not a directory\n"


@pytest.mark.parametrize("arguments", [[], ["start"], ["install", "now"], ["install", "--quick"]])
def test_unknown_arguments_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2


def test_unit_starts_the_script_that_was_called(tmp_path: Path) -> None:
    script = tmp_path / "bin" / "qga"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    assert command_line(str(script)) == f"{sys.executable} -B {script}"


def test_unit_starts_the_module_when_no_script_was_called() -> None:
    assert command_line("/usr/lib/python3/dist-packages/qga/__main__.py") == f"{sys.executable} -B -m qga"


def test_path_that_systemd_would_expand_is_refused(tmp_path: Path) -> None:
    script = tmp_path / "100% $HOME" / "qga"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    with pytest.raises(ValueError, match="cannot stand in a unit file"):
        command_line(str(script))


@pytest.mark.skipif(not shutil.which("systemd-escape"), reason="needs systemd-escape (Debian: systemd)")
@pytest.mark.parametrize("path", ["/dev/virtio-ports/org.qemu.guest_agent.0", "/dev/ttyS0", "/dev/a b/é-1"])
def test_device_unit_is_named_as_systemd_does(path: str) -> None:
    command = ["systemd-escape", "--path", "--suffix=device", path]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == device_unit(path)


class Hooks:
    """The installed dispatcher, with programs of its own."""

    def __init__(self, root: Path) -> None:
        service("install", root)
        self.script = root / HOOK
        self.directory = root / HOOK_DIRECTORY[1:]
        self.calls = root / "calls"
        self.log = root / "log"

    def add(self, name: str, body: str = "", mode: int = 0o755) -> None:
        path = self.directory / name
        path.write_text(f'#!/bin/sh\necho "{name} $1" >>"{self.calls}"\n{body}\n')
        path.chmod(mode)

    def run(self, word: str, log: Path | None = None) -> int:
        env = {**os.environ, "FSFREEZE_HOOK_LOG": str(log or self.log)}
        return subprocess.run([self.script, word], env=env, check=False, stderr=subprocess.DEVNULL).returncode

    def called(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []


@pytest.fixture
def hooks(tmp_path: Path) -> Hooks:
    return Hooks(tmp_path)


@pytest.mark.parametrize("word", ["freeze", "thaw"])
def test_hook_runs_every_program_by_name(hooks: Hooks, word: str) -> None:
    for name in ("20-web", "10-database", "30 with blanks"):
        hooks.add(name)
    assert hooks.run(word) == 0
    assert hooks.called() == [f"10-database {word}", f"20-web {word}", f"30 with blanks {word}"]


def test_hook_skips_what_is_not_executable_and_leftovers(hooks: Hooks) -> None:
    hooks.add("README", mode=0o644)
    (hooks.directory / "subdirectory").mkdir()
    for suffix in ("~", ".bak", ".orig", ".sample", ".rpmnew", ".rpmsave", ".dpkg-old", ".dpkg-dist", ".dpkg-remove"):
        hooks.add("10-database" + suffix)
    hooks.run("freeze")
    assert hooks.called() == []


def test_hook_without_directory_or_programs_succeeds(hooks: Hooks) -> None:
    assert hooks.run("freeze") == 0
    hooks.directory.rmdir()
    assert hooks.run("freeze") == 0


def test_failing_program_is_logged_and_stops_nothing(hooks: Hooks) -> None:
    hooks.add("10-fails", "echo to stdout; echo to stderr >&2; exit 7")
    hooks.add("20-works")
    assert hooks.run("freeze") == 0
    assert hooks.called() == ["10-fails freeze", "20-works freeze"]
    log = hooks.log.read_text()
    assert "to stdout\nto stderr\n" in log
    assert "10-fails freeze ended with status 7\n" in log
    assert "20-works freeze ended with status 0\n" in log


def test_program_that_leaves_another_one_behind_holds_nothing_up(hooks: Hooks) -> None:
    """As a database's lock is held from the freeze to the thaw."""
    hooks.add("10-database", f'sleep 60 & echo $! >"{hooks.calls}.pid"')
    for log in (hooks.log, hooks.directory / "missing" / "log"):
        began = time.monotonic()
        done = subprocess.run(
            [hooks.script, "freeze"],
            env={**os.environ, "FSFREEZE_HOOK_LOG": str(log)},
            capture_output=True,
            timeout=30,
            check=False,
        )
        os.kill(int(Path(f"{hooks.calls}.pid").read_text()), signal.SIGKILL)
        assert done.returncode == 0
        assert time.monotonic() - began < 10


def test_hook_runs_programs_even_if_nothing_can_be_logged(hooks: Hooks) -> None:
    hooks.add("10-database")
    assert hooks.run("freeze", log=hooks.directory / "missing" / "log") == 0
    assert hooks.called() == ["10-database freeze"]
