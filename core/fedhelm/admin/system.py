"""The part of a session about servers, sites, and who leads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from fedhelm.admin import decode
from fedhelm.admin.deadline import Deadline
from fedhelm.admin.follow import Follower, Note
from fedhelm.admin.models import (
    Event,
    Explanation,
    Failover,
    Operated,
    Primary,
    Revocations,
    Server,
    Shutdown,
    Status,
    System,
    Told,
)
from fedhelm.clock import Clock
from fedhelm.errors import NoPrimary, Refused, Unreachable
from fedhelm.ids import new_request_id
from fedhelm.wire.roster import learn_servers

if TYPE_CHECKING:
    from fedhelm.admin.network import AdminCalls, Network, OverseerCalls
    from fedhelm.config.kit import Kit
    from fedhelm.v1 import admin_pb2
    from fedhelm.wire.overseer_api import OperateRequest

__all__ = ["TIMEOUT", "SystemCalls"]

TIMEOUT = 60.0
"""Seconds that a call may take, failovers included, unless its caller says otherwise."""

_POLL = 0.1
_ATTEMPTS = 3
_MAX_REASON = 500
_GOING = 15.0
"""Seconds that sites, and then servers, have to go before they count as left; less where the call has less."""


class SystemCalls:
    """See :class:`fedhelm.admin.session.Session`, which has these calls, too."""

    def __init__(
        self,
        kit: Kit,
        network: Network,
        clock: Clock,
        *,
        pause: Callable[[float], object],
        notice: Callable[[Note], None],
    ) -> None:
        self.kit = kit
        self._network = network
        self._clock = clock
        self._pause = pause
        self._follower = Follower(kit, network, clock, notice, pause)

    def check_status(self, *, timeout: float | None = TIMEOUT) -> Status:
        """Return the primary's view of itself and of its sites."""
        return decode.status(
            self._follower.ask(Deadline(self._clock, timeout), lambda stub, left: stub.check_status(timeout=left))
        )

    def primary(self, *, timeout: float | None = None) -> Primary:
        """Return who leads, as the overseer knows it; never waits for an election.

        Args:
            timeout: seconds; an overseer that has not answered after about 2 s is given up anyhow.

        Raises:
            NoPrimary: nobody does.
        """
        return decode.primary(self._network.overseer().primary(timeout))

    def servers(self, *, timeout: float | None = None) -> list[Server]:
        """Return the servers as the overseer sees them; the time-out is that of :meth:`primary`."""
        views = list(self._network.overseer().servers(timeout))
        learn_servers(self.kit, views)
        return [decode.server(view) for view in views]

    def history(self, *, timeout: float | None = None) -> list[Failover]:
        """Return the epochs, oldest first; an overseer is given up after about 5 s."""
        return [decode.failover(entry) for entry in self._network.overseer().history(timeout)]

    def recent_events(self, limit: int = 20, *, timeout: float | None = None) -> list[Event]:
        """Return the last events that the overseer keeps, oldest first, at most 1000."""
        return [decode.event(body) for body in self._network.overseer().recent(limit, timeout)]

    def events(self, after: int | None = None) -> Iterator[Event]:
        """Yield the overseer's events after this id (None: from now on), across lost connections, until ``close``."""
        for event in self._network.overseer().events(after):
            yield decode.event(event)

    def promote(self, server: str, *, timeout: float | None = TIMEOUT) -> Primary:
        """Make another server lead, with no gap but the hand-over; return it once it does.

        Raises:
            Refused: the server is not fit, or another one leads under a newer epoch: it was rolled back.
            NotFound: no such server.
        """
        deadline = Deadline(self._clock, timeout)
        request_id = new_request_id()
        overseer = self._network.overseer()
        asked: Any = self._insist(lambda: overseer.promote(server, request_id, deadline.left()), deadline)
        now = self._leads_after(int(asked.epoch), deadline, f"{server} does not lead yet")
        if now.name != server:
            raise Refused(
                f"{server} did not take over in time; {now.name} leads again, epoch {now.epoch}", hint="history"
            )
        return now

    def explain(self, server: str, *, timeout: float | None = None) -> Explanation:
        """Return why a server is or is not a candidate.

        Raises:
            NotFound: no such server.
        """
        return decode.explanation(self._network.overseer().explain(server, timeout))

    def system(self, *, timeout: float | None = None) -> System:
        """Return what admins decided of the whole system; the time-out is that of :meth:`primary`."""
        return decode.system(self._network.overseer().system(timeout))

    def pause_failover(self, reason: str = "", *, timeout: float | None = TIMEOUT) -> None:
        """Have no server granted the lease but by :meth:`promote`, until :meth:`resume_failover`."""
        self._tell(lambda overseer, request, left: overseer.pause(request, left), reason, timeout)

    def resume_failover(self, *, timeout: float | None = TIMEOUT) -> None:
        """End a pause: who died meanwhile is replaced now."""
        self._tell(lambda overseer, request, left: overseer.resume(request, left), "", timeout)

    def remove_server(self, server: str, *, reason: str = "", timeout: float | None = TIMEOUT) -> None:
        """Forget a server that is down; it may come back only with a newer kit.

        Raises:
            NotFound: no such server.
            Refused: it is not down.
        """
        self._tell(lambda overseer, request, left: overseer.remove(server, request, left), reason, timeout)

    def read_revocations(self, data: bytes) -> Revocations:
        """Verify a list of revoked certificates with the root of this kit, and say what is in it.

        Raises:
            KitError: it is not one that this project's root signed.
        """
        from fedhelm.security.pki import load_certificate
        from fedhelm.security.revocation import RevocationList

        found = RevocationList.parse(data, self.kit.ca.read_bytes(), self.kit.project, self.kit.cluster)
        names = dict.fromkeys(f"{one.role} {one.name}" for one in reversed(found.entries))
        own = f"{load_certificate(self.kit.cert.read_bytes(), str(self.kit.cert)).serial_number:x}"
        return Revocations(found.version, len(found.entries), tuple(names), found.revoked(own) is not None)

    def revoke_certificates(self, data: bytes, *, timeout: float | None = TIMEOUT) -> tuple[Told, ...]:
        """Hand a list of revoked certificates, as the root signed it, to every overseer; return what each said.

        Raises:
            Refused: none took it; an overseer has a newer one.
            NotAuthorised: none took it; this admin may not hand it over.
            Unreachable: no overseer answers.
        """
        told = tuple(decode.told(one) for one in self._network.overseer().revoke(data, timeout))
        errors = [one.error for one in told if one.error is not None]
        if errors and len(errors) == len(told):
            raise next((one for one in errors if not isinstance(one, Unreachable)), errors[0])
        return told

    def operate_sites(
        self, action: str, sites: tuple[str, ...], *, reason: str = "", timeout: float | None = TIMEOUT
    ) -> Operated:
        """Have sites restart or shut down. The order is signed here: each site asks its own policy about the signer.

        Args:
            action: ``restart`` or ``shutdown``.
            sites: their names, or ``@ALL``.
            reason: for the sites' logs, and the federation's.
            timeout: seconds; returns when it is in the log and no site refuses it any more, not when it is done.

        Raises:
            NotFound: no such site.
        """
        return self._operate(action, sites, server=False, reason=reason, deadline=Deadline(self._clock, timeout))

    def restart_primary(self, *, reason: str = "", timeout: float | None = TIMEOUT) -> Primary:
        """Restart the primary's process; return who leads then: a standby, or the same server under a new epoch."""
        deadline = Deadline(self._clock, timeout)
        before = self.primary(timeout=deadline.left()).epoch
        self._operate("restart", (), server=True, reason=reason, deadline=deadline)
        return self._leads_after(before, deadline, "nobody leads yet after the restart")

    def shutdown_system(self, *, reason: str = "", timeout: float | None = TIMEOUT) -> Shutdown:
        """Shut down all sites, then all servers, the primary last; overseers stay. Jobs go on after the next start.

        Returns:
            What went, and what did not within 15 s or could not be told: while nobody leads, no site can be.
        """
        deadline = Deadline(self._clock, timeout)
        try:
            self.primary(timeout=deadline.left())
        except NoPrimary:
            told = Operated((), self.kit.sites)
        else:
            told = self._operate("shutdown", ("@ALL",), server=False, reason=reason, deadline=deadline)
        sites_left = self._wait_for_sites(told, deadline)
        self._tell(lambda overseer, request, left: overseer.shutdown(request, left), reason, deadline.left())
        servers, servers_left = self._wait_for_servers(deadline)
        self._follower.close()
        gone = tuple(name for name in told.told if name not in sites_left)
        return Shutdown(gone, sites_left, servers, servers_left, told.refused)

    # Steps

    def _operate(
        self, action: str, sites: tuple[str, ...], *, server: bool, reason: str, deadline: Deadline
    ) -> Operated:
        from fedhelm.v1 import admin_pb2

        request = admin_pb2.OperateRequest(
            request_id=new_request_id(), action=action, sites=sites, server=server, reason=reason[:_MAX_REASON]
        )

        def write(stub: AdminCalls, limit: float) -> admin_pb2.OperateReply:
            if sites:  # signed each time: sites obey what is fresh
                request.statement = self._network.sign_order(request.request_id, action, sites, request.reason)
            return stub.operate(request, timeout=limit)

        return decode.operated(self._follower.ask(deadline, write))

    def _wait_for_sites(self, told: Operated, deadline: Deadline) -> tuple[str, ...]:
        """Return the sites that are still connected after a while, and those that were told nothing."""
        left = set(told.told)
        patience = Deadline(self._clock, deadline.within(_GOING))
        while left and patience.left():
            status = self.check_status(timeout=deadline.left())
            left &= {site.name for site in status.sites if site.connected}
            if left:
                self._pause(patience.within(_POLL))
        # A site that is not connected cannot be told; whether it runs is not known.
        return tuple(sorted({*left, *told.missed, *told.refused}))

    def _wait_for_servers(self, deadline: Deadline) -> tuple[tuple[str, ...], tuple[str, ...]]:
        patience = Deadline(self._clock, deadline.within(_GOING))
        while True:
            servers = self.servers(timeout=deadline.left())
            left = tuple(one.name for one in servers if one.state != "DOWN")
            if not left or not patience.left():
                return tuple(one.name for one in servers if one.name not in left), left
            self._pause(patience.within(_POLL))

    def _leads_after(self, epoch: int, deadline: Deadline, why: str) -> Primary:
        while True:
            try:
                now = self.primary(timeout=deadline.left())
            except Unreachable:
                now = None
            if now is not None and now.epoch > epoch:
                return now
            deadline.check(why)
            self._pause(deadline.within(_POLL))

    def _tell(
        self,
        call: Callable[[OverseerCalls, OperateRequest, float | None], object],
        reason: str,
        timeout: float | None,
    ) -> None:
        """Tell the overseers; repeated with the same request id while none answers."""
        from fedhelm.wire.overseer_api import OperateRequest

        deadline = Deadline(self._clock, timeout)
        request = OperateRequest(request_id=new_request_id(), reason=reason)
        self._insist(lambda: call(self._network.overseer(), request, deadline.left()), deadline)

    def _insist(self, call: Callable[[], object], deadline: Deadline) -> object:
        attempts = 0
        while True:
            try:
                return call()
            except Unreachable as away:
                attempts += 1
                if attempts >= _ATTEMPTS or isinstance(away, NoPrimary):
                    raise
                deadline.check("no overseer answers")
                self._pause(deadline.within(_POLL))
