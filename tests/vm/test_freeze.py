# SPDX-License-Identifier: Apache-2.0
"""Freezing under load: a program in the guest writes all the time, and must stop and go on without losing a record."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .guest import Guest
from .hypervisor import VirshError, wait_for
from .processes import CONTAINED


class Writer:
    """The guest's writer on one file system; see guest/writer."""

    def __init__(self, guest: Guest, name: str, path: str) -> None:
        self.guest = guest
        self.unit = f"writer-{name}"
        self.path = path
        self.counter = f"/run/writer-{name}"
        guest.sh(f"rm -f {path}; systemd-run --quiet --collect --unit={self.unit} writer {path} {self.counter}")
        wait_for(lambda: self.count() > 1, "the writer")

    def count(self) -> int:
        """How many records are on the disk."""
        return int(self.guest.run(f"cat {self.counter} 2>/dev/null || echo 0").output or 0)

    def stopped(self) -> bool:
        """Whether no record is written for a while; the first moment lets one under way end."""
        time.sleep(0.3)
        before = self.count()
        time.sleep(1.0)
        return self.count() == before

    def goes_on(self) -> bool:
        """Whether records are written again."""
        before = self.count()
        return bool(wait_for(lambda: self.count() > before + 1, f"{self.unit} to go on"))

    def end(self) -> None:
        """Stop the writer, and see that what it wrote is complete and in order."""
        self.guest.sh(f"systemctl stop {self.unit}")
        lines = self.guest.sh(f"cat {self.path}").splitlines()
        assert lines == [f"record {n}" for n in range(1, len(lines) + 1)]
        self.guest.sh(f"rm {self.path} {self.counter}")


@pytest.fixture
def writers(guest: Guest) -> Iterator[dict[str, Writer]]:
    paths = {"root": "/var/tmp/records", "data": "/data/records"}
    running = {name: Writer(guest, name, path) for name, path in paths.items()}
    yield running
    if guest.call("guest-fsfreeze-status") == "frozen":
        guest.virsh("domfsthaw")
    for writer in running.values():
        writer.end()


def test_freeze_and_thaw_stops_writers_of_all_filesystems(guest: Guest, writers: dict[str, Writer]) -> None:
    assert guest.binding("result = domain.fsFreeze()") == 3
    assert guest.call("guest-fsfreeze-status") == "frozen"
    assert writers["root"].stopped()
    assert writers["data"].stopped()
    assert guest.binding("result = domain.fsThaw()") == 3
    assert guest.call("guest-fsfreeze-status") == "thawed"
    assert writers["root"].goes_on()
    assert writers["data"].goes_on()


def test_freeze_of_a_selected_mountpoint_leaves_the_others_alone(guest: Guest, writers: dict[str, Writer]) -> None:
    guest.virsh("domfsfreeze", "--mountpoint", "/data")
    assert writers["data"].stopped()
    assert writers["root"].goes_on()
    guest.virsh("domfsthaw")
    assert writers["data"].goes_on()


def test_frozen_agent_refuses_what_could_write(guest: Guest) -> None:
    guest.virsh("domfsfreeze")
    try:
        with pytest.raises(VirshError, match="disabled"):
            guest.call("guest-exec", path="/bin/true")
        with pytest.raises(VirshError, match="disabled"):
            guest.virsh("domfsinfo")
        assert guest.call("guest-ping") == {}
    finally:
        guest.virsh("domfsthaw")
    assert guest.execute("/bin/true") == (0, b"")


def test_agent_killed_while_the_root_is_frozen_comes_back_frozen(guest: Guest, writers: dict[str, Writer]) -> None:
    guest.virsh("domfsfreeze")
    before = guest.main_pid()
    guest.sh(f"kill -9 {before}")
    guest.wait_for_agent()
    assert guest.main_pid() not in (0, before)
    assert guest.call("guest-fsfreeze-status") == "frozen"
    assert writers["root"].stopped()
    with pytest.raises(VirshError, match="disabled"):
        guest.call("guest-exec", path="/bin/true")
    guest.virsh("domfsthaw")
    assert writers["root"].goes_on()
    assert writers["data"].goes_on()


def test_frozen_agent_does_not_obey_sigterm(guest: Guest) -> None:
    before = guest.main_pid()
    guest.virsh("domfsfreeze")
    try:
        guest.sh(f"kill -TERM {before}")
        time.sleep(0.5)
        assert guest.call("guest-fsfreeze-status") == "frozen"
        assert guest.main_pid() == before
    finally:
        guest.virsh("domfsthaw")


def test_freeze_hook_runs_before_and_after(guest: Guest, with_hook: Callable[[str], None]) -> None:
    with_hook('echo "$1" >>/run/hook.log')
    guest.virsh("domfsfreeze")
    guest.virsh("domfsthaw")
    assert guest.sh("cat /run/hook.log").split() == ["freeze", "thaw"]


def test_failing_freeze_hook_prevents_the_freeze(guest: Guest, with_hook: Callable[[str], None]) -> None:
    with_hook("echo not now; exit 3")
    with pytest.raises(VirshError, match="hook"):
        guest.virsh("domfsfreeze")
    assert guest.call("guest-fsfreeze-status") == "thawed"
    guest.sh("touch /data/still-writable && sync /data && rm /data/still-writable")


@pytest.fixture
def with_hook(guest: Guest) -> Iterator[Callable[[str], None]]:
    config = "/etc/qemu/qemu-ga.conf"

    def install(body: str) -> None:
        guest.sh("cat >/run/hook; chmod +x /run/hook", stdin=f"#!/bin/sh\n{body}\n")
        guest.sh(f"mkdir -p /etc/qemu; if [ -e {config} ]; then mv {config} /run/qemu-ga.conf; fi")
        guest.sh(f"cat >{config}", stdin="[general]\nfsfreeze-hook = /run/exec/hook\n")
        # /run is mounted noexec
        guest.sh("mkdir -p /run/exec && mount -t tmpfs tmpfs /run/exec && mv /run/hook /run/exec/")
        guest.sh(f"systemctl restart {guest.unit}")
        guest.wait_for_agent()

    yield install
    guest.sh(f"rm -f {config} /run/hook.log; umount /run/exec")
    guest.sh(f"if [ -e /run/qemu-ga.conf ]; then mv /run/qemu-ga.conf {config}; fi")
    guest.sh(f"systemctl restart {guest.unit}")
    guest.wait_for_agent()


def test_quiesced_snapshot_is_clean_and_complete(guest: Guest, writers: dict[str, Writer], tmp_path: Path) -> None:
    floor = {name: writer.count() for name, writer in writers.items()}
    guest.virsh("snapshot-create-as", "backup", "--disk-only", "--quiesce", "--atomic", "--no-metadata", timeout=120)
    assert guest.call("guest-fsfreeze-status") == "thawed"
    assert writers["root"].goes_on()
    assert writers["data"].goes_on()
    files = {"root": ("root.qcow2", "var/tmp/records"), "data": ("data.qcow2", "records")}
    for name, (disk, path) in files.items():
        raw = tmp_path / name
        subprocess.run(["qemu-img", "convert", "-U", "-O", "raw", guest.directory / disk, raw], check=True)
        _check_clean(raw)
        lines = _read_mounted(raw, path, tmp_path).splitlines()
        assert lines == [f"record {n}" for n in range(1, len(lines) + 1)]
        assert len(lines) >= floor[name]
        raw.unlink()


def _check_clean(raw: Path) -> None:
    features = subprocess.run(["dumpe2fs", "-h", raw], check=True, capture_output=True, text=True).stdout
    assert "needs_recovery" not in features
    checked = subprocess.run(["e2fsck", "-fn", raw], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def _read_mounted(raw: Path, path: str, tmp_path: Path) -> str:
    mounted = tmp_path / "mounted"
    mounted.mkdir(exist_ok=True)
    script = 'mount -o ro,loop "$1" "$2" && cat "$2/$3"'
    command = [*CONTAINED, "/bin/sh", "-c", script, "sh", raw, mounted, path]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_domfstrim_gives_space_back_to_the_host(guest: Guest) -> None:
    disk = Path(
        re.search(r"sda\s+(\S+)", guest.virsh("domblklist")).group(1)  # type: ignore[union-attr]
    )
    guest.sh("dd if=/dev/urandom of=/data/big bs=1M count=16 conv=fsync status=none")
    full = disk.stat().st_blocks * 512
    guest.sh("rm /data/big; sync /data")
    trimmed = {entry["path"]: entry for entry in guest.call("guest-fstrim")["paths"]}
    assert set(trimmed) == {"/", "/data", "/nvme"}
    assert trimmed["/data"]["trimmed"] >= 16 << 20
    wait_for(lambda: disk.stat().st_blocks * 512 <= full - (15 << 20), "the image to shrink")
    guest.virsh("domfstrim")
