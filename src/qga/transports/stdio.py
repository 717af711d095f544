# SPDX-License-Identifier: Apache-2.0
"""Requests on standard input, replies on standard output: for scripts and tests, no virtual machine needed."""

import os

from .base import Channel


class StdioChannel(Channel):
    """Also reads from and writes to plain files, which no event loop can wait for."""

    _plain_file = False

    def resume(self) -> None:
        """Report input again; a plain file always has some."""
        if self._reading or self.closed.done():
            return
        if self._plain_file:
            self._reading = True
            self._loop.call_soon(self._on_readable)
            return
        try:
            super().resume()
        except PermissionError:
            self._plain_file = True
            self.resume()

    start = resume

    def pause(self) -> None:
        """Stop reporting input."""
        if not self._plain_file:
            super().pause()
        self._reading = False

    def _on_readable(self) -> None:
        if self._plain_file and not self._reading:
            return
        super()._on_readable()
        if self._plain_file and self._reading:
            self._loop.call_soon(self._on_readable)

    def _close_fds(self) -> None:
        # The descriptors belong to whoever started us, and share their flags with us.
        os.set_blocking(self._in, True)
        os.set_blocking(self._out, True)
