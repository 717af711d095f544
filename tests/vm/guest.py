# SPDX-License-Identifier: Apache-2.0
"""A running guest: its domain, the tests' own way into it, and its agent as libvirt or a raw client sees it."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

from tests.agents import Connection

from .hypervisor import Hypervisor, VirshError, wait_for
from .image import Image

PORT = "org.qemu.guest_agent.0"

UNITS = {"qemu-ga": "qemu-guest-agent.service", "qga": "qga.service"}

PROGRAMS = {"qemu-ga": "/usr/sbin/qemu-ga", "qga": "/opt/qga/bin/qga"}

BOOT_TIMEOUT = 120

AGENT_CHANNEL = f"""
<channel type='unix'>
  <target type='virtio' name='{PORT}'/>
  <address type='virtio-serial' controller='0' bus='0' port='3'/>
</channel>
"""

DIMM = """
<memory model='dimm'>
  <target><size unit='MiB'>128</size><node>0</node></target>
</memory>
"""

CMDLINE = (
    "console=ttyS0 root=/dev/vda net.ifnames=0 quiet systemd.show_status=0"
    " mitigations=off"  # under emulation they only cost time
    " movable_node"  # a plugged DIMM can be taken offline again
)

DOMAIN = """
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{name}</name>
  <maxMemory slots='2' unit='MiB'>1024</maxMemory>
  <memory unit='MiB'>512</memory>
  <vcpu>2</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{kernel}</kernel>
    <initrd>{initramfs}</initrd>
    <cmdline>{cmdline}</cmdline>
  </os>
  <features><acpi/><apic/></features>
  <cpu mode='custom' match='exact' check='none'>
    <model>qemu64</model>
    <numa><cell id='0' cpus='0-1' memory='512' unit='MiB'/></numa>
  </cpu>
  <clock offset='utc'/>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <pm><suspend-to-mem enabled='yes'/><suspend-to-disk enabled='yes'/></pm>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='unsafe' discard='unmap'/>
      <source file='{directory}/root.qcow2'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='unsafe' discard='unmap'/>
      <source file='{directory}/data.qcow2'/>
      <target dev='sda' bus='scsi'/>
      <serial>scsi-serial</serial>
    </disk>
    <controller type='scsi' model='virtio-scsi'/>
    <controller type='virtio-serial' index='0'/>
    <controller type='usb' model='none'/>
    <interface type='user'>
      <mac address='{mac}'/>
      <model type='virtio'/>
      <rom enabled='no'/>
    </interface>
    <serial type='file'><source path='{directory}/console.log'/><target port='0'/></serial>
    <serial type='unix'><source mode='bind' path='{directory}/isa.sock'/><target port='1'/></serial>
    <console type='file'><source path='{directory}/console.log'/><target type='serial' port='0'/></console>
    <console type='unix'><source mode='bind' path='{directory}/login.sock'/><target type='virtio' port='1'/></console>
    <channel type='unix'>
      <source mode='bind' path='{directory}/control.sock'/>
      <target type='virtio' name='test.control.0'/>
      <address type='virtio-serial' controller='0' bus='0' port='2'/>
    </channel>
    {agent}
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
    <memballoon model='none'/>
  </devices>
  <qemu:commandline>
    <qemu:arg value='-drive'/>
    <qemu:arg value='if=none,id=nvme,file={directory}/nvme.qcow2,format=qcow2,cache=unsafe,discard=unmap'/>
    <qemu:arg value='-device'/>
    <qemu:arg value='nvme,drive=nvme,serial=nvme-serial,addr=0x10'/>
    {extra}
  </qemu:commandline>
</domain>
"""


def _port(name: str, number: int, path: Path, port: str) -> list[str]:
    # As JSON, since QEMU makes these devices after the others, and libvirt's controller is JSON.
    device = {"driver": "virtserialport", "bus": "virtio-serial0.0", "nr": number, "chardev": name, "name": port}
    return ["-chardev", f"socket,id={name},path={path},server=on,wait=off", "-device", json.dumps(device)]


class Result(NamedTuple):
    """The end of a command in the guest; `output` is stdout and stderr."""

    status: int
    output: str


class Guest:
    """A guest and its domain. `channel`: "libvirt" (plugged in after the boot) or "raw" (a socket of the tests)."""

    def __init__(self, hypervisor: Hypervisor, kind: str, image: Image, channel: str, serial: int) -> None:
        self.hypervisor = hypervisor
        self.kind = kind
        self.unit = UNITS[kind]
        self.program = PROGRAMS[kind]
        self.channel = channel
        self.name = f"{kind}-{channel}-{serial}"
        self.directory = hypervisor.directory / self.name
        self.directory.mkdir()
        for disk in ("root", "data", "nvme"):
            self._overlay(getattr(image, disk), self.directory / f"{disk}.qcow2")
        self.mac = f"52:54:00:00:00:{serial:02x}"
        self._control: socket.socket | None = None
        self._requests = 0
        self._image = image
        self.active_without_port: str | None = None
        self.seconds_to_first_reply = 0.0

    def boot(self) -> None:
        """Start the guest and wait for its agent. A libvirt guest gets the agent's port only when all else runs."""
        self.power_on()
        started = time.monotonic()
        if self.channel == "raw":
            self.connect(timeout=BOOT_TIMEOUT).close()
        else:
            self.run("systemctl is-system-running --wait", timeout=BOOT_TIMEOUT)
            self.active_without_port = self.run(f"systemctl is-active {self.unit}").output.strip()
            started = time.monotonic()
            self.attach(AGENT_CHANNEL)
            self.wait_for_agent()
        self.seconds_to_first_reply = time.monotonic() - started

    def power_on(self, *, plugged: bool = False) -> None:
        """Start the domain on the disks as they are; `plugged`: libvirt's agent channel is there from the start."""
        self._close_control()
        for name in ("control", "login", "isa", "agent", "floor"):
            (self.directory / f"{name}.sock").unlink(missing_ok=True)
        self.hypervisor.virsh("create", "/dev/stdin", stdin=self._xml(plugged))

    def _overlay(self, base: Path, path: Path) -> None:
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, path], check=True)

    def _xml(self, plugged: bool) -> str:
        options: list[str] = []
        if self.channel == "raw":
            options = _port("raw", 3, self.raw_path, PORT) + _port("floor", 4, self.floor_path, "test.floor.0")
        return DOMAIN.format(
            name=self.name,
            cmdline=CMDLINE,
            kernel=self._image.kernel,
            initramfs=self._image.initramfs,
            directory=self.directory,
            mac=self.mac,
            agent=AGENT_CHANNEL if plugged else "",
            extra="\n".join(f"<qemu:arg value={quoteattr(option)}/>" for option in options),
        )

    @property
    def raw_path(self) -> Path:
        """The agent's socket on the host, of a guest with a raw channel."""
        return self.directory / "agent.sock"

    @property
    def floor_path(self) -> Path:
        """The socket of a port that no agent opens, to measure against; of a guest with a raw channel."""
        return self.directory / "floor.sock"

    # The tests' own way in.

    def run(self, command: str, timeout: float = 60, stdin: str = "") -> Result:
        """Run a shell command in the guest, past any agent."""
        self._requests += 1
        request = {"id": self._requests, "argv": ["/bin/sh", "-c", command], "input": stdin, "timeout": timeout}
        control = self._connect_control(timeout + BOOT_TIMEOUT)
        control.sendall(json.dumps(request).encode() + b"\n")
        while True:
            line = self._lines.readline()
            assert line.endswith(b"\n"), f"{self.name}: the control port was closed"
            reply = json.loads(line)
            if reply["id"] == self._requests:
                return Result(reply["status"], reply["output"])

    def _connect_control(self, timeout: float) -> socket.socket:
        if self._control is None:
            self._control = socket.socket(socket.AF_UNIX)
            self._control.connect(str(self.directory / "control.sock"))
            self._lines = self._control.makefile("rb")
        self._control.settimeout(timeout)
        return self._control

    def sh(self, command: str, timeout: float = 60, stdin: str = "") -> str:
        """Like `run`, for commands that succeed: what they print, without the last newline."""
        result = self.run(command, timeout, stdin)
        assert result.status == 0, f"{command!r} in {self.name}: {result}"
        return result.output.rstrip("\n")

    # libvirt.

    def virsh(self, command: str, *arguments: str, timeout: float = 60) -> str:
        """`virsh COMMAND <this domain> ARGUMENTS`."""
        return self.hypervisor.virsh(command, self.name, *arguments, timeout=timeout)

    def binding(self, script: str) -> Any:
        """See Hypervisor.binding."""
        return self.hypervisor.binding(self.name, script)

    @property
    def state(self) -> str:
        """`running`, `shut off`, `pmsuspended`..., "" when the domain is gone."""
        try:
            return self.virsh("domstate")
        except VirshError:
            return ""

    def attach(self, xml: str) -> None:
        """Plug a device in."""
        self._device("attach-device", xml)

    def detach_channel(self, port: str) -> None:
        """Unplug the virtio port with that name."""
        for channel in ElementTree.fromstring(self.virsh("dumpxml")).iterfind("devices/channel"):
            if channel.find(f"target[@name='{port}']") is not None:
                self._device("detach-device", ElementTree.tostring(channel, encoding="unicode"))

    def _device(self, verb: str, xml: str) -> None:
        path = self.directory / "device.xml"
        path.write_text(xml)
        self.virsh(verb, str(path), "--live")

    def destroy(self) -> None:
        """Cut the guest's power, if it still runs."""
        self._close_control()
        if self.state:
            self.virsh("destroy")

    def _close_control(self) -> None:
        if self._control is not None:
            self._lines.close()
            self._control.close()
            self._control = None

    # The agent through libvirt.

    def call(self, execute: str, timeout: float = 60, **arguments: Any) -> Any:
        """The value of `return`; VirshError with the agent's text. Underscores in names become hyphens."""
        request: dict[str, Any] = {"execute": execute}
        if arguments:
            request["arguments"] = {name.replace("_", "-"): value for name, value in arguments.items()}
        options = ("--timeout", str(int(timeout)))
        reply = self.virsh("qemu-agent-command", json.dumps(request), *options, timeout=timeout + 10)
        return json.loads(reply)["return"]

    def answers(self) -> bool:
        """Whether the agent answers libvirt now."""
        try:
            self.call("guest-ping", timeout=5)
        except VirshError:
            return False
        return True

    def wait_for_agent(self, timeout: float = BOOT_TIMEOUT) -> None:
        """Wait until the agent answers libvirt."""
        wait_for(self.answers, f"the agent in {self.name}", timeout, 0.3)

    def execute(self, *argv: str, timeout: float = 60) -> tuple[int, bytes]:
        """Run a program through guest-exec: exit status and stdout."""
        pid = self.call("guest-exec", path=argv[0], arg=list(argv[1:]), capture_output=True)["pid"]
        status = self.wait_for_exit(pid, timeout)
        return status["exitcode"], base64.b64decode(status.get("out-data", ""))

    def wait_for_exit(self, pid: int, timeout: float = 60) -> dict[str, Any]:
        """The last guest-exec-status of a program."""

        def ended() -> dict[str, Any] | None:
            status: dict[str, Any] = self.call("guest-exec-status", pid=pid)
            return status if status["exited"] else None

        return dict(wait_for(ended, f"program {pid} to end", timeout))

    # The agent through a raw channel.

    def connect(self, path: Path | None = None, timeout: float = 60) -> RawClient:
        """A client of the raw channel, with stale bytes drained and the session synchronised."""
        client = RawClient(path or self.raw_path, timeout)
        try:
            client.synchronise()
        except BaseException:
            client.close()
            raise
        return client

    def main_pid(self, unit: str | None = None) -> int:
        """The process id of the agent's service, 0 when it does not run."""
        return int(self.sh(f"systemctl show --property MainPID --value {unit or self.unit}"))

    def console(self) -> str:
        """What the guest wrote to its serial console, for reports of failures."""
        path = self.directory / "console.log"
        return path.read_text(errors="replace") if path.exists() else ""


class RawClient(Connection):
    """The host's end of a serial channel: bytes in, lines out, and nobody in between."""

    def __init__(self, path: Path, timeout: float = 60) -> None:
        super().__init__(path, timeout)

    def line(self) -> bytes:
        """The next line that the agent wrote."""
        line = self._lines.readline()
        assert line.endswith(b"\n"), f"the channel was closed after {line[:80]!r}"
        return line

    def synchronise(self) -> None:
        """Do what a client has to do first: 0xFF, then guest-sync-delimited, and drop everything before its answer."""
        token = int.from_bytes(os.urandom(4))
        self.send(b'\xff{"execute":"guest-sync-delimited","arguments":{"id":%d}}\n' % token)
        while True:
            _, mark, rest = self.line().rpartition(b"\xff")
            if mark and json.loads(rest) == {"return": token}:
                return

    def request(self, execute: str, **arguments: Any) -> dict[str, Any]:
        """Send a request and return the whole reply."""
        message: dict[str, Any] = {"execute": execute}
        if arguments:
            message["arguments"] = {name.replace("_", "-"): value for name, value in arguments.items()}
        self.send(json.dumps(message).encode() + b"\n")
        reply = json.loads(self.line())
        assert isinstance(reply, dict)
        return reply

    def call(self, execute: str, **arguments: Any) -> Any:
        """The value of `return`; AssertionError for an error."""
        reply = self.request(execute, **arguments)
        assert "return" in reply, reply
        return reply["return"]

    def execute(self, *argv: str, timeout: float = 60) -> dict[str, Any]:
        """Run a program through guest-exec to its end: the last guest-exec-status."""
        pid = self.call("guest-exec", path=argv[0], arg=list(argv[1:]), capture_output=True)["pid"]
        deadline = time.monotonic() + timeout
        while not (status := self.call("guest-exec-status", pid=pid))["exited"]:
            assert time.monotonic() < deadline, f"{argv} still runs"
            time.sleep(0.05)
        return dict(status)
