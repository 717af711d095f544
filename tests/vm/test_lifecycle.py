# SPDX-License-Identifier: Apache-2.0
"""The agent as a service: killed, restarted, its port pulled out and put back."""

from __future__ import annotations

import re
import time

import pytest

from .guest import AGENT_CHANNEL, PORT, Guest
from .hypervisor import VirshError, wait_for


def test_killed_agent_is_restarted_and_reuses_no_handle(guest: Guest) -> None:
    old = guest.call("guest-file-open", path="/etc/hostname")
    before = guest.main_pid()
    guest.sh(f"kill -9 {before}")
    guest.wait_for_agent()
    assert guest.main_pid() not in (0, before)
    with pytest.raises(VirshError, match=f"handle '{old}' has not been found"):
        guest.call("guest-file-read", handle=old)
    new = guest.call("guest-file-open", path="/etc/hostname")
    assert new > old
    guest.call("guest-file-close", handle=new)


def test_restarted_service_answers(guest: Guest) -> None:
    before = guest.main_pid()
    guest.sh(f"systemctl restart {guest.unit}")
    guest.wait_for_agent()
    assert guest.main_pid() not in (0, before)


def test_port_unplugged_and_plugged_again(guest: Guest) -> None:
    guest.detach_channel(PORT)
    wait_for(lambda: guest.run("test -e /dev/virtio-ports/org.qemu.guest_agent.0").status, "the port to go")
    with pytest.raises(VirshError):
        guest.call("guest-ping")
    wait_for(lambda: guest.run(f"systemctl is-active {guest.unit}").status, "the service to stop", 20)
    guest.attach(AGENT_CHANNEL)
    guest.wait_for_agent()
    assert guest.main_pid() > 0


def test_agent_started_before_its_port_exists_finds_it(guest: Guest) -> None:
    channel = f"""
    <channel type='unix'>
      <source mode='bind' path='{guest.directory}/early.sock'/><target type='virtio' name='test.early.0'/>
    </channel>"""
    options = "--path=/dev/virtio-ports/test.early.0 --statedir=/run/early --retry-path"
    guest.sh(f"mkdir -p /run/early; systemd-run --quiet --collect --unit=early {guest.program} {options}")
    try:
        time.sleep(2)
        assert guest.sh("systemctl is-active early") == "active"
        guest.attach(channel)
        with guest.connect(guest.directory / "early.sock") as client:
            assert client.call("guest-get-host-name") == {"host-name": "guest"}
    finally:
        guest.sh("systemctl stop early")
        guest.detach_channel("test.early.0")


def test_no_unit_has_failed(guest: Guest) -> None:
    assert guest.sh("systemctl --failed --no-legend --plain") == ""


def test_agent_wrote_no_error_to_the_journal(guest: Guest) -> None:
    lines = guest.sh(f"journalctl --quiet --no-pager --output cat --unit {guest.unit}").splitlines()
    assert [line for line in lines if re.search(r"\b(error|critical): ", line)] == []


@pytest.mark.own
def test_error_has_that_priority_in_the_journal(guest: Guest) -> None:
    options = "--block-rpcs=guest-nonsense --method=unix-listen --path=/run/complaint.sock --statedir=/run"
    guest.sh(f"systemd-run --quiet --collect --unit=complaint {guest.program} {options}")
    try:
        errors = "journalctl --quiet --no-pager --output cat --priority err --unit complaint"
        wait_for(lambda: "guest-nonsense" in guest.sh(errors), "the complaint")
    finally:
        guest.sh("systemctl stop complaint")
