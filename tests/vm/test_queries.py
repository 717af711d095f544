# SPDX-License-Identifier: Apache-2.0
"""What libvirt asks an agent, compared with what the guest knows of itself."""

from __future__ import annotations

import re
import time

from .guest import Guest
from .results import Results


def test_agent_starts_when_the_port_appears(guest: Guest, results: Results) -> None:
    assert guest.active_without_port == "inactive"
    assert guest.main_pid() > 0
    results.measure("seconds from plugging the port in to the first reply", guest.kind, guest.seconds_to_first_reply)


def test_ping(guest: Guest) -> None:
    assert guest.call("guest-ping") == {}
    assert 'state="connected"' in guest.virsh("dumpxml").replace("'", '"')


def test_guest_info_lists_every_command_of_libvirt(guest: Guest) -> None:
    commands = {entry["name"] for entry in guest.call("guest-info")["supported_commands"] if entry["enabled"]}
    assert commands >= {
        "guest-exec",
        "guest-file-read",
        "guest-fsfreeze-freeze-list",
        "guest-get-disks",
        "guest-get-osinfo",
        "guest-set-memory-blocks",
        "guest-set-user-password",
        "guest-set-vcpus",
        "guest-ssh-add-authorized-keys",
        "guest-suspend-ram",
    }


def guestinfo(guest: Guest, *sections: str) -> dict[str, str]:
    """What `virsh guestinfo` prints, as name and value."""
    lines = guest.virsh("guestinfo", *(f"--{section}" for section in sections)).splitlines()
    return dict(re.split(r"\s*: ", line, maxsplit=1) for line in lines)


def test_guestinfo_os_timezone_and_hostname(guest: Guest) -> None:
    info = guestinfo(guest, "os", "timezone", "hostname")
    assert info["os.id"] == "debian"
    assert info["os.version-id"] == "12"
    assert info["os.kernel-release"] == guest.sh("uname -r")
    assert info["os.kernel-version"] == guest.sh("uname -v")
    assert info["os.machine"] == "x86_64"
    assert (info["timezone.name"], info["timezone.offset"]) == ("UTC", "0")
    assert info["hostname"] == "guest"


def test_guestinfo_filesystem(guest: Guest) -> None:
    info = guestinfo(guest, "filesystem")
    found = {info[f"fs.{i}.mountpoint"]: i for i in range(int(info["fs.count"]))}
    assert set(found) == {"/", "/data", "/nvme"}
    for mountpoint, index in found.items():
        blocks, free, available, size = map(int, guest.sh(f"stat -f -c '%b %f %a %S' {mountpoint}").split())
        assert int(info[f"fs.{index}.total-bytes"]) == (blocks - free + available) * size
        assert abs(int(info[f"fs.{index}.used-bytes"]) - (blocks - free) * size) < 4 << 20
        assert info[f"fs.{index}.fstype"] == "ext4"
    assert info[f"fs.{found['/']}.disk.0.alias"] == "vda"
    assert info[f"fs.{found['/data']}.disk.0.alias"] == "sda"
    assert "scsi-serial" in info[f"fs.{found['/data']}.disk.0.serial"]
    assert info[f"fs.{found['/nvme']}.disk.0.device"] == "/dev/nvme0n1p1"


def test_guestinfo_disk(guest: Guest) -> None:
    info = guestinfo(guest, "disk")
    names = {info[f"disk.{i}.name"]: i for i in range(int(info["disk.count"]))}
    assert set(names) == set(guest.sh("lsblk -npro NAME").split())
    assert info[f"disk.{names['/dev/vda']}.alias"] == "vda"
    assert info[f"disk.{names['/dev/sda']}.alias"] == "sda"
    partition = names["/dev/nvme0n1p1"]
    assert info[f"disk.{partition}.partition"] == "yes"
    assert info[f"disk.{partition}.dependency.0.name"] == "/dev/nvme0n1"


def test_disk_of_nvme_has_address_and_smart_data(guest: Guest) -> None:
    disks = {disk["name"]: disk for disk in guest.call("guest-get-disks")}
    nvme = disks["/dev/nvme0n1"]
    assert nvme["address"]["bus-type"] == "nvme"
    assert nvme["smart"]["type"] == "nvme"
    assert nvme["smart"]["temperature"] == 323
    assert disks["/dev/sda"]["address"]["bus-type"] == "scsi"
    assert disks["/dev/vda"]["address"]["bus-type"] == "virtio"


def test_guestinfo_interface(guest: Guest) -> None:
    info = guestinfo(guest, "interface")
    index = next(i for i in range(int(info["if.count"])) if info[f"if.{i}.name"] == "eth0")
    assert info[f"if.{index}.hwaddr"] == guest.mac
    addresses = {info[f"if.{index}.addr.{i}.addr"] for i in range(int(info[f"if.{index}.addr.count"]))}
    assert "10.0.2.15" in addresses


def test_domfsinfo(guest: Guest) -> None:
    rows = sorted(line.split() for line in guest.virsh("domfsinfo").splitlines())
    assert rows == [["/", "vda", "ext4", "vda"], ["/data", "sda", "ext4", "sda"], ["/nvme", "nvme0n1p1", "ext4"]]


def test_domifaddr(guest: Guest) -> None:
    rows = [line.split() for line in guest.virsh("domifaddr", "--source", "agent").splitlines()]
    assert ["lo", "00:00:00:00:00:00", "ipv4", "127.0.0.1/8"] in rows
    assert ["eth0", guest.mac, "ipv4", "10.0.2.15/24"] in rows


def test_domhostname(guest: Guest) -> None:
    assert guest.virsh("domhostname", "--source", "agent") == "guest"


def test_domtime_get(guest: Guest) -> None:
    before = int(guest.sh("date +%s"))
    seconds = int(guest.virsh("domtime").split()[-1])
    assert before <= seconds <= before + 30
    assert int(time.time()) - 60 < seconds < time.time() + 60


def test_guestvcpus_lists_both(guest: Guest) -> None:
    rows = dict(line.split(" : ") for line in re.sub(r" +", " ", guest.virsh("guestvcpus")).splitlines())
    assert rows["vcpus"] == "0-1"
    assert rows["online"] == "0-1"


def test_python_binding(guest: Guest) -> None:
    answers = guest.binding(
        "info = domain.guestInfo(0)\n"
        "source = libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT\n"
        "result = {'info': info, 'hostname': domain.hostname(libvirt.VIR_DOMAIN_GET_HOSTNAME_AGENT),\n"
        "  'interfaces': domain.interfaceAddresses(source), 'time': domain.getTime(), 'vcpus': domain.guestVcpus(),\n"
        "  'filesystems': [entry[:3] for entry in domain.fsInfo()]}"
    )
    assert answers["info"]["os.id"] == "debian"
    assert answers["hostname"] == "guest"
    assert answers["interfaces"]["eth0"]["addrs"][0]["addr"] == "10.0.2.15"
    assert answers["vcpus"]["online"] == "0-1"
    assert sorted(entry[0] for entry in answers["filesystems"]) == ["/", "/data", "/nvme"]
    assert abs(answers["time"]["seconds"] - int(guest.sh("date +%s"))) < 30
