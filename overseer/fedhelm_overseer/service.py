"""One running overseer: store, desk, observer and the HTTPS server, from a listening socket to the last answer."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import signal
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import uvicorn

from fedhelm.clock import Clock, SystemClock
from fedhelm.config.kit import SQLITE, Kit
from fedhelm.errors import FedhelmError, StoreUnavailable
from fedhelm.security.audit import AUDIT_FILE, AuditTrail
from fedhelm.security.audit_start import open_trail
from fedhelm.security.authorization import Policy, default_policy
from fedhelm.security.kept_revocations import KeptRevocations
from fedhelm.security.own_policy import OwnPolicy
from fedhelm.security.reloading import LOOK_S, ReloadingKit, watch_kit
from fedhelm.security.tls import refresh_server, server_context
from fedhelm.tasks import cancel, spawn
from fedhelm_overseer.app import create_app
from fedhelm_overseer.desk import Desk
from fedhelm_overseer.front import Front
from fedhelm_overseer.https_server import HttpsServer
from fedhelm_overseer.lease_place import lease_place, open_lease_store
from fedhelm_overseer.listener import listen
from fedhelm_overseer.observer import Observer
from fedhelm_overseer.tls_protocol import ClientCertificateProtocol

__all__ = ["Service", "listen"]

_log = logging.getLogger("fedhelm.overseer")
_KEEP_ALIVE_S = 75
_MAX_HEAD = 16 * 1024


@dataclasses.dataclass
class _Asked:
    """What is asked about whoever calls; ``policy`` changes with the kit, and with the overseer's own file."""

    own: OwnPolicy
    kept: KeptRevocations
    trail: AuditTrail
    clock: Clock

    def policy(self) -> Policy:
        """Return who may do what, as of now."""
        return self.own.policy


class _Opened:
    """What needs the open lease store: the operations, the observer's thread, and threads for requests."""

    def __init__(self, kit: Kit, place: str, asked: _Asked) -> None:
        self.store = open_lease_store(kit, place)
        try:
            self.desk = Desk(kit, self.store, asked.clock, asked.kept)
            self.observer = Observer(self.desk, kit.timing.observe)
            self.threads = ThreadPoolExecutor(max_workers=8, thread_name_prefix="desk")
            self.app = create_app(kit, self.desk, self.threads, asked.trail, policy=asked.policy, clock=asked.clock)
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

    While a database that overseers share cannot be reached, it answers 503, and goes on trying. A kit that is exchanged
    meanwhile counts from the next connection on: its certificate, its roots, its servers; its policy from the next
    request on.

    Args:
        kit: the overseer's opened kit; it or ``local/overseer.json`` says where the lease is kept.
        listener: see ``listen``; closed with the service.
        clock: for tests.
        opened: called once it serves and the lease store is open.
        waiting: called with what keeps the lease store from being open, when that changes.

    Raises:
        StoreUnavailable, Corrupt: the file that holds the lease.
        KitError: certificate or key cannot be used, or ``local/overseer.json``.
        AlreadyRunning: another process writes this participant's audit file.
        BadInput, FedhelmError: the database's URL, or the driver is missing; ``authorization.json``,
            ``local/audit.json``, the audit file.
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
        self._serving = False
        self._open: _Opened | None = None
        self._reloading = ReloadingKit(kit, clock=self._clock)
        self._context = server_context(kit)
        self._place = lease_place(kit)
        own = OwnPolicy(kit.root, missing=default_policy())  # kits of before had none for overseers
        self._asked = asked = _Asked(own, KeptRevocations(kit), _open_trail(kit, self._clock), self._clock)
        self._front = Front(kit.project, asked.kept, asked.policy, asked.trail, self._clock)
        try:
            self._open = self._open_now()
        except StoreUnavailable as error:
            if self._place == SQLITE:
                self._asked.trail.close()
                raise
            self._refuse(error)
        except BaseException:
            self._asked.trail.close()
            raise
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
            h11_max_incomplete_event_size=_MAX_HEAD,
            ssl_context_factory=lambda _config, _default: self._context,
        )
        self._server = HttpsServer(config, self._served, self._end_streams, self._clock)

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
        watching = spawn(watch_kit(self._reloading, self._take_kit), "watch the kit")
        policy = spawn(self._watch_policy(), "watch the policy")
        try:
            await self._server.serve(sockets=[self._listener])
        finally:
            await cancel(opening, watching, policy)
            if self._open is not None:
                self._open.close()
            self._listener.close()
            await asyncio.to_thread(self._asked.trail.close)

    def _open_now(self) -> _Opened:
        return _Opened(self._kit, self._place, self._asked)

    def _take_kit(self, kit: Kit) -> None:
        """Use a kit that was installed in the place of the former one."""
        refresh_server(self._context, kit)
        self._asked.kept.trust(kit)
        if kit.timing != self._kit.timing or kit.lease_store != self._kit.lease_store:
            _log.warning("times and lease store of the new kit count once %s was restarted", kit.name)
        self._kit = dataclasses.replace(kit, timing=self._kit.timing)
        if self._open is not None:
            spawn(self._follow(self._open.desk), "take the new kit")
        self._asked.own.take()  # last: a mistake in local/ leaves what it said before in force, and no more

    async def _watch_policy(self) -> None:
        """Take ``local/authorization.json`` whenever it changes, for ever; a mistake is in the log."""
        while True:
            await asyncio.to_thread(self._asked.own.look)
            await asyncio.sleep(LOOK_S)

    async def _follow(self, desk: Desk) -> None:
        try:
            await asyncio.to_thread(desk.follow, self._kit)
        except FedhelmError as error:
            _log.error("the servers of the new kit are not known yet: %s", error)

    async def _open_store(self) -> None:
        """Try until the lease store is open, then pass requests to the application."""
        while self._open is None:
            await asyncio.sleep(self._kit.timing.renew)
            try:
                self._open = await asyncio.to_thread(self._open_now)
            except FedhelmError as error:
                self._refuse(error)
        self._open.begin()
        self._front.app = self._open.app
        self._ready()

    def _refuse(self, error: FedhelmError) -> None:
        if str(error) != str(self._front.reason):
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


def _open_trail(kit: Kit, clock: Clock) -> AuditTrail:
    try:
        return open_trail(kit, clock=clock)
    except OSError as error:
        raise FedhelmError(f"{kit.root / AUDIT_FILE} cannot be written: {error.strerror}") from error
