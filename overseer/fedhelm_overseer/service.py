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
from fedhelm.config.kit import SQLITE, Kit
from fedhelm.errors import FedhelmError, StoreUnavailable
from fedhelm.security.tls import server_context
from fedhelm.tasks import cancel, spawn
from fedhelm_overseer.app import create_app
from fedhelm_overseer.desk import Desk
from fedhelm_overseer.front import Front
from fedhelm_overseer.lease_place import lease_place, open_lease_store
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


class _Opened:
    """What needs the open lease store: the operations, the observer's thread, and threads for requests."""

    def __init__(self, kit: Kit, place: str, clock: Clock) -> None:
        self.store = open_lease_store(kit, place)
        try:
            self.desk = Desk(kit, self.store, clock)
            self.observer = Observer(self.desk, kit.timing.observe)
            self.threads = ThreadPoolExecutor(max_workers=8, thread_name_prefix="desk")
            self.app = create_app(kit, self.desk, self.threads)
        except BaseException:
            self.store.close()
            raise
        self._begun = False

    def begin(self) -> None:
        """Observe, and ring the bells of this event loop."""
        self.desk.changed.attach()
        self.desk.feed.bell.attach()
        self.observer.start()
        self._begun = True

    def end_streams(self) -> None:
        """End event streams and long polls."""
        self.desk.changed.close()
        self.desk.feed.bell.close()

    def close(self) -> None:
        """Stop the threads and close the store."""
        if self._begun:
            self.observer.stop()
        self.threads.shutdown(wait=True)
        self.store.close()


class Service:
    """An overseer that serves on a socket.

    While a database that overseers share cannot be reached, it answers 503 with the reason, and goes on trying.

    Args:
        kit: the overseer's opened kit; it or ``local/overseer.json`` says where the lease is kept.
        listener: see ``listen``; closed with the service.
        clock: for tests.
        opened: called once it serves and the lease store is open.
        waiting: called with what keeps the lease store from being open, when that changes.

    Raises:
        StoreUnavailable, Corrupt: the file that holds the lease.
        KitError: certificate or key cannot be used, or ``local/overseer.json``.
        BadInput, FedhelmError: the database's URL, or the driver is missing.
    """

    def __init__(
        self,
        kit: Kit,
        listener: socket.socket,
        *,
        clock: Clock | None = None,
        opened: Callable[[], None] = lambda: None,
        waiting: Callable[[FedhelmError], None] = lambda _error: None,
    ) -> None:
        self._kit = kit
        self._listener = listener
        self._clock = clock or SystemClock()
        self._tell = opened
        self._waiting = waiting
        self._front = Front()
        self._serving = False
        self._open: _Opened | None = None
        context = server_context(kit)
        self._place = lease_place(kit)
        try:
            self._open = _Opened(kit, self._place, self._clock)
        except StoreUnavailable as error:
            if self._place == SQLITE:
                raise
            self._refuse(error)
        config = uvicorn.Config(
            self._front,
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
        self._server = _HttpsServer(config, self._served, self._end_streams)

    @property
    def desk(self) -> Desk | None:
        """The operations; None while the lease store cannot be reached."""
        return self._open.desk if self._open else None

    def stop(self) -> None:
        """Ask the service to end; safe in a signal handler and from the loop."""
        self._server.should_exit = True

    async def run(self, *, signals: bool = False) -> None:
        """Serve until ``stop`` (or, with ``signals``, SIGTERM or SIGINT)."""
        loop = asyncio.get_running_loop()
        if signals:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self.stop)
        opening = spawn(self._open_store(), "open the lease store")
        try:
            await self._server.serve(sockets=[self._listener])
        finally:
            await cancel(opening)
            if self._open is not None:
                self._open.close()
            self._listener.close()

    async def _open_store(self) -> None:
        """Try until the lease store is open, then pass requests to the application."""
        while self._open is None:
            await asyncio.sleep(self._kit.timing.renew)
            try:
                self._open = await asyncio.to_thread(_Opened, self._kit, self._place, self._clock)
            except FedhelmError as error:
                self._refuse(error)
        self._open.begin()
        self._front.app = self._open.app
        self._ready()

    def _refuse(self, error: FedhelmError) -> None:
        if error.message != self._front.reason.message:
            _log.error("nothing is served: %s", error)
            self._waiting(error)
        self._front.reason = error

    def _served(self) -> None:
        self._serving = True
        self._ready()

    def _ready(self) -> None:
        if self._serving and self._front.app is not None:
            self._tell()

    def _end_streams(self) -> None:
        if self._open is not None:
            self._open.end_streams()
