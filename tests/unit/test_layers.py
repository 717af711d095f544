# SPDX-License-Identifier: Apache-2.0
"""The rooms of the package: what each may import, so that imports go downwards only."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import qga

PACKAGE = Path(qga.__file__).parent

ROOMS: dict[str, set[str]] = {
    "_version": set(),
    "_lean": set(),
    "errors": set(),
    "limits": set(),
    "keyfile": set(),
    "workers": set(),
    "_framing": set(),
    "_b64io": set(),
    "platform": {"errors", "limits", "keyfile", "_b64io"},
    "config": {"_version", "errors", "keyfile"},
    "daemon": {"errors"},
    "logs": {"config", "errors"},
    "freezing": {"config", "errors", "logs", "platform", "workers"},
    "protocol": {"errors", "limits", "workers", "_framing", "_b64io"},
    "agent": {"config", "errors", "freezing", "limits", "platform", "protocol", "workers"},
    "commands": {"_version", "errors", "limits", "platform", "logs", "protocol", "agent"},
    "transports": {"errors", "protocol", "workers"},
    "provisioning": {"config", "errors"},
    "service": {"errors", "limits", "config", "daemon", "logs", "platform", "protocol", "agent", "commands",
                "transports"},
    "cli": {"_lean", "_version", "commands", "config", "errors", "provisioning", "service"},
    "__main__": {"cli"},
    "__init__": {"_version"},
}  # fmt: skip
"""From the bottom up: each room and what it may import, besides its own modules and the standard library."""

OUTSIDE = {
    "orjson": {"_framing.pyx", "protocol/reply.py"},
    "pybase64": {"_b64io.pyx", "commands/exec.py"},
    "uvloop": {"_lean.py", "service.py"},
}
"""Packages that are not in the standard library, and who may import them."""

LATE = {"_lean.py", "cli.py", "config.py", "service.py"}
"""Files that import something inside a function: before anything can be frozen, or where the program ends anyway."""


class Import(NamedTuple):
    """One import of one name."""

    file: str
    line: int
    module: str
    late: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imports_of(path: Path) -> Iterator[Import]:
    """What a module imports when it runs, with absolute names; `if TYPE_CHECKING` does not run."""
    tree = ast.parse(path.read_text())
    typing_only = {id(inner) for node in ast.walk(tree) if is_type_checking(node) for inner in ast.walk(node)}
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    late = {id(inner) for node in ast.walk(tree) if isinstance(node, functions) for inner in ast.walk(node)}
    file = str(path.relative_to(PACKAGE))
    for node in ast.walk(tree):
        if id(node) not in typing_only and isinstance(node, ast.Import | ast.ImportFrom):
            for module in names(node, path):
                yield Import(file, node.lineno, module, id(node) in late)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def names(node: ast.Import | ast.ImportFrom, path: Path) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not node.level:
        return [node.module or ""]
    package = path.parents[node.level - 1].relative_to(PACKAGE.parent)
    base = ".".join([*package.parts, *(node.module or "").split(".")]).rstrip(".")
    # `from .package import module` means the module, `from .module import name` the module itself.
    return [f"{base}.{alias.name}" if is_module(f"{base}.{alias.name}") else base for alias in node.names]


def is_module(name: str) -> bool:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return any(path.with_suffix(suffix).exists() for suffix in (".py", ".pyx")) or (path / "__init__.py").exists()


def room_of(module: str) -> str:
    """The room of an absolute name: `qga.platform.run` is in `platform`."""
    return module.split(".")[1] if "." in module else "__init__"


def room_of_file(file: str) -> str:
    return file.split("/")[0].removesuffix(".py").removesuffix(".pyx")


ALL = [found for path in modules() for found in imports_of(path)]


def test_rooms_are_listed_from_the_bottom_up() -> None:
    above: set[str] = set()
    for room, below in ROOMS.items():
        assert below <= above, f"{room} is listed before {below - above}"
        above.add(room)


def test_every_room_is_listed_and_every_listed_room_exists() -> None:
    files = [*modules(), *PACKAGE.rglob("*.pyx")]
    assert {room_of_file(str(path.relative_to(PACKAGE))) for path in files} == set(ROOMS)


def test_imports_go_downwards() -> None:
    wrong = []
    for found in ALL:
        if not found.module.startswith("qga"):
            continue
        room = room_of_file(found.file)
        if room_of(found.module) != room and room_of(found.module) not in ROOMS[room]:
            wrong.append(str(found))
    assert wrong == []


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for path in modules():
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found = {found.module for found in imports_of(path) if found.module.startswith("qga") and not found.late}
        # A package that imports its own modules is no circle: they do not need it to be complete.
        graph[name] = {module for module in found if module != name and not name.startswith(f"{module}.")}
    assert list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("room", ["platform", "protocol", "transports"])
def test_no_commands_below_commands(room: str) -> None:
    assert "commands" not in ROOMS[room]
    assert "agent" not in ROOMS[room]


def test_few_use_what_is_not_in_the_standard_library() -> None:
    used: dict[str, set[str]] = {}
    for found in [*ALL, *compiled_imports()]:
        top = found.module.split(".")[0]
        if top != "qga" and top not in sys.stdlib_module_names:
            used.setdefault(top, set()).add(found.file)
    assert used == OUTSIDE


def compiled_imports() -> Iterator[Import]:
    for path in sorted(PACKAGE.rglob("*.pyx")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            words = line.split()
            if words[:1] in (["import"], ["from"]) and "cimport" not in words:
                yield Import(str(path.relative_to(PACKAGE)), number, words[1], False)


def test_nothing_is_imported_late_but_where_nothing_can_be_frozen() -> None:
    assert {found.file for found in ALL if found.late} <= LATE


def test_handlers_leave_the_kernel_to_the_platform() -> None:
    kernel = {"fcntl", "ctypes", "mmap", "subprocess", "struct", "termios", "signal"}
    assert [str(found) for found in ALL if found.file.startswith("commands/") and found.module in kernel] == []
