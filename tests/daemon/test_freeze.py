# SPDX-License-Identifier: Apache-2.0
"""Freezing and thawing of real file systems, on loop devices and seen by the agent alone."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from qga.platform.freeze import FIFREEZE
from tests.agents import QGA, AgentProcess, Client
from tests.daemon.observe import eventually
from tests.loopdev import World, freeze_lock, is_frozen

pytestmark = pytest.mark.root

ENABLED_WHILE_FROZEN = {
    "guest-ping",
    "guest-info",
    "guest-sync",
    "guest-sync-delimited",
    "guest-fsfreeze-status",
    "guest-fsfreeze-thaw",
}
EXT4_SHUTDOWN = 0x8004587D
"""_IOR('X', 125, __u32) of fs/ext4/ext4.h: every later write to the file system fails."""

FREEZE_DISABLED = "Command guest-fsfreeze-freeze has been disabled: the command is not allowed"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with freeze_lock(), World(tmp_path) as entered:
        yield entered


@pytest.fixture
def start(world: World) -> Iterator[Callable[..., AgentProcess]]:
    """Starts agents in the world, and ends them."""
    with ExitStack() as stack:

        def begin(*options: str, method: str = "unix-listen") -> AgentProcess:
            agent = world.agent(QGA, *options, method=method)
            stack.callback(world.end, agent)
            return agent

        yield begin


Start = Callable[..., AgentProcess]


@contextmanager
def asking(client: Client, execute: str, **arguments: Any) -> Iterator[list[dict[str, Any]]]:
    """Send a request from a thread of its own; the list that is yielded gets the reply."""
    replies: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: replies.append(client.call(execute, **arguments)))
    thread.start()
    yield replies
    thread.join(30)
    assert not thread.is_alive(), f"{execute} is not answered"


def sleeps_in_kernel(pid: int) -> bool:
    """Whether a process waits uninterruptibly, as in a write to a frozen file system."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "D"


def make_hook(world: World, body: str) -> tuple[str, Path]:
    """A hook that notes its arguments in a file, then runs `body`; returns its option and the file."""
    hook, record = world.shared / "hook", world.shared / "hook.record"
    hook.write_text(f'#!/bin/sh\necho "$1" >>{record}\n{body}\n')
    hook.chmod(0o755)
    return f"-F{hook}", record


# --- what is frozen


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_writes_sleep_from_freeze_to_thaw(world: World, start: Start, kind: str) -> None:
    world.add(kind, "/mnt/a")
    with start().connect() as client:
        assert client.ok("guest-fsfreeze-freeze") == 1
        assert client.ok("guest-fsfreeze-status") == "frozen"
        target = world.path("/mnt/a/file")
        with subprocess.Popen(["dd", "if=/dev/zero", f"of={target}", "count=1", "status=none"]) as writer:
            eventually(lambda: sleeps_in_kernel(writer.pid))
            time.sleep(0.2)
            assert sleeps_in_kernel(writer.pid)
            assert client.ok("guest-fsfreeze-thaw") == 1
            assert writer.wait(10) == 0
        assert target.stat().st_size == 512
        assert client.ok("guest-fsfreeze-status") == "thawed"


def test_every_filesystem_is_frozen_and_counted_once(world: World, start: Start) -> None:
    device = world.add("ext4", "/mnt/a")
    world.add("ext4", "/mnt/b")
    world.mount(device, "/mnt/again")
    with start().connect() as client:
        assert client.ok("guest-fsfreeze-freeze") == 2
        assert is_frozen(world.path("/mnt/a"))
        assert is_frozen(world.path("/mnt/b"))
        assert client.ok("guest-fsfreeze-thaw") == 2
        assert not is_frozen(world.path("/mnt/a"))
        assert not is_frozen(world.path("/mnt/b"))


def test_filesystem_on_a_file_of_another_is_frozen_first(world: World, start: Start) -> None:
    mount_nested(world)
    with start().connect() as client:
        assert client.ok("guest-fsfreeze-freeze") == 2  # in the other order this would wait for itself
        assert client.ok("guest-fsfreeze-thaw") == 2
        world.path("/mnt/inner/file").write_bytes(b"written")


def mount_nested(world: World) -> None:
    """/mnt/inner lies on a file of /mnt/outer."""
    world.add("ext4", "/mnt/outer")
    with world.path("/mnt/outer/image").open("wb") as file:
        file.truncate(16 << 20)
    world.run("mkfs.ext4", "-q", "-F", "/mnt/outer/image")
    world.mount("/mnt/outer/image", "/mnt/inner", "-o", "loop")


def test_list_freezes_what_it_names_exactly(world: World, start: Start) -> None:
    device = world.add("ext4", "/mnt/a b")
    world.add("ext4", "/mnt/ü")
    world.mount(device, "/mnt/again")
    with start().connect() as client:
        names = ["/mnt/ü", "/mnt/ü", "/mnt/a b/", "/mnt/again", "/none"]
        assert client.ok("guest-fsfreeze-freeze-list", mountpoints=names) == 1
        assert is_frozen(world.path("/mnt/ü"))
        assert not is_frozen(world.path("/mnt/a b"))
        assert client.ok("guest-fsfreeze-thaw") == 1
        assert client.ok("guest-fsfreeze-freeze-list", mountpoints=["/mnt/a b"]) == 1
        assert client.ok("guest-fsfreeze-thaw") == 1
        assert client.ok("guest-fsfreeze-freeze-list") == 2
        assert client.ok("guest-fsfreeze-thaw") == 2


def test_filesystem_frozen_by_others_is_skipped_and_thawed_with_the_rest(world: World, start: Start) -> None:
    world.add("ext4", "/mnt/a")
    world.add("ext4", "/mnt/b")
    world.run("fsfreeze", "--freeze", "/mnt/a")
    with start().connect() as client:
        assert client.ok("guest-fsfreeze-freeze") == 1
        assert client.ok("guest-fsfreeze-thaw") == 2
        assert not is_frozen(world.path("/mnt/a"))


def test_freeze_of_only_what_others_froze_leaves_that_alone(world: World, start: Start) -> None:
    world.add("ext4", "/mnt/a")
    world.run("fsfreeze", "--freeze", "/mnt/a")
    with start().connect() as client:
        assert client.ok("guest-fsfreeze-freeze") == 0
        assert client.ok("guest-fsfreeze-status") == "thawed"
        assert is_frozen(world.path("/mnt/a"))


def test_thaw_without_a_freeze_thaws_what_others_froze(world: World, start: Start) -> None:
    world.add("ext4", "/mnt/a")
    world.run("fsfreeze", "--freeze", "/mnt/a")
    with start().connect() as client:
        assert client.ok("guest-fsfreeze-thaw") == 1
        assert client.ok("guest-fsfreeze-thaw") == 0


def test_mount_point_that_cannot_be_frozen_is_skipped(world: World, start: Start) -> None:
    world.add("ext4", "/mnt/a")
    world.add("ext4", "/mnt/b")
    world.mount("tmpfs", "/mnt/b", "-t", "tmpfs")
    with start().connect() as client:
        assert client.ok("guest-fsfreeze-freeze") == 1
        assert client.ok("guest-fsfreeze-thaw") == 1


def test_nothing_to_freeze_leaves_the_agent_thawed(world: World, start: Start) -> None:
    with start().connect() as client:
        assert client.ok("guest-fsfreeze-freeze") == 0
        assert client.ok("guest-fsfreeze-status") == "thawed"
        assert client.ok("guest-get-time") > 0


# --- failures


def test_failed_freeze_thaws_what_was_frozen_before(world: World, start: Start) -> None:
    world.add("ext4", "/mnt/broken")
    world.add("ext4", "/mnt/good")
    shut_down(world.path("/mnt/broken"))
    option, record = make_hook(world, "")
    with start(option).connect() as client:
        assert client.error("guest-fsfreeze-freeze") == "failed to freeze /mnt/broken: Input/output error"
        assert client.ok("guest-fsfreeze-status") == "thawed"
        assert client.ok("guest-get-time") > 0
        assert not is_frozen(world.path("/mnt/good"))
        assert record.read_text() == "freeze\nthaw\n"
        assert client.ok("guest-fsfreeze-freeze-list", mountpoints=["/mnt/good"]) == 1
        assert client.ok("guest-fsfreeze-thaw") == 1


def shut_down(mountpoint: Path) -> None:
    fd = os.open(mountpoint, os.O_RDONLY)
    fcntl.ioctl(fd, EXT4_SHUTDOWN, struct.pack("I", 1))
    os.close(fd)


def test_mount_point_that_cannot_be_reached_fails_the_freeze(world: World, start: Start) -> None:
    world.add("ext4", "/mnt/a/b")
    world.mount("tmpfs", "/mnt/a", "-t", "tmpfs")
    with start().connect() as client:
        assert client.error("guest-fsfreeze-freeze") == "failed to open /mnt/a/b: No such file or directory"
        assert client.ok("guest-fsfreeze-status") == "thawed"


# --- the agent while frozen


def test_only_six_commands_are_enabled_while_frozen(world: World, start: Start) -> None:
    world.add("ext4", "/mnt/a")
    with start("-b", "guest-fsfreeze-thaw,guest-ping,guest-get-time").connect() as client:
        before = enabled(client)
        assert client.error("guest-ping") == "Command guest-ping has been disabled: the command is not allowed"
        assert client.ok("guest-fsfreeze-freeze") == 1
        assert enabled(client) == ENABLED_WHILE_FROZEN
        for name in (
            "guest-fsfreeze-freeze",
            "guest-fsfreeze-freeze-list",
            "guest-fstrim",
            "guest-exec",
            "guest-get-osinfo",
        ):
            error = client.call(name)["error"]
            assert error["class"] == "CommandNotFound"
            assert error["desc"] == f"Command {name} has been disabled: the command is not allowed"
        assert client.ok("guest-ping") == {}
        assert client.ok("guest-sync", id=7) == 7
        assert client.ok("guest-fsfreeze-thaw") == 1
        assert enabled(client) == before


def enabled(client: Client) -> set[str]:
    return {entry["name"] for entry in client.ok("guest-info")["supported_commands"] if entry["enabled"]}


def test_mark_exists_while_frozen(world: World, start: Start) -> None:
    world.add("ext4", "/mnt/a")
    agent = start()
    mark = agent.directory / "state" / "qga.state.isfrozen"
    with agent.connect() as client:
        assert not mark.exists()
        client.ok("guest-fsfreeze-freeze")
        assert mark.stat().st_size == 0
        assert mark.stat().st_mode & 0o7777 == 0o600
        client.ok("guest-fsfreeze-thaw")
        assert not mark.exists()


def test_removing_the_mark_thaws_nothing_and_does_no_harm(world: World, start: Start) -> None:
    world.add("ext4", "/mnt/a")
    agent = start("-v")
    with agent.connect() as client:
        client.ok("guest-fsfreeze-freeze")
        (agent.directory / "state" / "qga.state.isfrozen").unlink()
        assert client.ok("guest-fsfreeze-status") == "frozen"
        assert client.ok("guest-fsfreeze-thaw") == 1
        assert client.ok("guest-fsfreeze-status") == "thawed"
        assert "the mark of a freeze cannot be removed: No such file or directory" in agent.log.read_text()


def test_signals_to_end_are_ignored_while_frozen(world: World, start: Start) -> None:
    world.add("ext4", "/mnt/a")
    agent = start()
    with agent.connect() as client:
        client.ok("guest-fsfreeze-freeze")
        agent.process.send_signal(signal.SIGTERM)
        agent.process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        assert client.ok("guest-fsfreeze-status") == "frozen"
        client.ok("guest-fsfreeze-thaw")
        agent.process.send_signal(signal.SIGTERM)
        assert agent.process.wait(5) == 0


def test_log_is_silent_while_frozen_and_complete_afterwards(world: World, start: Start) -> None:
    world.add("ext4", "/mnt/a")
    log = world.shared / "qga.log"
    with start("-v", "-l", str(log)).connect() as client:
        client.ok("guest-fsfreeze-freeze")
        size = log.stat().st_size
        client.error("guest-exec", path="/bin/true")
        assert log.stat().st_size == size
        client.ok("guest-fsfreeze-thaw")
        eventually(lambda: "guest-exec: refused" in log.read_text())


def test_client_that_leaves_after_the_freeze_changes_nothing(world: World, start: Start) -> None:
    world.add("ext4", "/mnt/a")
    agent = start()
    with agent.connect() as client:
        client.send(b'{"execute":"guest-fsfreeze-freeze"}')  # does not even wait for the reply
    with agent.connect() as client:
        eventually(lambda: client.ok("guest-fsfreeze-status") == "frozen")
        time.sleep(0.2)
        assert is_frozen(world.path("/mnt/a"))
        assert client.ok("guest-fsfreeze-thaw") == 1


def test_one_client_freezes_and_another_thaws(world: World, start: Start) -> None:
    world.add("ext4", "/mnt/a")
    agent = start()
    with agent.connect() as freezer, agent.connect() as thawer:
        assert freezer.ok("guest-fsfreeze-freeze") == 1
        assert thawer.ok("guest-fsfreeze-status") == "frozen"
        assert thawer.ok("guest-fsfreeze-thaw") == 1
        assert freezer.ok("guest-fsfreeze-status") == "thawed"


def test_thaw_finds_a_thread_though_every_worker_sleeps_in_a_write(world: World, start: Start) -> None:
    world.add("ext4", "/mnt/a")
    agent = start()
    writers = 80  # more than there are workers
    with ExitStack() as stack:
        clients = [stack.enter_context(agent.connect()) for _ in range(writers)]
        client = stack.enter_context(agent.connect())
        handles = [other.ok("guest-file-open", path=f"/mnt/a/{n}", mode="w") for n, other in enumerate(clients)]
        world.run("fsfreeze", "--freeze", "/mnt/a")  # so that all of them are asleep before the agent freezes
        for other, handle in zip(clients, handles, strict=True):
            other.send(b'{"execute":"guest-file-write","arguments":{"handle":%d,"buf-b64":"cWdh"}}\n' % handle)
        eventually(lambda: len(os.listdir(f"/proc/{agent.pid}/task")) >= 60)
        world.add("ext4", "/mnt/b")
        assert client.ok("guest-fsfreeze-freeze") == 1
        assert client.ok("guest-ping") == {}
        assert client.ok("guest-fsfreeze-thaw") == 2
        for other in clients:
            assert b'"count":3' in other.recv_line()


# --- restarts


def test_agent_restarted_while_frozen_knows_and_thaws(world: World, start: Start) -> None:
    world.add("ext4", "/mnt/a")
    log = world.shared / "qga.log"
    agent = start("-v", "-l", str(log))
    with agent.connect() as client:
        handle = client.ok("guest-file-open", path="/dev/null")
        client.ok("guest-fsfreeze-freeze")
    agent.process.kill()
    agent.process.wait()
    log.unlink()
    agent = start("-v", "-l", str(log))
    with agent.connect() as client:
        assert client.ok("guest-fsfreeze-status") == "frozen"
        assert enabled(client) == ENABLED_WHILE_FROZEN
        agent.process.send_signal(signal.SIGTERM)
        assert client.ok("guest-ping") == {}
        assert not log.exists()
        threads = set(os.listdir(f"/proc/{agent.pid}/task"))
        assert client.ok("guest-fsfreeze-thaw") == 1
        assert set(os.listdir(f"/proc/{agent.pid}/task")) == threads
        assert not is_frozen(world.path("/mnt/a"))
        assert not (agent.directory / "state" / "qga.state.isfrozen").exists()
        assert "serving unix-listen" in log.read_text()
        assert client.ok("guest-file-open", path="/dev/null") > handle


def test_writes_under_way_are_finished_before_the_freeze(world: World, start: Start) -> None:
    """A thread that sleeps in the kernel would keep a killed agent's socket, and the next one could not thaw."""
    world.add("ext4", "/mnt/a")
    agent = start()
    write = b'{"execute":"guest-file-write","arguments":{"handle":%d,"buf-b64":"' + b"cWdh" * (8 << 20) + b'"}}\n'
    with ExitStack() as stack:
        writers = [stack.enter_context(agent.connect()) for _ in range(6)]
        client = stack.enter_context(agent.connect())
        for writer in writers:
            handle = writer.ok("guest-file-open", path="/mnt/a/file", mode="w")
            stack.enter_context(sending(writer, write % handle))
        while world.path("/mnt/a/file").stat().st_size == 0:
            time.sleep(0.0001)  # each write takes milliseconds
        assert client.ok("guest-fsfreeze-freeze") == 1
        agent.process.kill()
        agent.process.wait(5)
    with start().connect() as client:
        assert client.ok("guest-fsfreeze-thaw") == 1


@contextmanager
def sending(client: Client, data: bytes) -> Iterator[None]:
    """Send from a thread of its own; whether all of it gets through does not matter."""

    def send() -> None:
        with suppress(OSError):
            client.send(data)

    thread = threading.Thread(target=send)
    thread.start()
    yield
    thread.join()


def test_daemon_started_while_frozen_writes_its_pid_file_at_the_thaw(world: World, start: Start) -> None:
    world.add("ext4", "/mnt/a")
    pid_file = world.shared / "qga.pid"
    agent = start()
    with agent.connect() as client:
        client.ok("guest-fsfreeze-freeze")
    agent.process.kill()
    agent.process.wait()
    agent = start("-d", "-f", str(pid_file))
    assert agent.process.wait(10) == 0
    with agent.connect() as client:
        assert not pid_file.exists()
        assert client.ok("guest-fsfreeze-thaw") == 1
        pid = int(pid_file.read_text())
        os.kill(pid, signal.SIGTERM)
    eventually(lambda: not pid_file.exists())


def test_agent_whose_channel_ends_while_frozen_thaws_first(world: World) -> None:
    world.add("ext4", "/mnt/a")
    option, record = make_hook(world, "")
    agent = world.agent(QGA, "--version")  # makes the directory, and proves that nothing else lies on a device
    agent.process.wait()
    argv = [*world.enter, *QGA, "-m", "stdio", "-t", str(agent.directory / "state"), option]
    request = b'{"execute":"guest-fsfreeze-freeze"}'
    done = subprocess.run(argv, input=request, capture_output=True, timeout=30, check=True)
    assert done.stdout == b'{"return":1}\n'
    assert not is_frozen(world.path("/mnt/a"))
    assert not (agent.directory / "state" / "qga.state.isfrozen").exists()
    assert record.read_text() == "freeze\nthaw\n"


# --- mounts that change while frozen


def test_filesystem_hidden_by_a_new_mount_is_thawed(world: World, start: Start) -> None:
    world.add("ext4", "/mnt/a")
    with start().connect() as client:
        assert client.ok("guest-fsfreeze-freeze") == 1
        world.mount("tmpfs", "/mnt/a", "-t", "tmpfs")
        assert client.ok("guest-fsfreeze-thaw") == 1
        world.umount("/mnt/a")
        assert not is_frozen(world.path("/mnt/a"))


def test_filesystem_detached_while_frozen_is_thawed(world: World, start: Start) -> None:
    world.add("ext4", "/mnt/a")
    fd = os.open(world.path("/mnt/a"), os.O_RDONLY)
    try:
        with start().connect() as client:
            assert client.ok("guest-fsfreeze-freeze") == 1
            world.umount("/mnt/a", "--lazy")
            assert is_frozen(fd)
            assert client.ok("guest-fsfreeze-thaw") == 1
            assert not is_frozen(fd)
    finally:
        os.close(fd)


def test_frozen_filesystem_cannot_be_unmounted_but_can_after_the_thaw(world: World, start: Start) -> None:
    world.add("ext4", "/mnt/a")
    with start().connect() as client:
        assert client.ok("guest-fsfreeze-freeze") == 1
        with pytest.raises(subprocess.CalledProcessError) as caught:
            world.umount("/mnt/a")
        assert b"busy" in caught.value.stderr
        assert client.ok("guest-fsfreeze-thaw") == 1
        world.umount("/mnt/a")


# --- the hook


def test_hook_runs_before_the_freeze_and_after_the_thaw(world: World, start: Start) -> None:
    world.add("ext4", "/mnt/a")
    option, record = make_hook(world, "touch /mnt/a/$1; echo ignored")
    with start(option).connect() as client:
        assert client.ok("guest-fsfreeze-freeze") == 1
        assert record.read_text() == "freeze\n"
        assert world.path("/mnt/a/freeze").exists()
        assert client.ok("guest-fsfreeze-thaw") == 1
        assert world.path("/mnt/a/thaw").exists()
        assert client.ok("guest-fsfreeze-thaw") == 0
        assert record.read_text() == "freeze\nthaw\nthaw\n"


def test_failing_freeze_hook_prevents_the_freeze(world: World, start: Start) -> None:
    world.add("ext4", "/mnt/a")
    option, record = make_hook(world, 'echo "no $1"; exit 3')
    with start(option).connect() as client:
        text = "child process has failed to execute fsfreeze hook: no freeze\n"
        assert client.error("guest-fsfreeze-freeze") == text
        assert client.ok("guest-fsfreeze-status") == "thawed"
        assert not is_frozen(world.path("/mnt/a"))
        assert record.read_text() == "freeze\n"


def test_failing_thaw_hook_is_reported_after_the_thaw(world: World, start: Start) -> None:
    world.add("ext4", "/mnt/a")
    option, _ = make_hook(world, '[ "$1" = freeze ]')
    with start(option).connect() as client:
        assert client.ok("guest-fsfreeze-freeze") == 1
        text = "child process has failed to execute fsfreeze hook: exit status 1"
        assert client.error("guest-fsfreeze-thaw") == text
        assert client.ok("guest-fsfreeze-status") == "thawed"
        assert not is_frozen(world.path("/mnt/a"))


@pytest.mark.parametrize("mode", [None, 0o644])
def test_hook_that_cannot_be_run_prevents_the_freeze(world: World, start: Start, mode: int | None) -> None:
    world.add("ext4", "/mnt/a")
    hook = world.shared / "hook"
    if mode is not None:
        hook.touch(mode)
    with start(f"-F{hook}").connect() as client:
        assert client.error("guest-fsfreeze-freeze").startswith(
            f"child process has failed to execute fsfreeze hook: failed to exec '{hook}': "
        )
        assert not is_frozen(world.path("/mnt/a"))


def test_thaw_hook_runs_though_nothing_was_frozen(world: World, start: Start) -> None:
    world.add("ext4", "/mnt/a")
    option, record = make_hook(world, '[ "$1" = freeze ]')
    with start(option).connect() as client:
        assert client.ok("guest-fsfreeze-freeze-list", mountpoints=[]) == 0
        assert record.read_text() == "freeze\nthaw\n"
        assert client.ok("guest-fsfreeze-status") == "thawed"


@pytest.fixture
def gate(world: World) -> Iterator[Path]:
    """A pipe that lets a hook wait for a line; at the end nobody waits any more."""
    path = world.shared / "gate"
    os.mkfifo(path)
    yield path
    os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))


def test_hook_that_takes_long_keeps_nobody_else_waiting(world: World, start: Start, gate: Path) -> None:
    world.add("ext4", "/mnt/a")
    option, record = make_hook(world, f'[ "$1" = thaw ] || read -r go <{gate}')
    agent = start(option)
    with agent.connect() as first, agent.connect() as second, agent.connect() as other:
        with asking(first, "guest-fsfreeze-freeze") as frozen:
            eventually(record.exists)
            with asking(second, "guest-fsfreeze-freeze") as refused:
                assert other.ok("guest-ping") == {}
                assert other.ok("guest-fsfreeze-status") == "thawed"
                assert not frozen
                assert not refused
                gate.write_text("go\n")
        assert frozen == [{"return": 1}]
        assert refused == [{"error": {"class": "CommandNotFound", "desc": FREEZE_DISABLED}}]
        assert record.read_text() == "freeze\n"
        assert other.ok("guest-fsfreeze-thaw") == 1


def test_thaw_waits_for_the_freeze_under_way(world: World, start: Start, gate: Path) -> None:
    world.add("ext4", "/mnt/a")
    option, record = make_hook(world, f'[ "$1" = thaw ] || read -r go <{gate}')
    agent = start(option)
    with agent.connect() as first, agent.connect() as second:
        with asking(first, "guest-fsfreeze-freeze") as frozen:
            eventually(record.exists)
            with asking(second, "guest-fsfreeze-thaw") as thawed:
                time.sleep(0.1)
                assert not thawed
                gate.write_text("go\n")
        assert frozen == [{"return": 1}]
        assert thawed == [{"return": 1}]
        assert not is_frozen(world.path("/mnt/a"))


@pytest.mark.parametrize("seconds", [0.0, 5.5])  # the second is more than other requests get to finish
def test_agent_told_to_end_during_the_freeze_hook_leaves_nothing_frozen(
    world: World, start: Start, gate: Path, seconds: float
) -> None:
    world.add("ext4", "/mnt/a")
    option, record = make_hook(world, f'[ "$1" = thaw ] || read -r go <{gate}')
    agent = start(option)
    with agent.connect() as client, asking(client, "guest-fsfreeze-freeze") as replies:
        eventually(record.exists)
        agent.process.send_signal(signal.SIGTERM)
        eventually(lambda: not accepts_clients(agent))
        time.sleep(seconds)
        gate.write_text("go\n")
    assert replies[0]["error"]["desc"] == "guest-fsfreeze-freeze refused: the agent is ending"
    assert agent.process.wait(10) == 0
    assert not is_frozen(world.path("/mnt/a"))
    assert record.read_text() == "freeze\nthaw\n"


def accepts_clients(agent: AgentProcess) -> bool:
    try:
        Client(agent.path).close()
    except OSError:
        return False
    return True


# --- the watchdog


def test_watchdog_thaws_after_the_configured_time(world: World, start: Start) -> None:
    world.add("ext4", "/mnt/a")
    option, record = make_hook(world, "")
    agent = start("--freeze-timeout=0.5", option)
    with agent.connect() as client:
        began = time.monotonic()
        assert client.ok("guest-fsfreeze-freeze") == 1
        eventually(lambda: client.ok("guest-fsfreeze-status") == "thawed")
        assert 0.5 <= time.monotonic() - began < 3
        assert not is_frozen(world.path("/mnt/a"))
        assert client.ok("guest-get-time") > 0
        eventually(lambda: record.read_text() == "freeze\nthaw\n")
        assert client.ok("guest-fsfreeze-thaw") == 0
    assert "thawed without a request: the freeze timed out after 0.5 s" in agent.log.read_text()


def test_watchdog_of_a_thawed_freeze_does_not_end_the_next_one(world: World, start: Start) -> None:
    world.add("ext4", "/mnt/a")
    with start("--freeze-timeout=1").connect() as client:
        client.ok("guest-fsfreeze-freeze")
        time.sleep(0.6)
        client.ok("guest-fsfreeze-thaw")
        client.ok("guest-fsfreeze-freeze")
        time.sleep(0.6)
        assert client.ok("guest-fsfreeze-status") == "frozen"
        assert client.ok("guest-fsfreeze-thaw") == 1


def test_watchdog_thaws_what_a_killed_predecessor_froze(world: World, start: Start) -> None:
    world.add("ext4", "/mnt/a")
    agent = start()
    with agent.connect() as client:
        client.ok("guest-fsfreeze-freeze")
    agent.process.kill()
    agent.process.wait()
    with start("--freeze-timeout=0.5").connect() as client:
        eventually(lambda: client.ok("guest-fsfreeze-status") == "thawed")
    assert not is_frozen(world.path("/mnt/a"))


def test_freeze_that_waits_for_itself_is_ended_by_the_watchdog(world: World, start: Start) -> None:
    mount_nested(world)
    world.mount("/mnt/outer", "/mnt/again", "--bind")
    # The outer file system now counts as mounted last, so it is frozen first, and the inner one then waits for it.
    world.umount("/mnt/outer", "--lazy")
    agent = start("--freeze-timeout=0.7")
    with agent.connect() as client, agent.connect() as other:
        with asking(client, "guest-fsfreeze-freeze") as replies:
            eventually(lambda: other.ok("guest-fsfreeze-status") == "frozen")
            assert other.ok("guest-ping") == {}
            assert not replies
        assert replies[0]["error"]["desc"] == "guest-fsfreeze-freeze timed out after 0.7 s"
        assert client.ok("guest-fsfreeze-status") == "thawed"
        world.path("/mnt/inner/file").write_bytes(b"written")
        os.sync()
        assert not is_frozen(world.path("/mnt/inner"))
        assert not is_frozen(world.path("/mnt/again"))


# --- what the agent itself does while frozen

AUDIT = """
import os, runpy, sys
out = os.open(sys.argv.pop(1), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
FREEZE, THAW = 0xC0045877, 0xC0045878
def note(event, args):
    os.write(out, (event + " " + ascii(args) + chr(10)).encode())
def audit(event, args):
    if event == "fcntl.ioctl" and args[1] in (FREEZE, THAW):
        note("FREEZE" if args[1] == FREEZE else "THAW", args)
    elif event.startswith("os.") or event in WATCHED:
        note(event, args)
WATCHED = {"open", "import", "exec", "compile", "subprocess.Popen", "_thread.start_new_thread", "socket.connect",
           "socket.sendto", "socket.sendmsg", "socket.bind", "syslog.openlog", "syslog.syslog", "fcntl.fcntl"}
sys.addaudithook(audit)
sys.argv[0] = "qga"
runpy.run_module("qga", run_name="__main__")
"""


def test_nothing_is_written_started_or_imported_between_freeze_and_thaw(world: World, start: Start) -> None:
    world.add("ext4", "/mnt/a")
    world.add("ext4", "/mnt/b")
    record, script = world.shared / "audit", world.shared / "audit.py"
    script.write_text(AUDIT)
    log = world.shared / "qga.log"
    agent = world.agent([sys.executable, str(script), str(record)], "-v", "-l", str(log), "--freeze-timeout=60")
    try:
        with agent.connect() as client:
            client.ok("guest-fsfreeze-freeze")
            threads = set(os.listdir(f"/proc/{agent.pid}/task"))
            with agent.connect() as other:
                other.raw('{"execute":"guest-sync","id":"ü","arguments":{"id":1}}'.encode())
                other.send(b'{"execute":"gue')
            client.raw(b'\xff{"execute":"guest-ping"}\n')
            client.recv_line()
            client.ok("guest-info")
            client.error("guest-exec", path="ü\n")
            client.error("guest-sync")
            assert client.ok("guest-fsfreeze-status") == "frozen"
            agent.process.send_signal(signal.SIGHUP)
            agent.process.send_signal(signal.SIGTERM)
            assert client.ok("guest-ping") == {}
            assert set(os.listdir(f"/proc/{agent.pid}/task")) == threads
            assert client.ok("guest-fsfreeze-thaw") == 2
            assert client.ok("guest-ping") == {}
    finally:
        world.end(agent)
    events = record.read_text().splitlines()
    kinds = [event.split(" ")[0] for event in events]
    last_thaw = len(kinds) - kinds[::-1].index("THAW")
    meanwhile = events[kinds.index("FREEZE") : last_thaw]
    assert sum(event.startswith("THAW ") for event in meanwhile) >= 4
    assert not [event for event in meanwhile if not harmless(event)]


def harmless(event: str) -> bool:
    """Freezing, thawing, and opening something to read it."""
    kind, _, args = event.partition(" ")
    if kind in ("FREEZE", "THAW"):
        return True
    if kind != "open":
        return False
    flags = int(args.rstrip(")").rpartition(", ")[2])
    return flags & (os.O_ACCMODE | os.O_CREAT | os.O_TRUNC) == 0


# --- trim


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_trim_tells_what_was_discarded(world: World, start: Start, kind: str) -> None:
    world.add(kind, "/mnt/a")
    image = next(path for path in world.images.iterdir() if path.suffix == ".image")
    with start().connect() as client:
        big = world.path("/mnt/a/big")
        big.write_bytes(os.urandom(8 << 20))
        os.sync()
        full = image.stat().st_blocks * 512
        big.unlink()
        os.sync()
        (entry,) = client.ok("guest-fstrim")["paths"]
        assert set(entry) == {"path", "trimmed", "minimum"}
        assert entry["path"] == "/mnt/a"
        assert entry["trimmed"] >= 8 << 20
        # XFS frees the blocks of a removed file in the background.
        eventually(lambda: client.ok("guest-fstrim") and image.stat().st_blocks * 512 <= full - (7 << 20))


def test_trim_reports_each_filesystem_and_why_it_failed(world: World, start: Start) -> None:
    world.add("ext4", "/mnt/a")
    world.add("ext4", "/mnt/hidden")
    world.add("ext4", "/mnt/gone/below")
    world.mount("tmpfs", "/mnt/hidden", "-t", "tmpfs")
    world.mount("tmpfs", "/mnt/gone", "-t", "tmpfs")
    with start().connect() as client:
        below, hidden, good = client.ok("guest-fstrim", minimum=4096)["paths"]
        assert good["path"] == "/mnt/a"
        assert good["trimmed"] > 0
        assert hidden == {"path": "/mnt/hidden", "error": "trim not supported"}
        assert below == {"path": "/mnt/gone/below", "error": "failed to open: No such file or directory"}
        assert client.ok("guest-fstrim", minimum=-1)["paths"][2] == {
            "path": "/mnt/a",
            "error": "failed to trim: Invalid argument",
        }


def test_freeze_ioctl_of_a_frozen_filesystem_says_busy(world: World) -> None:
    """What `is_frozen` of these tests rests on."""
    world.add("ext4", "/mnt/a")
    world.run("fsfreeze", "--freeze", "/mnt/a")
    fd = os.open(world.path("/mnt/a"), os.O_RDONLY)
    with pytest.raises(OSError, match="busy"):
        fcntl.ioctl(fd, FIFREEZE, 0)
    os.close(fd)
