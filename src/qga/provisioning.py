# SPDX-License-Identifier: Apache-2.0
"""`qga --service install | uninstall | status`: the systemd unit, the udev rule and the files in /etc/qemu.

Every file that is written ends in a checksum of its other lines. A file whose checksum is right is as this program
wrote it and may be replaced or removed; any other one belongs to the administrator and is left alone.
"""

import argparse
import contextlib
import enum
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Final, NamedTuple

from .config import DEFAULT_CONFIG, DEFAULT_PATHS
from .errors import strerror

UNIT: Final = "qga.service"
PORT: Final = DEFAULT_PATHS["virtio-serial"]
RULE: Final = "/etc/udev/rules.d/99-qga.rules"
"""Behind qemu-ga's rules, 60-qemu-guest-agent.rules or 99-qemu-guest-agent.rules: the last one to name a unit wins."""

HOOK: Final = "/etc/qemu/qga-fsfreeze-hook"
"""Not qemu-ga's own name for it: distributions' packages ship that file, and take it away when they are removed."""

HOOK_DIRECTORY: Final = "/etc/qemu/fsfreeze-hook.d"
"""The same directory as with qemu-ga on Debian, so that its hooks go on to work."""

FORMER_OPTIONS: Final = ("/etc/sysconfig/qemu-ga", "/etc/default/qemu-guest-agent")
FORMER_HOOKS: Final = "/etc/qemu-ga/fsfreeze-hook.d"
"""Where Fedora and RHEL, or Debian, keep what their units give to qemu-ga."""

NOT_ACTIVE: Final = 3
NOT_INSTALLED: Final = 4
"""Exit statuses of `status`; those of an init script (LSB 5.0, 22.2)."""

UNIT_TEXT: Final = """\
# Change it with "systemctl edit qga.service".
[Unit]
Description=Guest agent (qga) on the virtio port {name}
Documentation=man:systemd.service(5)
BindsTo={device}
# Ordered too, so that of the two agents one has given up the port before the other opens it.
Conflicts=qemu-guest-agent.service
After={device} qemu-guest-agent.service
IgnoreOnIsolate=yes
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart={command}
SyslogIdentifier=qga
Restart=always
RestartSec=1
"""

RULE_TEXT: Final = """\
# Starts the agent when its port appears, now or later.
SUBSYSTEM=="virtio-ports", ATTR{{name}}=="{name}", TAG+="systemd", ENV{{SYSTEMD_WANTS}}="{unit}"
"""

CONFIG_TEXT: Final = """\
# Settings of the guest agent; "qga --help" tells what there is, "qga --dump-conf" what is in effect.
[general]
# Runs the programs in {directory} around each freeze of the file systems.
fsfreeze-hook={hook}
# Commands that the host may not use, by name, with commas in between.
#block-rpcs=guest-exec,guest-set-user-password
# Seconds after which the agent undoes a freeze that the host forgot; 0 for never.
#freeze-timeout=0
"""

HOOK_TEXT: Final = """\
#!/bin/sh
# Called by the guest agent with "freeze" before it freezes the file systems and with "thaw" after it has thawed them.
# Gives that word to every program in the directory fsfreeze-hook.d beside this file, in the order of their names.
# What they print goes to the log. One that fails is named there; it does not prevent the freeze.

log=${FSFREEZE_HOOK_LOG:-/var/log/qga-fsfreeze-hook.log}
directory=$(dirname "$0")/fsfreeze-hook.d

# To a file, never into a pipe: a program may leave another one behind that holds a lock until the thaw.
if (: >>"$log") 2>/dev/null; then
    exec >>"$log" 2>&1
    tell() { echo "$(date): $*"; }
else
    exec >/dev/null 2>&1
    tell() { logger -t qga-fsfreeze-hook "$*"; }
fi

is_leftover() { # of an editor or a package manager
    case $1 in
    *'~' | *.bak | *.orig | *.sample | *.rpmnew | *.rpmorig | *.rpmsave) return 0 ;;
    *.dpkg-old | *.dpkg-new | *.dpkg-tmp | *.dpkg-dist | *.dpkg-bak | *.dpkg-backup | *.dpkg-remove) return 0 ;;
    esac
    return 1
}

for program in "$directory"/*; do
    if [ -f "$program" ] && [ -x "$program" ] && ! is_leftover "$program"; then
        tell "$program $1 starts"
        "$program" "$1" </dev/null
        tell "$program $1 ended with status $?"
    fi
done
exit 0
"""


class State(enum.Enum):
    """What is found in the place of a file; the value is what `status` prints."""

    MISSING = "missing"
    CURRENT = "installed"
    OUTDATED = "installed by another version"
    FOREIGN = "changed by the administrator"


class File(NamedTuple):
    """A file to install. keep: it is left as it is once it exists, whoever wrote it."""

    path: str
    mode: int
    text: str
    keep: bool = False


class Job(NamedTuple):
    """Where and how to work. root: a prefix for all paths; dry: only tell; tell: takes lines for the administrator."""

    root: str
    dry: bool
    tell: Callable[[str], None]

    def place(self, path: str) -> str:
        """`path` below the root."""
        return os.path.join(self.root, path.lstrip("/"))

    @property
    def live(self) -> bool:
        """Whether a systemd runs that has to be told (sd_booted(3))."""
        return self.root == "/" and os.path.isdir("/run/systemd/system")

    def run(self, *argv: str) -> None:
        """Tell and run a program; its failure is reported and is not the end."""
        self.tell(f"run      {' '.join(argv)}")
        if not self.dry and (status := subprocess.call(argv, stdin=subprocess.DEVNULL)):
            self.tell(f"         failed with status {status}")


def main(argv: list[str]) -> int:
    """Run `qga --service ARGV`. The result is the exit status; of `status`: 0 if the service runs, else 3 or 4."""
    parser = argparse.ArgumentParser(
        prog="qga --service", description="Set qga up as a systemd service, which the agent's virtio port starts."
    )
    parser.add_argument("action", choices=ACTIONS, help="what to do")
    parser.add_argument("--dry-run", action="store_true", help="tell what would be done, and do nothing")
    parser.add_argument("--root", default="/", metavar="DIR", help="work on the system whose root directory is DIR")
    options = parser.parse_args(argv)
    job = Job(os.path.abspath(options.root), options.dry_run, print)
    try:
        return ACTIONS[options.action](job)
    except OSError as exc:
        print(f"qga: {exc.filename or 'cannot run a program'}: {strerror(exc)}", file=sys.stderr)
    except ValueError as exc:
        print(f"qga: {exc}", file=sys.stderr)
    return 1


def install(job: Job) -> int:
    """Write what is missing or outdated, then let systemd and udev know. OSError if a file cannot be written."""
    changed = [_install(job, file) for file in files(command_line())]
    directory = job.place(HOOK_DIRECTORY)
    if not os.path.isdir(directory):
        job.tell(f"make     {directory}")
        if not job.dry:
            os.makedirs(directory, 0o755)
    for note in notes(job):
        job.tell(f"note     {note}")
    if not job.live:
        job.tell("systemd does not run here: the service starts with the system")
        return 0
    if any(changed):
        _reload(job)
        job.run("udevadm", "trigger", "--settle", "--subsystem-match=virtio-ports")
    if os.path.exists(PORT):
        # Not restarted: this command may have come through the agent, and would end with it.
        job.run("systemctl", "--no-block", "start", UNIT)
    else:
        job.tell(f"{PORT} is missing: the service starts when the virtual machine gets that port")
    return 0


def uninstall(job: Job) -> int:
    """Remove what `install` wrote and stop the service. OSError if a file cannot be removed."""
    everything = files(command_line())
    if is_hook_wanted(job, everything):
        job.tell(f"keep     {job.place(HOOK)} (named in {job.place(DEFAULT_CONFIG)})")
        everything = [file for file in everything if file.path != HOOK]
    removed = [_remove(job, file) for file in everything]
    directory = job.place(HOOK_DIRECTORY)
    if os.path.isdir(directory) and not os.listdir(directory):
        job.tell(f"remove   {directory}")
        if not job.dry:
            os.rmdir(directory)
    if job.live:
        if any(removed):
            _reload(job)
        # At the very end: this command may have come through the agent, and ends with it.
        job.run("systemctl", "stop", UNIT)
    return 0


def is_hook_wanted(job: Job, everything: list[File]) -> bool:
    """Whether a configuration that stays names the hook: without it no freeze would succeed, with either agent."""
    config = next(file for file in everything if file.path == DEFAULT_CONFIG)
    return examine(job, config) is State.FOREIGN and HOOK in _text(job.place(DEFAULT_CONFIG))


def notes(job: Job) -> list[str]:
    """What of the system's present set-up this service does not take over."""
    found = []
    config = job.place(DEFAULT_CONFIG)
    if os.path.exists(config) and not re.search(r"^\s*fsfreeze-hook\s*=", _text(config), re.MULTILINE):
        found.append(f"{config} names no fsfreeze-hook: the programs in {HOOK_DIRECTORY} will not run")
    for path in map(job.place, FORMER_OPTIONS):
        if os.path.exists(path) and re.search(r"""^\s*\w+=["']?[^"'\s]""", _text(path), re.MULTILINE):
            found.append(f"{path} has options of qemu-ga that qga does not read: their place is {config}")
    hooks = job.place(FORMER_HOOKS)
    if os.path.isdir(hooks) and os.listdir(hooks):
        found.append(f"the programs in {hooks} will not run: their place is {HOOK_DIRECTORY}")
    if not os.path.exists(job.place(sys.executable)):
        found.append(f"{job.place(sys.executable)} is missing, and the unit starts it")
    return found


def _text(path: str) -> str:
    with open(path, "rb") as file:
        return file.read().decode(errors="replace")


def status(job: Job) -> int:
    """Tell what is installed and whether the service runs."""
    states = {file.path: examine(job, file) for file in files(command_line())}
    for path, state in states.items():
        job.tell(f"{job.place(path)}: {state.value}")
    if State.MISSING in states.values():
        job.tell("not installed; 'qga --service install' does that")
        return NOT_INSTALLED
    if not job.live:
        job.tell("systemd does not run here")
        return NOT_ACTIVE
    job.tell(f"{PORT}: {'present' if os.path.exists(PORT) else 'missing'}")
    found = subprocess.run(["systemctl", "is-active", UNIT], stdout=subprocess.PIPE, check=False)
    job.tell(f"{UNIT}: {found.stdout.decode(errors='replace').strip()}")
    return 0 if found.returncode == 0 else NOT_ACTIVE


ACTIONS: Final[dict[str, Callable[[Job], int]]] = {"install": install, "uninstall": uninstall, "status": status}


def files(command: str) -> list[File]:
    """Everything that is installed, for an agent that `command` (the ExecStart= line) starts."""
    name = os.path.basename(PORT)
    unit = UNIT_TEXT.format(name=name, device=device_unit(PORT), command=command)
    rule = RULE_TEXT.format(name=name, unit=UNIT)
    return [
        File(f"/etc/systemd/system/{UNIT}", 0o644, stamp(unit)),
        File(RULE, 0o644, stamp(rule)),
        File(DEFAULT_CONFIG, 0o644, stamp(CONFIG_TEXT.format(hook=HOOK, directory=HOOK_DIRECTORY)), keep=True),
        File(HOOK, 0o755, stamp(HOOK_TEXT)),
    ]


def command_line(program: str | None = None) -> str:
    """The ExecStart= line that starts this very installation, be it the system's Python or a virtual environment.

    program: the script that was called, by default that of this process. ValueError for a path that systemd.service(5)
    would not take literally.
    """
    script = os.path.abspath(sys.argv[0] if program is None else program)
    what = [script] if script.endswith("/qga") and os.access(script, os.X_OK) else ["-m", "qga"]
    # -B: it may be started while its own file system is frozen, when to write bytecode would hang.
    words = [sys.executable, "-B", *what]
    for word in (words[0], words[-1]):
        if not re.fullmatch(r"[\w./+@-]+", word, re.ASCII):
            raise ValueError(f"'{word}' cannot stand in a unit file: install qga in a directory with a plain name")
    return " ".join(words)


def device_unit(path: str) -> str:
    """The name of the device unit of a device node (systemd.unit(5), "String Escaping")."""

    def escape(match: re.Match[str]) -> str:
        return "-" if match[0] == "/" else "".join(f"\\x{byte:02x}" for byte in match[0].encode())

    return re.sub(r"[^A-Za-z0-9:_.]", escape, path.strip("/")) + ".device"


def stamp(text: str) -> str:
    """`text` with its checksum at the end."""
    digest = hashlib.sha256(text.encode()).hexdigest()[:32]
    return f"{text}# qga: unedited {digest}\n"


def examine(job: Job, file: File) -> State:
    """Compare what is there with what would be installed. OSError if it cannot be read."""
    try:
        found = _text(job.place(file.path))
    except FileNotFoundError:
        return State.MISSING
    if found == file.text:
        return State.CURRENT
    body = found[: found.rfind("\n", 0, -1) + 1]
    return State.OUTDATED if found == stamp(body) else State.FOREIGN


def _install(job: Job, file: File) -> bool:
    state, path = examine(job, file), job.place(file.path)
    if state is State.CURRENT:
        job.tell(f"keep     {path}")
        return False
    if state is State.FOREIGN or (file.keep and state is not State.MISSING):
        job.tell(f"keep     {path} ({state.value})")
        return False
    job.tell(f"{'write   ' if state is State.MISSING else 'replace '} {path}")
    if not job.dry:
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        _write(path, file)
    return True


def _write(path: str, file: File) -> None:
    # Under another name first: neither udev nor systemd may read a half of it.
    fd = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(fd, "wb") as out:
            os.fchmod(fd, file.mode)
            out.write(file.text.encode())
        os.rename(path + ".new", path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(path + ".new")
        raise


def _remove(job: Job, file: File) -> bool:
    state, path = examine(job, file), job.place(file.path)
    if state is State.MISSING:
        return False
    if state is State.FOREIGN:
        job.tell(f"keep     {path} ({state.value})")
        return False
    job.tell(f"remove   {path}")
    if not job.dry:
        os.unlink(path)
    return True


def _reload(job: Job) -> None:
    job.run("systemctl", "daemon-reload")
    job.run("udevadm", "control", "--reload")
