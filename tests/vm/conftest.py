# SPDX-License-Identifier: Apache-2.0
"""Guests for the scenarios: per agent one behind libvirt's agent channel and one behind a raw channel, each booted once."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import wheels
from .guest import AGENT_CHANNEL, Guest
from .hypervisor import Hypervisor, VirshError, wait_for
from .image import CACHE, KINDS, Image, build

WANTED = (os.environ.get("QGA_VM_AGENTS") or ",".join(KINDS)).split(",")
"""The agents that run; the reference comes first, since the other is compared to it."""

MODULES = ("test_queries", "test_changes", "test_freeze", "test_lifecycle", "test_channel", "test_performance", "test_power")
"""In this order: what changes least comes first, what ends the guest comes last."""

TIMEOUT = 400

RESULTS = CACHE / "results.json"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "reference_fails(reason): the C agent does not pass this scenario")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the scenarios, and run all of one agent before all of the next."""
    ours = [item for item in items if Path(__file__).parent in item.path.parents]
    for item in ours:
        item.add_marker("vm")
        item.add_marker(pytest.mark.timeout(TIMEOUT))
        if not os.environ.get("QGA_VM"):
            item.add_marker(pytest.mark.skip(reason="boots a real guest: run ci/vm-test"))
        for mark in item.iter_markers("reference_fails"):
            if _kind(item) == "qemu-ga":
                item.add_marker(pytest.mark.xfail(reason=mark.args[0], strict=True))
    order = {item: index for index, item in enumerate(items)}
    ours.sort(key=lambda item: (WANTED.index(_kind(item)), MODULES.index(item.path.stem), order[item]))
    items[:] = [item for item in items if item not in set(ours)] + ours


def _kind(item: pytest.Item) -> str:
    callspec = getattr(item, "callspec", None)
    return str(callspec.params["kind"]) if callspec else WANTED[0]


@pytest.fixture(scope="session", params=WANTED)
def kind(request: pytest.FixtureRequest) -> str:
    """The agent under test."""
    return str(request.param)


@pytest.fixture(scope="session")
def hypervisor() -> Iterator[Hypervisor]:
    """The tests' own libvirtd."""
    with Hypervisor() as running:
        yield running


class Pool:
    """The guests of one agent, booted when first wanted and again when a scenario left one unusable."""

    def __init__(self, hypervisor: Hypervisor, kind: str, image: Image) -> None:
        self.hypervisor = hypervisor
        self.kind = kind
        self.image = image
        self._guests: dict[str, Guest] = {}
        self._booted = 0

    def get(self, channel: str) -> Guest:
        """The guest with that channel (see Guest), running, its agent answering and nothing frozen."""
        guest = self._guests.get(channel)
        if guest is not None and self._healthy(guest):
            return guest
        self.drop(channel)
        self._booted += 1
        guest = Guest(self.hypervisor, self.kind, self.image, channel, f"{self.kind}-{self._booted}", self._booted)
        self._guests[channel] = guest
        guest.wait_for_first_reply()
        return guest

    def _healthy(self, guest: Guest) -> bool:
        if guest.state != "running":
            return False
        if guest.channel == "raw":
            return guest.run(f"systemctl is-active {guest.unit}").status == 0
        try:
            return bool(guest.call("guest-fsfreeze-status", timeout=5) == "thawed")
        except VirshError:
            return False

    def drop(self, channel: str) -> None:
        """Cut the power of the guest with that channel, if there is one."""
        guest = self._guests.pop(channel, None)
        if guest is not None:
            guest.destroy()

    def close(self) -> None:
        """Cut the power of all guests."""
        for channel in list(self._guests):
            self.drop(channel)


@pytest.fixture(scope="session")
def pool(hypervisor: Hypervisor, kind: str) -> Iterator[Pool]:
    """The guests of the agent under test."""
    guests = Pool(hypervisor, kind, build(kind, wheels.build if kind == "qga" else None))
    yield guests
    guests.close()


@pytest.fixture
def guest(pool: Pool) -> Guest:
    """A guest whose agent is libvirt's, and was started by plugging in the port."""
    return pool.get("libvirt")


@pytest.fixture
def raw_guest(pool: Pool) -> Guest:
    """A guest whose agent channel is a socket that nobody but the test opens."""
    return pool.get("raw")
