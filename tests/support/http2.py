"""HTTP/2 by hand, for what no library of it would send: halves of messages, frames without end."""

from __future__ import annotations

import asyncio
import contextlib
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM = ACK = 1
END_HEADERS = 4
MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE = 3, 4
MAX_FRAME = 16384


def frame(kind, flags, stream, payload):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def header(name, value):
    """A literal header without indexing, of less than 127 bytes in each part."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def request(path, scheme=b"\x87"):
    """The header block of a gRPC call."""
    block = b"\x83" + scheme + header(b":path", path) + header(b"te", b"trailers") + header(b":authority", b"x")
    return block + header(b"content-type", b"application/grpc")


def part_of_a_message(size, beginning):
    """The frame of gRPC that announces a message of ``size`` bytes, and its first ones."""
    return b"\0" + struct.pack(">I", size) + beginning


class Caller:
    """One connection; call numbers are 1, 3, 5 and so on. Flow control is the caller's own business."""

    def __init__(self, reader, writer):
        self._reader, self._writer, self._next = reader, writer, 1
        self._frames = []

    async def call(self, path, *data):
        """Begin a call and send these bytes of it, without an end; return its number."""
        number, self._next = self._next, self._next + 2
        self._writer.write(frame(HEADERS, END_HEADERS, number, request(path.encode())))
        for piece in data:
            for at in range(0, len(piece), MAX_FRAME):
                self._writer.write(frame(DATA, 0, number, piece[at : at + MAX_FRAME]))
        await self._writer.drain()
        return number

    async def read(self):
        """Return the next frame: kind, flags, number, payload."""
        head = await self._reader.readexactly(9)
        size, kind, flags, number = int.from_bytes(head[:3], "big"), head[3], head[4], struct.unpack(">I", head[5:])[0]
        payload = await self._reader.readexactly(size)
        if kind in (SETTINGS, PING) and not flags & ACK:
            self._writer.write(frame(kind, ACK, 0, payload if kind == PING else b""))
        return kind, flags, number, payload

    async def settings(self):
        """Return what the server's settings say, number -> value."""
        while True:
            kind, flags, _, payload = await self.read()
            if kind == SETTINGS and not flags & ACK:
                return dict(struct.iter_unpack(">HI", payload))

    async def ended(self, number=1):
        """Wait until the server has said how a call ended; return the header block with that (HPACK)."""
        while True:
            kind, flags, which, payload = await self.read()
            if which == number and kind == HEADERS and flags & END_STREAM:
                return payload
            assert (kind, which) != (RST_STREAM, number), "it was broken off without a word"

    async def broken(self, number):
        """Wait until the server has broken a call off without a word, or the whole connection."""
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                kind, _, which, _ = await self.read()
                if kind == GOAWAY or (kind, which) == (RST_STREAM, number):
                    return


@contextlib.asynccontextmanager
async def connected(context, port):
    """Connect with TLS to a server of ours, whatever its name."""
    context.check_hostname = False
    context.set_alpn_protocols(["h2"])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        writer.write(PREFACE + frame(SETTINGS, 0, 0, b""))
        yield Caller(reader, writer)
    finally:
        writer.transport.abort()
