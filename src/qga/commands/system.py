# SPDX-License-Identifier: Apache-2.0
"""What the guest is: operating system and host name."""

import os
import socket
from typing import TypedDict

from ..agent import Agent
from ..errors import from_os
from ..platform.osinfo import os_release
from ..protocol.registry import command

OSInfo = TypedDict(
    "OSInfo",
    {
        "kernel-release": str,
        "kernel-version": str,
        "machine": str,
        "id": str,
        "name": str,
        "pretty-name": str,
        "version": str,
        "version-id": str,
        "variant": str,
        "variant-id": str,
    },
    total=False,
)

HostName = TypedDict("HostName", {"host-name": str})

_OS_RELEASE = {
    "id": "ID",
    "name": "NAME",
    "pretty-name": "PRETTY_NAME",
    "version": "VERSION",
    "version-id": "VERSION_ID",
    "variant": "VARIANT",
    "variant-id": "VARIANT_ID",
}
"""The variable of os-release(5) for each member."""


@command()
def guest_get_osinfo(agent: Agent) -> OSInfo:
    """Tell kernel and distribution; what os-release does not say is left out."""
    kernel = os.uname()
    info: OSInfo = {
        "kernel-release": kernel.release,
        "kernel-version": kernel.version,
        "machine": kernel.machine,
    }
    release = os_release()
    info.update({member: release[name] for member, name in _OS_RELEASE.items() if name in release})  # type: ignore[typeddict-item]
    return info


@command(inline=True)
def guest_get_host_name(agent: Agent) -> HostName:
    """Tell the host name as the kernel knows it."""
    try:
        return {"host-name": socket.gethostname()}
    except OSError as exc:
        raise from_os("cannot get hostname", exc) from exc
