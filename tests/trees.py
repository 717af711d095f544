# SPDX-License-Identifier: Apache-2.0
"""Builds /sys, /proc and /run/udev of other machines from the short descriptions in tests/data/*.tree.

Lines that are indented further lie inside the directory named above them. Paths are relative to /sys. `#` is a comment.

    devices/pci0000:00/0000:00:04.0     a directory
        driver -> bus/pci/drivers/nvme  a symbolic link; the target is given from /sys, the link itself is relative
        class = 0x010802                a file; one newline is added
        disk nvme/nvme0/nvme0n1 259:0 2048
                                        a disk: path, device number, sectors; its partitions and slaves lie inside
            part nvme0n1p1 259:1 2000   a partition
            slave sda1                  a device below this one, described further up
    mount 259:1 /mnt ext4 /dev/nvme0n1p1
                                        a line of /proc/self/mountinfo
    udev 259:0 ID_SERIAL=X DM_NAME=y    the properties that udev keeps of a block device
"""

from __future__ import annotations

import os
from pathlib import Path

DATA = Path(__file__).parent / "data"


class Tree:
    """A directory with sys/, proc/ and run/ below it; `root` is what platform functions take."""

    def __init__(self, directory: Path, text: str = "") -> None:
        self.root = str(directory)
        self.sys = directory / "sys"
        self.proc = directory / "proc"
        self.udev = directory / "run/udev/data"
        for path in ("sys/block", "sys/dev/block", "sys/class/block", "proc/self", "run/udev/data"):
            (directory / path).mkdir(parents=True)
        self._partitions = "major minor  #blocks  name\n\n"
        self._mountinfo = ""
        self.add(text)

    def add(self, text: str) -> None:
        """Add what `text` describes."""
        inside: list[tuple[int, Path]] = [(-1, self.sys)]
        for raw in text.splitlines():
            line = raw.partition("#")[0].rstrip() if raw.lstrip().startswith("#") else raw.rstrip()
            if not line:
                continue
            depth = len(line) - len(line.lstrip())
            while inside[-1][0] >= depth:
                inside.pop()
            inside.append((depth, self._line(inside[-1][1], line.strip())))
        (self.proc / "partitions").write_text(self._partitions)
        (self.proc / "self/mountinfo").write_text(self._mountinfo)

    def _line(self, here: Path, line: str) -> Path:
        word, _, rest = line.partition(" ")
        if rest.startswith("-> "):
            return self._link(here / word, self.sys / rest[3:])
        if rest.startswith("="):
            return self._file(here / word, rest[1:].strip())
        if word in ("disk", "part"):
            return self._block(here, word, *rest.split())
        if word == "slave":
            return self._link(here / "slaves" / rest, (self.sys / "class/block" / rest).resolve())
        if word == "mount":
            return self._mount(*rest.split())
        if word == "udev":
            number, *properties = rest.split()
            lines = ["I:1", *(f"E:{item}" for item in properties), "V:1"]
            return self._file(self.udev / f"b{number}", "\n".join(lines))
        return self._directory(here / line)

    @staticmethod
    def _directory(path: Path) -> Path:
        path.mkdir(parents=True, exist_ok=True)
        return path

    def _file(self, path: Path, text: str) -> Path:
        self._directory(path.parent)
        path.write_text(text + "\n")
        return path

    def _link(self, path: Path, target: Path) -> Path:
        self._directory(path.parent)
        path.symlink_to(os.path.relpath(target, path.parent))
        return path

    def _mount(self, number: str, mountpoint: str, fstype: str, source: str) -> Path:
        serial = 20 + self._mountinfo.count("\n")
        self._mountinfo += f"{serial} 1 {number} / {mountpoint} rw,relatime shared:{serial} - {fstype} {source} rw\n"
        return self.proc

    def _block(self, here: Path, kind: str, name: str, number: str, sectors: str) -> Path:
        path = self._directory(here / name)
        major, _, minor = number.partition(":")
        node = path.name.replace("!", "/")
        devtype = "disk" if kind == "disk" else "partition"
        self._file(path / "uevent", f"MAJOR={major}\nMINOR={minor}\nDEVNAME={node}\nDEVTYPE={devtype}")
        self._file(path / "dev", number)
        self._file(path / "size", sectors)
        self._link(path / "subsystem", self.sys / "class/block")
        self._link(self.sys / "dev/block" / number, path)
        self._link(self.sys / "class/block" / path.name, path)
        if kind == "disk":
            self._directory(path / "slaves")
            self._link(self.sys / "block" / path.name, path)
        else:
            self._file(path / "partition", path.name[-1])
        if sectors != "0":
            self._partitions += f"{major:>4} {minor:>8} {int(sectors) // 2:>10} {node}\n"
        return path


def load(name: str, directory: Path) -> Tree:
    """The tree of tests/data/`name`.tree, built below `directory`."""
    return Tree(directory, (DATA / f"{name}.tree").read_text())


def names() -> list[str]:
    """All described machines."""
    return sorted(path.stem for path in DATA.glob("*.tree"))
