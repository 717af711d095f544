# SPDX-License-Identifier: Apache-2.0
"""Runs in the guest: executes what the tests send through a virtio-serial port of their own, apart from any agent."""

import json
import os
import subprocess
import time

PORT = "/dev/virtio-ports/test.control.0"


def lines(fd):
    """The requests; a read of nothing means that the host side is closed."""
    buffer = b""
    while True:
        data = os.read(fd, 65536)
        if not data:
            time.sleep(0.2)
            continue
        *complete, buffer = (buffer + data).split(b"\n")
        yield from complete


def answer(request):
    done = subprocess.run(
        request["argv"],
        input=request["input"].encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=request["timeout"],
    )
    return {"status": done.returncode, "output": done.stdout.decode(errors="replace")}


def main():
    os.chdir("/run")
    os.environ["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    while not os.path.exists(PORT):
        time.sleep(0.1)
    fd = os.open(PORT, os.O_RDWR)
    for line in lines(fd):
        reply = {"id": None}
        try:
            request = json.loads(line)
            reply["id"] = request["id"]
            reply |= answer(request)
        except Exception as exc:
            reply |= {"status": -1, "output": repr(exc)}
        data = json.dumps(reply).encode() + b"\n"
        while data:
            data = data[os.write(fd, data) :]


main()
