# SPDX-License-Identifier: Apache-2.0
"""Scenarios that take the guest down, in an order that matters.

After a suspend to memory the guest was seen to stay on at a power-off and at a suspend to disk, until it was rebooted.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from .conftest import Pool
from .guest import BOOT_TIMEOUT, Guest
from .hypervisor import wait_for


def boot_id(guest: Guest) -> str:
    return guest.sh("cat /proc/sys/kernel/random/boot_id", timeout=BOOT_TIMEOUT)


def test_suspend_to_disk_and_resume(pool: Pool) -> None:
    """Of a fresh guest: with a plugged DIMM, or after a suspend to memory, it was seen to hang."""
    pool.drop("libvirt")
    guest = pool.get("libvirt")
    before = boot_id(guest)
    guest.virsh("dompmsuspend", "disk", timeout=120)
    wait_for(lambda: guest.state == "", "the guest to save itself", 120)
    guest.power_on(plugged=True)
    assert boot_id(guest) == before
    guest.wait_for_agent()
    assert "PM: hibernation: hibernation exit" in guest.sh("dmesg")


def test_suspend_to_memory_and_wake(guest: Guest) -> None:
    before = boot_id(guest)
    guest.virsh("dompmsuspend", "mem")
    wait_for(lambda: guest.state == "pmsuspended", "the guest to sleep")
    guest.virsh("dompmwakeup")
    wait_for(lambda: guest.state == "running", "the guest to wake")
    guest.wait_for_agent()
    assert boot_id(guest) == before
    assert "PM: suspend exit" in guest.sh("dmesg")


def test_reboot_by_the_agent(guest: Guest) -> None:
    before = boot_id(guest)
    guest.virsh("reboot", "--mode", "agent")
    wait_for(lambda: not guest.answers(), "the agent to end")
    guest.wait_for_agent()
    assert boot_id(guest) != before


def test_shutdown_by_the_agent_leaves_clean_disks(guest: Guest, pool: Pool, tmp_path: Path) -> None:
    guest.virsh("shutdown", "--mode", "agent")
    wait_for(lambda: guest.state == "", "the guest to power off", 120)
    for disk in ("root", "data"):
        raw = tmp_path / disk
        subprocess.run(["qemu-img", "convert", "-O", "raw", guest.directory / f"{disk}.qcow2", raw], check=True)
        checked = subprocess.run(["e2fsck", "-fn", raw], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stdout
        raw.unlink()
    pool.drop("libvirt")
