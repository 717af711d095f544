# SPDX-License-Identifier: Apache-2.0
"""The release of this package, and the level of the guest agent protocol that it implements."""

__version__ = "0.1.0"

PROTOCOL_LEVEL = "10.2.0"
"""What guest-info reports as `version`; clients compare it with QEMU release numbers."""
