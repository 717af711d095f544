# SPDX-License-Identifier: Apache-2.0
"""Listening sockets: unix, vsock, or one handed over by the service manager; any number of clients at once."""

import asyncio
import errno
import logging
import os
import socket
import stat
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from ..errors import ChannelError, strerror
from .base import Channel

logger = logging.getLogger(__name__)

BACKLOG = 128
"""Clients that may wait to be accepted."""

SEND_BUFFER = 1 << 20
"""Bytes that the kernel may hold for a client: with the default 208 KiB, bulk replies wait for the reader too often."""

MakeChannel = Callable[[int, int], Channel]
"""Makes a channel of the agent from descriptors for reading and writing."""


class Listener:
    """Accepts clients on a listening socket and owns them.

    peers: vsock context ids that may connect, None for all.
    """

    def __init__(
        self,
        sock: socket.socket,
        make_channel: MakeChannel,
        peers: frozenset[int] | None = None,
    ) -> None:
        self._sock = sock
        self._make_channel = make_channel
        self._peers = peers
        self._channels: set[Channel] = set()
        self._loop = asyncio.get_running_loop()
        self.failed: asyncio.Future[Exception | None] = self._loop.create_future()
        """Done when no client can connect any more."""
        sock.setblocking(False)

    def start(self) -> None:
        """Begin to accept clients."""
        self._loop.add_reader(self._sock.fileno(), self._accept)

    async def aclose(self) -> None:
        """Accept no more, let replies under way finish, close everything."""
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()
        for channel in tuple(self._channels):
            channel.pause()
            await channel.settle()
            channel.close()

    def _accept(self) -> None:
        try:
            client, address = self._sock.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as exc:
            # Out of descriptors or memory: the client waits in the backlog until there are some.
            logger.error("cannot accept a client: %s", strerror(exc))
            self._loop.remove_reader(self._sock.fileno())
            self._loop.call_later(1.0, self._resume)
            return
        if self._peers is not None and address[0] not in self._peers:
            logger.warning("refused a client with vsock context id %s", address[0])
            client.close()
            return
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        fd = client.detach()
        try:
            channel = self._make_channel(fd, fd)
        except Exception:
            logger.exception("cannot serve a client")
            os.close(fd)
            return
        self._channels.add(channel)
        channel.closed.add_done_callback(partial(self._forget, channel))
        channel.start()

    def _resume(self) -> None:
        if self._sock.fileno() >= 0:
            self.start()

    def _forget(self, channel: Channel, _: object) -> None:
        self._channels.discard(channel)


def listen_unix(path: str, mode: int) -> socket.socket:
    """A listening socket at `path` with permissions `mode`.

    A socket that nobody answers on is replaced; anything else that is already there is an error: ChannelError.
    """
    if len(os.fsencode(path)) > 107:
        raise ChannelError(f"UNIX socket path '{path}' is too long")
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # The mode counts from the first moment on: nobody may connect between bind and chmod.
        os.fchmod(sock.fileno(), mode)
        sock.bind(path)
        os.chmod(path, mode)
        sock.listen(BACKLOG)
    except OSError as exc:
        sock.close()
        raise ChannelError(f"Failed to bind socket to {path}: {strerror(exc)}") from exc
    return sock


def remove_socket(path: str, inode: int) -> None:
    """Remove a socket file, unless it is another one by now."""
    with suppress(OSError):
        if os.lstat(path).st_ino == inode:
            os.unlink(path)


def listen_vsock(address: str) -> socket.socket:
    """A listening socket at `address`, "CID:PORT" in decimal. ChannelError if it is malformed or cannot be bound."""
    cid, port = parse_vsock(address)
    try:
        sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    except OSError as exc:
        raise ChannelError(f"Failed to create vsock socket: {strerror(exc)}") from exc
    try:
        sock.bind((cid, port))
        sock.listen(BACKLOG)
    except OSError as exc:
        sock.close()
        raise ChannelError(f"Failed to bind socket to {address}: {strerror(exc)}") from exc
    return sock


def parse_vsock(address: str) -> tuple[int, int]:
    """Context id and port of "CID:PORT"; ChannelError in the C agent's words."""
    cid, _, rest = address.partition(":")
    port, comma, _ = rest.partition(",")
    if not cid or not port:
        raise ChannelError(f"error parsing address '{address}'")
    if comma:
        raise ChannelError(f"trailing characters in address '{address}'")
    return _uint32("cid", cid), _uint32("port", port)


def _uint32(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 0xFFFFFFFF):
        raise ChannelError(f"Failed to parse {name} '{text}'")
    return int(text)


def inherited_socket() -> socket.socket | None:
    """The socket that systemd passed to this process, or None; takes its variables out of the environment.

    ChannelError if it is not exactly one listening unix or vsock socket. Source: sd_listen_fds(3).
    """
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdigit() or int(count) == 0:
        return None
    if int(count) != 1:
        raise ChannelError("qga only supports listening on one socket")
    try:
        sock = socket.socket(fileno=3)
    except OSError as exc:
        raise ChannelError(f"Socket activation failed: invalid file descriptor fd = 3: {strerror(exc)}") from exc
    if sock.family not in (socket.AF_UNIX, socket.AF_VSOCK):
        raise ChannelError("unsupported listen fd type")
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise ChannelError("the socket that was passed does not listen")
    return sock


def _remove_stale(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise ChannelError(f"{path} exists and is not a socket")
    except FileNotFoundError:
        return
    except OSError as exc:
        raise ChannelError(f"Failed to look at {path}: {strerror(exc)}") from exc
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        answer = probe.connect_ex(path)
    if answer != errno.ECONNREFUSED:
        raise ChannelError(f"Failed to bind socket to {path}: {os.strerror(errno.EADDRINUSE)}")
    try:
        os.unlink(path)
    except OSError as exc:
        raise ChannelError(f"Failed to unlink socket {path}: {strerror(exc)}") from exc
