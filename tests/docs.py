# SPDX-License-Identifier: Apache-2.0
"""Makes docs/commands.md from the registry: `python -m tests.docs` rewrites it, a test compares."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, Union, get_args, get_origin, is_typeddict

from qga._framing import Span
from qga.commands import REGISTRY
from qga.protocol.registry import Command
from qga.protocol.schema import Uint64
from qga.protocol.stream import Stream

PAGE = Path(__file__).parent.parent / "docs" / "commands.md"

HEAD = """# Commands

Generated from the registry by `python -m tests.docs`; do not edit. `?` marks what may be absent.

| command | arguments | returns | while frozen | gives up after | what it does |
|---|---|---|---|---|---|
"""


def render() -> str:
    """The whole page."""
    structs: dict[str, Any] = {}
    rows = [_row(REGISTRY[name], structs) for name in sorted(REGISTRY)]
    text = HEAD + "\n".join(rows) + "\n\n## Types\n"
    for name, struct in structs.items():
        optional = struct.__optional_keys__
        members = [f"`{key}{'?' * (key in optional)}`: {_type(member, {})}" for key, member in _members(struct)]
        text += f"\n**{name}**: " + ", ".join(members) + "\n"
    return text


def _row(command: Command, structs: dict[str, Any]) -> str:
    arguments = ", ".join(
        f"`{param.wire}{'' if param.required else '?'}`: {_type(param.annotation, structs)}" for param in command.params
    )
    returns = _type(command.handler.__annotations__["return"], structs) if command.success_response else "no reply"
    return " | ".join(
        [
            f"| `{command.name}`",
            arguments or "none",
            returns,
            "yes" if command.frozen_ok else "",
            "answers at once" if command.inline else f"{command.deadline:g} s" if command.deadline else "never",
            f"{command.summary} |",
        ]
    )


def _type(annotation: Any, structs: dict[str, Any]) -> str:
    if annotation is None:
        return "nothing"
    if annotation is Uint64:
        return "uint64"
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is NotRequired:
        return _type(args[0], structs)
    if origin is Annotated:  # a stream of a structure, or an alternate and its name
        return _type(args[1] if args[0] is Stream else args[0], structs)
    if origin is list:
        return f"list of {_type(args[0], structs)}"
    if origin is Literal:
        return " or ".join(map(json.dumps, args))
    if origin in (types.UnionType, Union):
        branches = dict.fromkeys(_type(arg, structs) for arg in args if arg not in (type(None), Span))
        return "base64" if Span in args else " or ".join(branches)
    if is_typeddict(annotation):
        if annotation.__name__ not in structs:
            structs[annotation.__name__] = annotation
            for _, member in _members(annotation):
                _type(member, structs)
        return annotation.__name__
    return {"int": "integer", "str": "string", "float": "number"}.get(annotation.__name__, annotation.__name__)


def _members(struct: Any) -> list[tuple[str, Any]]:
    return list(struct.__annotations__.items())


if __name__ == "__main__":
    sys.stdout.write(f"wrote {PAGE.write_text(render())} characters to {PAGE}\n")
