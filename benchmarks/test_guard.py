# SPDX-License-Identifier: Apache-2.0
"""The guard itself: it has to fail when something is amiss, or none of the figures guards anything."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from .cases import BARS, CPU, FLOOR, MEMORY, QEMU_GA, QGA, RATE, Bar, Case
from .guard import Result, judge, main

FASTER = Bar(Case.READ_4M, RATE, QEMU_GA, ">=", 10)
LEANER = Bar(Case.READ_4M, CPU, QEMU_GA, "<=", 1 / 12)
SMALL = Bar(Case.READ_MEMORY, MEMORY, None, "<=", 4, max)


def measured(bar: Bar, qga: list[float], other: list[float] | None = None) -> Result:
    """A result with nothing in it but what `bar` looks at."""
    samples = {QGA: qga} | ({} if other is None else {str(bar.against): other})
    return Result({bar.case: {bar.measure: samples}}, {})


@pytest.mark.parametrize(
    ("bar", "qga", "other", "passed"),
    [
        (FASTER, [1000.0] * 5, [100.0] * 5, True),
        (FASTER, [999.0] * 5, [100.0] * 5, False),
        (FASTER, [1.0, 1.0, 1000.0, 1000.0, 1000.0], [100.0] * 5, True),
        (FASTER, [1.0, 1.0, 1.0, 9000.0, 9000.0], [100.0] * 5, False),
        (LEANER, [1.0] * 5, [12.1] * 5, True),
        (LEANER, [1.0] * 5, [11.9] * 5, False),
        (SMALL, [4.0, 3.0], None, True),
        (SMALL, [1.0, 1.0, 4.1], None, False),
        (SMALL, [math.nan], None, False),
    ],
)
def test_a_bar_is_compared_with_the_summary_of_all_rounds(
    bar: Bar, qga: list[float], other: list[float] | None, passed: bool
) -> None:
    """Medians for ratios, the worst round for memory."""
    assert judge(bar, measured(bar, qga, other), in_ci=False).passed == passed


def test_a_ratio_of_fewer_than_five_rounds_is_refused() -> None:
    """Even if one side has enough."""
    verdict = judge(FASTER, measured(FASTER, [1000.0] * 5, [1.0] * 4), in_ci=False)
    assert not verdict.passed
    assert "fewer than 5 rounds" in verdict.cells


@pytest.mark.parametrize("result", [Result({}, {}), measured(FASTER, [1000.0] * 5), measured(LEANER, [1.0], [1.0])])
def test_what_was_not_measured_fails(result: Result) -> None:
    """A test that failed, or no longer exists, leaves nothing in the file."""
    verdict = judge(FASTER, result, in_ci=False)
    assert not verdict.passed
    assert "not measured" in verdict.cells


def test_a_skipped_case_fails_in_ci_only() -> None:
    """The reason is in the table either way."""
    result = Result({}, {FASTER.case: "qemu-ga is not installed"})
    assert judge(FASTER, result, in_ci=False).passed
    in_ci = judge(FASTER, result, in_ci=True)
    assert not in_ci.passed
    assert in_ci.cells[-1] == "skipped: qemu-ga is not installed"


def test_every_case_has_a_bar() -> None:
    """One that has none would be measured in vain."""
    assert {bar.case for bar in BARS} == set(Case)


def write_result(path: Path, good: bool) -> None:
    """A file as pytest-benchmark makes it, in which all bars are just reached, or just missed."""
    cases: dict[str, Any] = {}
    for bar in BARS:
        better = 1.001 if (bar.sense == ">=") == good else 0.999
        samples = cases.setdefault(bar.case, {}).setdefault(bar.measure, {})
        if bar.against is None:
            samples[QGA] = [bar.limit * better]
        else:
            samples.setdefault(QGA, [100.0] * 5)
            samples[bar.against] = [100.0 / bar.limit / better] * 5
    infos = [{"extra_info": {"case": case, "samples": samples}} for case, samples in cases.items()]
    path.write_text(json.dumps({"benchmarks": [{"extra_info": {"bytes": 1}}, *infos], "skipped": {}}))


@pytest.mark.parametrize("good", [True, False])
def test_the_exit_status_tells_whether_all_bars_were_reached(
    good: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the table has a row for each."""
    path = tmp_path / "result.json"
    write_result(path, good)
    assert main([str(path)]) == (0 if good else 1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"| case | {QEMU_GA} | {QGA} | {FLOOR} | ratio | bar | verdict |"
    assert len(lines) == 2 + len(BARS)
    assert {line.count("|") for line in lines} == {8}
