# SPDX-License-Identifier: Apache-2.0
"""File systems that may be frozen: on loop devices, mounted in a mount namespace that shows no other block device.

An agent that is asked to freeze everything freezes what it sees mounted. So those agents run in a `World`.
"""

from __future__ import annotations

import errno
import fcntl
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from qga.platform.freeze import FIFREEZE, FITHAW
from tests import loops
from tests.agents import AgentProcess

MAKERS = {
    "ext4": (["mkfs.ext4", "-q", "-F"], 32 << 20),
    "xfs": (["mkfs.xfs", "-q", "-f"], 320 << 20),
    "btrfs": (["mkfs.btrfs", "-q", "-f"], 128 << 20),
}
"""For each kind of file system the command that makes it, and the size of a device that is large enough."""

PREPARE = """
mount -t tmpfs tmpfs "$1"
mkdir "$1/root" "$1/upper" "$1/work"
if [ -n "$2" ]; then
    mount "$2" "$1/root"
    mount -t tmpfs tmpfs "$1/root/run"
else
    mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
fi
mount --rbind /dev "$1/root/dev"
mount -t proc proc "$1/root/proc"
mkdir -p "$1/root/before"
cd "$1/root"
pivot_root . before
umount -l /before
echo ready
read -r end || true
"""
"""Enters a file system of its own: this machine's files in a copy-on-write view, or what lies on the device $2."""


@contextmanager
def freeze_lock() -> Iterator[None]:
    """Freeze tests of one machine run one after the other: a thaw thaws what others froze."""
    directory = "/run/lock" if os.access("/run/lock", os.W_OK) else tempfile.gettempdir()
    with open(f"{directory}/qga-freeze.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def require(kind: str) -> None:
    """Skip the test if this machine has no such file system, or no program to make one."""
    if not shutil.which(MAKERS[kind][0][0]):
        pytest.skip(f"{MAKERS[kind][0][0]} is not installed")
    subprocess.run(["modprobe", "-q", kind], check=False)
    if kind not in Path("/proc/filesystems").read_text().split():
        pytest.skip(f"this kernel has no {kind}")


def make_image(image: Path, kind: str) -> None:
    """Make a file with an empty file system of that kind."""
    require(kind)
    maker, size = MAKERS[kind]
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run([*maker, image], check=True, capture_output=True)


def is_frozen(path: Path | str | int) -> bool:
    """Whether the file system at a path, or of a descriptor, is frozen. Not to be asked while somebody freezes it."""
    fd = path if isinstance(path, int) else os.open(path, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, FIFREEZE, 0)
        fcntl.ioctl(fd, FITHAW, 0)
    except OSError as exc:
        if exc.errno != errno.EBUSY:
            raise
        return True
    finally:
        if fd is not path:
            os.close(fd)
    return False


def thaw(path: Path | str) -> None:
    """Thaw the file system at a path, whoever froze it."""
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY)
        try:
            while True:
                fcntl.ioctl(fd, FITHAW, 0)
        finally:
            os.close(fd)


class World:
    """A mount namespace in which nothing lies on a block device but what is mounted through this object.

    directory: for images and as a place to mount at; root: a device to take the place of this machine's files.
    """

    def __init__(self, directory: Path, root: str = "") -> None:
        self.images = directory
        self._mountpoints: list[str] = []
        self._stack = ExitStack()
        stage = directory / "stage"
        stage.mkdir()
        self.shared = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="qga-", dir="/dev/shm")))
        """A directory in memory that has the same path inside and outside."""
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-ec", PREPARE, "sh", stage, root],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._stack.callback(self._end)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"ready\n", "no mount namespace with an overlay in it"
        if root:
            self._mountpoints.append("/")
            self._stack.callback(self.thaw)

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _end(self) -> None:
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        self._holder.stdin.close()
        self._holder.stdout.close()
        self._holder.wait()

    @property
    def enter(self) -> list[str]:
        """What to put in front of a command line to run it inside."""
        return ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", "--"]

    def run(self, *argv: str | Path) -> None:
        """Run a program inside; it has to succeed."""
        subprocess.run([*self.enter, *argv], check=True, capture_output=True)

    def path(self, inside: str) -> Path:
        """The path by which this process reaches a file inside."""
        return Path(f"/proc/{self._holder.pid}/root{inside}")

    def add(self, kind: str, mountpoint: str, *options: str) -> str:
        """Make a file system, mount it inside, and return its device."""
        image = self.images / f"{len(list(self.images.iterdir()))}.image"
        make_image(image, kind)
        device = self._stack.enter_context(loops.attached(image))
        self.mount(device, mountpoint, *options)
        return device

    def mount(self, source: str, mountpoint: str, *options: str) -> None:
        """Mount inside; at the end it is thawed and unmounted, if it is still there."""
        self.run("mkdir", "-p", mountpoint)
        self.run("mount", *options, source, mountpoint)
        self._mountpoints.append(mountpoint)
        self._stack.callback(self._unmount, mountpoint)

    def umount(self, mountpoint: str, *options: str) -> None:
        """Unmount inside."""
        self.run("umount", *options, mountpoint)

    def thaw(self) -> None:
        """Thaw everything inside, all at once: one thaw may have to wait for another."""
        threads = [threading.Thread(target=thaw, args=(self.path(place),)) for place in self._mountpoints]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def end(self, agent: AgentProcess) -> None:
        """Kill an agent, which is not gone before nothing keeps its threads asleep."""
        agent.process.kill()
        self.thaw()
        agent.process.wait()

    def _unmount(self, mountpoint: str) -> None:
        thaw(self.path(mountpoint))
        subprocess.run([*self.enter, "umount", mountpoint], check=False, capture_output=True)

    def agent(self, argv: list[str], *options: str, name: str = "agent", method: str = "unix-listen") -> AgentProcess:
        """Start an agent inside; one started later with the same name finds its predecessor's state."""
        self._check()
        directory = self.shared / name
        directory.mkdir(exist_ok=True)
        return AgentProcess([*self.enter, *argv], directory, *options, method=method)

    def _check(self) -> None:
        for line in Path(f"/proc/{self._holder.pid}/mountinfo").read_text().splitlines():
            before, after = line.split(" - ")
            major = before.split()[2].split(":")[0]
            source = after.split()[1]
            if not (major == "7" or (major == "0" and (not source.startswith("/dev/") or "/dev/loop" in source))):
                raise RuntimeError(f"an agent could freeze a file system of this machine: {line}")


PROGRAMS = ["sh", "umount"]
"""What `World` runs inside, besides the agent."""

UNUSED = ["test", "tests", "idlelib", "lib2to3", "ensurepip", "tkinter", "turtledemo", "*-packages", "config-*", "*.a"]
"""Parts of a Python installation that no agent needs."""


def make_root(directory: Path, packages: list[str]) -> Path:
    """Make an image of a system that holds Python, these packages (in /opt/packages), and little else."""
    stage, image = directory / "tree", directory / "root.image"
    for name in ("dev", "proc", "run", "before", "tmp", "etc", "opt/packages", "var/log", "var/lib", "var/tmp"):
        (stage / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib64", "sbin"):  # links on merged systems
        if os.path.islink(f"/{name}"):
            (stage / name).symlink_to(os.readlink(f"/{name}"))
            (stage / name).resolve().mkdir(parents=True, exist_ok=True)
    python = os.path.realpath(sys.executable)
    for program in (python, *(shutil.which(name) for name in PROGRAMS)):
        assert program is not None
        _copy_file(Path(program), stage)
    for library in {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}:
        _copy_tree(Path(library), stage / library[1:])
    for name in packages:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.submodule_search_locations
        _copy_tree(Path(spec.submodule_search_locations[0]), stage / "opt/packages" / name)
    elf = [path for path in stage.rglob("*") if path.is_file() and (path.suffix == ".so" or os.access(path, os.X_OK))]
    for library in _libraries([str(path) for path in elf]):
        _copy_file(Path(library), stage)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-d", stage, image, "256M"], check=True, capture_output=True)
    shutil.rmtree(stage)
    return image


def _copy_file(path: Path, stage: Path) -> None:
    target = stage / str(path)[1:]
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(path, target)


def _copy_tree(source: Path, target: Path) -> None:
    ignored = shutil.ignore_patterns(*UNUSED)
    shutil.copytree(source, target, symlinks=True, ignore=ignored, dirs_exist_ok=True)


def _libraries(files: list[str]) -> set[str]:
    # ldd fails for scripts and static programs, which need none.
    listed = subprocess.run(["ldd", *files], capture_output=True, text=True, check=False).stdout
    return set(re.findall(r"(?:=> |^\s+)(/\S+) \(0x", listed, re.MULTILINE))
