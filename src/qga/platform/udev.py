# SPDX-License-Identifier: Apache-2.0
"""What udev knows of block devices, read from its database files instead of through libudev.

The file of device 8:1 is /run/udev/data/b8:1, one `E:NAME=value` line per property. Its layout is no promise of udev,
but every release since 2012 has it, and it spares the agent a library of which a foreign call would be needed per
property. Where it is missing, properties are merely unknown.
"""

from . import proc


def properties(number: str, root: str = "") -> dict[str, str]:
    """The properties of block device `number` (`MAJOR:MINOR`); empty if udev has none or does not run."""
    try:
        data = proc.read(f"{root}/run/udev/data/b{number}")
    except OSError:
        return {}
    known = {}
    for line in data.decode(errors="replace").split("\n"):
        if line.startswith("E:"):
            name, _, value = line[2:].partition("=")
            known[name] = value
    return known
