# SPDX-License-Identifier: Apache-2.0
"""The running daemon: opens the channel, serves it until a signal or the channel ends that, and cleans up."""

import asyncio
import logging
import os
import signal
import socket
from contextlib import ExitStack, suppress
from functools import partial
from typing import NamedTuple, Protocol

from . import commands, daemon, logs
from .agent import Agent, HandleTable
from .config import Config
from .errors import ChannelError, ConfigError, strerror
from .limits import RETRY_SECONDS
from .platform import freeze
from .protocol.dispatch import Dispatcher
from .transports.base import Channel
from .transports.listen import Listener, inherited_socket, listen_unix, listen_vsock, remove_socket
from .transports.serial import DeviceChannel, TtyChannel, VirtioChannel, open_tty, open_virtio
from .transports.stdio import StdioChannel

logger = logging.getLogger(__name__)

GRACE_SECONDS = 5.0
"""How long replies under way may take after a signal to end."""

DEVICES = {"virtio-serial": (open_virtio, VirtioChannel), "isa-serial": (open_tty, TtyChannel)}


class Endpoint(Protocol):
    """What is served: a listening socket or a device."""

    failed: asyncio.Future[Exception | None]

    def start(self) -> None:
        """Begin to serve."""

    async def aclose(self) -> None:
        """Finish the replies under way and close."""


class Opened(NamedTuple):
    """The channel, opened before the daemon detaches so that the caller sees whether that worked."""

    method: str
    sock: socket.socket | None = None
    fd: int | None = None


def run(config: Config) -> int:
    """Serve until told to end; the return value is the exit status. ConfigError, ChannelError if it cannot start."""
    frozen = freeze.is_marked(config.statedir)
    logs.setup(config, frozen=frozen)
    with ExitStack() as at_end:
        opened = open_channel(config, at_end)
        try:
            files = HandleTable(config.statedir, frozen)
        except OSError as exc:
            raise ConfigError(f"cannot write the state file in '{config.statedir}': {strerror(exc)}") from exc
        if config.daemon and (pid_file := daemon.daemonize(None if frozen else config.pidfile)):
            at_end.callback(pid_file.remove)
        loop = new_event_loop()
        at_end.callback(loop.close)
        loop.run_until_complete(serve(config, files, opened, frozen, at_end))
    return 0


def new_event_loop() -> asyncio.AbstractEventLoop:
    """A uvloop loop; everything in this package runs on the standard one as well."""
    import uvloop  # heavy, and of no use to --help, --dump-conf and the like

    return uvloop.new_event_loop()


def open_channel(config: Config, at_end: ExitStack) -> Opened:
    """Open what the configuration names, or take the socket that systemd passed. ChannelError.

    at_end: gets what undoes it when the process ends.
    """
    if (sock := inherited_socket()) is not None:
        return Opened("unix-listen" if sock.family == socket.AF_UNIX else "vsock-listen", sock)
    if config.method == "unix-listen":
        sock = listen_unix(_path(config), config.socket_mode)
        at_end.callback(remove_socket, os.path.abspath(_path(config)), os.stat(_path(config)).st_ino)
        return Opened(config.method, sock)
    if config.method == "vsock-listen":
        return Opened(config.method, listen_vsock(_path(config)))
    if config.method == "stdio":
        return Opened(config.method)
    if config.method not in DEVICES:
        raise ChannelError(f"unsupported channel method/type: {config.method}")
    open_device, _ = DEVICES[config.method]
    try:
        return Opened(config.method, fd=open_device(_path(config)))
    except ChannelError as exc:
        if not config.retry_path:
            raise
        logger.warning("%s; trying again every %g s", exc, RETRY_SECONDS)
        return Opened(config.method)


def _path(config: Config) -> str:
    if not config.path:
        raise ChannelError("must specify a path for this channel")
    return config.path


async def serve(config: Config, files: HandleTable, opened: Opened, frozen: bool, at_end: ExitStack) -> None:
    """Serve `opened` until SIGTERM, SIGINT or its end.

    frozen: a predecessor left file systems frozen; at_end: what is to be cleaned up when the process ends.
    """
    loop = asyncio.get_running_loop()
    agent = Agent(config, files, frozen)
    if frozen and config.daemon:
        agent.freezing.at_thaw.append(partial(_write_pid_file, config.pidfile, at_end))
    ended: asyncio.Future[None] = loop.create_future()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, _end, agent, ended)
    loop.add_signal_handler(signal.SIGHUP, logs.reopen)
    endpoint = _endpoint(config, agent, opened)
    endpoint.start()
    _notify_ready()
    logger.info("serving %s with %d commands", opened.method, len(commands.REGISTRY))
    endpoint.failed.add_done_callback(lambda _: _resolve(ended))
    await ended
    agent.freezing.refuse()
    try:
        async with asyncio.timeout(GRACE_SECONDS):
            await endpoint.aclose()
    except TimeoutError:
        logger.warning("ended with a request under way")
    await agent.freezing.aclose()
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


def _write_pid_file(path: str, at_end: ExitStack) -> None:
    try:
        at_end.callback(daemon.PidFile(path).remove)
    except ConfigError as exc:
        logger.error("%s", exc)


def _notify_ready() -> None:
    # Tells systemd that a Type=notify unit is up; source: sd_notify(3).
    address = os.environ.pop("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notifier, suppress(OSError):
        notifier.sendto(b"READY=1", address.replace("@", "\0", 1) if address.startswith("@") else address)


def _end(agent: Agent, ended: asyncio.Future[None]) -> None:
    # A frozen system needs its agent: nobody else would thaw it.
    if not agent.frozen:
        _resolve(ended)


def _resolve(ended: asyncio.Future[None]) -> None:
    if not ended.done():
        ended.set_result(None)


def _endpoint(config: Config, agent: Agent, opened: Opened) -> Endpoint:
    dispatcher = Dispatcher(agent)
    if opened.sock is not None:
        peers = config.vsock_peers if opened.method == "vsock-listen" else None
        return Listener(opened.sock, partial(Channel, dispatcher, agent.workers), peers)
    if opened.method == "stdio":
        return DeviceChannel(0, lambda: 0, lambda _: StdioChannel(dispatcher, agent.workers, 0, 1), None)
    open_device, channel = DEVICES[opened.method]
    return DeviceChannel(
        opened.fd,
        partial(open_device, _path(config)),
        lambda fd: channel(dispatcher, agent.workers, fd, fd),
        RETRY_SECONDS if config.retry_path else None,
    )
