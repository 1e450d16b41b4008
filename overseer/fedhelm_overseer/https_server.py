"""uvicorn's server as an overseer runs it: signals are the service's, and a handshake has to end soon."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Final

import uvicorn

from fedhelm.tasks import cancel, spawn

__all__ = ["HANDSHAKE_S", "HttpsServer"]

HANDSHAKE_S: Final = 10.0
"""Seconds that a TLS handshake may take; whoever shows nothing is cut off then. asyncio's own limit is 60 s."""

_CLOSE_S: Final = 2.0
_CUT_S: Final = 0.05


class HttpsServer(uvicorn.Server):
    """A server for sockets that listen already.

    Args:
        config: uvicorn's, with TLS.
        opened: called once it serves.
        closing: called when it is to end: open streams and long polls have to end first.
    """

    def __init__(self, config: uvicorn.Config, opened: Callable[[], None], closing: Callable[[], None]) -> None:
        super().__init__(config)
        self._opened = opened
        self._closing = closing

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve, then say so."""
        await super().startup([])  # uvicorn has no option for the time of a handshake: the ports are opened here
        loop, config = asyncio.get_running_loop(), self.config
        for listening in sockets or ():
            server = await loop.create_server(
                self._connection,
                sock=listening,
                ssl=config.ssl,
                backlog=config.backlog,
                ssl_handshake_timeout=HANDSHAKE_S,
                ssl_shutdown_timeout=_CLOSE_S,
            )
            self.servers.append(server)
        self._opened()

    def _connection(self) -> asyncio.Protocol:
        made = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        assert isinstance(made, asyncio.Protocol)
        return made

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End streams and long polls, then the connections."""
        self._closing()
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
