# SPDX-License-Identifier: Apache-2.0
"""Shutdown and suspend, with scripts in place of the system's programs: this machine has to stay up."""

from __future__ import annotations

from pathlib import Path

import pytest

from qga.errors import CommandError
from qga.platform import power


class Programs:
    """A directory with scripts that note how they were called."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._calls = directory / "calls"

    def add(self, name: str, body: str = "exit 0") -> None:
        program = self.directory / name
        program.write_text(f'#!/bin/sh\necho "{name} $*" >> {self._calls}\n{body}\n')
        program.chmod(0o755)

    @property
    def calls(self) -> list[str]:
        return [line.strip() for line in self._calls.read_text().splitlines()] if self._calls.exists() else []


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """The only programs that PATH leads to."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    return Programs(directory)


@pytest.mark.parametrize(("mode", "name"), [("powerdown", "poweroff"), ("halt", "halt"), ("reboot", "reboot")])
def test_program_of_its_own_is_preferred(mode: str, name: str, programs: Programs) -> None:
    programs.add(name)
    programs.add("shutdown")
    power.shut_down(mode, str(programs.directory))
    assert programs.calls == [name]


@pytest.mark.parametrize(("mode", "flag"), [("powerdown", "-P"), ("halt", "-H"), ("reboot", "-r")])
def test_shutdown_does_it_otherwise(mode: str, flag: str, programs: Programs) -> None:
    programs.add("shutdown")
    power.shut_down(mode, str(programs.directory))
    assert programs.calls == [f"shutdown -h {flag} +0 hypervisor initiated shutdown"]


def test_failing_program_is_told(programs: Programs) -> None:
    programs.add("poweroff", "echo busy; exit 1")
    with pytest.raises(CommandError, match="child process has failed to shutdown: busy\n"):
        power.shut_down("powerdown", str(programs.directory))


@pytest.mark.parametrize(("mode", "verb"), [("disk", "hibernate"), ("ram", "suspend"), ("hybrid", "hybrid-sleep")])
def test_systemd_is_asked_first(mode: power.Suspend, verb: str, programs: Programs, tmp_path: Path) -> None:
    programs.add("systemctl", '[ "$1" = status ] && exit 3; exit 0')
    programs.add("pm-is-supported")
    power.suspend(mode, str(tmp_path / "state"))
    assert programs.calls[-1] == f"systemctl {verb}"


@pytest.mark.parametrize(
    ("mode", "program"), [("disk", "pm-hibernate"), ("ram", "pm-suspend"), ("hybrid", "pm-suspend-hybrid")]
)
def test_pm_utils_follow_a_systemd_that_fails(
    mode: power.Suspend, program: str, programs: Programs, tmp_path: Path
) -> None:
    programs.add("systemctl", '[ "$1" = status ] && exit 3; exit 1')
    programs.add("pm-is-supported")
    programs.add(program)
    power.suspend(mode, str(tmp_path / "state"))
    assert programs.calls[-1] == program


@pytest.mark.parametrize("answer", [0, 4])
def test_systemd_without_the_unit_is_not_told_to_suspend(answer: int, programs: Programs, tmp_path: Path) -> None:
    programs.add("systemctl", f"exit {answer}")
    with pytest.raises(CommandError, match="not supported by the guest"):
        power.suspend("ram", str(tmp_path / "state"))
    assert programs.calls == ["systemctl status systemd-suspend"]


@pytest.mark.parametrize(("mode", "word"), [("disk", "disk"), ("ram", "mem")])
def test_kernel_is_the_last_resort(mode: power.Suspend, word: str, programs: Programs, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.write_text("freeze mem disk\n")
    power.suspend(mode, str(state))
    assert state.read_text().startswith(word)


def test_kernel_has_no_hybrid(programs: Programs, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("freeze mem disk\n")
    with pytest.raises(CommandError, match="the requested suspend mode is not supported by the guest"):
        power.suspend("hybrid", str(tmp_path / "state"))


def test_suspend_that_fails_everywhere_says_so(programs: Programs, tmp_path: Path) -> None:
    programs.add("systemctl", '[ "$1" = status ] && exit 3; exit 5')
    with pytest.raises(CommandError, match="'systemctl suspend' ended with status 5"):
        power.suspend("ram", str(tmp_path / "state"))
