# SPDX-License-Identifier: Apache-2.0
"""The table of scenarios and agents, and the measurements, of one run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from .image import KINDS


class Results:
    """`outcomes`: scenario -> agent -> a word; `measurements`: name -> agent -> number."""

    def __init__(self) -> None:
        self.outcomes: dict[str, dict[str, str]] = {}
        self.reasons: dict[str, str] = {}
        self.measurements: dict[str, dict[str, float]] = {}

    def note(self, scenario: str, kind: str, report: pytest.TestReport) -> None:
        """Take one phase of one test; a failure of any phase stands."""
        row = self.outcomes.setdefault(scenario, {})
        if report.failed:
            row[kind] = "FAILED"
        elif hasattr(report, "wasxfail"):
            row[kind] = "fails"
            self.reasons[f"{scenario} ({kind})"] = report.wasxfail
        elif report.skipped:
            row[kind] = "skipped"
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
            self.reasons[f"{scenario} ({kind})"] = str(reason)
        elif report.when == "call" and kind not in row:
            row[kind] = "passed"

    def measure(self, name: str, kind: str, value: float) -> None:
        """Take a number; its name tells the unit."""
        self.measurements.setdefault(name, {})[kind] = round(value, 3)

    def table(self) -> str:
        """Everything as text, one line a scenario or measurement."""
        rows: list[tuple[str, dict[str, Any]]] = [*self.outcomes.items(), *self.measurements.items()]
        width = max(len(name) for name, _ in rows)
        lines = [f"{'':{width}}  " + "".join(f"{kind:>14}" for kind in KINDS)]
        lines += [f"{name:{width}}  " + "".join(f"{row.get(kind, '-'):>14}" for kind in KINDS) for name, row in rows]
        return "\n".join(lines + [f"{name}: {reason}" for name, reason in self.reasons.items()])

    def save(self, path: Path) -> None:
        """Write everything as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        everything = {"scenarios": self.outcomes, "reasons": self.reasons, "measurements": self.measurements}
        path.write_text(json.dumps(everything, indent=1) + "\n")
