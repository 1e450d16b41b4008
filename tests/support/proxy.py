"""A TCP proxy between two participants that can be told to fail as networks do.

It runs in a process of its own (``python -m tests.support.proxy``), so that a busy test does not slow what it
measures, and is told on its standard input, one JSON object a line. Each is answered by one line.

Modes of a wire:

* ``pass``: bytes go through.
* ``delay``: they go through, each piece ``seconds`` later.
* ``drop``: nothing arrives, in both directions. New connections are accepted and stay silent. What was sent is held and
  goes on when the wire passes again, as TCP does after an outage; whoever closed meanwhile is gone.
* ``reject``: connections are reset, new ones too.
* ``no-requests``, ``no-answers``: one-way: what the dialling side sends is held, or what it is sent.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping

from fedhelm.tasks import cancel, spawn

__all__ = ["MODES", "Proxy", "Wires"]

MODES = ("pass", "delay", "drop", "reject", "no-requests", "no-answers")

_HOST = "127.0.0.1"
_PIECE = 256 * 1024
_HELD = {"drop": {"request", "answer"}, "no-requests": {"request"}, "no-answers": {"answer"}}
_RESET = struct.pack("ii", 1, 0)
_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 10.0


class _Wire:
    """One listening port and where it leads."""

    def __init__(self, listen: int, target: int) -> None:
        self._listen = listen
        self._target = target
        self._mode = "pass"
        self._seconds = 0.0
        self._changed = asyncio.Condition()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, _HOST, self._listen)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in tuple(self._writers):
            _reset(writer)
        await cancel(*self._tasks)

    async def set(self, mode: str, seconds: float) -> None:
        async with self._changed:
            self._mode, self._seconds = mode, seconds
            self._changed.notify_all()
        if mode == "reject":
            for writer in tuple(self._writers):
                _reset(writer)

    async def _permitted(self, direction: str) -> None:
        if direction in _HELD.get(self._mode, ()):
            async with self._changed:
                await self._changed.wait_for(lambda: direction not in _HELD.get(self._mode, ()))
        elif self._mode == "delay":
            await asyncio.sleep(self._seconds)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            if self._mode == "reject":
                return
            await self._permitted("request")
            async with asyncio.timeout(_CONNECT_SECONDS):
                there = await asyncio.open_connection(_HOST, self._target)
        except (OSError, TimeoutError):
            return
        else:
            self._writers.add(there[1])
            pumps = [
                spawn(self._pump(reader, there[1], "request"), "requests"),
                spawn(self._pump(there[0], writer, "answer"), "answers"),
            ]
            self._tasks.update(pumps)
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                await cancel(*pumps)
                self._tasks.difference_update(pumps)
                self._writers.discard(there[1])
                _reset(there[1])
        finally:
            self._writers.discard(writer)
            _reset(writer)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, direction: str) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(_PIECE):
                await self._permitted(direction)
                sink.write(data)
                await sink.drain()
            await self._permitted(direction)


def _reset(writer: asyncio.StreamWriter) -> None:
    if not writer.is_closing():
        with contextlib.suppress(OSError):
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        writer.transport.abort()


class Proxy:
    """Wires by name, in the running event loop.

    Args:
        wires: name -> (port to listen at, port it leads to), both on 127.0.0.1.
    """

    def __init__(self, wires: Mapping[str, tuple[int, int]]) -> None:
        self._wires = {name: _Wire(*ports) for name, ports in wires.items()}

    async def open(self) -> None:
        """Listen at every port.

        Raises:
            OSError: a port is taken.
        """
        for wire in self._wires.values():
            await wire.open()

    async def close(self) -> None:
        """Reset every connection and stop listening."""
        for wire in self._wires.values():
            await wire.close()

    async def set(self, name: str, mode: str, seconds: float = 0.0) -> None:
        """Change a wire's mode; see the module.

        Raises:
            KeyError: no such wire.
            ValueError: no such mode.
        """
        if mode not in MODES:
            raise ValueError(f"{mode!r} is none of {', '.join(MODES)}")
        await self._wires[name].set(mode, seconds)


class Wires:
    """A proxy process, and its control.

    Raises:
        OSError: it could not listen.
    """

    def __init__(self, wires: Mapping[str, tuple[int, int]]) -> None:
        self.names = tuple(wires)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.proxy", json.dumps(wires)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._lock = threading.Lock()
        if self._answer() != "ok":
            self.close()
            raise OSError("the proxy could not listen")

    def _answer(self) -> str:
        assert self._process.stdout is not None
        guard = threading.Timer(_ANSWER_SECONDS, self._process.kill)
        guard.start()
        try:
            return self._process.stdout.readline().strip()
        finally:
            guard.cancel()

    def set(self, names: Iterable[str], mode: str, seconds: float = 0.0) -> None:
        """Change these wires' mode; they have changed when this returns."""
        assert self._process.stdin is not None
        with self._lock:
            self._process.stdin.write(json.dumps({"wires": list(names), "mode": mode, "seconds": seconds}) + "\n")
            self._process.stdin.flush()
            answer = self._answer()
        if answer != "ok":
            raise ValueError(answer or "the proxy has ended")

    def heal(self) -> None:
        """Let every wire pass."""
        self.set(self.names, "pass")

    def close(self) -> None:
        """End the process."""
        with self._process as process:
            process.kill()


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def _run(wires: Mapping[str, tuple[int, int]]) -> None:
    proxy = Proxy(wires)
    await proxy.open()
    _say("ok")
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    while line := await orders.readline():
        order = json.loads(line)
        try:
            for name in order["wires"]:
                await proxy.set(name, order["mode"], order["seconds"])
        except (KeyError, ValueError) as error:
            _say(f"refused: {error!r}")
        else:
            _say("ok")
    await proxy.close()


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wires", type=json.loads)
    asyncio.run(_run(parser.parse_args(argv).wires))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
