"""The socket at which one job's script knocks: its own user and token only, one script at a time."""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import secrets
import socket
import struct
import time
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any, Protocol

from fedhelm.errors import FedhelmError, ProtocolError
from fedhelm.local.channel import Channel
from fedhelm.local.script_protocol import SOCKET_ENV, TOKEN_ENV, Result, TaskOrder, Welcome, check_lines
from fedhelm.tasks import cancel, spawn

__all__ = ["Desk", "Door"]

_log = logging.getLogger("fedhelm.client")
_HELLO_SECONDS = 10.0
_HELLO_BYTES = 4096
_MAX_STRANGERS = 64  # torchrun starts many processes, all of which may knock
_LINES_BURST = 64 * 1024 * 1024
_LINES_RATE = 1024 * 1024
_PEERCRED = struct.Struct("3i")


class Desk(Protocol):
    """What stands behind the door."""

    def welcome(self) -> Welcome:
        """Return what a script learns when it connects."""
        ...

    async def next(self) -> TaskOrder | str:
        """Return the next task, or the job's status when there will be none; waits as long as it takes."""
        ...

    async def result(self, result: Result) -> None:
        """Save a result; raises FedhelmError with a reason for the script's author."""
        ...

    def lines(self, lines: Sequence[dict[str, Any]]) -> None:
        """Take lines."""
        ...


def _peer_uid(sock: socket.socket) -> int:
    return int(_PEERCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))[1])


class _Pace:
    """Slows a script down whose lines would fill the log that all jobs share: so many bytes at once, then a rate."""

    def __init__(self) -> None:
        self._allowance, self._last = float(_LINES_BURST), time.monotonic()

    async def spend(self, size: int) -> None:
        now = time.monotonic()
        self._allowance = min(_LINES_BURST, self._allowance + (now - self._last) * _LINES_RATE) - size
        self._last = now
        if self._allowance < 0:
            await asyncio.sleep(-self._allowance / _LINES_RATE)


class Door:
    """Listens for one job's script.

    Args:
        path: of the socket, in a folder of mode 0700.
        desk: answers.
    """

    def __init__(self, path: Path, desk: Desk) -> None:
        self._path = path
        self._desk = desk
        self._token = secrets.token_hex(32)
        self._busy = False
        self._strangers = 0
        self._pace = _Pace()
        self._tasks: set[asyncio.Task[None]] = set()
        self._socket: socket.socket | None = None

    @property
    def env(self) -> dict[str, str]:
        """What the script needs in its environment to find and pass this door."""
        return {SOCKET_ENV: str(self._path), TOKEN_ENV: self._token}

    def open(self) -> None:
        """Start to listen."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(self._path))
        self._socket.listen(8)
        self._track(self._accept(self._socket), "script door")

    async def close(self) -> None:
        """Stop listening and drop the connection."""
        await cancel(*self._tasks)
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            self._path.unlink(missing_ok=True)

    def _track(self, coro: Any, name: str) -> asyncio.Task[None]:
        task = spawn(coro, name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(listener)
            self._track(self._serve(sock), "script")

    async def _serve(self, sock: socket.socket) -> None:
        # A script can open as many connections as it likes; those without its token cost the agent next to nothing.
        if _peer_uid(sock) != os.getuid() or self._strangers >= _MAX_STRANGERS:
            sock.close()
            return
        channel = await Channel.from_socket(sock)
        asking: list[asyncio.Task[None]] = []
        try:
            self._strangers += 1
            try:
                admitted = await self._admit(channel)
            finally:
                self._strangers -= 1
            if not admitted:
                return
            self._busy = True
            try:
                await self._talk(channel, asking)
            finally:
                self._busy = False
        except ConnectionError:
            pass  # the script has ended; its nanny says how
        except ProtocolError as error:
            _log.warning("the script broke the protocol: %s", error)
        finally:
            await cancel(*asking)
            channel.close()

    async def _admit(self, channel: Channel) -> bool:
        try:
            async with asyncio.timeout(_HELLO_SECONDS):
                hello = await channel.receive(_HELLO_BYTES)
        except TimeoutError:
            return False
        if hello is None or hello["type"] != "hello":
            return False
        if not hmac.compare_digest(str(hello.get("token")).encode(), self._token.encode()):
            await channel.send("refused", reason="the token is not this job's")
            return False
        if self._busy:
            await channel.send(
                "refused", reason="another process of this job is connected: one process talks to the site"
            )
            return False
        await channel.send("welcome", **self._desk.welcome().fields())
        return True

    async def _talk(self, channel: Channel, asking: list[asyncio.Task[None]]) -> None:
        while (frame := await channel.receive()) is not None:
            kind = frame["type"]
            if kind == "next":
                # Answered beside the loop: lines go on while the script waits.
                await cancel(*asking)
                asking[:] = [spawn(self._answer_next(channel), "next task")]
            elif kind == "result":
                await self._take_result(channel, frame)
            elif kind == "lines":
                lines = check_lines(frame.get("lines"))
                self._desk.lines(lines)
                await self._pace.spend(sum(64 + len(str(line["value"])) for line in lines))
            else:
                raise ProtocolError(f"a frame of type {kind!r:.80}")

    async def _answer_next(self, channel: Channel) -> None:
        answer = await self._desk.next()
        await _quietly(
            channel.send("end", status=answer) if isinstance(answer, str) else channel.send("task", **answer.fields())
        )

    async def _take_result(self, channel: Channel, frame: dict[str, Any]) -> None:
        try:
            result = Result.from_frame(frame)
            await self._desk.result(result)
        except (FedhelmError, OSError) as error:
            await channel.send("rejected", key=str(frame.get("key")), reason=str(error))
            return
        await channel.send("accepted", key=result.key)


async def _quietly(sending: Awaitable[None]) -> None:
    try:
        await sending
    except ConnectionError:
        return  # the script ended while it was waiting
