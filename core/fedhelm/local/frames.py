"""Length-prefixed JSON frames over a socket: 4 bytes of length (big endian), then one JSON object with a ``type``.

asyncio is not loaded here: a job process pays for every import at its start (:mod:`fedhelm.local.channel` has it).

The same frames run between supervisor and child, child and runner, agent and nanny, agent and job process.
"""

from __future__ import annotations

import json
import select
import socket
import struct
from typing import Any, NoReturn

from fedhelm.errors import ProtocolError

__all__ = ["LENGTH", "MAX_FRAME", "Frame", "FrameReader", "SyncChannel", "check_length", "decode", "encode"]

MAX_FRAME = 16 * 1024 * 1024
LENGTH = struct.Struct(">I")

Frame = dict[str, Any]


def encode(frame: Frame) -> bytes:
    """Return the bytes of one frame. Halves of surrogate pairs in its texts (from odd file names) become ``?``.

    Raises:
        ProtocolError: it is larger than ``MAX_FRAME``, or no JSON (NaN).
    """
    try:
        text = json.dumps(frame, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ProtocolError(f"a frame of type {frame.get('type')!r} is not JSON: {error}") from error
    data = text.encode(errors="replace")
    if len(data) > MAX_FRAME:
        raise ProtocolError(f"a frame of {len(data)} bytes is larger than {MAX_FRAME}")
    return LENGTH.pack(len(data)) + data


def decode(data: bytes) -> Frame:
    """Return the frame in these bytes, its length taken off.

    Raises:
        ProtocolError: they are not a JSON object with a ``type``.
    """
    try:
        frame = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("a frame is not JSON") from error
    if not isinstance(frame, dict) or not isinstance(frame.get("type"), str):
        raise ProtocolError("a frame is not an object with a type")
    return frame


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def check_length(length: int, limit: int = MAX_FRAME) -> int:
    """Return ``length`` if a frame may be that long.

    Raises:
        ProtocolError: it is larger than ``limit``.
    """
    if length > limit:
        raise ProtocolError(f"a frame of {length} bytes is larger than {limit}")
    return length


class FrameReader:
    """Turns bytes, however they are cut, into frames. Does no I/O."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """Add bytes; return the frames they complete.

        Raises:
            ProtocolError: a length above ``MAX_FRAME``, or a frame that is not an object with a ``type``.
        """
        self._buffer += data
        frames: list[Frame] = []
        start = 0
        while len(self._buffer) - start >= LENGTH.size:
            length = check_length(LENGTH.unpack_from(self._buffer, start)[0])
            end = start + LENGTH.size + length
            if len(self._buffer) < end:
                break
            frames.append(decode(bytes(self._buffer[start + LENGTH.size : end])))
            start = end
        del self._buffer[:start]
        return frames


class SyncChannel:
    """The same frames for blocking code. One thread may send while another receives."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._reader = FrameReader()
        self._ready: list[Frame] = []

    def send(self, type: str, **fields: Any) -> None:  # noqa: A002 - the wire's own word
        """Send one frame.

        Raises:
            ConnectionError: the other side is gone.
        """
        self._socket.sendall(encode({"type": type, **fields}))

    def receive(self, timeout: float | None = None) -> Frame | None:
        """Return the next frame, or None when the other side is gone.

        Raises:
            TimeoutError: nothing came for ``timeout`` seconds.
            ProtocolError: the bytes are not frames.
        """
        while not self._ready:
            if timeout is not None:
                self._await_data(timeout)
            try:
                data = self._socket.recv(1 << 16)
            except ConnectionError:
                return None
            if not data:
                return None
            self._ready.extend(self._reader.feed(data))
        return self._ready.pop(0)

    def _await_data(self, timeout: float) -> None:
        # Not the socket's own time-out: that would also hold for another thread's send.
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        if not poll.poll(max(0.0, timeout) * 1000):
            raise TimeoutError(f"nothing came for {timeout:g} s")

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()
