# SPDX-License-Identifier: Apache-2.0
"""Processes that cannot outlive the test run."""

import ctypes
import signal

PR_SET_PDEATHSIG = 1

CONTAINED = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
"""In front of a command: namespaces of its own, so that all it starts and mounts goes when it ends or is killed."""


def die_with_parent() -> None:
    """To be run in a child before it executes a program: the kernel kills it when this process ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
