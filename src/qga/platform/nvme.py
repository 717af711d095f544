# SPDX-License-Identifier: Apache-2.0
"""The health log of NVMe disks (NVM Express Base Specification, "SMART / Health Information", log page 02h)."""

import array
import fcntl
import os
import struct
from typing import Final, NamedTuple

_ADMIN_COMMAND: Final = 0xC0484E41
"""NVME_IOCTL_ADMIN_CMD (Linux, include/uapi/linux/nvme_ioctl.h)."""
_COMMAND: Final = struct.Struct("=B3xI16xQ4xII28x")
"""The members of struct nvme_passthru_cmd in use: opcode, nsid, addr, data_len, cdw10."""
_GET_LOG_PAGE: Final = 0x02
_SMART_LOG: Final = 0x02
_RETAIN_EVENT: Final = 1 << 15
"""Reading the log must not clear an event that the guest's own monitoring waits for."""
_ALL_NAMESPACES: Final = 0xFFFFFFFF
_PAGE_SIZE: Final = 512
_REQUEST: Final = _SMART_LOG | _RETAIN_EVENT | (_PAGE_SIZE // 4 - 1) << 16
_PAGE: Final = struct.Struct("<BHBBB26x20Q")


class SmartLog(NamedTuple):
    """The health of a disk."""

    critical_warning: int
    temperature: int
    """Kelvin."""
    available_spare: int
    available_spare_threshold: int
    percentage_used: int
    counters: tuple[int, ...]
    """Ten counters of 128 bits in the page's order, each as its low and its high 64 bits."""


def smart_log(node: str) -> SmartLog | None:
    """Ask the disk at `node` for its health; None if it cannot be opened or does not answer."""
    page = array.array("B", bytes(_PAGE_SIZE))
    command = _COMMAND.pack(_GET_LOG_PAGE, _ALL_NAMESPACES, page.buffer_info()[0], _PAGE_SIZE, _REQUEST)
    try:
        fd = os.open(node, os.O_RDONLY | os.O_CLOEXEC)
        try:
            status = fcntl.ioctl(fd, _ADMIN_COMMAND, bytearray(command))
        finally:
            os.close(fd)
    except OSError:
        return None
    return parse(page.tobytes()) if status == 0 else None


def parse(page: bytes) -> SmartLog:
    """Take a log page of 512 bytes apart."""
    warning, temperature, spare, threshold, used, *counters = _PAGE.unpack_from(page)
    return SmartLog(warning, temperature, spare, threshold, used, tuple(counters))
