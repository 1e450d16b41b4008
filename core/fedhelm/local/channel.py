"""The frames of :mod:`fedhelm.local.frames` for asyncio."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from fedhelm.local.frames import LENGTH, MAX_FRAME, Frame, check_length, decode, encode

__all__ = ["Channel", "open_fd"]


class Channel:
    """One end of a socketpair or Unix connection, for asyncio. Sends do not interleave."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._lock = asyncio.Lock()

    @classmethod
    async def from_socket(cls, sock: socket.socket) -> Channel:
        """Take over a connected stream socket."""
        sock.setblocking(False)
        reader, writer = await asyncio.open_unix_connection(sock=sock)
        return cls(reader, writer)

    async def send(self, type: str, **fields: Any) -> None:  # noqa: A002 - the wire's own word
        """Send one frame; returns when the socket has taken it.

        Raises:
            ConnectionError: the other side is gone.
        """
        async with self._lock:
            self._writer.write(encode({"type": type, **fields}))
            await self._writer.drain()

    def post(self, type: str, **fields: Any) -> None:  # noqa: A002 - the wire's own word
        """Queue one frame without waiting; lost if the other side is gone."""
        if not self._writer.is_closing():
            self._writer.write(encode({"type": type, **fields}))

    async def receive(self, limit: int = MAX_FRAME) -> Frame | None:
        """Return the next frame, or None when the other side has closed or died.

        Args:
            limit: bytes of the largest frame taken: a stranger's is small.

        Raises:
            ProtocolError: the bytes are not frames.
        """
        try:
            head = await self._reader.readexactly(LENGTH.size)
            data = await self._reader.readexactly(check_length(LENGTH.unpack(head)[0], limit))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        return decode(data)

    def close(self) -> None:
        """Close the connection; the other side reads EOF."""
        self._writer.close()


async def open_fd(fd: int) -> Channel:
    """Take over the descriptor that a parent passed with ``--control-fd``."""
    return await Channel.from_socket(socket.socket(fileno=fd))
