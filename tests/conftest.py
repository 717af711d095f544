# SPDX-License-Identifier: Apache-2.0
"""What holds for all tests: those marked `root` need it."""

from __future__ import annotations

import os

import pytest


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs root when we are somebody else; in CI that would hide it, so there it fails."""
    if item.get_closest_marker("root") and os.geteuid() != 0:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("needs root: loop devices, mounts, users")
