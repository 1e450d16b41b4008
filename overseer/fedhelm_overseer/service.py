"""One running overseer: store, desk, observer and the HTTPS server, from a listening socket to the last answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import uvicorn

from fedhelm.clock import Clock, SystemClock
from fedhelm.config.kit import Kit
from fedhelm.security.tls import server_context
from fedhelm.tasks import cancel, spawn
from fedhelm_overseer.app import create_app
from fedhelm_overseer.desk import Desk
from fedhelm_overseer.lease_engines import SqliteEngines
from fedhelm_overseer.lease_store import SqlLeaseStore
from fedhelm_overseer.listener import listen
from fedhelm_overseer.observer import Observer
from fedhelm_overseer.tls_protocol import ClientCertificateProtocol

__all__ = ["Service", "listen"]

_log = logging.getLogger("fedhelm.overseer")
_KEEP_ALIVE_S = 75
_CUT_S = 0.05


class _HttpsServer(uvicorn.Server):
    """uvicorn's server: signals are the service's, and open streams end before it waits for them."""

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
        await super().startup(sockets)
        self._opened()

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


class Service:
    """An overseer that serves on a socket.

    Args:
        kit: the overseer's opened kit; ``run/overseer.db`` is made if it is missing.
        listener: see ``listen``; closed with the service.
        clock: for tests.
        opened: called once it serves.

    Raises:
        StoreUnavailable, Corrupt: the lease store.
        KitError: certificate or key cannot be used.
    """

    def __init__(
        self,
        kit: Kit,
        listener: socket.socket,
        *,
        clock: Clock | None = None,
        opened: Callable[[], None] = lambda: None,
    ) -> None:
        self._kit = kit
        self._listener = listener
        kit.run.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._store = SqlLeaseStore(SqliteEngines(kit.run / "overseer.db"), kit.project)
        try:
            self.desk = Desk(kit, self._store, clock or SystemClock())
            self._observer = Observer(self.desk, kit.timing.observe)
            self._threads = ThreadPoolExecutor(max_workers=8, thread_name_prefix="desk")
            context = server_context(kit)
            config = uvicorn.Config(
                create_app(kit, self.desk, self._threads),
                http=ClientCertificateProtocol,
                ws="none",
                lifespan="off",
                loop="asyncio",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                proxy_headers=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=1,
                ssl_context_factory=lambda _config, _default: context,
            )
        except BaseException:
            self._store.close()
            raise
        self._server = _HttpsServer(config, opened, self._end_streams)

    def stop(self) -> None:
        """Ask the service to end; safe in a signal handler and from the loop."""
        self._server.should_exit = True

    async def run(self, *, signals: bool = False) -> None:
        """Serve until ``stop`` (or, with ``signals``, SIGTERM or SIGINT)."""
        loop = asyncio.get_running_loop()
        self.desk.changed.attach()
        self.desk.feed.bell.attach()
        if signals:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self.stop)
        self._observer.start()
        try:
            await self._server.serve(sockets=[self._listener])
        finally:
            self._observer.stop()
            self._threads.shutdown(wait=True)
            self._store.close()
            self._listener.close()

    def _end_streams(self) -> None:
        self.desk.changed.close()
        self.desk.feed.bell.close()
