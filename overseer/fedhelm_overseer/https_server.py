"""uvicorn's server as an overseer runs it: signals are the service's, and a handshake has to end soon.

Connections are accepted here, so that the log can say whom TLS refused: asyncio's own server drops them in silence.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Final

import uvicorn

from fedhelm.clock import Clock, SystemClock
from fedhelm.tasks import cancel, spawn
from fedhelm_overseer.refusals import Refusals, reason_of

__all__ = ["HANDSHAKE_S", "HttpsServer"]

HANDSHAKE_S: Final = 10.0
"""Seconds that a TLS handshake may take; whoever shows nothing is cut off then. asyncio's own limit is 60 s."""

_CLOSE_S: Final = 2.0
_CUT_S: Final = 0.05
_PAUSE_S: Final = 1.0
"""How long nobody is accepted after that failed: too many open files, say."""

_log = logging.getLogger("fedhelm.overseer")


class HttpsServer(uvicorn.Server):
    """A server for sockets that listen already.

    Args:
        config: uvicorn's, with TLS.
        opened: called once it serves.
        closing: called when it is to end: open streams and long polls have to end first.
        clock: for the pace of the log.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        opened: Callable[[], None],
        closing: Callable[[], None],
        clock: Clock | None = None,
    ) -> None:
        super().__init__(config)
        self._opened = opened
        self._closing = closing
        self._clock = clock or SystemClock()
        self._refusals = Refusals()
        self._doors: list[asyncio.Task[None]] = []
        self._arriving: set[asyncio.Task[None]] = set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve, then say so."""
        await super().startup([])  # uvicorn has no option for the time of a handshake: connections are accepted here
        self._doors = [spawn(self._accept(listening), "accept connections") for listening in sockets or ()]
        self._opened()

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(listening)
            except ConnectionError:  # gone already
                continue
            except OSError as error:
                _log.error("no connection can be accepted: %s", error.strerror or error)
                await asyncio.sleep(_PAUSE_S)
                continue
            task = spawn(self._welcome(connection, str(address[0])), "handshake")
            self._arriving.add(task)
            task.add_done_callback(self._arriving.discard)
            await asyncio.sleep(0)  # those who are in have their turn, however many knock

    async def _welcome(self, connection: socket.socket, address: str) -> None:
        """Shake hands; what comes of it belongs to the connection's protocol."""
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._connection,
                connection,
                ssl=self.config.ssl,
                ssl_handshake_timeout=HANDSHAKE_S,
                ssl_shutdown_timeout=_CLOSE_S,
            )
        except ssl.SSLError as error:
            if line := self._refusals.take(address, reason_of(error), self._clock.boottime()):
                _log.warning("%s", line)
        except OSError:  # it left, or took too long
            return

    def _connection(self) -> asyncio.Protocol:
        made = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        assert isinstance(made, asyncio.Protocol)
        return made

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End streams and long polls, then the connections."""
        self._closing()
        await cancel(*self._doors)
        await cancel(*self._arriving)  # by now each has taken its socket over
        cut = spawn(self._cut_idle(), "cut idle connections")
        await super().shutdown(sockets)
        await cancel(cut)

    async def _cut_idle(self) -> None:
        """Do not wait for clients to say good-bye on connections that they merely keep open."""
        while tasks := set(self.server_state.tasks):
            await asyncio.wait(tasks)
        await asyncio.sleep(_CUT_S)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
