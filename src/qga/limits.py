# SPDX-License-Identifier: Apache-2.0
"""Named limits, each with its reason."""

from typing import Final

READ_COUNT_DEFAULT: Final = 4096
"""Bytes that guest-file-read returns when no count is given (QEMU: qapi-schema, guest-file-read)."""

READ_COUNT_MAX: Final = 48 << 20
"""Most bytes of one guest-file-read: base64 makes them 64 MiB, the most that a client's JSON parser takes."""

EXEC_OUTPUT_MAX: Final = 16 << 20
"""Bytes kept of each captured stream of guest-exec; the rest is read and dropped."""

FIRST_HANDLE: Final = 1000
"""The number of the first file handle of a fresh state directory."""

HANDLE_STEP: Final = 1024
"""Handle numbers reserved by one write of the state file, so that an open costs no write."""

COMMAND_TIMEOUT: Final = 30.0
"""Seconds after which a command that only asks for something is given up, unless configured otherwise."""

RETRY_SECONDS: Final = 5.0
"""Pause between attempts to open a channel with --retry-path."""

QUOTED_MAX: Final = 4096
"""Characters of a client's own text that an error message repeats; the framer has the same number for stray tokens."""
