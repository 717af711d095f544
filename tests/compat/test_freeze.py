# SPDX-License-Identifier: Apache-2.0
"""guest-fsfreeze-* and guest-fstrim: the same requests to qga and qemu-ga, each with file systems of its own."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.agents import NO_QEMU_GA, QEMU_GA, QGA, AgentProcess, Client
from tests.loopdev import World, freeze_lock, is_frozen

pytestmark = [pytest.mark.root, pytest.mark.skipif(QEMU_GA is None, reason=NO_QEMU_GA)]

EXT4_SHUTDOWN = 0x8004587D
HOOK_FAILURES = ("child process has ", "fsfreeze hook has ", "can't access fsfreeze hook ")
LISTS = [
    ["/mnt/a"], ["/mnt/b", "/mnt/b"], ["/mnt/a/"], ["/mnt/again"], ["/none"], ["/none", "/mnt/a"], [], [""], ["mnt/a"],
    ["/mnt/a", "/mnt/b", "/mnt/c d"], ["/mnt/c d"], ["/mnt/c\\040d"], ["/mnt//a"], ["/"],
]  # fmt: skip


def reference_is_old() -> bool:
    """Whether qemu-ga has other error texts, lists each mount of a device, and heeds the block list while frozen."""
    version = subprocess.run([str(QEMU_GA), "-V"], check=True, capture_output=True, text=True).stdout
    return int(version.split()[3].split(".")[0]) < 10


OLD = QEMU_GA is not None and reference_is_old()


class Side:
    """One agent in a world of its own, and what was seen of it."""

    def __init__(self, argv: list[str], world: World) -> None:
        self.argv = argv
        self.world = world
        self.transcript: list[str] = []
        self._agent: AgentProcess | None = None
        self._client: Client | None = None

    def start(self, *options: str) -> None:
        """Start the agent, after killing the one before."""
        self.kill()
        self._agent = self.world.agent(self.argv, *options)
        self._client = self._agent.connect()

    def kill(self) -> None:
        """Kill the agent, whatever is frozen."""
        if self._agent is not None and self._client is not None:
            self._client.close()
            self._agent.process.kill()
            self._agent.process.wait()

    @property
    def state(self) -> Path:
        assert self._agent is not None
        return self._agent.directory / "state"

    def ask(self, execute: str, **arguments: Any) -> Any:
        """Send a request and note the reply; the value of `return`, None after an error."""
        assert self._client is not None
        reply = self._client.call(execute, **arguments)
        error = reply.get("error", {})
        if OLD and " has been disabled" in error.get("desc", ""):
            error["desc"] = "disabled"
        if OLD and error.get("desc", "").startswith(HOOK_FAILURES):
            error["desc"] = "hook failed"
        self.note(f"{execute} {arguments}", sorted(reply.items()))
        return reply.get("return")

    def note(self, what: str, seen: Any) -> None:
        """Make something a part of what is compared."""
        self.transcript.append(f"{what}: {seen}".replace(str(self.world.shared), "SHARED"))

    def look(self, *mountpoints: str) -> None:
        """Note what is frozen, and whether there is a mark."""
        for mountpoint in mountpoints:
            self.note(f"{mountpoint} is frozen", is_frozen(self.world.path(mountpoint)))
        marks = [(path.name, oct(path.stat().st_mode)) for path in self.state.glob("*frozen*")]
        self.note("marks", marks)

    def hook(self, body: str) -> str:
        """Install a freeze hook that notes what it is called with; returns the option for it."""
        hook = self.world.shared / "hook"
        hook.write_text(f'#!/bin/sh\necho "$# $1" >>{self.world.shared}/calls\n{body}\n')
        hook.chmod(0o755)
        return f"-F{hook}"

    def calls(self) -> str:
        """What the hook was called with."""
        record = self.world.shared / "calls"
        return record.read_text() if record.exists() else ""


Scenario = Callable[[Side], object]


@contextmanager
def side(argv: list[str], directory: Path) -> Iterator[Side]:
    directory.mkdir()
    with World(directory) as world:
        entered = Side(argv, world)
        try:
            yield entered
        finally:
            world.thaw()
            entered.kill()


def play(directory: Path, scenario: Scenario) -> tuple[list[str], list[str]]:
    """The transcripts of qga and qemu-ga."""
    transcripts = []
    with freeze_lock():
        for name, argv in (("ours", QGA), ("theirs", [str(QEMU_GA)])):
            with side(argv, directory / name) as played:
                scenario(played)
                transcripts.append(played.transcript)
    return transcripts[0], transcripts[1]


def compare(directory: Path, scenario: Scenario) -> None:
    """Play the scenario to both agents; they have to do the same."""
    ours, theirs = play(directory, scenario)
    assert ours
    assert ours == theirs


def test_freeze_and_thaw(tmp_path: Path) -> None:
    def scenario(side: Side) -> None:
        for kind in ("ext4", "xfs", "btrfs"):
            side.world.add(kind, f"/mnt/{kind}")
        places = ["/mnt/ext4", "/mnt/xfs", "/mnt/btrfs"]
        side.start("-b", "guest-get-time" if OLD else "guest-get-time,guest-ping")
        for name in ("status", "thaw", "freeze", "status", "freeze", "freeze-list"):
            side.ask(f"guest-fsfreeze-{name}")
            side.look(*places)
        for name in ("guest-ping", "guest-get-time", "guest-exec", "guest-fstrim", "guest-nonsense"):
            side.ask(name)
        info = side.ask("guest-info")
        side.transcript.pop()
        side.note("enabled", sorted(entry["name"] for entry in info["supported_commands"] if entry["enabled"]))
        for name in ("thaw", "status", "thaw", "freeze", "thaw"):
            side.ask(f"guest-fsfreeze-{name}")
            side.look(*places)
        side.ask("guest-ping")

    compare(tmp_path, scenario)


def test_lists(tmp_path: Path) -> None:
    def scenario(side: Side) -> None:
        device = side.world.add("ext4", "/mnt/a")
        side.world.add("ext4", "/mnt/b")
        side.world.add("ext4", "/mnt/c d")
        side.world.mount(device, "/mnt/again")
        side.start()
        for names in LISTS:
            if "/mnt/again" in names and OLD:
                continue
            side.ask("guest-fsfreeze-freeze-list", mountpoints=names)
            side.ask("guest-fsfreeze-status")
            side.look("/mnt/a", "/mnt/b", "/mnt/c d")
            side.ask("guest-fsfreeze-thaw")
        for bad in ("/mnt/a", [1], None, {}, ["/mnt/a", None]):
            side.ask("guest-fsfreeze-freeze-list", mountpoints=bad)
        side.ask("guest-fsfreeze-freeze-list", mountpoint=["/mnt/a"])
        side.ask("guest-fsfreeze-freeze", mountpoints=["/mnt/a"])
        side.ask("guest-fsfreeze-freeze-list")
        side.ask("guest-fsfreeze-thaw", force=True)
        side.ask("guest-fsfreeze-thaw")

    compare(tmp_path, scenario)


def test_what_others_have_frozen(tmp_path: Path) -> None:
    def scenario(side: Side) -> None:
        side.world.add("ext4", "/mnt/a")
        side.world.add("ext4", "/mnt/b")
        side.start()
        side.world.run("fsfreeze", "--freeze", "/mnt/a")
        side.ask("guest-fsfreeze-status")
        side.ask("guest-fsfreeze-freeze")
        side.ask("guest-fsfreeze-thaw")
        side.look("/mnt/a", "/mnt/b")
        side.world.run("fsfreeze", "--freeze", "/mnt/a")
        side.ask("guest-fsfreeze-thaw")
        side.world.run("fsfreeze", "--freeze", "/mnt/a")
        side.ask("guest-fsfreeze-freeze-list", mountpoints=["/mnt/a"])
        side.ask("guest-fsfreeze-status")
        side.ask("guest-fsfreeze-thaw")
        side.ask("guest-fsfreeze-freeze")
        side.world.run("fsfreeze", "--unfreeze", "/mnt/b")
        side.ask("guest-fsfreeze-thaw")

    compare(tmp_path, scenario)


def test_mount_points_that_cannot_be_frozen(tmp_path: Path) -> None:
    def scenario(side: Side) -> None:
        side.world.add("ext4", "/mnt/a")
        side.world.add("ext4", "/mnt/b")
        side.world.mount("tmpfs", "/mnt/b", "-t", "tmpfs")
        side.start()
        side.ask("guest-fsfreeze-freeze")
        side.ask("guest-fsfreeze-thaw")

    compare(tmp_path, scenario)


def test_failures_undo_the_freeze(tmp_path: Path) -> None:
    def scenario(side: Side) -> None:
        side.world.add("ext4", "/mnt/broken")
        side.world.add("ext4", "/mnt/good")
        fd = os.open(side.world.path("/mnt/broken"), os.O_RDONLY)
        fcntl.ioctl(fd, EXT4_SHUTDOWN, struct.pack("I", 1))
        os.close(fd)
        side.world.add("ext4", "/mnt/other")
        side.world.run("fsfreeze", "--freeze", "/mnt/other")
        side.start(side.hook(""))
        side.ask("guest-fsfreeze-freeze")
        side.ask("guest-fsfreeze-status")
        side.look("/mnt/good", "/mnt/other")
        side.note("calls", side.calls())
        side.world.umount("/mnt/broken")
        side.world.add("ext4", "/mnt/hidden/below")
        side.world.mount("tmpfs", "/mnt/hidden", "-t", "tmpfs")
        side.ask("guest-fsfreeze-freeze")
        side.ask("guest-fsfreeze-status")
        side.look("/mnt/good")
        side.note("calls", side.calls())

    compare(tmp_path, scenario)


@pytest.mark.parametrize(
    "body",
    [
        "",
        "echo out; echo err >&2",
        '[ "$1" = thaw ]',
        '[ "$1" = freeze ]',
        "echo no; exit 9",
        "kill -9 $$",
        "echo x; kill $$",
    ],
)
def test_hooks(tmp_path: Path, body: str) -> None:
    def scenario(side: Side) -> None:
        side.world.add("ext4", "/mnt/a")
        side.start(side.hook(body))
        for name in ("freeze", "status", "thaw", "status", "thaw"):
            side.ask(f"guest-fsfreeze-{name}")
            side.look("/mnt/a")
        side.note("calls", side.calls())

    compare(tmp_path, scenario)


@pytest.mark.parametrize("mode", [None, 0o644, 0o755])
def test_hooks_that_cannot_be_run(tmp_path: Path, mode: int | None) -> None:
    def scenario(side: Side) -> None:
        side.world.add("ext4", "/mnt/a")
        hook = side.world.shared / "hook"
        if mode is not None:
            hook.write_text("echo without an interpreter line; exit 2\n")
            hook.chmod(mode)
        side.start(f"-F{hook}")
        for name in ("freeze", "status", "thaw"):
            side.ask(f"guest-fsfreeze-{name}")
            side.look("/mnt/a")

    compare(tmp_path, scenario)


def test_restart_while_frozen(tmp_path: Path) -> None:
    def scenario(side: Side) -> None:
        side.world.add("ext4", "/mnt/a")
        side.world.add("ext4", "/mnt/b")
        log = side.world.shared / "log"
        side.start(side.hook(""))
        side.ask("guest-fsfreeze-freeze-list", mountpoints=["/mnt/a"])
        side.start("-v", "-l", str(log), side.hook(""))
        side.ask("guest-fsfreeze-status")
        side.ask("guest-fsfreeze-freeze")
        side.ask("guest-get-time")
        side.note("log", log.exists())
        side.look("/mnt/a", "/mnt/b")
        side.ask("guest-fsfreeze-thaw")
        side.ask("guest-fsfreeze-status")
        side.look("/mnt/a", "/mnt/b")
        side.note("log", log.exists())
        side.note("calls", side.calls())

    compare(tmp_path, scenario)


def test_mark_without_anything_frozen(tmp_path: Path) -> None:
    def scenario(side: Side) -> None:
        side.world.add("ext4", "/mnt/a")
        side.start()
        (side.state / "qga.state.isfrozen").touch()
        side.ask("guest-fsfreeze-status")
        side.start()
        side.ask("guest-fsfreeze-status")
        side.ask("guest-fsfreeze-thaw")
        side.ask("guest-fsfreeze-status")
        side.look("/mnt/a")

    compare(tmp_path, scenario)


def test_trim(tmp_path: Path) -> None:
    def scenario(side: Side) -> None:
        for kind in ("ext4", "xfs", "btrfs"):
            side.world.add(kind, f"/mnt/{kind}")
        side.world.add("ext4", "/mnt/covered")
        side.world.add("ext4", "/mnt/gone/below")
        side.world.mount("tmpfs", "/mnt/covered", "-t", "tmpfs")
        side.world.mount("tmpfs", "/mnt/gone", "-t", "tmpfs")
        side.start()
        for arguments in ({}, {"minimum": 4096}, {"minimum": 1 << 20}, {"minimum": -1}, {"minimum": 1 << 62}):
            for entry in (side.ask("guest-fstrim", **arguments) or {"paths": []})["paths"]:
                if "btrfs" in entry["path"]:  # its free space changes by itself
                    entry["trimmed"] = entry.get("trimmed", 0) > 0
                side.note("entry", sorted(entry.items()))
            side.transcript = [line for line in side.transcript if not line.startswith("guest-fstrim")]
        side.ask("guest-fstrim", minimum="1")

    compare(tmp_path, scenario)


# --- where they differ, on purpose


def test_hook_pair_is_complete_though_nothing_was_frozen(tmp_path: Path) -> None:
    def scenario(side: Side) -> None:
        side.world.add("ext4", "/mnt/a")
        side.start(side.hook(""))
        side.ask("guest-fsfreeze-freeze-list", mountpoints=[])
        side.note("calls", side.calls())

    ours, theirs = play(tmp_path, scenario)
    assert ours[:-1] == theirs[:-1]
    assert ours[-1] == "calls: 1 freeze\n1 thaw\n"
    assert theirs[-1] == "calls: 1 freeze\n"


def test_filesystem_hidden_while_frozen_is_thawed_by_qga_only(tmp_path: Path) -> None:
    def scenario(side: Side) -> None:
        side.world.add("ext4", "/mnt/a")
        side.start()
        side.ask("guest-fsfreeze-freeze")
        side.world.mount("tmpfs", "/mnt/a", "-t", "tmpfs")
        side.ask("guest-fsfreeze-thaw")
        side.world.umount("/mnt/a")
        side.look("/mnt/a")

    ours, theirs = play(tmp_path, scenario)
    assert ours[1:3] == ["guest-fsfreeze-thaw {}: [('return', 1)]", "/mnt/a is frozen: False"]
    assert theirs[1:3] == ["guest-fsfreeze-thaw {}: [('return', 0)]", "/mnt/a is frozen: True"]
