"""The overseer's operations: they put board, store and ``decide`` together, and tell the feed what happened.

Every method is synchronous and may be called from any thread; one lock keeps what is read, decided, written and noted
in one order. Only beats and views pass without the store, so that a slow disk does not delay them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from fedhelm.clock import Clock, iso
from fedhelm.config.kit import Kit
from fedhelm.errors import Conflict, NoPrimary, NotFound, Refused
from fedhelm.wire.overseer_api import (
    ActivateRequest,
    BeatRequest,
    HistoryEntry,
    Intent,
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
from fedhelm_overseer.announcements import Announcements
from fedhelm_overseer.board import Board
from fedhelm_overseer.decide import Action, Adopt, DropIntent, Grant, Wait, decide, unfit
from fedhelm_overseer.events import Bell, EventFeed
from fedhelm_overseer.lease import HANDOFF, Holder, LeaseRow, LeaseStore
from fedhelm_overseer.views import history_entry, primary_view, server_view

__all__ = ["Desk"]

_log = logging.getLogger("fedhelm.overseer")
_CAS_TRIES = 5


class Desk:
    """One overseer's service.

    Args:
        kit: the overseer's kit: project, cluster, servers, times.
        store: the lease store.
        clock: boot time for every wait.
    """

    def __init__(self, kit: Kit, store: LeaseStore, clock: Clock) -> None:
        self._kit = kit
        self._store = store
        self._clock = clock
        # _turn orders what touches the store, _lock guards the board; _lock is never held over I/O.
        self._turn = threading.Lock()
        self._lock = threading.Lock()
        self._board = Board((one.name for one in kit.servers), kit.timing, clock.boottime(), store.members())
        self._board.saw_row(store.read(), clock.boottime())
        self._alarm: str | None = None
        self.feed = EventFeed(store.count_start(), clock)
        self._told = Announcements(self.feed)
        self.changed = Bell()
        self.wake: Callable[[], None] = lambda: None
        """Called when a decision may be due before the next P; the observer sets it."""

    def register(self, name: str, request: RegisterRequest) -> RegisterReply:
        """Register an incarnation of the server ``name``."""
        self._check_server(name)
        new = Holder(name, request.incarnation)
        if request.cluster is not None and request.cluster != self._kit.cluster:
            told = f"the log is of cluster {request.cluster}, this project's is {self._kit.cluster}"
            return RegisterReply(accepted=False, lease=self.lease(), message=told)
        with self._turn:
            now = self._clock.boottime()
            with self._lock:
                old = self._board.sighting(name)
                replaced = old is not None and old.server.incarnation == request.replaces
                known = self._board.knows(new)
                if old is not None and not known and not replaced and self._board.live(name, now):
                    told = f"{name} is live already, as incarnation {old.server.incarnation}"
                    again = self._kit.timing.renew
                    view = self._board.row.view()
                    return RegisterReply(accepted=False, lease=view, retry_after_s=again, message=told)
            if old is not None and replaced and not known:
                self._release_reaped(old.server.holder)
            member = self._store.register(new)
            with self._lock:
                self._board.registered(member, request, self._clock.boottime())
        self.wake()
        return RegisterReply(accepted=True, lease=self.lease())

    def beat(self, name: str, beat: BeatRequest) -> LeaseView:
        """Take a sign of life.

        Raises:
            NotFound: this incarnation is not the registered one.
        """
        self._check_server(name)
        holder = Holder(name, beat.incarnation)
        with self._lock:
            if not self._board.knows(holder):
                raise NotFound(f"{name} is not registered as incarnation {beat.incarnation}", hint="register again")
            before = self._board.sighting(name)
            self._board.beat(name, beat, self._clock.boottime())
            after = self._board.sighting(name)
            fitter = before is not None and after is not None and (before.server != after.server)
            view = self._board.row.view()
        if fitter and view.state in {"never", "released"}:
            self.wake()
        return view

    def renew(self, name: str, request: RenewRequest) -> RenewReply:
        """Renew the holder's lease; a live writer above the row is adopted."""
        self._check_server(name)
        holder = Holder(name, request.incarnation)
        with self._turn:
            row = self._store.renew(request.epoch, holder, request.log_seq)
            if row is None and request.epoch == request.log_epoch > self._board.row.epoch:
                row = self._adopt_claim(holder, request)
            if row is None:
                return RenewReply(held=False, lease=self._read().view())
            with self._lock:
                known = self._board.knows(holder)
            if not known:
                self._register_holder(holder, request)
            now = self._clock.boottime()
            with self._lock:
                self._board.saw_row(row, now)
                self._board.renewed(name, request, now)
        return RenewReply(held=True, lease=row.view())

    def activate(self, name: str, request: ActivateRequest) -> LeaseView:
        """Take note that the holder's fence is in the log.

        Raises:
            Refused: the row is not this incarnation's.
        """
        holder = Holder(name, request.incarnation)
        with self._turn:
            now = self._clock.boottime()
            with self._lock:
                gap = self._board.gap(now)
            stamp = iso(self._clock.utcnow())
            row = self._store.activate(request.epoch, holder, request.log_seq, stamp, gap)
            if row is None:
                return self._already(request.epoch, holder, "active").view()
            with self._lock:
                self._board.saw_row(row, now)
                self._board.activated(name, now)
            term = self._store.history()[-1]
        self._told.active(term, gap)
        self.changed.ring()
        return row.view()

    def release(self, name: str, request: ReleaseRequest) -> LeaseView:
        """Take the lease back from its holder.

        Raises:
            Refused: the row is not this incarnation's.
        """
        holder = Holder(name, request.incarnation)
        with self._turn:
            handed = request.handoff and self._board.row.intent is not None
            cause = HANDOFF if handed else request.reason
            row = self._store.release(request.epoch, holder, cause, refused=request.refused)
            if row is None:
                return self._already(request.epoch, holder, "released").view()
            self._note_release(row, holder, refused=request.refused, gone=not (request.handoff or request.refused))
        self.wake()
        return row.view()

    def promote(self, admin: str, request: PromoteRequest) -> PromoteReply:
        """Write the intent of a planned switchover into the row.

        Raises:
            NotFound: the project has no such server.
            NoPrimary: nobody leads, so there is nothing to switch over.
            Refused: the target leads already, or is not fit.
            Conflict: another switchover is under way.
        """
        self._check_server(request.target)
        with self._turn:
            for _ in range(_CAS_TRIES):
                row = self._read()
                repeated = self._repeated(row, request)
                if repeated is not None:
                    return repeated
                primary = self._check_promotable(row, request.target)
                intent = Intent(target=request.target, request_id=request.request_id)
                new = self._store.set_intent(row, intent)
                if new is not None:
                    break
            else:
                raise Conflict("the lease keeps changing", hint="try again")
            with self._lock:
                self._board.saw_row(new, self._clock.boottime())
        self._told.asked(admin, primary, request)
        self.changed.ring()
        return PromoteReply(epoch=row.epoch, primary=primary, target=request.target, request_id=request.request_id)

    def lease(self) -> LeaseView:
        """Return the row as last seen."""
        with self._lock:
            return self._board.row.view()

    def primary(self) -> PrimaryView:
        """Return who leads.

        Raises:
            NoPrimary: no holder whose fence is in the log renewed within T.
        """
        with self._lock:
            row, heard = self._board.row, self._board.holder_heard(self._clock.boottime())
        if row.holder is None or row.state != "active" or not heard:
            raise NoPrimary(
                "no server leads at the moment", hint="see `list_sp`; the overseer grants as soon as it may"
            )
        return primary_view(self._kit, row, row.holder)

    def servers(self) -> tuple[ServerView, ...]:
        """Return the project's servers, in its order."""
        now = self._clock.boottime()
        with self._lock:
            return tuple(server_view(one, self._board, now) for one in self._kit.servers)

    def history(self) -> tuple[HistoryEntry, ...]:
        """Return the epochs, oldest first."""
        return tuple(history_entry(term) for term in self._store.history())

    def observe(self) -> Action:
        """Read the row, decide, and do what was decided.

        Raises:
            StoreUnavailable: the store does not answer; the wait of T begins again when it was away for long.
        """
        with self._turn:
            row = self._read()
            now = self._clock.boottime()
            with self._lock:
                self._board.observed(now)
                seen = self._board.seen(now)
                came, went = self._board.movements(seen)
            action = decide(row, seen, self._kit.timing, now)
            self._apply(action, row)
        self._told.moved(came, went)
        return action

    def _apply(self, action: Action, row: LeaseRow) -> LeaseRow | None:
        if isinstance(action, Wait):
            self._raise_alarm(action if row.state != "never" else None)
            return None
        self._raise_alarm(None)
        if isinstance(action, Grant):
            return self._grant(action, row)
        if isinstance(action, Adopt):
            return self._adopt(action, row)
        assert isinstance(action, DropIntent)
        new = self._store.set_intent(row, None)
        if new is not None and row.intent is not None:
            self._noted(new)
            self._told.given_up(row.intent)
        return new

    def _grant(self, action: Grant, row: LeaseRow) -> LeaseRow | None:
        stamp = iso(self._clock.utcnow())
        new = self._store.grant(row, action.epoch, action.holder, action.cause, stamp, keep_intent=action.keep_intent)
        if new is None:
            return None
        now = self._clock.boottime()
        with self._lock:
            if row.holder is not None and row.state in {"granted", "active"}:
                (self._board.expired(row.holder, now) if action.expired else self._board.spend(row.holder))
            self._board.saw_row(new, now)
        self.changed.ring()
        self._told.granted(action, row)
        return new

    def _adopt(self, action: Adopt, row: LeaseRow) -> LeaseRow | None:
        new = self._store.adopt(row, action.epoch, action.holder, action.log_seq, iso(self._clock.utcnow()))
        if new is None:
            return None
        now = self._clock.boottime()
        with self._lock:
            self._board.saw_row(new, now)
            self._board.activated(action.holder.name, now)
        self.changed.ring()
        self._told.adopted(action)
        return new

    def _adopt_claim(self, holder: Holder, request: RenewRequest) -> LeaseRow | None:
        """A renewal of an epoch above the row: adopt the caller if ``decide`` agrees."""
        with self._lock:
            known = self._board.knows(holder)
        if not known:
            self._register_holder(holder, request)
        now = self._clock.boottime()
        beat = BeatRequest(
            incarnation=request.incarnation,
            role=request.role,
            log_epoch=request.log_epoch,
            log_seq=request.log_seq,
            ready=True,
        )
        row = self._read()
        with self._lock:
            self._board.beat(holder.name, beat, now)
            action = decide(row, self._board.seen(now), self._kit.timing, now)
        return self._adopt(action, row) if isinstance(action, Adopt) and action.holder == holder else None

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
            self._board.registered(member, register, self._clock.boottime())

    def _release_reaped(self, dead: Holder) -> None:
        """The supervisor has reaped ``dead``: if its release was lost, this is one."""
        row = self._read()
        if row.holder == dead and row.state in {"granted", "active"}:
            new = self._store.release(row.epoch, dead, "its process ended", refused=False)
            if new is not None:
                self._note_release(new, dead, refused=False, gone=True)

    def _note_release(self, row: LeaseRow, holder: Holder, *, refused: bool, gone: bool) -> None:
        now = self._clock.boottime()
        with self._lock:
            self._board.released(row, holder.name, now, refused=row.cause if refused else None, gone=gone)
        self._told.released(row, holder, refused=refused)
        self.changed.ring()

    def _already(self, epoch: int, holder: Holder, state: str) -> LeaseRow:
        row = self._read()
        if (row.epoch, row.holder, row.state) != (epoch, holder, state):
            raise Refused(
                f"{holder.name} does not hold epoch {epoch}: the row is at epoch {row.epoch}, {row.state}",
                hint="demote",
            )
        return row

    def _repeated(self, row: LeaseRow, request: PromoteRequest) -> PromoteReply | None:
        """Return the answer that this request id had, or None for a new one."""
        if row.intent is not None and row.intent.request_id == request.request_id:
            before = row.epoch
        else:
            terms = [term for term in self._store.history() if term.request_id == request.request_id]
            if not terms:
                return None
            before = terms[0].epoch - 1
        primary = next((term.holder.name for term in self._store.history() if term.epoch == before), "")
        return PromoteReply(epoch=before, primary=primary, target=request.target, request_id=request.request_id)

    def _check_promotable(self, row: LeaseRow, target: str) -> str:
        """Return the present primary's name if ``target`` may take over from it."""
        now = self._clock.boottime()
        with self._lock:
            heard = self._board.holder_heard(now)
            server = self._board.seen(now).servers.get(target)
            why = "it has not registered" if server is None else unfit(server, row)
            behind = self._board.behind(target) if server is not None else 0
            held_down = target in self._board.held_down(now)
        if row.holder is None or row.state != "active" or not heard:
            raise NoPrimary("no server leads at the moment, so there is nothing to switch over")
        if row.holder.name == target:
            raise Refused(f"{target} leads already, epoch {row.epoch}")
        if row.intent is not None:
            raise Conflict(f"a switchover to {row.intent.target} is under way")
        if why is None and behind:
            why = f"it is {behind} records behind"
        if why is None and held_down:
            why = "it lost the lease by expiry less than 30 s ago"
        if why is not None:
            raise Refused(f"{target} cannot take over: {why}", hint="`list_sp` shows the servers")
        return row.holder.name

    def _raise_alarm(self, wait: Wait | None) -> None:
        told = wait.reason if wait is not None and wait.alarm else None
        if told is not None and told != self._alarm:
            _log.warning("the lease is free and cannot be granted: %s", told)
        self._alarm = told

    def _noted(self, row: LeaseRow) -> None:
        with self._lock:
            self._board.saw_row(row, self._clock.boottime())
        self.changed.ring()

    def _read(self) -> LeaseRow:
        row = self._store.read()
        with self._lock:
            old = self._board.row.version
            self._board.saw_row(row, self._clock.boottime())
        if row.version != old:
            self.changed.ring()
        return row

    def _check_server(self, name: str) -> None:
        if all(one.name != name for one in self._kit.servers):
            known = ", ".join(one.name for one in self._kit.servers)
            raise NotFound(f"the project has no server {name}", hint=f"its servers: {known}")
