# SPDX-License-Identifier: Apache-2.0
"""The root of a system is frozen while programs write to it: its own agent, which has all of its files there, thaws it.

The system is an image with Python, the package, and the agent's state, log and pid file. Only the channel is elsewhere.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests import loops
from tests.agents import AgentProcess, Client
from tests.loopdev import World, freeze_lock, is_frozen, make_root

SECONDS = float(os.environ.get("QGA_FROZEN_SECONDS", "10"))
"""How long the root stays frozen."""

PYTHON = [os.path.realpath(sys.executable), "-S", "-c"]
RUN_QGA = "import sys; sys.path.append('/opt/packages'); from qga.cli import main; sys.exit(main())"
OPTIONS = ["-d", "-v", "-t", "/var/lib", "-l", "/var/log/qga.log", "-f", "/var/run.pid"]

LOAD = """
import os, sys
name = sys.argv[1]
count = os.open(f"/run/{name}.count", os.O_WRONLY | os.O_CREAT)
records = os.open(f"/var/tmp/{name}.records", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
n = 0
while not os.path.exists("/run/stop"):
    n += 1
    os.write(records, b"record %d\\n" % n)
    fresh = os.open(f"/var/tmp/{name}.fresh", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.write(fresh, os.urandom(16384))
    os.fsync(fresh)
    os.close(fresh)
    os.rename(f"/var/tmp/{name}.fresh", f"/var/tmp/{name}.{n % 20}")
    os.pwrite(count, b"%020d" % n, 0)
"""
"""Writes, syncs and renames on the root; tells in memory how many rounds are complete."""

pytestmark = [pytest.mark.root, pytest.mark.timeout(SECONDS + 110)]


class Load:
    """Programs that write to the root until they are told to stop."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._names = "first", "second"
        for name in self._names:
            world.path(f"/run/{name}.count").write_text("0")
        self._programs = [subprocess.Popen([*world.enter, *PYTHON, LOAD, name]) for name in self._names]

    def counts(self) -> list[int]:
        """The rounds that each program has completed."""
        return [int(self._world.path(f"/run/{name}.count").read_text()) for name in self._names]

    def goes_on(self) -> bool:
        """Whether each program completes further rounds."""
        before = self.counts()
        deadline = time.monotonic() + 20
        while not all(now > then + 2 for now, then in zip(self.counts(), before, strict=True)):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def stop(self) -> None:
        """End the programs, and see that no record is missing."""
        self._world.path("/run/stop").touch()
        for program in self._programs:
            assert program.wait(20) == 0
        for name, count in zip(self._names, self.counts(), strict=True):
            lines = self._world.path(f"/var/tmp/{name}.records").read_text().splitlines()
            assert lines == [f"record {n}" for n in range(1, count + 1)]

    def kill(self) -> None:
        """End the programs in any case."""
        for program in self._programs:
            program.kill()
        self._world.thaw()
        for program in self._programs:
            program.wait()


class Upload:
    """A client that writes a file on the root through the agent, whenever that is allowed."""

    def __init__(self, agent: AgentProcess) -> None:
        self._client = agent.connect(timeout=SECONDS + 60)
        self._handle = self._client.ok("guest-file-open", path="/var/tmp/upload", mode="w")
        self._stop = False
        self.blocks = 0
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        while not self._stop:
            reply = self._client.call("guest-file-write", handle=self._handle, buf_b64="cWdh" * 4096)
            if "return" in reply:
                self.blocks += 1
            else:
                assert reply["error"]["class"] == "CommandNotFound"
                time.sleep(0.02)

    def finish(self) -> None:
        """Write no more; the block under way has to be accepted."""
        self._stop = True
        self.thread.join(30)
        assert not self.thread.is_alive()
        self._client.ok("guest-file-close", handle=self._handle)
        self._client.close()


@contextmanager
def separate_system(directory: Path) -> Iterator[tuple[World, Path]]:
    """A world whose root is an image of its own; it is unmounted properly at the end."""
    with freeze_lock(), ExitStack() as stack:
        image = make_root(directory, ["qga", "uvloop", "orjson", "pybase64"])
        device = stack.enter_context(loops.attached(image))
        yield stack.enter_context(World(directory, device)), image


def agent_pids(agent: AgentProcess) -> list[int]:
    """The processes that serve the socket of `agent`, which has gone into the background."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                command = Path(f"/proc/{entry}/cmdline").read_bytes()
            except OSError:
                continue
            if os.fsencode(agent.path) in command.split(b"\0"):
                found.append(int(entry))
    return found


def start(world: World) -> AgentProcess:
    """Start the agent of the system, as a daemon."""
    agent = world.agent([*PYTHON, RUN_QGA], *OPTIONS)
    assert agent.process.wait(20) == 0, agent.log.read_text()
    return agent


def kill(agent: AgentProcess) -> None:
    for pid in agent_pids(agent):
        os.kill(pid, 9)
    deadline = time.monotonic() + 10
    while agent_pids(agent):
        assert time.monotonic() < deadline, "the agent cannot be killed"
        time.sleep(0.01)


def stay_frozen(world: World, client: Client, load: Load, seconds: float) -> None:
    """See for a while that nothing is written and that the agent answers at once."""
    time.sleep(0.3)  # for rounds that were complete but for their count
    before = load.counts()
    end = time.monotonic() + seconds
    slowest = 0.0
    while time.monotonic() < end:
        asked = time.monotonic()
        assert client.ok("guest-ping") == {}
        slowest = max(slowest, time.monotonic() - asked)
        time.sleep(0.02)
    assert slowest < 1.0
    assert client.ok("guest-fsfreeze-status") == "frozen"
    assert client.call("guest-file-open", path="/var/tmp/refused", mode="w")["error"]["class"] == "CommandNotFound"
    assert is_frozen(world.path("/"))
    assert load.counts() == before


def assert_clean(image: Path) -> None:
    """The file system of an image is one that was unmounted or frozen: it needs no recovery and has no faults."""
    features = subprocess.run(["dumpe2fs", "-h", image], check=True, capture_output=True, text=True).stdout
    assert "needs_recovery" not in features
    checked = subprocess.run(["e2fsck", "-fn", image], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_root_is_frozen_and_thawed_by_the_agent_that_lives_on_it(tmp_path: Path) -> None:
    with separate_system(tmp_path) as (world, image), ExitStack() as stack:
        agent = start(world)
        stack.callback(kill, agent)
        load = Load(world)
        stack.callback(load.kill)
        assert load.goes_on()

        # With a writer that goes through the agent itself: a write under way keeps one of its threads asleep.
        with agent.connect() as client:
            upload = Upload(agent)
            while not upload.blocks:
                time.sleep(0.01)
            assert client.ok("guest-fsfreeze-freeze") == 1
            stay_frozen(world, client, load, 1.0)
            blocks = upload.blocks
            stay_frozen(world, client, load, SECONDS / 4)
            assert upload.blocks == blocks
            check_snapshot(image, tmp_path)
            assert client.ok("guest-fsfreeze-thaw") == 1
            assert load.goes_on()
            upload.finish()
            assert world.path("/var/tmp/upload").stat().st_size == upload.blocks * 3 * 4096

        # Killed while frozen, and started again from the frozen root.
        log = world.path("/var/log/qga.log")
        with agent.connect() as client:
            assert client.ok("guest-fsfreeze-freeze") == 1
            logged = log.stat().st_size
            stay_frozen(world, client, load, SECONDS / 4)
            kill(agent)
            agent = start(world)
        with agent.connect() as client:
            stay_frozen(world, client, load, SECONDS / 2)
            check_snapshot(image, tmp_path)
            assert log.stat().st_size == logged
            assert client.ok("guest-fsfreeze-thaw") == 1
            assert load.goes_on()
            assert client.ok("guest-fsfreeze-status") == "thawed"
            handle = client.ok("guest-file-open", path="/var/tmp/after", mode="w")
            assert client.ok("guest-file-write", handle=handle, buf_b64="cWdh")["count"] == 3
        assert int(world.path("/var/run.pid").read_text()) in agent_pids(agent)
        assert "guest-fsfreeze-thaw: done" in log.read_text()[logged:]
        assert not world.path("/var/lib/qga.state.isfrozen").exists()
        load.stop()
    wait_for_unmount(image)
    assert_clean(image)


def check_snapshot(image: Path, directory: Path) -> None:
    """A copy that is taken while frozen, as a backup is, has a clean file system."""
    copy = directory / "snapshot"
    subprocess.run(["cp", "--sparse=always", image, copy], check=True)
    assert_clean(copy)
    copy.unlink()


def wait_for_unmount(image: Path) -> None:
    """The kernel unmounts a little after the last process of a mount namespace has ended."""
    deadline = time.monotonic() + 10
    while subprocess.run(["losetup", "-j", image], check=True, capture_output=True).stdout:
        assert time.monotonic() < deadline
        time.sleep(0.05)
