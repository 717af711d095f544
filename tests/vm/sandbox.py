# SPDX-License-Identifier: Apache-2.0
"""Process 1 of a PID and mount namespace: gives libvirtd directories of its own, starts it, and reaps what QEMU leaves.

Run as `unshare --mount --pid --fork --kill-child --mount-proc python sandbox.py DIRECTORY CACHE`; when it ends, for
whatever reason, the kernel ends libvirtd and every guest with it.
"""

import os
import subprocess
import sys

LIBVIRTD_CONF = """\
unix_sock_dir = "{directory}"
auth_unix_rw = "none"
auth_unix_ro = "none"
log_level = 3
log_outputs = "3:file:{directory}/libvirtd.log"
"""

QEMU_CONF = """\
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
"""


def main(directory, cache):
    """Serve until killed; libvirt's fixed paths lead into `directory`, what it learnt of QEMU is kept in `cache`."""
    for name in ("run", "lib", "log", "etc"):
        os.mkdir(f"{directory}/{name}")
    for name, source in (
        ("/run/libvirt", f"{directory}/run"),
        ("/var/lib/libvirt", f"{directory}/lib"),
        ("/var/log/libvirt", f"{directory}/log"),
        ("/etc/libvirt", f"{directory}/etc"),
        ("/var/cache/libvirt", cache),
    ):
        os.makedirs(name, exist_ok=True)
        subprocess.run(["mount", "--bind", source, name], check=True)
    with open(f"{directory}/etc/libvirtd.conf", "w") as file:
        file.write(LIBVIRTD_CONF.format(directory=directory))
    with open(f"{directory}/etc/qemu.conf", "w") as file:
        file.write(QEMU_CONF)
    files = ["--config", "/etc/libvirt/libvirtd.conf", "--pid-file", f"{directory}/libvirtd.pid"]
    libvirtd = subprocess.Popen(["libvirtd", *files])
    while os.waitpid(-1, 0)[0] != libvirtd.pid:
        pass
    sys.exit("libvirtd has ended")


main(*sys.argv[1:])
