# SPDX-License-Identifier: Apache-2.0
"""How the agent ends, and what it does when the machine runs short of something."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agents import QGA, AgentProcess, Client
from tests.daemon.observe import (
    READ_MAX,
    b64,
    children,
    connected,
    descriptors,
    ended,
    eventually,
    request,
    run,
    running,
    start,
)


@pytest.fixture
def big_file(tmp_path: Path) -> Path:
    path = tmp_path / "big"
    path.write_bytes(os.urandom(1 << 20) * 48)
    return path


# --- signals


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signals_that_end_the_agent(tmp_path: Path, signum: signal.Signals) -> None:
    with AgentProcess(QGA, tmp_path) as agent, agent.connect() as client:
        client.ok("guest-ping")
        agent.process.send_signal(signum)
        assert client.recv_line() == b""
        assert agent.process.wait(10) == 0
    assert agent.log.read_text() == ""


@pytest.mark.parametrize("signum", [signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD, signal.SIGWINCH])
def test_signals_that_do_not(agent: AgentProcess, own_client: Client, signum: signal.Signals) -> None:
    agent.process.send_signal(signum)
    time.sleep(0.05)
    own_client.ok("guest-ping")


def test_the_reply_under_way_is_finished_before_the_end(agent: AgentProcess, big_file: Path) -> None:
    with agent.connect() as client, agent.connect() as idle:
        idle.ok("guest-ping")
        handle = client.ok("guest-file-open", path=str(big_file))
        client.send(request("guest-file-read", handle=handle, count=READ_MAX) + request("guest-sync", id=1))
        time.sleep(0.2)
        agent.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        assert json.loads(client.recv_line())["return"]["count"] == READ_MAX
        assert client.recv_line() == b"", "no further request is begun"
        assert idle.recv_line() == b""
        assert agent.process.wait(10) == 0


def test_a_client_that_does_not_read_delays_the_end_by_seconds_only(agent: AgentProcess, big_file: Path) -> None:
    with agent.connect() as client:
        handle = client.ok("guest-file-open", path=str(big_file))
        client.send(request("guest-file-read", handle=handle, count=READ_MAX))
        time.sleep(0.2)
        began = time.monotonic()
        agent.process.send_signal(signal.SIGTERM)
        assert agent.process.wait(10) == 0
        assert 3 < time.monotonic() - began < 8
        assert not agent.path.exists()


def test_no_client_connects_while_the_agent_ends(agent: AgentProcess, big_file: Path) -> None:
    with agent.connect() as client:
        handle = client.ok("guest-file-open", path=str(big_file))
        client.send(request("guest-file-read", handle=handle, count=READ_MAX))
        time.sleep(0.2)
        agent.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        with pytest.raises(ConnectionRefusedError):
            Client(agent.path)
        client.recv_line()
        assert agent.process.wait(10) == 0


def test_a_running_program_does_not_delay_the_end(agent: AgentProcess, own_client: Client) -> None:
    pid = start(own_client, "sleep", "60", capture_output=True, input_data=b64(bytes(1 << 20)))
    began = time.monotonic()
    assert agent.stop() == 0
    assert time.monotonic() - began < 2
    os.kill(pid, signal.SIGKILL)


# --- starts that fail


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["-m", "carrier-pigeon", "-p", "/x"], "unsupported channel method/type: carrier-pigeon\n"),
        (["-m", "unix-listen"], "must specify a path for this channel\n"),
    ],
)
def test_methods_that_are_none(tmp_path: Path, options: list[str], text: str) -> None:
    argv = [*QGA, *options, "-t", str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stderr) == (1, text)


# --- odd circumstances


def test_closed_standard_streams_are_no_channel(tmp_path: Path) -> None:
    shell = ["/bin/sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"]
    qga = [*QGA, "-v", "-m", "unix-listen", "-p", str(tmp_path / "agent.sock"), "-t", str(tmp_path)]
    with running(shell + qga) as agent:
        with connected(tmp_path / "agent.sock") as client:
            assert [descriptors(agent.pid)[fd] for fd in (0, 1, 2)] == ["/dev/null"] * 3
            status = run(client, "/bin/sh", "-c", "echo out; echo err >&2; cat", capture_output=True, input_data="aW4=")
            assert (status["out-data"], status["err-data"]) == (b"out\nin", b"err\n")
        agent.terminate()
        assert agent.wait(10) == 0


@pytest.fixture
def short_of_descriptors(tmp_path: Path) -> Iterator[AgentProcess]:
    """An agent that may have 64 descriptors."""
    with AgentProcess(QGA, tmp_path) as agent:
        with agent.connect() as client:
            client.ok("guest-ping")
        resource.prlimit(agent.pid, resource.RLIMIT_NOFILE, (64, 64))
        yield agent


def test_an_agent_without_descriptors_left(short_of_descriptors: AgentProcess) -> None:
    agent = short_of_descriptors
    with agent.connect() as client:
        client.ok("guest-ping")
        before = len(descriptors(agent.pid))
        handles = []
        while "return" in (reply := client.call("guest-file-open", path="/dev/zero")):
            handles.append(reply["return"])
        assert reply["error"]["desc"] == "failed to open file '/dev/zero' (mode: 'r'): Too many open files"

        # One descriptor after the other becomes free, so that each step of a start fails once.
        refused = 0
        while "error" in (reply := client.call("guest-exec", path="/bin/cat", capture_output=True, input_data="eA==")):
            assert reply["error"]["desc"] == "Failed to execute child process “/bin/cat” (Too many open files)"
            assert len(descriptors(agent.pid)) == 64 - refused
            assert not children(agent.pid)
            client.ok("guest-file-close", handle=handles.pop())
            refused += 1
        assert refused > 5
        assert ended(client, reply["return"]["pid"])["out-data"] == b"x"
        client.ok("guest-file-read", handle=handles[0])
        for handle in handles:
            client.ok("guest-file-close", handle=handle)
        assert len(descriptors(agent.pid)) == before


def test_a_client_waits_until_there_is_a_descriptor_for_it(short_of_descriptors: AgentProcess) -> None:
    agent = short_of_descriptors
    with agent.connect() as client:
        handles = []
        while "return" in (reply := client.call("guest-file-open", path="/dev/zero")):
            handles.append(reply["return"])
        with agent.connect() as waiting:
            waiting.send(request("guest-sync", id=1))
            time.sleep(0.2)
            cpu = agent.cpu_seconds()
            time.sleep(0.3)
            assert agent.cpu_seconds() - cpu < 0.1, "it is not to spin meanwhile"
            client.ok("guest-file-close", handle=handles[0])
            assert json.loads(waiting.recv_line()) == {"return": 1}
    agent.stop()
    assert "Too many open files" in agent.log.read_text()


def test_programs_that_nobody_asks_about_cost_no_descriptors(short_of_descriptors: AgentProcess) -> None:
    agent = short_of_descriptors
    with agent.connect() as client:
        for _ in range(100):
            pid = start(client, "/bin/echo", "x", capture_output=True)
            eventually(lambda pid=pid: not Path(f"/proc/{pid}").exists())  # type: ignore[misc]
        client.ok("guest-file-open", path="/dev/zero")


def test_a_file_too_large_for_the_limit_is_an_error(tmp_path: Path) -> None:
    with AgentProcess(QGA, tmp_path) as agent, agent.connect() as client:
        resource.prlimit(agent.pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
        handle = client.ok("guest-file-open", path=str(tmp_path / "file"), mode="w")
        text = client.error("guest-file-write", handle=handle, buf_b64=b64(bytes(200_000)))
        assert text == "failed to write to file: File too large"
        client.ok("guest-file-close", handle=handle)


def test_output_without_room_for_it_is_cut_and_the_program_goes_on(tmp_path: Path) -> None:
    with AgentProcess(QGA, tmp_path) as agent, agent.connect() as client:
        client.ok("guest-ping")
        resource.prlimit(agent.pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
        status = run(client, "/bin/sh", "-c", "head -c 5000000 /dev/zero; echo $? >&2", capture_output=True)
        assert (status["out-data"], status["out-truncated"]) == (bytes(100_000), True)
        assert (status["err-data"], status["err-truncated"]) == (b"0\n", False)
