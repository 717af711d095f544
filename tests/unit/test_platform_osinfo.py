# SPDX-License-Identifier: Apache-2.0
"""Reading os-release."""

from __future__ import annotations

from pathlib import Path

import pytest

from qga.platform.osinfo import os_release, parse


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("ID=debian", "debian"),
        ("ID = debian ", "debian"),
        ("ID=", ""),
        ("ID=two words", "two"),
        ("ID=a;b", "a"),
        ('ID="two words"', "two words"),
        ('ID="cut" here', "cut"),
        (r'ID="\$\"\\\`"', '$"\\`'),
        (r'ID="\n"', "\\n"),
        ("ID='12 (x)'", "12 (x)"),
        ("ID=é", "é"),
        ('ID="no end', "no end"),
    ],
)
def test_value(line: str, value: str) -> None:
    assert parse(f"# comment\n\n{line}\n".encode()) == {"ID": value}


@pytest.mark.parametrize("data", [b"ID=debian\nnonsense\n", b"=x\n", b"ID=\xff\n"])
def test_file_that_is_no_os_release_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse(data)


def test_first_usable_file_counts(tmp_path: Path) -> None:
    for directory, text in (("etc", "nonsense"), ("usr/lib", "ID=second")):
        (tmp_path / directory).mkdir(parents=True)
        (tmp_path / directory / "os-release").write_text(text)
    assert os_release({}, root=str(tmp_path)) == {"ID": "second"}
    (tmp_path / "etc/os-release").write_text("ID=first")
    assert os_release({}, root=str(tmp_path)) == {"ID": "first"}


def test_no_file_means_nothing_known(tmp_path: Path) -> None:
    assert os_release({}, root=str(tmp_path)) == {}


def test_named_file_has_no_substitute(tmp_path: Path) -> None:
    named = tmp_path / "named"
    assert os_release({"QGA_OS_RELEASE": str(named)}) == {}
    named.write_text("ID=named")
    assert os_release({"QGA_OS_RELEASE": str(named)}) == {"ID": "named"}
