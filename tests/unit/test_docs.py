# SPDX-License-Identifier: Apache-2.0
"""What the documents say is true: generated pages are current, examples run, every difference names its test."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from qga.commands import REGISTRY
from qga.config import Config
from tests.agents import QGA, AgentProcess
from tests.docs import PAGE, render

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SUBJECTS = {path.stem for path in (ROOT / "src/qga/commands").glob("[!_]*.py")}


def test_command_page_is_current() -> None:
    assert PAGE.read_text() == render(), "run: python -m tests.docs"


def test_every_subject_is_imported() -> None:
    assert {command.handler.__module__.rpartition(".")[2] for command in REGISTRY.values()} == SUBJECTS


def test_command_in_readme_is_the_real_one() -> None:
    example = README.split("```python\n")[1].split("```")[0].strip()
    assert example in (ROOT / "src/qga/commands/files.py").read_text()


@pytest.mark.parametrize(
    "key", re.findall(r"`([a-z-]+)`(?=[^|]*\|[^|]*\|$)", README.split("| option | key |")[1].split("##")[0], re.M)
)
def test_setting_in_readme_exists(key: str) -> None:
    assert key.replace("-", "_") in Config._fields or key.startswith("method")


def example_lines() -> list[tuple[str, str]]:
    """The README's command lines that have their output behind them."""
    block = README.split("## Run it by hand")[1].split("```")[1]
    lines = block.splitlines()
    return [(line[2:], lines[index + 1]) for index, line in enumerate(lines) if line.startswith("$ echo")]


@pytest.mark.parametrize(("line", "output"), example_lines())
def test_example_in_readme_prints_what_it_says(line: str, output: str, tmp_path: Path) -> None:
    if "socat" in line and not shutil.which("socat"):
        pytest.skip("socat is not installed")
    with AgentProcess(QGA, tmp_path) as agent:
        agent.connect().close()
        line = line.replace("/tmp/agent.sock", str(agent.path)).replace("-t /tmp", f"-t {tmp_path}")
        line = line.replace("qga ", shlex.join(QGA) + " ")
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=30, cwd=ROOT, check=True)
    assert done.stdout.strip() == output


def compatibility_rows() -> list[tuple[str, str]]:
    """Number and test of each row of the list of differences."""
    rows = [line.strip("| ").split(" | ") for line in (ROOT / "docs/compatibility.md").read_text().splitlines()]
    return [(row[0], row[-1].strip(" |")) for row in rows if row[0].isdigit()]


@pytest.mark.parametrize(("number", "tests"), compatibility_rows())
def test_difference_names_an_existing_test(number: str, tests: str) -> None:
    names = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", tests)
    assert names, f"row {number} names no test"
    for path, name in names:
        assert f"def {name}(" in (ROOT / path).read_text(), f"{path} has no {name}"
