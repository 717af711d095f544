# SPDX-License-Identifier: Apache-2.0
"""Operating system, host name, time and power: the same answers as qemu-ga's, as far as this machine may be asked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agents import NO_QEMU_GA, QEMU_GA, QGA, AgentProcess, Client

Pair = tuple[Client, Client]


def start(directory: Path, env: dict[str, str] | None = None) -> Iterator[Pair]:
    """A connection to qga and one to the reference."""
    if QEMU_GA is None:
        assert "CI" not in os.environ, NO_QEMU_GA
        pytest.skip(NO_QEMU_GA)
    for name in ("qga", "reference"):
        (directory / name).mkdir()
    with (
        AgentProcess(QGA, directory / "qga", env=env) as ours,
        AgentProcess([QEMU_GA], directory / "reference", env=env) as theirs,
        ours.connect() as client,
        theirs.connect() as reference,
    ):
        yield client, reference


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    yield from start(tmp_path_factory.mktemp("system"))


@pytest.mark.parametrize("name", ["guest-get-osinfo", "guest-get-host-name", "guest-get-timezone"])
def test_same_value(name: str, pair: Pair) -> None:
    ours, theirs = (client.call(name) for client in pair)
    assert ours == theirs


def test_time_is_between_two_answers_of_the_reference(pair: Pair) -> None:
    client, reference = pair
    before, now, after = (side.ok("guest-get-time") for side in (reference, client, reference))
    assert before <= now <= after


@pytest.mark.parametrize("time", [-1_000_000_000, -(1 << 63), (1 << 63) - 1, 4_000_000_000 * 10**9])
def test_time_that_is_refused(time: int, pair: Pair) -> None:
    ours, theirs = (client.error("guest-set-time", time=time) for client in pair)
    # The C agent may put the text of an unrelated errno behind it.
    assert theirs.startswith(ours)


@pytest.mark.parametrize("name", ["guest-set-time", "guest-shutdown"])
@pytest.mark.parametrize("value", ["x", 1.5, None, [], {}, True])
def test_wrong_arguments(name: str, value: object, pair: Pair) -> None:
    argument = {"guest-set-time": "time", "guest-shutdown": "mode"}[name]
    ours, theirs = (client.call(name, **{argument: value}) for client in pair)
    assert ours == theirs


@pytest.mark.parametrize("zone", ["America/New_York", "XXX+3", "Asia/Kolkata"])
def test_zone_of_the_environment(zone: str, tmp_path: Path) -> None:
    for client, reference in start(tmp_path, {"TZ": zone}):
        assert client.ok("guest-get-timezone") == reference.ok("guest-get-timezone")


@pytest.mark.parametrize(
    "text", ["NAME=x y\nID=a;b\nVARIANT=\n", 'NAME="a\\"b\\$" c\n', "NAME\n", "ID=\xff\n", "# nothing\n\n"]
)
def test_os_release_of_the_environment(text: str, tmp_path: Path) -> None:
    release = tmp_path / "os-release"
    release.write_bytes(text.encode("latin-1"))
    for client, reference in start(tmp_path, {"QGA_OS_RELEASE": str(release)}):
        assert client.ok("guest-get-osinfo") == reference.ok("guest-get-osinfo")
