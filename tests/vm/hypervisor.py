# SPDX-License-Identifier: Apache-2.0
"""A libvirtd of the tests' own, and what is asked of it through virsh."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .image import CACHE
from .processes import CONTAINED, die_with_parent

SCRATCH = Path(tempfile.gettempdir())
PREFIX = "qga-vm-"


class VirshError(Exception):
    """virsh failed; the text is what it wrote to stderr."""


def wait_for(condition: Callable[[], Any], what: str, timeout: float = 60, interval: float = 0.1) -> Any:
    """The first true value that `condition` gives; AssertionError naming `what` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {timeout:g} s for {what}"
        time.sleep(interval)
    return value


def _remove_stale() -> None:
    """Remove the directories of runs that were killed: nobody holds their lock any more."""
    for directory in SCRATCH.glob(PREFIX + "*"):
        try:
            with (directory / "lock").open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(directory, ignore_errors=True)
        except OSError:
            continue


class Hypervisor:
    """libvirtd in namespaces of its own: it meets no other libvirtd, and all ends with this process."""

    def __init__(self) -> None:
        _remove_stale()
        self.directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=SCRATCH))
        self._lock = (self.directory / "lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        cache = CACHE / "libvirt"
        cache.mkdir(parents=True, exist_ok=True)
        self.uri = f"qemu+unix:///system?socket={self.directory}/libvirt-sock"
        with (self.directory / "sandbox.log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *CONTAINED,
                    *(sys.executable, str(Path(__file__).with_name("sandbox.py")), str(self.directory), str(cache)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )
        try:
            wait_for(self._answers, "libvirtd to answer")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Hypervisor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End libvirtd and all guests."""
        self._process.kill()
        self._process.wait()
        self._lock.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _answers(self) -> bool:
        assert self._process.poll() is None, (self.directory / "sandbox.log").read_text()
        try:
            self.virsh("version")
        except VirshError:
            return False
        return True

    def virsh(self, *arguments: str, timeout: float = 60, stdin: str | None = None) -> str:
        """What `virsh ARGUMENTS` prints; VirshError if it fails."""
        try:
            done = self._run_virsh(arguments, timeout, stdin)
        except subprocess.TimeoutExpired as exc:
            raise VirshError(f"virsh {' '.join(arguments)} did not end in {timeout:g} s") from exc
        if done.returncode:
            raise VirshError(done.stderr.strip())
        return done.stdout.strip()

    def _run_virsh(
        self, arguments: tuple[str, ...], timeout: float, stdin: str | None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["virsh", "--connect", self.uri, "--quiet", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )

    def binding(self, domain: str, script: str) -> Any:
        """Run Python lines with `domain` (a libvirt.virDomain) and `libvirt`: what they leave in `result`.

        The distribution's binding belongs to the distribution's Python, so another process it is.
        """
        program = (
            "import json, libvirt, sys\n"
            "libvirt.virEventRegisterDefaultImpl()\n"
            f"connection = libvirt.open({self.uri!r})\n"
            f"domain = connection.lookupByName({domain!r})\n"
            f"{script}\n"
            "print(json.dumps(result))\n"
        )
        done = subprocess.run(
            ["/usr/bin/python3", "-c", program], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)
