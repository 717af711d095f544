# SPDX-License-Identifier: Apache-2.0
"""The same questions about hardware, storage and network to qga and qemu-ga, on this machine and on made-up ones.

A made-up machine is a tree of tests/data that is mounted over /sys, /run and the agent's mountinfo in a mount namespace
of its own, so that both agents take it for the machine they run on.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import loops, sides, trees
from tests.agents import NO_QEMU_GA, QEMU_GA, QGA, AgentProcess
from tests.sides import Reply
from tests.trees import Tree

pytestmark = pytest.mark.skipif(QEMU_GA is None, reason=NO_QEMU_GA)


def reference_version() -> tuple[int, ...]:
    text = subprocess.run([str(QEMU_GA), "-V"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"(\d+)\.(\d+)", text)
    assert found, text
    return int(found[1]), int(found[2])


def needs_reference(*version: int) -> None:
    """Skip a test of something that the installed qemu-ga does not know."""
    if reference_version() < version:
        pytest.skip(f"qemu-ga is older than {version[0]}.{version[1]}")


class Both(sides.Both):
    """Connections to both agents, and what is asked of them here."""

    def lists(self, execute: str) -> tuple[list[Reply], list[Reply]]:
        """What both return, which is a list."""
        return self.ours.ok(execute), self.theirs.ok(execute)

    def in_between(self, execute: str) -> tuple[Any, Any, Any]:
        """What qga returns between two answers of qemu-ga: theirs, ours, theirs."""
        return self.theirs.ok(execute), self.ours.ok(execute), self.theirs.ok(execute)


@contextmanager
def both(directory: Path, ours: list[str] | None = None, theirs: list[str] | None = None) -> Iterator[Both]:
    """Start both agents, each behind a command line that prepares its surroundings and then runs its arguments."""
    env = {"SYSTEMD_DEVICE_VERIFY_SYSFS": "0"}  # libudev otherwise refuses a /sys that is no sysfs
    with ExitStack() as stack:
        clients = []
        for name, argv in (("ours", [*(ours or []), *QGA]), ("theirs", [*(theirs or ours or []), str(QEMU_GA)])):
            (directory / name).mkdir()
            agent = stack.enter_context(AgentProcess(argv, directory / name, env=env))
            if name == "theirs":
                stack.callback(agent.process.send_signal, signal.SIGKILL)  # it does not always end on SIGTERM
            clients.append(stack.enter_context(agent.connect()))
        yield Both(*clients)


def with_mounts(*mounts: tuple[str | Path, str]) -> list[str]:
    """A command line that binds paths over others (`$$` is the agent's process id), seen by the agent alone."""
    script = "".join(f'mount --rbind "{source}" "{target}" && ' for source, target in mounts)
    return ["unshare", "--mount", "sh", "-c", script + 'exec "$@"', "sh"]


def on_machine(tree: Tree) -> list[str]:
    """A command line that shows `tree` instead of this machine."""
    partitions = (tree.proc / "partitions", "/proc/partitions")
    mountinfo = (tree.proc / "self/mountinfo", "/proc/$$/mountinfo")
    return with_mounts((tree.sys, "/sys"), (f"{tree.root}/run", "/run"), partitions, mountinfo)


def by(name: str, entries: list[Reply]) -> dict[Any, Reply]:
    found = {entry[name]: entry for entry in entries}
    assert len(found) == len(entries)
    return found


def disks(entries: list[Reply]) -> dict[Any, Reply]:
    """Entries of guest-get-disks without the order of their dependencies."""
    return by("name", [{**entry, "dependencies": sorted(entry["dependencies"])} for entry in entries])


def lasting(entries: list[Reply]) -> list[Reply]:
    """Entries without loop devices, which other tests attach and detach meanwhile."""
    return [entry for entry in entries if not entry["name"].removeprefix("/dev/").startswith("loop")]


SIZES = ("used-bytes", "total-bytes", "total-bytes-privileged")


def filesystems(entries: list[Reply], sizes: bool = False) -> dict[Any, Reply]:
    """Entries of guest-get-fsinfo, of several for one device (as in qemu-ga 7.2) the last, which is mounted first."""
    found = {}
    for entry in entries:
        kept = {key: value for key, value in entry.items() if sizes or key not in SIZES}
        found[entry["name"]] = {**kept, "disk": sorted(entry["disk"], key=lambda disk: str(disk["dev"]))}
    return found


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """Both agents on this very machine."""
    with both(tmp_path_factory.mktemp("here")) as agents:
        yield agents


def test_disks_of_this_machine(here: Both) -> None:
    ours, theirs = map(lasting, here.lists("guest-get-disks"))
    assert disks(ours) == disks(theirs)


def test_file_systems_of_this_machine(here: Both) -> None:
    ours, theirs = map(lasting, here.lists("guest-get-fsinfo"))
    assert filesystems(ours) == filesystems(theirs)
    for name, entry in filesystems(theirs, sizes=True).items():
        for key in set(SIZES) & entry.keys():
            assert filesystems(ours, sizes=True)[name][key] == pytest.approx(entry[key], rel=0.05)


@pytest.mark.parametrize(
    ("command", "key"), [("guest-get-vcpus", "logical-id"), ("guest-get-memory-blocks", "phys-index")]
)
def test_processors_and_memory_of_this_machine(here: Both, command: str, key: str) -> None:
    ours, theirs = here.ask(command)
    if "error" in theirs:
        assert ours == theirs
        return
    assert by(key, ours["return"]) == by(key, theirs["return"])
    assert ours["return"] == sorted(ours["return"], key=lambda entry: entry[key])


def test_memory_block_size_of_this_machine(here: Both) -> None:
    ours, theirs = here.ask("guest-get-memory-block-info")
    assert ours == theirs


def test_disk_counters_lie_between_two_answers_of_the_reference(here: Both) -> None:
    before, ours, after = map(lasting, here.in_between("guest-get-diskstats"))
    assert [entry["name"] for entry in ours] == [entry["name"] for entry in before]
    for low, value, high in zip(before, ours, after, strict=True):
        assert (value["major"], value["minor"]) == (low["major"], low["minor"])
        assert value["stats"].keys() == low["stats"].keys()
        for key in value["stats"].keys() - {"ios-pgr"}:
            assert low["stats"][key] <= value["stats"][key] <= high["stats"][key]


def test_cpu_times_lie_between_two_answers_of_the_reference(here: Both) -> None:
    before, ours, after = here.in_between("guest-get-cpustats")
    for low, value, high in zip(before, ours, after, strict=True):
        assert value.keys() == low.keys()
        assert (value["type"], value["cpu"]) == (low["type"], low["cpu"])
        for key in value.keys() - {"type", "cpu", "idle", "iowait"}:  # the kernel may count these two backwards
            assert low[key] <= value[key] <= high[key]


def test_load_is_that_of_the_reference(here: Both) -> None:
    needs_reference(10, 0)
    before, ours, after = here.in_between("guest-get-load")
    assert ours in (before, after)


def compare_interfaces(agents: Both) -> list[Reply]:
    """Assert that interfaces are the same but for the counters, which both must have counted alike."""
    before, ours, after = agents.in_between("guest-network-get-interfaces")
    assert [entry["name"] for entry in ours] == [entry["name"] for entry in before]
    for low, value, high in zip(before, ours, after, strict=True):
        assert {**value, "statistics": 0} == {**low, "statistics": 0}
        if "statistics" in low:
            assert value["statistics"].keys() == low["statistics"].keys()
            for key, count in value["statistics"].items():
                assert low["statistics"][key] <= count <= high["statistics"][key]
    return list(ours)


def test_interfaces_of_this_machine(here: Both) -> None:
    compare_interfaces(here)


def test_interfaces_without_an_address_have_statistics_too(here: Both) -> None:
    for entry in here.ours.ok("guest-network-get-interfaces"):
        assert "statistics" in entry or ":" in entry["name"]


def compare_routes(agents: Both) -> list[Reply]:
    ours, theirs = agents.lists("guest-network-get-route")
    for entry in theirs:
        entry["flags"] &= 0xFFFFFFFF  # the reference extends the sign of IPv6's
    assert ours == theirs
    return ours


def test_routes_of_this_machine(here: Both) -> None:
    needs_reference(9, 1)
    compare_routes(here)


@pytest.mark.root
@pytest.mark.parametrize("name", trees.names())
def test_storage_of_described_machine(tmp_path: Path, name: str) -> None:
    if name == "usb":
        needs_reference(8, 0)
    tree = trees.load(name, tmp_path / "machine")
    with both(tmp_path, on_machine(tree)) as agents:
        ours, theirs = agents.lists("guest-get-disks")
        assert disks(ours) == disks(theirs)
        assert ours
        ours, theirs = agents.lists("guest-get-fsinfo")
        assert filesystems(ours) == filesystems(theirs)
        mountpoints = re.findall(r"^(?:\S+ ){4}(\S+)", (tree.proc / "self/mountinfo").read_text(), re.MULTILINE)
        assert [entry["mountpoint"] for entry in ours] == [text.replace("\\040", " ") for text in mountpoints]


@pytest.mark.root
def test_partitioned_loop_device_with_a_file_system(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.touch()
    os.truncate(image, 32 << 20)
    with loops.attached(image) as device:
        first = loops.add_partition(device, 1, 2048, 16384)
        second = loops.add_partition(device, 2, 20480, 40960)
        subprocess.run(["mkfs.ext4", "-q", first], check=True)
        with loops.mounted(first, tmp_path / "a mount\\point") as mountpoint, both(tmp_path) as agents:
            ours, theirs = map(disks, agents.lists("guest-get-disks"))
            assert [name for name in ours if name.startswith(device)] == [device, first, second]
            for name in (device, first, second):
                assert ours[name] == theirs[name]
            replies = agents.lists("guest-get-fsinfo")
            mine, reference = (filesystems(reply, sizes=True)[os.path.basename(first)] for reply in replies)
            if reference_version() < (9, 1):
                assert mine.pop("total-bytes-privileged") >= mine["total-bytes"]
            assert mine == reference
            assert mine["mountpoint"] == str(mountpoint)


OPEN_TUN = """
import fcntl, os, struct, sys
opened = []
for name, kind in ((b"tun0", 0x1001), (b"tapcut", 0x1002), (b"taplong", 0x1002)):
    opened.append(os.open("/dev/net/tun", os.O_RDWR))
    fcntl.ioctl(opened[-1], 0x400454CA, struct.pack("16sH22x", name, kind))
fcntl.ioctl(opened[1], 0x400454CD, 768)  # TUNSETLINK to an IPv4 tunnel: 4 bytes of address
fcntl.ioctl(opened[2], 0x400454CD, 769)  # to an IPv6 tunnel: 16 bytes
print("ready", flush=True)
sys.stdin.read()
"""

NETWORK = """
link add v0 type veth peer name v1
link add br0 type bridge
link set lo up
link set v0 up
link set v1 up
addr add 10.1.0.1/24 dev v0
addr add 10.1.0.2/24 dev v0 label v0:1
addr add 10.9.0.2/30 dev v0
addr add 10.2.0.1 peer 10.2.0.9/24 dev v1
addr add fd01::1 peer fd01::2/64 dev v1 nodad
addr add 10.3.0.1/0 dev br0 label br0:x
addr add 169.254.1.1/32 dev tun0
route add 10.77.0.0/16 via 10.1.0.9 metric 300 mtu 1400 window 5000 rtt 120ms
route add unreachable 10.78.0.0/16
route add fd77::/64 via fd01::7 metric 4096
route add blackhole fd99::/48
"""


@pytest.fixture
def namespace(tmp_path: Path) -> Iterator[list[str]]:
    """A network namespace with all kinds of interfaces; the command line that runs something in it."""
    name = f"qga-{os.getpid()}"
    inside = ["ip", "netns", "exec", name]
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        with subprocess.Popen(
            [*inside, sys.executable, "-c", OPEN_TUN], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as tunnels:
            assert tunnels.stdout
            assert tunnels.stdout.readline() == b"ready\n"
            subprocess.run(["ip", "-n", name, "-batch", "-"], input=NETWORK.encode(), check=True)
            yield inside
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.mark.root
def test_interfaces_and_routes_of_many_kinds(tmp_path: Path, namespace: list[str]) -> None:
    with both(tmp_path, namespace) as agents:
        names = [entry["name"] for entry in compare_interfaces(agents)]
        assert {"lo", "v0", "v0:1", "v1", "br0", "br0:x", "tun0", "tapcut", "taplong"} == set(names)
        if reference_version() >= (9, 1):
            assert len(compare_routes(agents)) > 8


MACHINE_WITH_SWITCHES = """
devices/system/cpu
    cpu0/topology
    cpu1/online = 1
    cpu2/online = 0
    cpu3/online/no-file
    cpu10/online = 1
devices/system/memory
    block_size_bytes = 8000000
    memory0
        state = online
        removable = 1
    memory1
        state = offline
        removable = 0
    memory2/state = online
    memory3/removable = 1
    memory4
        state = going-offline
        removable = 1
    memory5/state/no-file
    memory10
        state = offline
        removable = 1
"""


@contextmanager
def machines_with_switches(directory: Path, text: str = MACHINE_WITH_SWITCHES) -> Iterator[tuple[Both, Tree, Tree]]:
    """Both agents, each with a copy of a machine of its own to switch; cpu10 and memory10 refuse to be switched."""
    machines = [Tree(directory / name, text) for name in ("machine-ours", "machine-theirs")]
    full = [
        ("/dev/full", target)
        for target in ("/sys/devices/system/cpu/cpu10/online", "/sys/devices/system/memory/memory10/state")
        if target.removeprefix("/sys/").split("/")[-2] in text
    ]
    with both(directory, *(with_mounts((machine.sys, "/sys"), *full) for machine in machines)) as agents:
        yield agents, machines[0], machines[1]


def switches(tree: Tree) -> dict[str, str]:
    return {
        str(path.relative_to(tree.sys)): path.read_text()
        for path in sorted((tree.sys / "devices").rglob("*"))
        if path.is_file()
    }


@pytest.mark.root
def test_switching_processors(tmp_path: Path) -> None:
    requests = [
        [(1, True)],
        [(1, False)],
        [(1, False)],
        [(0, True)],
        [(0, False)],
        [(99, True)],
        [(-1, False)],
        [(2, True), (99, True), (1, True)],
        [(3, True)],
        [(10, False)],
        [(10, True)],
        [(1, True), (0, False), (2, False)],
        [(2, False), (2, True), (2, False)],
        [],
    ]
    with machines_with_switches(tmp_path) as (agents, our_machine, their_machine):
        for request in requests:
            vcpus = [{"logical-id": number, "online": online} for number, online in request]
            ours, theirs = agents.ask("guest-set-vcpus", vcpus=vcpus)
            assert ours == theirs, request
            assert switches(our_machine) == switches(their_machine), request


@pytest.mark.root
@pytest.mark.parametrize("online", [True, False])
def test_switching_memory_blocks(tmp_path: Path, online: bool) -> None:
    blocks = [{"phys-index": n, "online": online} for n in (0, 1, 2, 3, 4, 5, 10, 99, (1 << 64) - 1, -1, 0)]
    with machines_with_switches(tmp_path) as (agents, our_machine, their_machine):
        ours, theirs = agents.ask("guest-set-memory-blocks", mem_blks=blocks)
        assert ours == theirs
        assert switches(our_machine) == switches(their_machine)
        assert agents.ask("guest-set-memory-blocks", mem_blks=[]) == ({"return": []}, {"return": []})


@pytest.mark.root
@pytest.mark.parametrize(
    "text",
    [
        "devices/system/memory\n    memory0/state = online\n    memory7/removable = 0",
        "devices/system/memory/power",
        "devices",
    ],
    ids=["no-block-size", "no-blocks", "no-memory-hot-plug"],
)
def test_machines_without_memory_blocks(tmp_path: Path, text: str) -> None:
    with machines_with_switches(tmp_path, text) as (agents, _, _):
        ours, theirs = agents.ask("guest-get-memory-blocks")
        if "return" in theirs:
            ours, theirs = by("phys-index", ours["return"]), by("phys-index", theirs["return"])
        assert ours == theirs
        for command in ("guest-get-vcpus", "guest-get-memory-block-info"):
            ours, theirs = agents.ask(command)
            assert ours == theirs
        ours, theirs = agents.ask("guest-set-memory-blocks", mem_blks=[{"phys-index": 0, "online": False}])
        assert ours == theirs
