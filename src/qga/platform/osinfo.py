# SPDX-License-Identifier: Apache-2.0
"""What the distribution says of itself. Format of the file: os-release(5)."""

import os

PATHS = ("/etc/os-release", "/usr/lib/os-release")
_ESCAPED = "$'\"\\`"


def os_release(environ: "os._Environ[str] | dict[str, str]" = os.environ, root: str = "") -> dict[str, str]:
    """The assignments of the first usable file, none if there is none.

    The environment variable QGA_OS_RELEASE names another file, for which there is no substitute.
    """
    named = environ.get("QGA_OS_RELEASE")
    for path in (named,) if named else [root + path for path in PATHS]:
        try:
            return parse(_read(path))
        except (OSError, ValueError):
            continue
    return {}


def parse(data: bytes) -> dict[str, str]:
    """Assignments by name; ValueError for text that is not UTF-8 or a line that is neither assignment nor comment."""
    values = {}
    for line in data.decode().splitlines():
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        name, equals, value = stripped.partition("=")
        if not equals or not name:
            raise ValueError(f"not an assignment: {line!r}")
        values[name.rstrip()] = _unquote(value.lstrip())
    return values


def _unquote(text: str) -> str:
    if text.startswith("'"):
        return text[1:].partition("'")[0]
    if not text.startswith('"'):
        return text.partition(" ")[0].partition(";")[0]
    value = []
    characters = iter(text[1:])
    for character in characters:
        if character == '"':
            break
        if character == "\\":
            following = next(characters, "")
            character = following if following in _ESCAPED else "\\" + following
        value.append(character)
    return "".join(value)


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 1 << 16)
    finally:
        os.close(fd)
