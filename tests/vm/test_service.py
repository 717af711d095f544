# SPDX-License-Identifier: Apache-2.0
"""`qga --service` in a running system, and next to the distribution's own agent."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .guest import Guest
from .hypervisor import wait_for

UNIT_FILE = "/etc/systemd/system/qga.service"


@pytest.fixture
def qga_guest(guest: Guest) -> Guest:
    if guest.kind != "qga":
        pytest.skip("about this project's own installer")
    return guest


def test_status_of_a_running_service(qga_guest: Guest) -> None:
    told = qga_guest.sh("/opt/qga/bin/qga --service status").splitlines()
    assert f"{UNIT_FILE}: installed" in told
    assert told[-1] == "qga.service: active"


def test_uninstall_ends_the_agent_and_install_starts_it_at_once(qga_guest: Guest) -> None:
    qga_guest.sh("/opt/qga/bin/qga --service uninstall")
    assert qga_guest.run("systemctl is-active qga").output.strip() == "inactive"
    assert qga_guest.run("/opt/qga/bin/qga --service status").status == 4
    assert qga_guest.run("find /etc -name '*qga*' -o -name '*fsfreeze*' | grep .").output == ""
    qga_guest.sh("/opt/qga/bin/qga --service install")
    qga_guest.wait_for_agent()
    wait_for(lambda: qga_guest.run("/opt/qga/bin/qga --service status").status == 0, "the service to be active")


def test_install_through_the_agent_itself_does_not_end_it(qga_guest: Guest) -> None:
    before = qga_guest.main_pid()
    status, output = qga_guest.execute("/opt/qga/bin/qga", "--service", "install")
    assert status == 0, output
    assert qga_guest.main_pid() == before


@pytest.fixture
def debian_agent(qga_guest: Guest) -> Iterator[str]:
    qga_guest.sh("dpkg --install /var/debs/qemu-guest-agent_*.deb", timeout=120)
    yield "qemu-guest-agent.service"
    qga_guest.sh("dpkg --purge qemu-guest-agent; systemctl start qga", timeout=120)
    qga_guest.wait_for_agent()


def test_only_one_of_two_agents_runs(qga_guest: Guest, debian_agent: str) -> None:
    """Each has a unit and a rule; the port goes to whichever was started last, and after a boot to this one."""

    def active() -> list[str]:
        return qga_guest.run(f"systemctl is-active qga.service {debian_agent}").output.split()

    qga_guest.sh(f"systemctl start {debian_agent}")
    assert active() == ["inactive", "active"]
    qga_guest.wait_for_agent()
    assert qga_guest.call("guest-info")["version"].startswith("7.2")
    qga_guest.sh("systemctl start qga")
    assert active() == ["active", "inactive"]
    qga_guest.wait_for_agent()
    qga_guest.sh(
        f"systemctl stop qga {debian_agent}; udevadm trigger --settle --action=add --subsystem-match=virtio-ports"
    )
    assert qga_guest.sh("udevadm info --query=property --property=SYSTEMD_WANTS --value /dev/vport*p3") == "qga.service"
