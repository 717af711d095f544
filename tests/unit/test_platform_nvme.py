# SPDX-License-Identifier: Apache-2.0
"""The health log of NVMe disks."""

from __future__ import annotations

from qga.commands.disks import smart_of
from qga.platform import nvme


def test_log_page_is_taken_apart() -> None:
    page = bytearray(512)
    page[0] = 0x04
    page[1:3] = (310).to_bytes(2, "little")
    page[3:6] = bytes((100, 10, 3))
    for counter in range(10):
        start = 32 + 16 * counter
        page[start : start + 16] = ((counter << 64) + counter + 1000).to_bytes(16, "little")
    page[192:] = bytes([0xEE]) * 320
    log = nvme.parse(bytes(page))
    assert log[:5] == (4, 310, 100, 10, 3)
    assert log.counters[0::2] == tuple(range(1000, 1010))
    assert log.counters[1::2] == tuple(range(10))


def test_reply_names_each_field_of_the_log() -> None:
    page = bytearray(512)
    page[0] = 0x01
    page[1:3] = (300).to_bytes(2, "little")
    page[5] = 7
    page[32 + 16 * 0] = 11  # data units read
    page[32 + 16 * 5] = 16  # power cycles
    page[32 + 16 * 9 + 8] = 20  # high half of the number of error log entries
    smart = smart_of(nvme.parse(bytes(page)))
    assert {name: value for name, value in smart.items() if value} == {
        "type": "nvme",
        "critical-warning": 1,
        "temperature": 300,
        "percentage-used": 7,
        "data-units-read-lo": 11,
        "power-cycles-lo": 16,
        "number-of-error-log-entries-hi": 20,
    }
    assert len(smart) == 26


def test_counters_keep_all_their_bits() -> None:
    log = nvme.parse(bytes([0xFF]) * 512)
    assert log[:5] == (255, 65535, 255, 255, 255)
    assert log.counters == ((1 << 64) - 1,) * 20


def test_what_is_no_nvme_disk_has_no_log() -> None:
    assert nvme.smart_log("/dev/null") is None
    assert nvme.smart_log("/dev/no-such-disk") is None


def test_request_has_the_layout_of_the_kernel() -> None:
    command = nvme._COMMAND.pack(2, 0xFFFFFFFF, 0x1122334455667788, 512, 0x007F8002)
    assert len(command) == (nvme._ADMIN_COMMAND >> 16) & 0x3FFF == 72
    assert command[0] == 2
    assert command[4:8] == b"\xff" * 4
    assert command[24:32] == (0x1122334455667788).to_bytes(8, "little")
    assert command[36:40] == (512).to_bytes(4, "little")
    assert command[40:44] == nvme._REQUEST.to_bytes(4, "little") == bytes((0x02, 0x80, 0x7F, 0))
