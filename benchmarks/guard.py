# SPDX-License-Identifier: Apache-2.0
"""Reads a result file and fails where a bar was not reached.

`python -m benchmarks.guard benchmark.json` prints a table in Markdown. Exit status 1: a bar was missed, a case is not
in the file, or one was skipped although this is CI (the environment variable CI is set).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .cases import BARS, FLOOR, QEMU_GA, QGA, Bar

ROUNDS_MIN = 5
"""A median of fewer is not worth comparing."""

Samples = Mapping[str, Mapping[str, Sequence[float]]]
"""Measure, then contestant."""

HEADER = ["case", "qemu-ga", "qga", "floor", "ratio", "bar", "verdict"]


class Result(NamedTuple):
    """What the suite has written: the samples of each measured case, the reason for each skipped one."""

    samples: dict[str, Samples]
    skipped: dict[str, str]


class Verdict(NamedTuple):
    """One row of the table."""

    cells: list[str]
    passed: bool


def load(path: Path) -> Result:
    """Read a file that `--benchmark-json` made."""
    content: dict[str, Any] = json.loads(path.read_text())
    infos = [benchmark["extra_info"] for benchmark in content["benchmarks"]]
    return Result({info["case"]: info["samples"] for info in infos if "case" in info}, content.get("skipped", {}))


def judge(bar: Bar, result: Result, in_ci: bool) -> Verdict:
    """Compare one bar with the result."""
    if bar.case in result.skipped:
        return _without_figures(bar, f"skipped: {result.skipped[bar.case]}", passed=not in_ci)
    contestants = result.samples.get(bar.case, {}).get(bar.measure, {})
    if not {QGA, bar.against or QGA} <= set(contestants):
        return _without_figures(bar, "not measured", passed=False)
    figures = {name: bar.summary(samples) for name, samples in contestants.items()}
    value = figures[QGA] if bar.against is None else figures[QGA] / figures[bar.against]
    enough = bar.against is None or min(map(len, contestants.values())) >= ROUNDS_MIN
    passed = enough and bar.holds(value)
    verdict = "ok" if passed else "MISSED" if enough else f"fewer than {ROUNDS_MIN} rounds"
    return Verdict([*_figures(bar, figures), _ratio(bar, value), _limit(bar), verdict], passed)


def _without_figures(bar: Bar, verdict: str, passed: bool) -> Verdict:
    return Verdict([bar.case, "", "", "", "", _limit(bar), verdict], passed)


def _figures(bar: Bar, figures: Mapping[str, float]) -> list[str]:
    cells = [f"{_number(figures[name])} {bar.measure}" if name in figures else "" for name in (QEMU_GA, QGA, FLOOR)]
    if bar.against in (None, QEMU_GA, FLOOR):
        return [bar.case, *cells]
    return [bar.case, cells[0], cells[1], f"{_number(figures[bar.against])} {bar.measure} ({bar.against})"]


def _ratio(bar: Bar, value: float) -> str:
    if bar.against is None:
        return ""
    return f"{_number(value)} x {bar.against}"


def _limit(bar: Bar) -> str:
    return f"{bar.sense} {_number(bar.limit)} {'x' if bar.against else bar.measure}"


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(verdicts: Iterable[Verdict]) -> str:
    """The verdicts in Markdown."""
    rows = [HEADER, ["---"] * len(HEADER), *(verdict.cells for verdict in verdicts)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def main(argv: list[str]) -> int:
    """Print the table; the return value is the exit status."""
    result = load(Path(argv[0]))
    verdicts = [judge(bar, result, in_ci=bool(os.environ.get("CI"))) for bar in BARS]
    print(table(verdicts))
    return 0 if all(verdict.passed for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
