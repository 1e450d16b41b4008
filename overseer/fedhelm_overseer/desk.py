"""What servers ask an overseer for, and its own observing: board, store and ``decide`` put together.

Every method is synchronous and may be called from any thread; one turn keeps what is read, decided, written and noted
in one order. Only beats and views pass without the store, so that a slow disk does not delay them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from fedhelm.clock import Clock
from fedhelm.config.kit import Kit
from fedhelm.errors import KitError, NoPrimary, NotFound, Refused, StoreUnavailable
from fedhelm.security.kept_revocations import KeptRevocations
from fedhelm.wire.overseer_api import (
    ActivateRequest,
    BeatRequest,
    HistoryEntry,
    LeaseView,
    PrimaryView,
    PromoteReply,
    PromoteRequest,
    RegisterReply,
    RegisterRequest,
    ReleaseRequest,
    RenewReply,
    RenewRequest,
    ServerView,
)
from fedhelm_overseer.admin_desk import AdminDesk
from fedhelm_overseer.decide import Action, Adopt, decide
from fedhelm_overseer.decider import Decider
from fedhelm_overseer.events import Bell, EventFeed
from fedhelm_overseer.lease import HANDOFF, Holder, LeaseRow, LeaseStore, ServerEntry
from fedhelm_overseer.members import verified
from fedhelm_overseer.metrics import Facts
from fedhelm_overseer.revocation_desk import RevocationDesk
from fedhelm_overseer.table import Table
from fedhelm_overseer.views import history_entry, primary_view, server_view

__all__ = ["Desk"]


class Desk:
    """One overseer's service; ``admins`` has what admins ask for, ``trust`` the list of revoked certificates.

    Args:
        kit: the overseer's kit: project, cluster, servers, times.
        store: the lease store.
        clock: boot time for every wait.
        kept: the list of revoked certificates on this overseer's own disk; None: it takes none.
    """

    def __init__(self, kit: Kit, store: LeaseStore, clock: Clock, kept: KeptRevocations | None = None) -> None:
        self._table = Table(kit, store, clock, kept)
        self._kit = kit
        self._store = store
        self._turn, self._lock = self._table.turn, self._table.lock
        self._board = self._table.board
        self._told = self._table.told
        self._decider = Decider(self._table)
        self._bearers: dict[str, tuple[str, str]] = {}
        self.admins = AdminDesk(self._table)
        self.trust = RevocationDesk(self._table)
        self.revocations = self._table.revocations
        self.changed: Bell = self._table.changed
        self.feed: EventFeed = self._table.feed

    @property
    def wake(self) -> Callable[[], None]:
        """What is called when a decision may be due before the next P; the observer sets it."""
        return self._table.wake

    @wake.setter
    def wake(self, wake: Callable[[], None]) -> None:
        self._table.wake = wake

    def follow(self, kit: Kit) -> None:
        """As :meth:`Table.follow`."""
        self._kit = dataclasses.replace(kit, timing=self._kit.timing)
        self._table.follow(kit)

    def register(self, name: str, request: RegisterRequest) -> RegisterReply:
        """Register an incarnation of the server ``name``.

        Raises:
            NotFound: no server of the project, and it showed no kit.
        """
        new = Holder(name, request.incarnation)
        if request.cluster is not None and request.cluster != self._kit.cluster:
            told = f"the log is of cluster {request.cluster}, this project's is {self._kit.cluster}"
            return RegisterReply(accepted=False, lease=self.lease(), message=told)
        try:
            shown = request.announcement
            entry = verified(shown, self._kit, name) if shown is not None else None
            with self._turn:
                entry = self._table.roster.admit(name, entry)
                other = self._live_other(new, request)
                if other is not None:
                    told, again = f"{name} is live already, as incarnation {other}", self._kit.timing.renew
                    return RegisterReply(accepted=False, lease=self.lease(), retry_after_s=again, message=told)
                self._enter(new, request, entry)
        except (KitError, Refused) as refusal:
            told = f"{refusal.message}; {refusal.hint}" if refusal.hint else refusal.message
            return RegisterReply(accepted=False, lease=self.lease(), message=told)
        self.wake()
        return RegisterReply(accepted=True, lease=self.lease())

    def _live_other(self, new: Holder, request: RegisterRequest) -> str | None:
        """Return the live incarnation that keeps ``new`` from its name."""
        with self._lock:
            old = self._board.sighting(new.name)
            if old is None or self._board.knows(new) or old.server.incarnation == request.replaces:
                return None
            return old.server.incarnation if self._board.live(new.name, self._table.now()) else None

    def _enter(self, new: Holder, request: RegisterRequest, entry: ServerEntry | None) -> None:
        with self._lock:
            old = self._board.sighting(new.name)
            known = self._board.knows(new)
        if entry is not None:
            self._announce(entry)
        if old is not None and old.server.incarnation == request.replaces and not known:
            self._release_reaped(old.server.holder)
        member = self._store.register(new)
        with self._lock:
            self._board.registered(member, request, self._table.now())

    def _announce(self, entry: ServerEntry) -> None:
        """Write down a server that showed its kit.

        Raises:
            Refused: another overseer heard of a newer kit, or of a removal, before.
        """
        moved = entry.name in self._table.roster
        in_force = self._store.announce(entry)
        self._table.refresh()
        if in_force != entry:
            self._table.roster.admit(entry.name, entry)
        else:
            self._told.added(entry, moved=moved)

    def beat(self, name: str, beat: BeatRequest) -> LeaseView:
        """Take a sign of life.

        Raises:
            NotFound: this incarnation is not the registered one.
            StoreUnavailable: the store did not answer for a term: another overseer knows more.
        """
        self._table.roster.check(name)
        holder = Holder(name, beat.incarnation)
        now = self._table.now()
        with self._lock:
            if not self._board.knows(holder):
                raise NotFound(f"{name} is not registered as incarnation {beat.incarnation}", hint="register again")
            before = self._board.sighting(name)
            self._board.beat(name, beat, now)
            after = self._board.sighting(name)
            changed = before is not None and after is not None and (before.server != after.server)
        self.check_sight()
        view = self.lease()
        if changed and view.state in {"never", "released"}:
            self.wake()
        return view

    def renew(self, name: str, request: RenewRequest) -> RenewReply:
        """Renew the holder's lease; a live writer above the row is adopted."""
        self._table.roster.check(name)
        holder = Holder(name, request.incarnation)
        with self._turn:
            row = self._store.renew(request.epoch, holder, request.log_seq)
            if row is None and request.epoch == request.log_epoch > self._board.row.epoch:
                row = self._adopt_claim(holder, request)
            if row is None:
                return RenewReply(held=False, lease=self._table.view(self._table.read()))
            with self._lock:
                known = self._board.knows(holder)
            if not known:
                self._register_holder(holder, request)
            self._table.take(row)
            with self._lock:
                self._board.renewed(name, request, self._table.now())
        self._table.metrics.renewed()
        return RenewReply(held=True, lease=self._table.view(row))

    def activate(self, name: str, request: ActivateRequest) -> LeaseView:
        """Take note that the holder's fence is in the log.

        Raises:
            Refused: the row is not this incarnation's.
        """
        holder = Holder(name, request.incarnation)
        with self._turn:
            self._table.read()
            now = self._table.now()
            with self._lock:
                gap = self._board.gap(now)
            stamp = self._table.stamp()
            row = self._store.activate(request.epoch, holder, request.log_seq, stamp, gap, jobs=request.jobs)
            if row is None:
                return self._table.view(self._already(request.epoch, holder, "active"))
            with self._lock:
                self._board.saw_row(row, now)
                self._board.activated(name, now, request.epoch, request.log_seq)
            term = self._store.history()[-1]
        self._told.active(term, gap)
        self.changed.ring()
        return self._table.view(row)

    def release(self, name: str, request: ReleaseRequest) -> LeaseView:
        """Take the lease back from its holder.

        Raises:
            Refused: the row is not this incarnation's.
        """
        holder = Holder(name, request.incarnation)
        with self._turn:
            before = self._table.read()
            handed = request.handoff and before.intent is not None
            cause = HANDOFF if handed else request.reason
            row = self._store.release(request.epoch, holder, cause, refused=request.refused)
            if row is None:
                return self._table.view(self._already(request.epoch, holder, "released"))
            self._note_release(row, holder, refused=request.refused, gone=not (request.handoff or request.refused))
        self.wake()
        return self._table.view(row)

    def promote(self, admin: str, request: PromoteRequest) -> PromoteReply:
        """As :meth:`AdminDesk.promote`."""
        return self.admins.promote(admin, request)

    def check_store(self) -> None:
        """Raise StoreUnavailable if the lease store does not answer."""
        self._store.read()

    def lease(self) -> LeaseView:
        """Return the row as last seen, and what is seen of the servers."""
        return self._table.view()

    def primary(self) -> PrimaryView:
        """Return who leads.

        Raises:
            NoPrimary: no holder whose fence is in the log renewed within T.
        """
        with self._lock:
            row, heard = self._board.row, self._board.holder_heard(self._table.now())
        if row.holder is None or row.state != "active" or not heard:
            if row.paused:
                by = f" by {row.paused_by}" if row.paused_by else ""
                raise NoPrimary(
                    f"no server leads at the moment, and failover is paused{by}", hint="`resume_failover` ends that"
                )
            raise NoPrimary(
                "no server leads at the moment", hint="see `list_sp`; the overseer grants as soon as it may"
            )
        address = self._table.roster.address(row.holder.name)
        if address is None:
            raise NoPrimary(f"{row.holder.name} leads, and its address is not known here", hint="ask another overseer")
        return primary_view(self._kit.project, address, row)

    def servers(self) -> tuple[ServerView, ...]:
        """Return the project's servers, in its order."""
        now = self._table.now()
        with self._lock:
            return tuple(server_view(one, self._board, now) for one in self._table.roster.addresses)

    def history(self) -> tuple[HistoryEntry, ...]:
        """Return the epochs, oldest first."""
        return tuple(history_entry(term) for term in self._store.history())

    def check_sight(self) -> None:
        """Refuse to answer for a store that did not answer for a term.

        Raises:
            StoreUnavailable: so it is.
        """
        with self._lock:
            blind = self._board.blind(self._table.now())
        if blind:
            raise StoreUnavailable("the lease store has not answered this overseer for a term")

    def metrics(self) -> bytes:
        """Return the figures in Prometheus' text format."""
        now = self._table.now()
        with self._lock:
            board, row = self._board, self._board.row
            servers = board.seen(now).servers.values()
            since = board.since_renewal(now)
            held = row.state in {"granted", "active"}
            facts = Facts(
                epoch=row.epoch,
                state=row.state,
                paused=row.paused,
                since_renewal=since,
                lease_left=self._kit.timing.lease - since if held and since is not None else None,
                up=sum(server.live for server in servers),
                servers=len(self._table.roster.names),
                refused=sum(server.refused is not None for server in servers),
                unleased_s=board.unleased_s,
                fenced=board.fenced,
                revocations=self.revocations.current.version,
            )
        return self._table.metrics.render(facts)

    def came(self, name: str, incarnation: str, serial: str) -> None:
        """Take note with which certificate the incarnation of a server calls."""
        self._bearers[name] = (incarnation, serial)

    def observe(self) -> Action:
        """As :meth:`Decider.observe`; a holder whose certificate was revoked holds nothing any more."""
        self._release_revoked()
        return self._decider.observe()

    def _release_revoked(self) -> None:
        """Nobody takes a call of such a holder, so nobody waits until its lease has run out; the log fences it."""
        with self._lock:
            holder = self._board.row.holder
        incarnation, serial = self._bearers.get(holder.name, ("", "")) if holder else ("", "")
        if holder is None or incarnation != holder.incarnation or self.revocations.counts(serial):
            return
        with self._turn:
            row = self._table.read()
            if row.holder != holder or row.state not in {"granted", "active"}:
                return
            new = self._store.release(row.epoch, holder, "its certificate was revoked", refused=False)
            if new is not None:
                self._note_release(new, holder, refused=False, gone=True)

    def _adopt_claim(self, holder: Holder, request: RenewRequest) -> LeaseRow | None:
        """A renewal of an epoch above the row: adopt the caller if ``decide`` agrees."""
        with self._lock:
            known = self._board.knows(holder)
        if not known:
            self._register_holder(holder, request)
        now = self._table.now()
        beat = BeatRequest(
            incarnation=request.incarnation,
            role=request.role,
            log_epoch=request.log_epoch,
            log_seq=request.log_seq,
            ready=True,
        )
        row = self._table.read()
        with self._lock:
            self._board.beat(holder.name, beat, now)
            action = decide(row, self._board.seen(now), self._kit.timing, now)
        return self._decider.adopt(action, row) if isinstance(action, Adopt) and action.holder == holder else None

    def _register_holder(self, holder: Holder, request: RenewRequest) -> None:
        """The holder renews before it registered here (the store was emptied): its certificate is proof enough."""
        member = self._store.register(holder)
        register = RegisterRequest(
            incarnation=holder.incarnation,
            role=request.role,
            log_epoch=request.log_epoch,
            log_seq=request.log_seq,
            ready=True,
        )
        with self._lock:
            self._board.registered(member, register, self._table.now())

    def _release_reaped(self, dead: Holder) -> None:
        """The supervisor has reaped ``dead``: if its release was lost, this is one."""
        row = self._table.read()
        if row.holder == dead and row.state in {"granted", "active"}:
            new = self._store.release(row.epoch, dead, "its process ended", refused=False)
            if new is not None:
                self._note_release(new, dead, refused=False, gone=True)

    def _note_release(self, row: LeaseRow, holder: Holder, *, refused: bool, gone: bool) -> None:
        now = self._table.now()
        with self._lock:
            self._board.released(row, holder.name, now, refused=row.cause if refused else None, gone=gone)
        self._told.released(row, holder, refused=refused)
        self.changed.ring()

    def _already(self, epoch: int, holder: Holder, state: str) -> LeaseRow:
        row = self._table.read()
        if (row.epoch, row.holder, row.state) != (epoch, holder, state):
            raise Refused(
                f"{holder.name} does not hold epoch {epoch}: the row is at epoch {row.epoch}, {row.state}",
                hint="demote",
            )
        return row
