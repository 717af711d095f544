# SPDX-License-Identifier: Apache-2.0
"""What the distribution says of itself. Format of the file: os-release(5)."""

import os

from .. import keyfile
from . import proc

PATHS = ("/etc/os-release", "/usr/lib/os-release")
_ESCAPED = "$'\"\\`"


def os_release(environ: "os._Environ[str] | dict[str, str]" = os.environ, root: str = "") -> dict[str, str]:
    """The assignments of the first usable file, none if there is none.

    The environment variable QGA_OS_RELEASE names another file, for which there is no substitute.
    """
    named = environ.get("QGA_OS_RELEASE")
    for path in [root + path for path in PATHS] if named is None else [named]:
        try:
            return parse(proc.read(path))
        except (OSError, ValueError):
            continue
    return {}


def parse(data: bytes) -> dict[str, str]:
    """Assignments by name; ValueError for text that is not UTF-8 or a line that is neither assignment nor comment.

    The C agent reads the file as the first group of a key file, up to the first NUL.
    """
    data.decode()
    entries = keyfile.parse(b"[os-release]\n" + data.partition(b"\0")[0])["os-release"]
    return {name: unquote(entry.raw.decode()) for name, entry in entries.items()}


def unquote(text: str) -> str:
    """The value of an assignment, without its quotes and escapes."""
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
