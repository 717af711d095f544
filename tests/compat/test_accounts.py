# SPDX-License-Identifier: Apache-2.0
"""Logins, passwords, ssh keys, the clock and every kind of os-release: the same answers as qemu-ga's.

Nothing here can change this machine: both agents run without the right to set the clock or to reboot, users are made
for the test, and of shutdown only what is refused is asked for.
"""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import sides
from tests.agents import NO_QEMU_GA, QEMU_GA, QGA, AgentProcess
from tests.scratch import scratch_user, shadow_hash
from tests.sides import Reply, b64

pytestmark = pytest.mark.skipif(QEMU_GA is None, reason=NO_QEMU_GA)

CAP_SYS_BOOT, CAP_SYS_TIME = 22, 25
HARMLESS = ["setpriv", "--bounding-set=-sys_time,-sys_boot", "--inh-caps=-sys_time,-sys_boot"]


class Both(sides.Both):
    """Connections to both agents, and what is asked of them here."""

    def same(self, execute: str, **arguments: Any) -> Reply:
        """What both reply."""
        ours, theirs = self.ask(execute, **arguments)
        assert ours == theirs
        return ours

    def needs_reference_that_tells_output(self) -> None:
        """Skip a test of what helper programs write, which older releases of qemu-ga leave out."""
        if int(self.theirs.ok("guest-info")["version"].partition(".")[0]) < 10:
            pytest.skip("qemu-ga is older than 10")


@contextmanager
def both(directory: Path, *wrapper: str, **env: str) -> Iterator[Both]:
    """Start both agents with additions to the environment, behind a command line that runs its arguments."""
    with ExitStack() as stack:
        clients = []
        for name, program in (("ours", QGA), ("theirs", [str(QEMU_GA)])):
            (directory / name).mkdir()
            agent = stack.enter_context(AgentProcess([*HARMLESS, *wrapper, *program], directory / name, env=env))
            client = stack.enter_context(agent.connect())
            if name == "theirs":
                stack.callback(agent.process.kill)  # it does not always end on SIGTERM
            assert_harmless(agent.pid)
            clients.append(client)
        yield Both(*clients)


def assert_harmless(pid: int) -> None:
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    assert int(status["CapEff"], 16) & (1 << CAP_SYS_BOOT | 1 << CAP_SYS_TIME) == 0


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    with both(tmp_path_factory.mktemp("agents")) as pair:
        yield pair


# --- system


RELEASES = [
    b"",
    b"ID=a\nNAME=b\nPRETTY_NAME=c\nVERSION=d\nVERSION_ID=e\nVARIANT=f\nVARIANT_ID=g\n",
    b"ID=a",
    b"ID= a \nNAME = b\n\tVERSION=c\t\n",
    b"ID=a\r\nNAME=b\r\n",
    b"ID=a\n# comment\n  # another\n\n   \nNAME=b\n",
    b"ID=a\njunk\n",
    b"=x\nID=a\n",
    b"ID=a\nID=b\n",
    b"ID=a\n[x]\nNAME=b\n",
    b"ID[de]=x\nID=a\n",
    b"ID[de=x\nNAME=a\n",
    b"export ID=a\n",
    b";comment\nID=a\n",
    b"ID=a\x0bNAME=b\n",
    b"ID=a\x0cb\n",
    b"ID=a\x1cb\n",
    b"ID=a\rNAME=b\n",
    "ID=a\u0085b\nNAME=c\u2028VERSION=d\n".encode(),
    b"ID=a\0b\nNAME=c\n",
    b"VARIANT=\nNAME=\xc3\xa9\n",
    b"NAME=\xff\nID=a\n",
    b"#\xff\nID=a\n",
    b"\xef\xbb\xbfID=a\nNAME=b\n",
    b'NAME="a b"\nID= "x" \nVERSION=""\nVARIANT="a;b"\n',
    b'NAME="a \\"b\\" \\$ \\` \\\\ \\n \\q \\\'"x\n',
    b"NAME=a b\nID=a;b\nVERSION=a\tb\nVARIANT=a=b#c\n",
    b'NAME=a"b c"\nID=\\"a\nVERSION=a\\ b\n',
]


def test_every_kind_of_os_release(tmp_path: Path) -> None:
    release = tmp_path / "os-release"
    with both(tmp_path, QGA_OS_RELEASE=str(release)) as agents:
        for content in RELEASES:
            release.write_bytes(content)
            ours, theirs = agents.ask("guest-get-osinfo")
            assert ours == theirs, content
        release.unlink()
        assert "id" not in agents.same("guest-get-osinfo")["return"]


def test_os_release_named_by_an_empty_variable(tmp_path: Path) -> None:
    with both(tmp_path, QGA_OS_RELEASE="") as agents:
        assert "id" not in agents.same("guest-get-osinfo")["return"]


# --- time


YEAR_2070 = 3155760000 * 10**9
TIMES = [0, 1, 999_999_999, 10**18, YEAR_2070 - 1, YEAR_2070, 4 * 10**18, 2**63 - 1, -(10**9), -(2**63), 2**63]


@pytest.mark.parametrize("nanoseconds", TIMES)
def test_time_that_is_refused(agents: Both, nanoseconds: int) -> None:
    assert "error" in agents.same("guest-set-time", time=nanoseconds)


@pytest.mark.root
def test_hardware_clock_that_cannot_be_read(tmp_path: Path) -> None:
    hide = 'test ! -e /sbin/hwclock || mount --bind /dev/null "$(readlink -f /sbin/hwclock)"; exec "$@"'
    with both(tmp_path, "unshare", "--mount", "sh", "-c", hide, "sh") as agents:
        agents.needs_reference_that_tells_output()
        text = agents.same("guest-set-time")["error"]["desc"]
    assert text.startswith("child process has failed to set hardware clock to system time: failed to exec '/sbin/hwcl")


@pytest.mark.parametrize("mode", ["", "HALT", "x", "powerdown "])
def test_shutdown_mode_that_is_refused(agents: Both, mode: str) -> None:
    assert "error" in agents.same("guest-shutdown", mode=mode)


# --- users


def record(kind: int, user: bytes, seconds: int, micros: int = 0) -> bytes:
    """A record of utmp(5) where times have 32 bits."""
    return struct.pack(
        "=hxxi32s4s32s256shhiIi16s20x", kind, 1, b"pts/0", b"0", user, b"", 0, 0, 0, seconds, micros, b""
    )


LOGINS = [
    b"",
    record(7, b"ann", 5),
    record(7, b"ann", 5)[:200],
    record(7, b"ann", 5) + record(7, b"bob", 4)[:200],
    record(2, b"reboot", 1) + record(6, b"LOGIN", 2) + record(8, b"eve", 3),
    record(7, b"zoe", 9, 500000) + record(7, b"ann", 7, 1) + record(7, b"zoe", 8, 999999) + record(7, b"ann", 7),
    record(7, b"b\xff\xc3\xa9", 2) + record(7, b"", 3) + record(7, b"x", 0),
]


@pytest.mark.root
@pytest.mark.skipif(os.uname().machine not in ("x86_64", "i686", "ppc64le"), reason="other layout of utmp")
def test_users_of_utmp(tmp_path: Path) -> None:
    utmp = tmp_path / "utmp"
    utmp.touch()
    script = 'mount -t tmpfs none /run && touch /run/utmp && mount --bind "$0" /run/utmp && exec "$@"'
    with both(tmp_path, "unshare", "--mount", "sh", "-c", script, str(utmp)) as agents:
        for content in LOGINS:
            utmp.write_bytes(content)
            ours, theirs = agents.ask("guest-get-users")
            assert ours == theirs, content


# --- passwords


@pytest.mark.parametrize(
    ("user", "password"),
    [
        ("ann", "@@"),
        ("a:n", "@@"),
        ("ann", b64(b"x\ny")),
        ("a:n", b64(b"x\n")),
        ("a:n", b64(b"x")),
        ("a\nn", b64(b"x")),
    ],
)
def test_password_that_is_refused(agents: Both, user: str, password: str) -> None:
    assert "error" in agents.same("guest-set-user-password", username=user, password=password, crypted=True)


def test_password_of_nobody(agents: Both) -> None:
    agents.needs_reference_that_tells_output()
    for crypted in (True, False):
        agents.same("guest-set-user-password", username="qga-no-such", password=b64(b"x"), crypted=crypted)


STAND_INS = [
    "#!/bin/sh\nexit 0\n",
    "#!/bin/sh\nexit 3\n",
    "#!/bin/sh\necho out; echo err >&2; exit 1\n",
    "#!/bin/sh\nprintf last; kill -15 $$\n",
    "#!/bin/sh\nkill -9 $$\n",
    "#!/bin/sh\nprintf 'a\\377b'; exit 1\n",
    '#!/bin/sh\nIFS= read -r line; echo "$line|$*|"; exit 1\n',
    "#!/bin/sh\n[ -p /dev/stdin ] && echo pipe; exit 1\n",
    "#!/nonexistent/interpreter\n",
]


def test_what_chpasswd_does(tmp_path: Path) -> None:
    stand_in = tmp_path / "bin/chpasswd"
    stand_in.parent.mkdir()
    with both(tmp_path, "env", f"PATH={stand_in.parent}") as agents:
        agents.needs_reference_that_tells_output()
        for script in STAND_INS:
            stand_in.write_text(script)
            stand_in.chmod(0o755)
            for crypted, password in ((True, b"a:b"), (False, b"a\0b"), (False, b"")):
                ours, theirs = agents.ask(
                    "guest-set-user-password", username="ann", password=b64(password), crypted=crypted
                )
                assert ours == theirs, script
        stand_in.unlink()
        assert "error" in agents.same("guest-set-user-password", username="ann", password="", crypted=True)


@pytest.mark.root
def test_passwords_are_set(agents: Both, tmp_path: Path) -> None:
    with scratch_user(tmp_path) as user:
        for number, client in enumerate((agents.ours, agents.theirs)):
            hashed = f"$6$qga$number{number}"
            client.ok("guest-set-user-password", username=user.pw_name, password=b64(hashed.encode()), crypted=True)
            assert shadow_hash(user.pw_name) == hashed
            client.ok(
                "guest-set-user-password", username=user.pw_name, password=b64(b"Pa:55-w\xc3\xb6rd"), crypted=False
            )
            assert shadow_hash(user.pw_name) not in (hashed, "!", "*")


# --- keys

FILES = [None, b"", b"a", b"a\n", b"a\nb\n", b"a\n\n# c\n  x y  \r\nb", b"\n", b"\xff\xfe\n", b"# only\n"]
CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("guest-ssh-get-authorized-keys", {}),
    ("guest-ssh-add-authorized-keys", {"keys": ["k"]}),
    ("guest-ssh-add-authorized-keys", {"keys": ["a", "k", "k"]}),
    ("guest-ssh-add-authorized-keys", {"keys": []}),
    ("guest-ssh-add-authorized-keys", {"keys": ["z", "z", "y"], "reset": True}),
    ("guest-ssh-add-authorized-keys", {"keys": [], "reset": True}),
    ("guest-ssh-add-authorized-keys", {"keys": ["#k"]}),
    ("guest-ssh-remove-authorized-keys", {"keys": ["a"]}),
    ("guest-ssh-remove-authorized-keys", {"keys": ["x y", "none"]}),
    ("guest-ssh-remove-authorized-keys", {"keys": ["a\nb"]}),
]


def prepare(home: Path, content: bytes | None, owner: tuple[int, int]) -> None:
    shutil.rmtree(home / ".ssh", ignore_errors=True)
    if content is not None:
        (home / ".ssh").mkdir()
        (home / ".ssh/authorized_keys").write_bytes(content)
        os.chown(home / ".ssh", *owner)


def outcome(home: Path) -> list[Any]:
    """Mode and owner of directory and file, and its lines but for empty ones at the end: qga keeps the last newline."""
    found: list[Any] = []
    for path in (home / ".ssh", home / ".ssh/authorized_keys"):
        if path.exists():
            status = path.stat()
            found += [oct(status.st_mode), status.st_uid, status.st_gid]
    if path.exists():
        found += [line for line in path.read_bytes().split(b"\n") if line]
    return found


@pytest.mark.root
@pytest.mark.parametrize("content", FILES)
def test_keys(agents: Both, tmp_path: Path, content: bytes | None) -> None:
    with scratch_user(tmp_path) as user:
        home, owner = Path(user.pw_dir), (user.pw_uid, user.pw_gid)
        for execute, arguments in CHANGES:
            results = []
            for client in (agents.ours, agents.theirs):
                prepare(home, content, owner)
                reply = client.call(execute, username=user.pw_name, **arguments)
                if "keys" in reply.get("return", {}):
                    reply["return"]["keys"].sort()
                results.append((reply, outcome(home)))
            assert results[0] == results[1], (execute, arguments)


@pytest.mark.root
def test_keys_of_a_user_without_a_home(agents: Both, tmp_path: Path) -> None:
    with scratch_user(tmp_path) as user:
        Path(user.pw_dir).rmdir()
        assert "error" in agents.same("guest-ssh-get-authorized-keys", username=user.pw_name)
        assert "error" in agents.same("guest-ssh-add-authorized-keys", username=user.pw_name, keys=["k"])
        assert "return" in agents.same("guest-ssh-remove-authorized-keys", username=user.pw_name, keys=["k"])


def test_keys_of_nobody(agents: Both) -> None:
    ours, theirs = agents.ask("guest-ssh-get-authorized-keys", username="qga-no-such")
    start = "failed to lookup user 'qga-no-such': "
    assert ours["error"]["desc"].startswith(start)
    assert theirs["error"]["desc"].startswith(start)
    assert "#" in agents.same("guest-ssh-add-authorized-keys", username="qga-no-such", keys=["#"])["error"]["desc"]
