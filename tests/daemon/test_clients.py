# SPDX-License-Identifier: Apache-2.0
"""Many clients, greedy clients, and clients that go away: nobody waits for another, nothing grows."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import resource
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Event, Thread

import pytest

from tests.agents import QGA, AgentProcess, Client
from tests.daemon.observe import (
    MIB,
    READ_MAX,
    b64,
    data_of,
    descriptors,
    eventually,
    request,
    run,
    start,
    threads,
    wake_ups,
)

SLOW_SECONDS = float(os.environ.get("QGA_SLOW_SECONDS", "2"))
"""How long a client does not read; a minute shows more."""

PING_MAX = 0.005
"""Seconds that the median ping may take while another client keeps the agent busy."""


@pytest.fixture
def big_file(tmp_path: Path) -> Path:
    path = tmp_path / "big"
    path.write_bytes(os.urandom(MIB) * 48)
    return path


def median_ping(client: Client, seconds: float) -> float:
    waits = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.perf_counter()
        client.ok("guest-ping")
        waits.append(time.perf_counter() - began)
        time.sleep(0.001)
    return sorted(waits)[len(waits) // 2]


# --- pipelining


def test_thousands_of_requests_in_one_segment_are_answered_in_order(client: Client) -> None:
    numbers = range(20_000)
    Thread(target=client.send, args=(b"".join(request("guest-sync", id=number) for number in numbers),)).start()
    assert [json.loads(client.recv_line()) for _ in numbers] == [{"return": number} for number in numbers]


def test_requests_of_every_kind_keep_their_order(client: Client, tmp_path: Path) -> None:
    # Answered on the event loop, on a worker, as a stream, as an error, and behind a byte 0xFF.
    (tmp_path / "file").write_bytes(bytes(300_000))
    handle = client.ok("guest-file-open", path=str(tmp_path / "file"))
    kinds = [
        b'{"execute":"guest-ping","id":%d}',
        b'{"execute":"guest-file-seek","arguments":{"handle":%d,"offset":0,"whence":0},"id":%%d}' % handle,
        b'{"execute":"guest-file-read","arguments":{"handle":%d,"count":10},"id":%%d}' % handle,
        b'{"execute":"guest-file-read","arguments":{"handle":%d,"count":250000},"id":%%d}' % handle,
        b'{"execute":"guest-exec","arguments":{"path":"/nonexistent/x"},"id":%d}',
        b'{"execute":"no-such-command","id":%d}',
        b'{"execute":"guest-sync-delimited","arguments":{"id":1},"id":%d}',
    ]
    requests = [kinds[number % len(kinds)] % number for number in range(700)]
    Thread(target=client.send, args=(b"".join(requests),)).start()
    replies = [client.recv_line() for _ in requests]
    assert [json.loads(reply.lstrip(b"\xff"))["id"] for reply in replies] == list(range(700))
    assert [number for number, reply in enumerate(replies) if reply.startswith(b"\xff")] == list(range(6, 700, 7))
    client.ok("guest-file-close", handle=handle)


def test_a_request_in_single_bytes(client: Client) -> None:
    for byte in request("guest-sync", id=42):
        client.send(bytes([byte]))
    assert json.loads(client.recv_line()) == {"return": 42}


# --- connections


def test_half_a_request_of_one_client_is_not_continued_by_the_next(shared: AgentProcess) -> None:
    with shared.connect() as first:
        first.ok("guest-ping")
        first.send(b'{"execute":"guest-sync","arguments":{"id":')
        with shared.connect() as second:
            assert second.ok("guest-sync", id=2) == 2
        first.send(b"1}}")
        assert json.loads(first.recv_line()) == {"return": 1}


def test_requests_are_answered_after_a_half_close(shared: AgentProcess, big_file: Path) -> None:
    with shared.connect() as client:
        handle = client.ok("guest-file-open", path=str(big_file))
        client.send(request("guest-file-read", handle=handle, count=READ_MAX))
        client.send(request("guest-file-close", handle=handle) + request("guest-sync", id=3) + b'{"execute":"guest-pi')
        client.sock.shutdown(socket.SHUT_WR)
        data = data_of(json.loads(client.recv_line())["return"])
        assert hashlib.sha256(data).digest() == hashlib.sha256(big_file.read_bytes()).digest()
        assert json.loads(client.recv_line()) == {"return": {}}
        assert json.loads(client.recv_line()) == {"return": 3}
        assert client.recv_line() == b""


def test_a_client_that_sends_nothing_is_let_go(agent: AgentProcess, own_client: Client) -> None:
    before = descriptors(agent.pid)
    for _ in range(50):
        agent.connect().close()
    own_client.ok("guest-ping")
    eventually(lambda: len(descriptors(agent.pid)) == len(before))


def test_clients_that_leave_in_the_middle_of_a_large_reply(
    agent: AgentProcess, own_client: Client, big_file: Path
) -> None:
    handle = own_client.ok("guest-file-open", path=str(big_file))
    before = descriptors(agent.pid)
    for taken in (0, 1, 100_000, 5 * MIB):
        with agent.connect() as client:
            client.send(request("guest-file-seek", handle=handle, offset=0, whence=0))
            client.recv_line()
            client.send(request("guest-file-read", handle=handle, count=READ_MAX))
            left = taken
            while left:
                left -= len(client.sock.recv(min(left, 65536)))
    own_client.ok("guest-file-seek", handle=handle, offset=0, whence=0)
    assert own_client.ok("guest-file-read", handle=handle, count=READ_MAX)["count"] == READ_MAX
    eventually(lambda: len(descriptors(agent.pid)) == len(before))
    eventually(lambda: threads(agent.pid) <= 4)


def test_clients_that_leave_in_the_middle_of_a_large_request(agent: AgentProcess, own_client: Client) -> None:
    idle = agent.memory()
    for _ in range(3):
        with agent.connect() as client:
            client.send(b'{"execute":"guest-file-write","arguments":{"handle":1,"buf-b64":"' + b"A" * (20 * MIB))
    assert own_client.ok("guest-sync", id=5) == 5
    eventually(lambda: agent.memory() < idle + 4 * MIB)


def test_64_clients_at_once(agent: AgentProcess, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(2 * MIB))
    digest = hashlib.sha256((tmp_path / "file").read_bytes()).digest()

    def work(number: int) -> bool:
        with agent.connect() as client:
            handle = client.ok("guest-file-open", path=str(tmp_path / "file"))
            data = data_of(client.ok("guest-file-read", handle=handle, count=READ_MAX))
            client.ok("guest-file-close", handle=handle)
            copy = client.ok("guest-file-open", path=str(tmp_path / f"copy-{number}"), mode="w")
            client.ok("guest-file-write", handle=copy, buf_b64=b64(data[:100_000]))
            client.ok("guest-file-close", handle=copy)
            status = run(client, "cat", input_data=b64(b"%d" % number), capture_output=True)
            assert client.ok("guest-sync", id=number) == number
            return hashlib.sha256(data).digest() == digest and status["out-data"] == b"%d" % number

    with ThreadPoolExecutor(64) as pool:
        assert all(pool.map(work, range(64)))
    eventually(lambda: threads(agent.pid) <= 4)


def test_more_clients_than_worker_threads_wait_and_are_served(agent: AgentProcess, big_file: Path) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(agent.connect()) for _ in range(100)]
        for client in clients:
            handle = client.ok("guest-file-open", path=str(big_file))
            client.send(request("guest-file-read", handle=handle, count=4 * MIB))
        for client in clients:
            reply = client.recv_line()
            assert len(reply) > 4 * MIB
    eventually(lambda: threads(agent.pid) <= 4)


# --- one client's work is not another's wait


@pytest.fixture
def busy(agent: AgentProcess) -> Iterator[Event]:
    """Set when the test is over."""
    over = Event()
    yield over
    over.set()


def repeat(agent: AgentProcess, over: Event, data: bytes) -> Thread:
    """Send `data` and take one line of reply, again and again on a connection of its own until `over`."""

    def work() -> None:
        with agent.connect() as client:
            while not over.is_set():
                client.send(data)
                left = True
                while left:
                    left = not client.sock.recv(MIB).endswith(b"\n")

    thread = Thread(target=work)
    thread.start()
    return thread


def test_pings_do_not_wait_for_large_reads(
    agent: AgentProcess, own_client: Client, busy: Event, big_file: Path
) -> None:
    handle = own_client.ok("guest-file-open", path="/dev/zero")
    thread = repeat(agent, busy, request("guest-file-read", handle=handle, count=READ_MAX))
    ping = median_ping(own_client, 1.0)
    busy.set()
    thread.join()
    assert ping < PING_MAX


def test_pings_do_not_wait_for_large_writes(agent: AgentProcess, own_client: Client, busy: Event) -> None:
    handle = own_client.ok("guest-file-open", path="/dev/null", mode="w")
    payload = b64(os.urandom(30 * MIB))
    thread = repeat(agent, busy, request("guest-file-write", handle=handle, buf_b64=payload))
    ping = median_ping(own_client, 1.0)
    busy.set()
    thread.join()
    assert ping < PING_MAX


def test_pings_do_not_wait_for_a_command_that_does(agent: AgentProcess, own_client: Client, big_file: Path) -> None:
    with agent.connect() as reader, agent.connect() as waiter:
        handle = reader.ok("guest-file-open", path=str(big_file))
        reader.send(request("guest-file-read", handle=handle, count=READ_MAX))
        time.sleep(0.1)
        waiter.send(request("guest-file-flush", handle=handle))
        assert median_ping(own_client, 0.5) < PING_MAX
        waiter.sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            waiter.sock.recv(1)
        waiter.sock.setblocking(True)
        reader.recv_line()
        assert json.loads(waiter.recv_line()) == {"return": {}}


def test_pings_do_not_wait_for_a_flood_of_requests(agent: AgentProcess, own_client: Client, busy: Event) -> None:
    def flood() -> None:
        with agent.connect() as client:
            client.sock.setblocking(False)
            while not busy.is_set():
                for call in (lambda: client.sock.send(b"{}" * 10_000), lambda: client.sock.recv(MIB)):
                    try:
                        call()
                    except BlockingIOError:
                        time.sleep(0.0005)

    thread = Thread(target=flood)
    thread.start()
    ping = median_ping(own_client, 1.0)
    busy.set()
    thread.join()
    assert ping < PING_MAX


# --- clients that do not read


def test_a_client_that_stops_reading_costs_neither_memory_nor_time(
    agent: AgentProcess, own_client: Client, big_file: Path
) -> None:
    idle = agent.memory()
    with agent.connect() as slow:
        handle = slow.ok("guest-file-open", path=str(big_file))
        slow.send(request("guest-file-read", handle=handle, count=READ_MAX))
        received = slow.sock.recv(1000)
        time.sleep(0.3)
        before, cpu = wake_ups(agent.pid), agent.cpu_seconds()
        time.sleep(SLOW_SECONDS)
        assert wake_ups(agent.pid) - before < 5, "waiting is not polling"
        assert agent.cpu_seconds() - cpu < 0.05
        assert own_client.ok("guest-sync", id=6) == 6
        assert agent.memory() < idle + 4 * MIB
        reply = json.loads(received + slow.recv_line())["return"]
        assert reply["count"] == READ_MAX
        assert base64.b64decode(reply["buf-b64"]) == big_file.read_bytes()


def test_a_client_that_asks_much_and_reads_nothing(agent: AgentProcess, own_client: Client, big_file: Path) -> None:
    idle = agent.memory()
    with agent.connect() as greedy:
        handle = greedy.ok("guest-file-open", path="/dev/zero")
        asked = 0
        greedy.sock.settimeout(0.5)
        try:
            while True:
                greedy.send(request("guest-file-read", handle=handle, count=READ_MAX))
                asked += 1
        except TimeoutError:
            pass
        assert asked > 20
        assert own_client.ok("guest-sync", id=7) == 7
        assert agent.memory() < idle + 4 * MIB
    own_client.ok("guest-file-close", handle=handle)


def test_many_small_replies_wait_for_their_reader(agent: AgentProcess, own_client: Client) -> None:
    idle = agent.memory()
    count = 150_000
    with agent.connect() as client:
        sender = Thread(target=client.send, args=(request("guest-sync", id=8) * count,))
        sender.start()
        time.sleep(0.5)
        assert sender.is_alive(), "the agent is to stop reading while its replies are not taken"
        assert own_client.ok("guest-sync", id=9) == 9
        assert agent.memory() < idle + 4 * MIB
        assert all(client.recv_line() == b'{"return":8}\n' for _ in range(count))
        sender.join()


# --- what remains


def test_memory_of_large_requests_is_given_back(agent: AgentProcess, own_client: Client, big_file: Path) -> None:
    own_client.ok("guest-info")
    idle = agent.memory()
    source = own_client.ok("guest-file-open", path=str(big_file))
    target = own_client.ok("guest-file-open", path="/dev/null", mode="w")
    data = own_client.ok("guest-file-read", handle=source, count=45 * MIB)["buf-b64"]
    assert agent.memory("VmHWM") < idle + 6 * MIB, "a read is never held whole"
    own_client.ok("guest-file-write", handle=target, buf_b64=data)
    assert agent.memory("VmHWM") < idle + 70 * MIB, "a write is held once, as it was received"
    eventually(lambda: agent.memory() < idle + 4 * MIB, 3)


def test_request_that_there_is_no_memory_for_costs_its_own_connection_only(tmp_path: Path) -> None:
    with AgentProcess(QGA, tmp_path) as agent, agent.connect() as client:
        client.ok("guest-ping")
        limit = agent.memory("VmSize") + 40 * MIB
        resource.prlimit(agent.pid, resource.RLIMIT_AS, (limit, limit))
        with agent.connect() as greedy, suppress(ConnectionError):
            greedy.send(b'{"execute":"guest-ping","id":"' + b"x" * (60 * MIB) + b'"}')
            assert greedy.recv_line() == b""
        client.ok("guest-ping")
        assert agent.log.read_text().count(" lost\n") == 1


def test_thousands_of_requests_leave_nothing_behind(agent: AgentProcess, own_client: Client, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(200_000))

    def round_of_requests(repeats: int) -> None:
        for _ in range(repeats):
            handle = own_client.ok("guest-file-open", path=str(tmp_path / "file"), mode="r+")
            own_client.ok("guest-file-read", handle=handle, count=200_000)
            own_client.ok("guest-file-write", handle=handle, buf_b64="A" * 100_000)
            own_client.error("guest-file-write", handle=handle, buf_b64="@")
            own_client.ok("guest-file-close", handle=handle)
            own_client.raw(b'{"execute":"guest-ping","id":"\xc3\xa9"} \xff')
            own_client.recv_line()
            with agent.connect() as other:
                other.error("no-such-command")

    round_of_requests(200)
    before, open_before = agent.memory(), descriptors(agent.pid)
    round_of_requests(800)
    assert agent.memory() - before < MIB
    eventually(lambda: len(descriptors(agent.pid)) <= len(open_before))


def test_an_idle_agent_does_not_wake_up(agent: AgentProcess, own_client: Client) -> None:
    run(own_client, "true", capture_output=True)
    handle = own_client.ok("guest-file-open", path="/dev/null", mode="w")
    own_client.ok("guest-file-write", handle=handle, buf_b64="A" * (2 * MIB))
    waiting = start(own_client, "sleep", "2", capture_output=True)
    time.sleep(1.2)
    before = wake_ups(agent.pid)
    time.sleep(0.6)
    assert wake_ups(agent.pid) - before <= 2
    assert own_client.ok("guest-exec-status", pid=waiting) == {"exited": False}


def test_an_agent_with_half_a_large_request_does_not_wake_up(agent: AgentProcess, own_client: Client) -> None:
    own_client.send(b'{"execute":"guest-ping","id":"' + b"x" * (3 * MIB))
    time.sleep(1.0)
    before = wake_ups(agent.pid)
    time.sleep(2.0)
    assert wake_ups(agent.pid) - before <= 2
    assert len(own_client.raw(b'"}')["id"]) == 3 * MIB
