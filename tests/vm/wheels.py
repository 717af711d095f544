# SPDX-License-Identifier: Apache-2.0
"""The project's wheel, as `ci/wheel` builds it, and the wheels it needs, for a guest without a network."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .image import CACHE, REPOSITORY
from .processes import CONTAINED, die_with_parent

SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "MANIFEST.in")

GUEST_PYTHON = (3, 11)
"""What Debian 12 has; a wheel with compiled modules fits no other."""


def build() -> Path:
    """A directory with the wheels, made again when the sources have changed. The caller holds the cache's lock."""
    assert sys.version_info[:2] == GUEST_PYTHON, "the guest has Python 3.11: run this with PYTHON=python3.11"
    directory = CACHE / f"wheels-{_sources_digest()}"
    if not directory.exists():
        for older in CACHE.glob("wheels-*"):
            shutil.rmtree(older)
        with tempfile.TemporaryDirectory(prefix="tmp-", dir=CACHE, ignore_cleanup_errors=True) as scratch:
            _build(Path(scratch))
            (Path(scratch) / "wheels").rename(directory)
    return directory


def _sources_digest() -> str:
    digest = hashlib.sha256(sys.version.encode())
    code = [path for path in (REPOSITORY / "src").rglob("*") if path.suffix in {".py", ".pyx", ".pyi"}]
    for path in sorted(code) + [REPOSITORY / name for name in SOURCES]:
        if path.is_file():
            digest.update(f"{path.relative_to(REPOSITORY)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _build(scratch: Path) -> None:
    command = [*CONTAINED, REPOSITORY / "ci" / "wheel", scratch / "dist"]
    subprocess.run(command, check=True, stdout=sys.stderr, preexec_fn=die_with_parent)
    (wheel,) = (scratch / "dist").glob("*.whl")
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:")
    subprocess.run([*pip, "--dest", scratch / "wheels", wheel], check=True)
