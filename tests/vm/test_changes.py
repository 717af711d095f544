# SPDX-License-Identifier: Apache-2.0
"""What libvirt changes in a guest through its agent, seen from inside."""

from __future__ import annotations

import base64
import hashlib
import os
import random
import socket
import subprocess
import time

import pytest

from .guest import DIMM, Guest
from .hypervisor import VirshError, wait_for

KEYS = ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5First first@example", "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5Second second@example")


def test_domtime_set_reaches_system_and_hardware_clock(guest: Guest) -> None:
    try:
        guest.virsh("domtime", "--time", "1893456000")
        assert 1893456000 <= int(guest.sh("date +%s")) < 1893456060
        assert guest.sh("hwclock --get --utc").startswith("2030-01-01")
        guest.sh("date --set=@1900000000")
        guest.virsh("domtime", "--sync")
        assert 1893456000 <= int(guest.sh("date +%s")) < 1893456060
    finally:
        guest.virsh("domtime", "--now")
    assert abs(int(guest.sh("date +%s")) - time.time()) < 30


class Login:
    """A person at the guest's second console, in front of a fresh prompt."""

    def __init__(self, guest: Guest) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(str(guest.directory / "login.sock"))
        self.unread = ""
        guest.sh("systemctl restart serial-getty@hvc0")

    def __enter__(self) -> Login:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def expect(self, *texts: str) -> str:
        """Read until one of `texts` has come, and return that one."""
        while True:
            for text in texts:
                _, found, after = self.unread.partition(text)
                if found:
                    self.unread = after
                    return text
            self.unread += self.sock.recv(4096).decode(errors="replace")

    def type(self, line: str) -> None:
        """Type a line."""
        self.sock.sendall(line.encode() + b"\r")

    def attempt(self, user: str, password: str) -> bool:
        """Log in; whether that worked."""
        self.expect("login: ")
        self.type(user)
        self.expect("Password: ")
        self.type(password)
        return self.expect("Login incorrect", ":~$ ") == ":~$ "


def login_with(guest: Guest, password: str) -> None:
    """Fail to log in with another password, succeed with this one, and be seen by libvirt."""
    with Login(guest) as person:
        assert not person.attempt("tester", "wrong")
        assert person.attempt("tester", password)
        person.type("echo $((6 * 7)) $(id -un)")
        assert person.expect("42 tester")
        assert "tester" in guest.virsh("guestinfo", "--user")
        person.type("exit")
        person.expect("login: ")


def test_set_user_password_plain_then_login(guest: Guest) -> None:
    guest.virsh("set-user-password", "tester", "correct:horse")
    login_with(guest, "correct:horse")


def test_set_user_password_encrypted_then_login(guest: Guest) -> None:
    command = ["openssl", "passwd", "-6", "-stdin"]
    hashed = subprocess.run(command, input="battery staple", capture_output=True, text=True, check=True).stdout.strip()
    guest.virsh("set-user-password", "tester", hashed, "--encrypted")
    login_with(guest, "battery staple")


def test_password_of_an_unknown_user_is_an_error(guest: Guest) -> None:
    with pytest.raises(VirshError, match="failed to set user password"):
        guest.virsh("set-user-password", "nobody-here", "x")


def test_ssh_keys_set_listed_removed(guest: Guest) -> None:
    path = guest.directory / "keys"

    def change(*keys: str, option: str = "") -> None:
        path.write_text("\n".join(keys) + "\n")
        guest.virsh("set-user-sshkeys", "tester", "--file", str(path), *([option] if option else []))

    def listed() -> list[str]:
        # virsh of libvirt 9 prints them without a newline in between.
        return sorted(guest.binding("result = domain.authorizedSSHKeysGet('tester')"))

    change(KEYS[0], option="--reset")
    assert listed() == [KEYS[0]]
    change(KEYS[1])
    assert listed() == sorted(KEYS)
    file = "/home/tester/.ssh/authorized_keys"
    owners = guest.sh(f"stat -c '%U %G %a' {file} /home/tester/.ssh").splitlines()
    assert owners == ["tester tester 600", "tester tester 700"]
    assert sorted(guest.sh(f"grep . {file}").splitlines()) == sorted(KEYS)
    change(KEYS[0], option="--remove")
    assert listed() == [KEYS[1]]
    guest.virsh("set-user-sshkeys", "tester", "--reset")
    assert listed() == []


def test_guestvcpus_off_and_on(guest: Guest) -> None:
    guest.virsh("guestvcpus", "--disable", "--cpulist", "1")
    assert guest.sh("cat /sys/devices/system/cpu/online") == "0"
    assert guest.binding("result = domain.guestVcpus()")["online"] == "0"
    guest.virsh("guestvcpus", "--enable", "--cpulist", "1")
    assert guest.sh("cat /sys/devices/system/cpu/online") == "0-1"


def test_setvcpus_guest(guest: Guest) -> None:
    guest.virsh("setvcpus", "--guest", "1")
    assert guest.sh("nproc") == "1"
    guest.virsh("setvcpus", "--guest", "2")
    assert guest.sh("nproc") == "2"


def test_memory_blocks_of_a_plugged_dimm(guest: Guest) -> None:
    def blocks() -> dict[int, bool]:
        return {block["phys-index"]: block["online"] for block in guest.call("guest-get-memory-blocks")}

    size = guest.call("guest-get-memory-block-info")["size"]
    assert size == int(guest.sh("cat /sys/devices/system/memory/block_size_bytes"), 16)
    before = blocks()
    guest.attach(DIMM)
    wait_for(lambda: len(blocks()) == len(before) + (128 << 20) // size, "the blocks of the new DIMM")
    block = min(set(blocks()) - set(before))
    for online in (True, False, True):
        change = [{"phys-index": block, "online": online}]
        assert guest.call("guest-set-memory-blocks", mem_blks=change) == [{"phys-index": block, "response": "success"}]
        assert blocks()[block] is online
        assert guest.sh(f"cat /sys/devices/system/memory/memory{block}/state") == ("online" if online else "offline")


LIBVIRT_BLOCK = 96 << 10
"""libvirt 9 gets no request through that is larger than its socket's buffer: it sends the start again and again."""

FILE_SCRIPT = """
import base64, libvirt_qemu
def call(name, **arguments):
    arguments = {k.replace('_', '-'): v for k, v in arguments.items()}
    request = json.dumps({'execute': name, 'arguments': arguments})
    return json.loads(libvirt_qemu.qemuAgentCommand(domain, request, 60, 0))['return']
"""


def test_file_written_and_read_with_checksums(guest: Guest) -> None:
    source = guest.directory / "source"
    copy = guest.directory / "copy"
    source.write_bytes(random.Random(7).randbytes(3_000_001))
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    written = guest.binding(
        FILE_SCRIPT
        + f"""
data = open({str(source)!r}, 'rb').read()
handle = call('guest-file-open', path='/var/tmp/copied', mode='w')
result = 0
for offset in range(0, len(data), {LIBVIRT_BLOCK}):
    block = data[offset:offset + {LIBVIRT_BLOCK}]
    result += call('guest-file-write', handle=handle, buf_b64=base64.b64encode(block).decode())['count']
call('guest-file-flush', handle=handle)
call('guest-file-close', handle=handle)
"""
    )
    assert written == 3_000_001
    assert guest.sh("sha256sum /var/tmp/copied").split()[0] == digest
    guest.binding(
        FILE_SCRIPT
        + f"""
handle = call('guest-file-open', path='/var/tmp/copied')
result = 0
with open({str(copy)!r}, 'wb') as out:
    while True:
        reply = call('guest-file-read', handle=handle, count=1 << 20)
        out.write(base64.b64decode(reply['buf-b64']))
        if reply['eof']:
            break
call('guest-file-close', handle=handle)
"""
    )
    assert hashlib.sha256(copy.read_bytes()).hexdigest() == digest
    guest.sh("rm /var/tmp/copied")


def test_exec_gives_status_output_and_input(guest: Guest) -> None:
    data = base64.b64encode(b"fed by the host").decode()
    pid = guest.call(
        "guest-exec",
        path="/bin/sh",
        arg=["-c", 'cat; echo "$WHO" >&2; exit 3'],
        env=["WHO=env", "PATH=/bin"],
        input_data=data,
        capture_output=True,
    )["pid"]
    status = guest.wait_for_exit(pid)
    assert status["exitcode"] == 3
    assert base64.b64decode(status["out-data"]) == b"fed by the host"
    assert base64.b64decode(status["err-data"]) == b"env\n"


def test_exec_of_a_missing_program_is_an_error(guest: Guest) -> None:
    with pytest.raises(VirshError, match=f"Failed to execute child process .{os.sep}no{os.sep}such"):
        guest.call("guest-exec", path="/no/such")
