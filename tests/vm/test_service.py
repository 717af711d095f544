# SPDX-License-Identifier: Apache-2.0
"""`qga --service` in a running system, and next to the distribution's own agent."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .guest import AGENT_CHANNEL, PORT, Guest
from .hypervisor import wait_for

UNIT_FILE = "/etc/systemd/system/qga.service"
INSTALLED = "find /etc -name '*qga*' -o -name '*fsfreeze*'"

pytestmark = pytest.mark.own


def test_status_of_a_running_service(guest: Guest) -> None:
    told = guest.sh("/opt/qga/bin/qga --service status").splitlines()
    assert f"{UNIT_FILE}: installed" in told
    assert told[-1] == "qga.service: active"


def test_package_carries_what_runs_and_no_sources_of_it(guest: Guest) -> None:
    package = "/opt/qga/lib/python3*/site-packages/qga"
    assert guest.sh(f"find {package} -name '*.so' -o -name 'py.typed' | wc -l") == "3"
    assert guest.sh(f"find {package} -name '*.pyx' -o -name '*.c'") == ""


def test_uninstall_ends_the_agent_and_install_starts_it_at_once(guest: Guest) -> None:
    guest.sh("/opt/qga/bin/qga --service uninstall")
    assert guest.run("systemctl is-active qga").output.strip() == "inactive"
    assert guest.run("/opt/qga/bin/qga --service status").status == 4
    assert guest.sh(INSTALLED) == ""
    guest.sh("/opt/qga/bin/qga --service install")
    guest.wait_for_agent()
    wait_for(lambda: guest.run("/opt/qga/bin/qga --service status").status == 0, "the service to be active")


def test_install_through_the_agent_itself_does_not_end_it(guest: Guest) -> None:
    before = guest.main_pid()
    status, output = guest.execute("/opt/qga/bin/qga", "--service", "install")
    assert status == 0, output
    assert guest.main_pid() == before


def test_uninstall_through_the_agent_itself_is_complete(guest: Guest) -> None:
    guest.call("guest-exec", path="/opt/qga/bin/qga", arg=["--service", "uninstall"])
    wait_for(lambda: guest.run("systemctl is-active qga").output.strip() == "inactive", "the service to stop")
    assert guest.sh(INSTALLED) == ""
    guest.sh("/opt/qga/bin/qga --service install")
    guest.wait_for_agent()


def test_programs_in_the_hook_directory_run_around_a_freeze(guest: Guest) -> None:
    hook = "/etc/qemu/fsfreeze-hook.d/10-database"
    guest.sh(f"cat >{hook}; chmod +x {hook}", stdin='#!/bin/sh\necho "$1" >>/run/database\n')
    guest.virsh("domfsfreeze")
    guest.virsh("domfsthaw")
    assert guest.sh("cat /run/database").split() == ["freeze", "thaw"]
    assert f"{hook} thaw ended with status 0" in guest.sh("cat /var/log/qga-fsfreeze-hook.log")
    guest.sh(f"rm {hook} /run/database")


OTHER = "qemu-guest-agent"


@pytest.fixture
def both_agents(guest: Guest) -> Iterator[Guest]:
    """A guest with the distribution's agent installed beside this one."""
    guest.sh(f"dpkg --install /var/debs/{OTHER}_*.deb", timeout=120)
    yield guest
    guest.sh(f"dpkg --purge {OTHER}; systemctl start qga", timeout=120)
    guest.wait_for_agent()


def test_only_one_of_two_agents_runs(both_agents: Guest) -> None:
    """Each has a unit and a rule: the port is whose unit was started last, and after a boot it is this one's."""
    guest = both_agents

    def wait_for_states(ours: str, theirs: str) -> None:
        # Theirs pulls in the port's unit, and that one ours: systemd may start the one before it has ended the other.
        states = f"systemctl is-active qga {OTHER}"
        wait_for(lambda: guest.run(states).output.split() == [ours, theirs], f"the states {ours}, {theirs}")

    guest.sh(f"systemctl start {OTHER}")
    wait_for_states("inactive", "active")
    guest.wait_for_agent()
    assert guest.call("guest-info")["version"].startswith("7.2")
    guest.sh("systemctl start qga")
    wait_for_states("active", "inactive")
    guest.wait_for_agent()
    guest.sh(f"systemctl stop qga {OTHER}")
    guest.detach_channel(PORT)
    guest.attach(AGENT_CHANNEL)
    guest.wait_for_agent()
    wait_for_states("active", "inactive")


def test_removal_of_the_other_agent_leaves_this_one_whole(both_agents: Guest) -> None:
    both_agents.sh(f"systemctl start qga; dpkg --purge {OTHER}", timeout=120)
    both_agents.sh("/opt/qga/bin/qga --service status")
    both_agents.wait_for_agent()
    both_agents.virsh("domfsfreeze")
    both_agents.virsh("domfsthaw")
