# SPDX-License-Identifier: Apache-2.0
"""The daemon as a whole: what it logs, its signals, its limits on time, what it says of itself."""

from __future__ import annotations

import base64
import os
import signal
import time
from pathlib import Path

import pytest

from qga.platform import freeze
from tests.agents import QGA, AgentProcess, Client
from tests.daemon.observe import descriptors, eventually
from tests.loopdev import freeze_lock, make_image, thaw
from tests.loops import attached, mounted

SECRETS = ("guarded-password", "guarded-content", "ssh-ed25519 AAAAguarded")


def configure(directory: Path, *lines: str) -> None:
    """Write the configuration file that an agent in `directory` reads."""
    (directory / "qemu-ga.conf").write_text("\n".join(("[general]", *lines, "")))


def wait_for_text(path: Path, text: str) -> None:
    """Wait until a file holds a text."""
    deadline = time.monotonic() + 10
    while not path.exists() or text not in path.read_text():
        assert time.monotonic() < deadline, f"no {text!r} in {path}"
        time.sleep(0.01)


def test_info_tells_the_protocol_level(client: Client) -> None:
    assert client.ok("guest-info")["version"] == "10.2.0"


def test_verbose_log_names_commands_and_never_what_they_carry(tmp_path: Path) -> None:
    password, content, key = SECRETS
    with AgentProcess(QGA, tmp_path, "-v") as agent, agent.connect() as client:
        handle = client.ok("guest-file-open", path=str(tmp_path / "file"), mode="w+")
        client.ok("guest-file-write", handle=handle, buf_b64=base64.b64encode(content.encode()).decode())
        client.ok("guest-file-seek", handle=handle, offset=0, whence=0)
        client.ok("guest-file-read", handle=handle)
        client.error("guest-set-user-password", username="no:body", password=encode(password), crypted=False)
        client.error("guest-ssh-add-authorized-keys", username="nobody-here", keys=[key])
        client.error("guest-exec", path="/nonexistent", env=[f"X={password}"], input_data=encode(content))
        client.ok("guest-ping")
    log = agent.log.read_text()
    assert "guest-file-write" in log
    for secret in SECRETS:
        assert secret not in log
        assert encode(secret)[:12] not in log


def test_unknown_names_in_lists_are_logged_and_change_nothing(tmp_path: Path) -> None:
    with AgentProcess(QGA, tmp_path, "-b", "guest-pong,guest-get-time") as agent, agent.connect() as client:
        client.ok("guest-ping")
        client.error("guest-get-time")
    assert "guest-pong" in agent.log.read_text()
    assert "guest-get-time" not in agent.log.read_text()


@pytest.mark.parametrize(
    ("options", "enabled"),
    [
        (["-a", "guest-ping,guest-info"], {"guest-ping", "guest-info"}),
        (["-a", "guest-ping,guest-info", "-b", "guest-ping"], {"guest-info"}),
        (["-a", "guest-info", "-a", "guest-sync"], {"guest-info", "guest-sync"}),
    ],
)
def test_lists_decide_what_is_enabled(options: list[str], enabled: set[str], tmp_path: Path) -> None:
    with AgentProcess(QGA, tmp_path, *options) as agent, agent.connect() as client:
        listed = client.ok("guest-info")["supported_commands"]
        assert {command["name"] for command in listed if command["enabled"]} == enabled
        reply = client.call("guest-get-host-name")
    assert reply["error"]["class"] == "CommandNotFound"
    assert reply["error"]["desc"].startswith("Command guest-get-host-name has been disabled")


def test_sighup_opens_the_log_file_again(tmp_path: Path) -> None:
    log = tmp_path / "qga.log"
    with AgentProcess(QGA, tmp_path, "-v", "-l", str(log)) as agent, agent.connect() as client:
        client.ok("guest-ping")
        wait_for_text(log, "guest-ping")
        log.rename(tmp_path / "qga.log.1")
        os.kill(agent.pid, signal.SIGHUP)
        wait_for_text(log, "")
        client.ok("guest-get-time")
        wait_for_text(log, "guest-get-time")


@pytest.mark.root
def test_command_that_hangs_in_the_kernel_costs_its_own_reply_only(tmp_path: Path) -> None:
    configure(tmp_path, "command-timeout=0.3")
    image = tmp_path / "image"
    make_image(image, "ext4")
    with (
        freeze_lock(),
        attached(image) as device,
        mounted(device, tmp_path / "mnt") as mountpoint,
        AgentProcess(QGA, tmp_path) as agent,
        agent.connect() as client,
        agent.connect() as other,
    ):
        client.ok("guest-ping")
        fd = os.open(mountpoint, os.O_RDONLY)
        assert freeze.freeze(fd)
        os.close(fd)
        try:
            hung = client.error("guest-file-open", path=str(mountpoint / "new"), mode="w")
            assert hung == "guest-file-open timed out after 0.3 s"
            assert client.ok("guest-get-osinfo")["machine"] == os.uname().machine
            other.ok("guest-get-osinfo")
        finally:
            thaw(mountpoint)
        # The open succeeds now; nobody knows its handle, so the file must not stay open.
        eventually(lambda: (mountpoint / "new").exists())
        eventually(lambda: not any(str(mountpoint) in target for target in descriptors(agent.pid).values()))
        client.ok("guest-ping")


def encode(text: str) -> str:
    """Base64 of a text."""
    return base64.b64encode(text.encode()).decode()
