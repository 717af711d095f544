# SPDX-License-Identifier: Apache-2.0
"""Guests for the scenarios: per agent one behind libvirt's agent channel and one behind a raw channel."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from . import wheels
from .guest import Guest
from .hypervisor import Hypervisor, VirshError
from .image import CACHE, WANTED, Image, build
from .results import Results

MODULES = tuple(
    f"test_{name}"
    for name in ("queries", "changes", "freeze", "lifecycle", "service", "channel", "performance", "power")
)
"""In this order: what changes least comes first, what ends the guest comes last."""

TIMEOUT = 400

RESULTS = pytest.StashKey[Results]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "reference_fails(reason): the C agent does not pass this scenario")
    config.addinivalue_line("markers", "own: about what the C agent does not have; not run with it")
    config.stash[RESULTS] = Results()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the scenarios, and run all of one agent before all of the next."""
    here = {item for item in items if Path(__file__).parent in item.path.parents}
    ours = [item for item in items if item in here and (_kind(item) == "qga" or not item.get_closest_marker("own"))]
    for item in ours:
        item.add_marker("vm")
        item.add_marker(pytest.mark.timeout(TIMEOUT))
        if not os.environ.get("QGA_VM"):  # ci/vm-test sets it
            item.add_marker(pytest.mark.skip(reason="boots a real guest: run ci/vm-test"))
    order = {item: index for index, item in enumerate(items)}
    ours.sort(key=lambda item: (WANTED.index(_kind(item)), MODULES.index(item.path.stem), order[item]))
    items[:] = [item for item in items if item not in here] + ours


def _kind(item: pytest.Item) -> str:
    callspec = getattr(item, "callspec", None)
    return str(callspec.params["kind"]) if callspec else WANTED[0]


def _scenario(item: pytest.Item) -> str:
    name = item.name.partition("[")[0].removeprefix("test_").replace("_", " ")
    variant = item.name.removesuffix("]").partition("[")[2].replace(_kind(item), "").strip("-")
    return f"{name} {variant}".strip()


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
        guest = Guest(self.hypervisor, self.kind, self.image, channel, self._booted)
        self._guests[channel] = guest
        guest.boot()
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

    def reports(self) -> list[tuple[str, str]]:
        """What the consoles of the guests and libvirt's log say last."""
        logs = [(f"console of {guest.name}", guest.console()) for guest in self._guests.values()]
        logs.append(("libvirtd", (self.hypervisor.directory / "libvirtd.log").read_text(errors="replace")))
        return [(title, "\n".join(text.splitlines()[-20:])) for title, text in logs]

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


@pytest.fixture
def results(request: pytest.FixtureRequest) -> Results:
    """Takes the measurements of this run."""
    return request.config.stash[RESULTS]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note how the scenario went; of a failed one, show what the guest and libvirt said.

    The run is about qga: what the reference fails is told in the table, and is no failure of the run.
    """
    report = yield
    if item.get_closest_marker("vm"):
        if report.failed and _kind(item) == "qemu-ga":
            known = item.get_closest_marker("reference_fails")
            report.outcome = "skipped"
            report.wasxfail = known.args[0] if known else call.excinfo.exconly().partition("\n")[0]
        item.config.stash[RESULTS].note(_scenario(item), _kind(item), report)
        if report.failed and (pool := getattr(item, "funcargs", {}).get("pool")):
            report.sections += pool.reports()
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table, and keep it with the images."""
    results = terminalreporter.config.stash[RESULTS]
    if results.outcomes and os.environ.get("QGA_VM"):
        terminalreporter.section("scenarios in real guests")
        terminalreporter.write_line(results.table())
        results.save(CACHE / "results.json")
