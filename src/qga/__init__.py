# SPDX-License-Identifier: Apache-2.0
"""qga, a QEMU guest agent built for heavy file transfer."""

from ._version import __version__

__all__ = ["__version__"]
