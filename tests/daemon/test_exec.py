# SPDX-License-Identifier: Apache-2.0
"""guest-exec and guest-exec-status; what qemu-ga does likewise is compared in tests/compat."""

from __future__ import annotations

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from qga.platform.process import FILES_MAX
from tests.agents import QGA, AgentProcess, Client
from tests.daemon.observe import (
    MIB,
    b64,
    children,
    data_of,
    descriptors,
    ended,
    eventually,
    request,
    run,
    start,
    threads,
)

SHELL = "/bin/sh"
OUTPUT_MAX = 16 * MIB


# --- output


def test_merged_output_keeps_its_order(client: Client) -> None:
    script = "i=0; while [ $i -lt 500 ]; do echo out $i; echo err $i >&2; i=$((i + 1)); done"
    status = run(client, SHELL, "-c", script, capture_output="merged")
    expected = "".join(f"out {number}\nerr {number}\n" for number in range(500))
    assert status == {"exited": True, "exitcode": 0, "out-data": expected.encode(), "out-truncated": False}


@pytest.mark.parametrize("mode", ["stdout", "stderr"])
def test_capture_of_one_stream_does_no_harm_to_the_next(client: Client, mode: str) -> None:
    for _ in range(3):
        status = run(client, SHELL, "-c", "echo out; echo err >&2", capture_output=mode)
        name, text = ("out", b"out\n") if mode == "stdout" else ("err", b"err\n")
        assert status == {"exited": True, "exitcode": 0, f"{name}-data": text, f"{name}-truncated": False}
        status = run(client, SHELL, "-c", "echo out; echo err >&2; cat", capture_output=True, input_data=b64(b"in"))
        assert (status["out-data"], status["err-data"]) == (b"out\nin", b"err\n")


@pytest.mark.parametrize("size", [1, 65535, 65536, 65537, 98304, 98305, 3 * MIB])
def test_output_of_every_size_is_whole(client: Client, tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    script = 'cat "$0"; cat "$0" "$0" >&2'
    status = run(client, SHELL, "-c", script, str(tmp_path / "file"), capture_output=True)
    assert status["out-data"] == content
    assert status["err-data"] == content * 2


def test_streams_are_cut_each_for_itself(client: Client) -> None:
    script = f"head -c {OUTPUT_MAX} /dev/zero; head -c {OUTPUT_MAX + 100} /dev/zero >&2"
    status = run(client, SHELL, "-c", script, capture_output=True)
    assert (status["out-data"], status["out-truncated"]) == (bytes(OUTPUT_MAX), False)
    assert (status["err-data"], status["err-truncated"]) == (bytes(OUTPUT_MAX), True)


def test_output_past_the_limit_does_not_stop_the_program(client: Client) -> None:
    script = f"head -c {OUTPUT_MAX + 20 * MIB} /dev/zero && echo done >&2"
    status = run(client, SHELL, "-c", script, capture_output=True)
    assert status["err-data"] == b"done\n"
    assert status["out-truncated"]


def test_output_is_kept_apart_from_that_of_others(client: Client) -> None:
    pids = [start(client, SHELL, "-c", f"sleep 0.05; echo {number}", capture_output=True) for number in range(20)]
    assert [ended(client, pid)["out-data"] for pid in pids] == [f"{number}\n".encode() for number in range(20)]


def test_output_of_a_program_that_is_killed_is_kept(client: Client) -> None:
    status = run(client, SHELL, "-c", "echo last words; kill -KILL $$", capture_output=True)
    assert status == {"exited": True, "signal": 9, "out-data": b"last words\n", "out-truncated": False}


def test_file_names_that_are_not_utf_8_come_through(client: Client, tmp_path: Path) -> None:
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe"))).touch()
    assert run(client, "ls", str(tmp_path), capture_output=True)["out-data"] == b"\xff\xfe\n"


# --- input


def test_large_input_comes_back_from_cat(client: Client) -> None:
    content = os.urandom(20 * MIB)
    status = run(client, "cat", input_data=b64(content), capture_output=True)
    assert status["out-data"] == content[:OUTPUT_MAX]
    assert status["out-truncated"]
    assert status["exitcode"] == 0


def test_input_that_is_never_read_is_dropped_with_the_program(agent: AgentProcess, own_client: Client) -> None:
    before = descriptors(agent.pid)
    pid = start(own_client, "sleep", "60", input_data=b64(bytes(5 * MIB)))
    own_client.ok("guest-ping")
    assert own_client.ok("guest-exec-status", pid=pid) == {"exited": False}
    os.kill(pid, signal.SIGTERM)
    assert ended(own_client, pid) == {"exited": True, "signal": signal.SIGTERM}
    eventually(lambda: len(descriptors(agent.pid)) == len(before))


def test_a_program_that_closes_its_input_early(client: Client) -> None:
    status = run(client, SHELL, "-c", "exec <&-; sleep 0.1; echo done", input_data=b64(bytes(MIB)), capture_output=True)
    assert status["out-data"] == b"done\n"


@pytest.mark.parametrize("text", ["YQ", "YQ==YQ==", "="])
def test_wrong_padding_starts_nothing(client: Client, tmp_path: Path, text: str) -> None:
    arguments = {"path": "touch", "arg": [str(tmp_path / "made")], "input_data": text}
    assert client.error("guest-exec", **arguments) == "Base64 data is not valid"
    time.sleep(0.05)
    assert not (tmp_path / "made").exists()


# --- what a program inherits


def test_a_program_gets_no_descriptor_of_the_agent(shared: AgentProcess, tmp_path: Path) -> None:
    with shared.connect() as client, shared.connect():
        handle = client.ok("guest-file-open", path=str(tmp_path / "file"), mode="w")
        waiting = start(client, "cat", input_data=b64(bytes(MIB)), capture_output=True)
        for options in ({"capture_output": True}, {"capture_output": True, "input_data": ""}):
            status = run(client, SHELL, "-c", "echo /proc/self/fd/*", **options)
            # Number 3 is the directory that is being listed.
            assert status["out-data"].split() == [f"/proc/self/fd/{number}".encode() for number in range(4)]
        ended(client, waiting)
        client.ok("guest-file-close", handle=handle)


def test_a_program_gets_no_descriptor_that_the_agent_was_started_with(tmp_path: Path) -> None:
    started = [SHELL, "-c", 'exec "$@" 7</dev/null', "name", *QGA]
    with AgentProcess(started, tmp_path) as agent, agent.connect() as client:
        status = run(client, SHELL, "-c", "test -e /proc/self/fd/7")
    assert status["exitcode"] == 1


def test_finished_programs_that_nobody_asks_about_leave_descriptors_to_others(agent: AgentProcess) -> None:
    programs = 400
    with agent.connect() as client:
        pids = [start(client, "head", "-c", "70000", "/dev/zero", capture_output=True) for _ in range(programs)]
        eventually(lambda: not children(agent.pid), 60)
        eventually(lambda: len(descriptors(agent.pid)) < FILES_MAX + 40)
        for pid in (pids[0], pids[-1]):
            assert ended(client, pid)["out-data"] == bytes(70000)
        assert len(descriptors(agent.pid)) < FILES_MAX + 40


def test_an_agent_started_by_one_that_ignores_its_children_does_not(tmp_path: Path) -> None:
    ignoring = [SHELL, "-c", "trap '' CHLD; exec \"$@\"", "name", *QGA]
    with AgentProcess(ignoring, tmp_path) as agent, agent.connect() as client:
        assert run(client, SHELL, "-c", "exit 3")["exitcode"] == 3


def test_signals_have_their_default_action(client: Client) -> None:
    status = run(client, "sed", "-n", "s/^Sig\\(Blk\\|Ign\\|Cgt\\):.*\\(.......\\)$/\\1 \\2/p", "/proc/self/status",
                 capture_output=True)  # fmt: skip
    assert status["out-data"] == b"Blk 0000000\nIgn 0000000\nCgt 0000000\n"


def test_a_broken_pipe_ends_a_program(client: Client) -> None:
    status = run(client, SHELL, "-c", "yes | head -n 1", capture_output=True)
    assert status == {"exited": True, "exitcode": 0, "out-data": b"y\n", "out-truncated": False}


def test_umask_directory_and_process_group_are_the_agents(tmp_path: Path) -> None:
    former = os.umask(0o027)
    try:
        with AgentProcess(QGA, tmp_path) as agent, agent.connect() as client:
            status = run(client, SHELL, "-c", "umask; pwd; ps -o pgid=,sid= -p $$", capture_output=True)
            group, session = os.getpgid(agent.pid), os.getsid(agent.pid)
    finally:
        os.umask(former)
    words = status["out-data"].decode().split()
    assert words == ["0027", str(Path.cwd()), str(group), str(session)]


def test_the_environment_is_the_agents_unless_given(tmp_path: Path) -> None:
    with AgentProcess(QGA, tmp_path, env={"MARK": "from the agent"}) as agent, agent.connect() as client:
        inherited = run(client, "printenv", "MARK", capture_output=True)
        assert inherited["out-data"] == b"from the agent\n"
        given = run(client, "env", env=["PATH=/usr/bin:/bin", "A=b"], capture_output=True)
        assert given["out-data"] == b"PATH=/usr/bin:/bin\nA=b\n"
        assert "out-data" not in run(client, "/usr/bin/env", env=[], capture_output=True)


def test_programs_are_found_by_the_agents_path(tmp_path: Path) -> None:
    (tmp_path / "only-here").write_text("#!/bin/sh\nexit 7\n")
    (tmp_path / "only-here").chmod(0o755)
    with (
        AgentProcess(QGA, tmp_path, env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}) as agent,
        agent.connect() as client,
    ):
        assert run(client, "only-here")["exitcode"] == 7
        assert run(client, "only-here", env=[])["exitcode"] == 7
        text = client.error("guest-exec", path="only-here", env=["PATH=/bin"])
        assert text == "Failed to execute child process “only-here” (No such file or directory)"


# --- records of programs


def test_an_unknown_process_is_named(client: Client) -> None:
    assert client.error("guest-exec-status", pid=4_000_000_000) == "PID 4000000000 does not exist"


def test_the_answer_to_the_end_is_given_once(client: Client) -> None:
    pid = start(client, "true")
    assert ended(client, pid) == {"exited": True, "exitcode": 0}
    assert client.error("guest-exec-status", pid=pid) == f"PID {pid} does not exist"


def test_one_of_many_clients_gets_the_answer(shared: AgentProcess) -> None:
    clients = [shared.connect() for _ in range(8)]
    pid = start(clients[0], SHELL, "-c", f"head -c {MIB} /dev/zero", capture_output=True)
    time.sleep(0.2)
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda client: client.call("guest-exec-status", pid=pid), clients))
    for client in clients:
        client.close()
    answers = [reply["return"] for reply in replies if "return" in reply]
    assert [answer["exited"] for answer in answers] == [True]
    assert len(answers[0]["out-data"]) == len(b64(bytes(MIB)))


def test_records_outlive_connections(shared: AgentProcess) -> None:
    with shared.connect() as first:
        pid = start(first, SHELL, "-c", "sleep 0.1; echo late", capture_output=True)
    with shared.connect() as second:
        assert ended(second, pid)["out-data"] == b"late\n"


def test_a_client_that_leaves_in_the_middle_of_the_output(agent: AgentProcess, own_client: Client) -> None:
    before = descriptors(agent.pid)
    with agent.connect() as first:
        pid = start(first, "head", "-c", str(OUTPUT_MAX), "/dev/zero", capture_output=True)
        eventually(lambda: not children(agent.pid))
        time.sleep(0.1)
        first.send(request("guest-exec-status", pid=pid))
        first.sock.recv(1000)
    eventually(lambda: len(descriptors(agent.pid)) == len(before))
    assert own_client.error("guest-exec-status", pid=pid) == f"PID {pid} does not exist"


def test_a_background_process_delays_the_end(client: Client) -> None:
    pid = start(client, SHELL, "-c", "sleep 0.4 & echo early", capture_output=True)
    time.sleep(0.2)
    assert client.ok("guest-exec-status", pid=pid) == {"exited": False}
    assert ended(client, pid)["out-data"] == b"early\n"


def test_a_background_process_delays_nothing_without_capture(client: Client) -> None:
    began = time.monotonic()
    run(client, SHELL, "-c", "sleep 3 &")
    assert time.monotonic() - began < 2


def test_ended_programs_leave_nothing_behind(agent: AgentProcess, own_client: Client) -> None:
    run(own_client, "cat", input_data=b64(b"x"), capture_output=True)
    before = descriptors(agent.pid)
    for number in range(200):
        mode = [True, False, "merged", "stdout", "stderr"][number % 5]
        run(own_client, "cat", input_data=b64(b"x"), capture_output=mode)
    assert children(agent.pid) == []
    assert len(descriptors(agent.pid)) == len(before)
    assert threads(agent.pid) <= 4


def test_programs_that_nobody_asks_about_hold_no_descriptor(agent: AgentProcess, own_client: Client) -> None:
    before = descriptors(agent.pid)
    pids = [start(own_client, SHELL, "-c", f"echo {n}; echo {n} >&2", capture_output=True) for n in range(100)]
    eventually(lambda: not children(agent.pid) and len(descriptors(agent.pid)) == len(before))
    for number, pid in enumerate(pids):
        assert ended(own_client, pid)["err-data"] == f"{number}\n".encode()


def test_programs_outlive_the_agent(tmp_path: Path) -> None:
    with AgentProcess(QGA, tmp_path) as agent, agent.connect() as client:
        pid = start(client, "sleep", "60")
        assert agent.stop() == 0
    os.kill(pid, 0)
    os.kill(pid, signal.SIGKILL)


@pytest.mark.root
def test_a_process_id_that_comes_round_again(agent: AgentProcess, own_client: Client) -> None:
    before = descriptors(agent.pid)
    first = start(own_client, "head", "-c", "1000000", "/dev/zero", capture_output=True)
    eventually(lambda: not children(agent.pid))
    for _ in range(200):
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(first - 1))
        second = start(own_client, "/bin/echo", "second", capture_output=True)
        if second == first:
            break
        ended(own_client, second)
    else:
        pytest.skip("other processes took the number every time")
    assert ended(own_client, second)["out-data"] == b"second\n"
    assert own_client.error("guest-exec-status", pid=first) == f"PID {first} does not exist"
    assert len(descriptors(agent.pid)) == len(before)


# --- failures


def test_starts_that_fail_leave_nothing_behind(agent: AgentProcess, own_client: Client) -> None:
    before = descriptors(agent.pid)
    for path in ("/nonexistent/x", "/tmp", "/etc/passwd", ""):
        own_client.error("guest-exec", path=path, capture_output=True, input_data=b64(bytes(MIB)))
    assert len(descriptors(agent.pid)) == len(before)
    assert children(agent.pid) == []


def test_a_hundred_programs_at_once(own_client: Client) -> None:
    pids = [start(own_client, SHELL, "-c", "sleep 0.3; echo x", capture_output=True) for _ in range(100)]
    assert all(ended(own_client, pid)["out-data"] == b"x\n" for pid in pids)


def test_pipelined_starts_are_answered_in_order(client: Client) -> None:
    paths = ["true", "/nonexistent/x"] * 20
    client.send(b"".join(request("guest-exec", path=path) for path in paths))
    replies = [json.loads(client.recv_line()) for _ in paths]
    assert ["return" in reply for reply in replies] == [True, False] * 20
    for reply in replies[::2]:
        assert ended(client, reply["return"]["pid"])["exitcode"] == 0


def test_a_program_can_read_what_the_agent_wrote(client: Client, tmp_path: Path) -> None:
    handle = client.ok("guest-file-open", path=str(tmp_path / "script"), mode="w")
    client.ok("guest-file-write", handle=handle, buf_b64=b64(b"#!/bin/sh\necho from the script\n"))
    text = client.error("guest-exec", path=str(tmp_path / "script"))
    assert text == f"Failed to execute child process “{tmp_path}/script” (Permission denied)"
    client.ok("guest-file-close", handle=handle)
    (tmp_path / "script").chmod(0o755)
    assert run(client, str(tmp_path / "script"), capture_output=True)["out-data"] == b"from the script\n"


def test_a_program_that_writes_for_ever_stalls_nobody(agent: AgentProcess, own_client: Client, tmp_path: Path) -> None:
    pid = start(own_client, "yes", capture_output=True)
    try:
        time.sleep(0.2)
        waits = []
        for _ in range(100):
            began = time.perf_counter()
            own_client.ok("guest-ping")
            waits.append(time.perf_counter() - began)
        (tmp_path / "file").write_bytes(b"content")
        handle = own_client.ok("guest-file-open", path=str(tmp_path / "file"))
        assert data_of(own_client.ok("guest-file-read", handle=handle)) == b"content"
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert sorted(waits)[50] < 0.005
    assert ended(own_client, pid)["out-truncated"]
