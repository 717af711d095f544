# SPDX-License-Identifier: Apache-2.0
"""Key files, the format of the configuration and the state file: groups of `key=value` lines, `#` comments, escapes.

What is accepted follows the Desktop Entry Specification as GLib reads it, since existing files were written for that:
a key given twice has its last value, groups of one name are one group, a space after `=` is not part of the value but
one at the end of the line is. configparser differs in too much (continuation lines, duplicates, escapes).
"""

from typing import Final, NamedTuple, NoReturn

_SPACE: Final = b" \t\r\f"
_ESCAPES: Final = {"s": " ", "t": "\t", "n": "\n", "r": "\r", "\\": "\\"}


class KeyFileError(ValueError):
    """Not a key file, or a value that cannot be read; the text starts with the line's number."""


class Entry(NamedTuple):
    """A value as it stands in the file, after the blanks that follow `=`."""

    line: int
    raw: bytes

    def fail(self, problem: str) -> NoReturn:
        """Raise KeyFileError for this line."""
        raise KeyFileError(f"line {self.line}: {problem}")

    def text(self) -> str:
        r"""The value with `\s \t \n \r \\` replaced; KeyFileError for any other escape and for bad UTF-8."""
        try:
            value = self.raw.decode()
        except UnicodeDecodeError:
            self.fail("the value is not UTF-8")
        if "\\" not in value:
            return value
        text = ""
        characters = iter(value)
        for character in characters:
            if character == "\\" and (character := _ESCAPES.get(next(characters, ""), "")) == "":
                self.fail(r"a backslash in a value must be followed by one of s t n r \ ")
            text += character
        return text


def parse(data: bytes) -> dict[str, dict[str, Entry]]:
    """The entries of a key file by group and key; KeyFileError if a line is none of the known kinds."""
    groups: dict[str, dict[str, Entry]] = {}
    group = None
    for number, raw_line in enumerate(data.replace(b"\r\n", b"\n").split(b"\n"), 1):
        line = raw_line.lstrip(_SPACE)
        key, equals, value = line.partition(b"=")
        if not line or line.startswith(b"#"):
            continue
        if (name := _group_name(line)) is not None:
            group = groups.setdefault(name, {})
        elif not equals or not _is_key(key.rstrip(_SPACE)) or b"\0" in value:
            raise KeyFileError(
                f"line {number}: '{line.decode(errors='replace')}' is not [group], key=value or # comment"
            )
        elif group is None:
            raise KeyFileError(f"line {number}: there is no [group] before the first key")
        else:
            group[key.rstrip(_SPACE).decode(errors="replace")] = Entry(number, value.lstrip(_SPACE))
    return groups


def escape(text: str) -> str:
    """Write `text` so that `Entry.text` gives it back."""
    body = text.lstrip(" \t")
    blanks = text[: len(text) - len(body)].replace(" ", "\\s").replace("\t", "\\t")
    return blanks + body.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")


def _group_name(line: bytes) -> str | None:
    line = line.rstrip(b" \t")
    name = line[1:-1]
    if line[:1] + line[-1:] != b"[]" or not name or b"[" in name or b"]" in name or min(name) < 0x20:
        return None
    return name.decode(errors="replace")


def _is_key(key: bytes) -> bool:
    # A localised key, `name[de]`, is a key of its own that nobody here asks for.
    name, bracket, locale = key.partition(b"[")
    localised = locale == b"]" or (locale[-1:] == b"]" and locale[:-1].translate(None, b"-_.@").isalnum())
    return bool(name) and b"]" not in name and (not bracket or localised)
