# SPDX-License-Identifier: Apache-2.0
"""Guest images: a Debian 12 tree made once, and on it one root file system per agent.

All is cached by a hash of its inputs. Needs root, and for the tree mmdebstrap and a Debian mirror.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from .processes import CONTAINED, die_with_parent

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPE = Path(__file__).with_name("guest")
CACHE = Path(os.environ.get("QGA_VM_CACHE") or REPOSITORY / ".cache" / "vm")

KINDS = ("qemu-ga", "qga")
"""The agents: Debian's own as the reference, and this project's."""

WANTED = (os.environ.get("QGA_VM_AGENTS") or ",".join(KINDS)).split(",")
"""Those that run; the reference comes first, since the other is compared to it."""

SUITE = "bookworm"

PACKAGES = (
    "busybox-static",
    "dbus",
    "e2fsprogs",
    "iproute2",
    "kmod",
    "libpam-systemd",
    "login",
    "passwd",
    "procps",
    "python3",
    "python3-venv",
    "systemd",
    "systemd-sysv",
    "udev",
    "util-linux-extra",
    # what the reference agent needs; the agent itself is only unpacked into its own image
    "libglib2.0-0",
    "libnuma1",
    "liburing2",
)

ROOT_SIZE = 1200 << 20
DATA_SIZE = 96 << 20
NVME_SIZE = 640 << 20
NVME_PARTITIONS = "label: gpt\nstart=2048, size=196608, type=L\ntype=S\n"
NVME_DATA_OFFSET = 2048 * 512
NVME_DATA_BLOCKS = "96M"
NVME_SWAP_OFFSET = (2048 + 196608) * 512


class Image(NamedTuple):
    """What a guest boots from; the files are shared and must not be written to."""

    kernel: Path
    initramfs: Path
    root: Path
    data: Path
    nvme: Path


def build(kind: str, wheels: Callable[[], Path] | None = None) -> Image:
    """The image with the agent `kind`, built if the cache lacks it; `wheels` gives the directory with qga's wheels."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with _locked(CACHE / "lock"):
        for stale in CACHE.glob("tmp-*"):
            shutil.rmtree(stale)
        base = _base()
        root = _root(kind, base, wheels() if wheels else None)
        data, nvme = _disk("data", _make_data), _disk("nvme", _make_nvme)
    return Image(base.with_suffix(".vmlinuz"), base.with_suffix(".initramfs"), root, data, nvme)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="tmp-", dir=CACHE))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def _digest(*parts: str | bytes | Path) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.read_bytes() if isinstance(part, Path) else part
        digest.update(hashlib.sha256(data.encode() if isinstance(data, str) else data).digest())
    return digest.hexdigest()[:16]


def _cached(path: Path, make: Callable[[Path, Path], None], prefix: str) -> Path:
    """`path`, made by `make(path, scratch directory)` if it is not there; then older ones are removed."""
    if path.exists():
        return path
    started = time.monotonic()
    print(f"building {path.name} ...", file=sys.stderr, flush=True)
    with _scratch() as scratch:
        make(scratch / "result", scratch)
        (scratch / "result").rename(path)
    for older in CACHE.glob(prefix + "-*"):
        if older.name.split(".")[0] != path.name.split(".")[0]:
            older.unlink()
    print(f"built {path.name} in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return path


def _run(*argv: str | Path, **kwargs: object) -> None:
    subprocess.run([str(arg) for arg in argv], check=True, preexec_fn=die_with_parent, **kwargs)  # type: ignore[call-overload]


def _base() -> Path:
    key = _digest(SUITE, " ".join(PACKAGES), *sorted(path for path in RECIPE.iterdir() if path.is_file()))
    tree = _cached(CACHE / f"base-{key}.tar", _make_base, "base")
    for name, suffix in (("vmlinuz", ".vmlinuz"), ("initramfs", ".initramfs")):
        _cached(tree.with_suffix(suffix), lambda path, _, name=name: _extract(tree, f"./boot/{name}", path), "base")
    return tree


def _extract(tree: Path, member: str, path: Path) -> None:
    with path.open("wb") as out:
        _run("tar", "-xOf", tree, member, stdout=out)


def _make_base(path: Path, scratch: Path) -> None:
    trimmed = [f"path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale", "info")]
    _run(
        *(*CONTAINED, "mmdebstrap", "--mode=root", "--variant=minbase"),
        *("--quiet", "--format=tar", f"--include={','.join(PACKAGES)}"),
        *(f"--dpkgopt={option}" for option in trimmed),
        f'--customize-hook={RECIPE}/customize "$1"',
        *(SUITE, path),
        env={**os.environ, "TMPDIR": str(scratch)},
    )


def _root(kind: str, base: Path, wheels: Path | None) -> Path:
    install = INSTALL[kind]
    key = _digest(base.name, install, str(ROOT_SIZE), *(sorted(wheels.iterdir()) if wheels else ()))

    def make(path: Path, scratch: Path) -> None:
        tree = scratch / "tree"
        tree.mkdir()
        _run("tar", "-xf", base, "-C", tree)
        if wheels is not None:
            shutil.copytree(wheels, tree / "mnt" / "wheels")
        _run(
            *(*CONTAINED, "chroot", tree, "/bin/sh", "-euc", install),
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8"},
        )
        shutil.rmtree(tree / "mnt" / "wheels", ignore_errors=True)
        _sparse(path, ROOT_SIZE)
        _run("mke2fs", "-q", "-t", "ext4", "-L", "root", "-d", tree, path)

    return _cached(CACHE / f"{kind}-root-{key}.img", make, f"{kind}-root")


def _readme_lines() -> str:
    """What README.md tells administrators to type."""
    block = (REPOSITORY / "README.md").read_text().split("## Install it")[1].split("```")[1]
    return "\n".join(line[2:] for line in block.splitlines() if line.startswith("# "))


INSTALL = {
    "qemu-ga": "dpkg --install /var/debs/qemu-guest-agent_*.deb",
    "qga": f"cd /mnt/wheels\nexport PIP_NO_INDEX=1 PIP_FIND_LINKS=/mnt/wheels PIP_QUIET=1\n{_readme_lines()}",
}


def _disk(name: str, make: Callable[[Path, Path], None]) -> Path:
    recipe = f"{DATA_SIZE} {NVME_SIZE} {NVME_PARTITIONS} {NVME_DATA_BLOCKS}"
    return _cached(CACHE / f"disk_{name}-{_digest(recipe)}.img", make, f"disk_{name}")


def _make_data(path: Path, _: Path) -> None:
    _sparse(path, DATA_SIZE)
    _run("mke2fs", "-q", "-t", "ext4", "-L", "data", path)


def _make_nvme(path: Path, _: Path) -> None:
    _sparse(path, NVME_SIZE)
    _run("sfdisk", "--quiet", path, input=NVME_PARTITIONS.encode())
    _run("mke2fs", "-q", "-t", "ext4", "-L", "nvme", "-E", f"offset={NVME_DATA_OFFSET}", path, NVME_DATA_BLOCKS)
    swap = path.with_name("swap")
    _sparse(swap, NVME_SIZE - NVME_SWAP_OFFSET - (1 << 20))
    _run("mkswap", "--quiet", "-L", "swap", swap)
    with path.open("r+b") as disk, swap.open("rb") as source:
        disk.seek(NVME_SWAP_OFFSET)
        disk.write(source.read(1 << 20))


def _sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)
