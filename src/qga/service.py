# SPDX-License-Identifier: Apache-2.0
"""The running daemon: opens the channel, serves it until a signal or the channel ends that, and cleans up."""

import asyncio
import logging
import os
import signal
import socket
from contextlib import suppress
from functools import partial
from typing import NamedTuple, Protocol

from . import commands, daemon, logs
from .agent import Agent, HandleTable
from .config import Config
from .errors import ChannelError, ConfigError, strerror
from .limits import RETRY_SECONDS
from .protocol.dispatch import Dispatcher
from .transports.base import Channel
from .transports.listen import Listener, inherited_socket, listen_unix, listen_vsock
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
    opened = open_channel(config)
    try:
        files = HandleTable(config.statedir)
    except OSError as exc:
        raise ConfigError(f"cannot write the state file in '{config.statedir}': {strerror(exc)}") from exc
    pid_file = daemon.daemonize(config.pidfile) if config.daemon else None
    try:
        loop = new_event_loop()
        try:
            loop.run_until_complete(serve(config, files, opened))
        finally:
            loop.close()
    finally:
        if pid_file is not None:
            pid_file.remove()
    return 0


def new_event_loop() -> asyncio.AbstractEventLoop:
    """A uvloop loop; everything in this package runs on the standard one as well."""
    import uvloop  # heavy, and of no use to --help, --dump-conf and the like

    return uvloop.new_event_loop()


def open_channel(config: Config) -> Opened:
    """Open what the configuration names, or take the socket that systemd passed. ChannelError."""
    if (sock := inherited_socket()) is not None:
        return Opened("unix-listen" if sock.family == socket.AF_UNIX else "vsock-listen", sock)
    if config.method == "unix-listen":
        return Opened(config.method, listen_unix(_path(config), config.socket_mode))
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


async def serve(config: Config, files: HandleTable, opened: Opened) -> None:
    """Serve `opened` until SIGTERM, SIGINT or its end."""
    loop = asyncio.get_running_loop()
    agent = Agent(config, files)
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
    try:
        async with asyncio.timeout(GRACE_SECONDS):
            await endpoint.aclose()
    except TimeoutError:
        logger.warning("ended with a request under way")
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()


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
        made_here = opened.method == "unix-listen" and config.path and opened.sock.getsockname() == config.path
        peers = config.vsock_peers if opened.method == "vsock-listen" else None
        return Listener(
            opened.sock, partial(Channel, dispatcher, agent.workers), peers, config.path if made_here else None
        )
    if opened.method == "stdio":
        return DeviceChannel(0, lambda: 0, lambda _: StdioChannel(dispatcher, agent.workers, 0, 1), None)
    open_device, channel = DEVICES[opened.method]
    return DeviceChannel(
        opened.fd,
        partial(open_device, _path(config)),
        lambda fd: channel(dispatcher, agent.workers, fd, fd),
        RETRY_SECONDS if config.retry_path else None,
    )
