# SPDX-License-Identifier: Apache-2.0
"""Users made for a test and deleted after it; needs root."""

from __future__ import annotations

import os
import pwd
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

_numbers = count()


@contextmanager
def scratch_user(directory: Path) -> Iterator[pwd.struct_passwd]:
    """Make a user with a unique name and a group of its own, whose home is an empty directory in `directory`."""
    name = f"qga{os.getpid()}x{next(_numbers)}"
    home = directory / name
    _run("useradd", "--no-create-home", "--home-dir", str(home), "--user-group", "--shell", "/bin/sh", name)
    try:
        entry = pwd.getpwnam(name)
        make_home(entry)
        yield entry
    finally:
        _run("userdel", name)


def make_home(user: pwd.struct_passwd) -> None:
    """Make the user's home directory."""
    os.mkdir(user.pw_dir)
    os.chmod(user.pw_dir, 0o755)
    os.chown(user.pw_dir, user.pw_uid, user.pw_gid)


def shadow_hash(name: str) -> str:
    """The password field of /etc/shadow."""
    for line in Path("/etc/shadow").read_text().splitlines():
        user, field, *_ = line.split(":")
        if user == name:
            return field
    raise LookupError(name)


def _run(*argv: str) -> None:
    # The tools lock /etc/passwd and fail at once while another has it.
    for attempt in range(100):
        done = subprocess.run(argv, capture_output=True, text=True)
        if "lock" not in done.stderr:
            break
        time.sleep(0.05 + 0.01 * attempt)
    assert done.returncode == 0, done.stderr
