"""uvicorn's server as an overseer runs it: signals are the service's, and a handshake has to end soon.

Connections are accepted here, so that the log can say whom TLS refused: asyncio's own server drops them in silence. And
so that a crowd leaves files for the lease store: who has not shown a certificate yet makes room for who comes.
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
from fedhelm.process import open_files
from fedhelm.tasks import cancel, spawn
from fedhelm_overseer.refusals import Refusals, reason_of

__all__ = ["HANDSHAKE_S", "KEPT_FILES", "MAX_CONNECTIONS", "HttpsServer"]

HANDSHAKE_S: Final = 10.0
"""Seconds that a TLS handshake may take; whoever shows nothing is cut off then. asyncio's own limit is 60 s."""

MAX_CONNECTIONS: Final = 4096
"""Connections, with and without a certificate, where so many files may be open."""
KEPT_FILES: Final = 128
"""Open files that connections leave to the rest: the lease store, the audit file, the log."""

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
        self._arriving: dict[asyncio.Task[None], None] = {}  # in the order in which they came
        self._most = min(MAX_CONNECTIONS, max(KEPT_FILES // 4, open_files() - KEPT_FILES))

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
            if self._has_room():
                task = spawn(self._welcome(connection, str(address[0])), "handshake")
                self._arriving[task] = None
                task.add_done_callback(lambda ended: self._arriving.pop(ended, None))
            else:
                connection.close()
            await asyncio.sleep(0)  # those who are in have their turn, however many knock

    def _has_room(self) -> bool:
        """Tell whether one more may come; whoever has been shaking hands for longest goes for it."""
        if len(self._arriving) + len(self.server_state.connections) < self._most:
            return True
        oldest = next(iter(self._arriving), None)
        if oldest is None:
            return False
        del self._arriving[oldest]
        oldest.cancel()
        return True

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
