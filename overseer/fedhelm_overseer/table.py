"""What all operations of an overseer share: store, board, roster, feed and figures, and the order of their use.

``turn`` orders what touches the store; ``lock`` guards the board and is never held over I/O. A row that changed without
this process was changed by another overseer: that is told as well, and servers and registrations are read again.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable

from fedhelm.clock import Clock, iso
from fedhelm.config.kit import Kit
from fedhelm.errors import StoreUnavailable
from fedhelm.security.kept_revocations import KeptRevocations
from fedhelm.wire.overseer_api import LeaseView
from fedhelm_overseer.announcements import Announcements
from fedhelm_overseer.board import Board
from fedhelm_overseer.events import Bell, EventFeed
from fedhelm_overseer.lease import LeaseRow, LeaseStore
from fedhelm_overseer.members import Roster, kit_date
from fedhelm_overseer.metrics import Metrics
from fedhelm_overseer.revocations import Revocations

__all__ = ["Table"]


class Table:
    """One overseer's state.

    Args:
        kit: the overseer's kit: project, cluster, servers, times.
        store: the lease store.
        clock: boot time for every wait.
        kept: the list of revoked certificates on this overseer's own disk; None: it takes none.
    """

    def __init__(self, kit: Kit, store: LeaseStore, clock: Clock, kept: KeptRevocations | None = None) -> None:
        self.kit = kit
        self.revocations = Revocations(kit, store, kept)
        self.store = store
        self.clock = clock
        self.turn = threading.Lock()
        self.lock = threading.Lock()
        self._signed = kit_date(kit)
        self.roster = Roster(kit, self._signed, store.servers())
        self.board = Board(self.roster.names, kit.timing, clock.boottime(), store.members())
        self.board.saw_row(store.read(), clock.boottime())
        if _led_since_shutdown(store, self.board.row):
            self.board.started_again()
        self._refreshed = clock.boottime()
        self.metrics = Metrics()
        self.feed = EventFeed(store.count_start(), clock)
        self.told = Announcements(self.feed, self.metrics)
        self.changed = Bell()
        self.wake: Callable[[], None] = lambda: None
        self.synchronise()

    def now(self) -> float:
        """Return boot time."""
        return self.clock.boottime()

    def stamp(self) -> str:
        """Return the wall clock for the history."""
        return iso(self.clock.utcnow())

    def view(self, row: LeaseRow | None = None) -> LeaseView:
        """Return ``row``, or the row as last seen, with what this overseer sees of the servers."""
        now = self.now()
        with self.lock:
            return (
                (row or self.board.row)
                .view()
                .model_copy(
                    update={
                        "log_version": self.board.log_version(),
                        "store_tokens": self.board.store_tokens(now),
                        "standby_store_ok": self.board.standby_store_ok(now),
                    }
                )
            )

    def read(self) -> LeaseRow:
        """Read the row; call it in a turn.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        before = self.now()
        try:
            row = self.store.read()
            self.metrics.store_took(self.now() - before)
            if before - self._refreshed >= self.kit.timing.lease:
                self.refresh()
            self.take(row)
        except StoreUnavailable:
            self.metrics.store_failed()
            raise
        return row

    def take(self, row: LeaseRow) -> None:
        """Take note of a row that was read, or renewed; what another overseer decided since is told. Call it in a turn.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        with self.lock:
            old = self.board.row
        foreign = (row.version, row.epoch, row.state) != (old.version, old.epoch, old.state)
        if not foreign:
            with self.lock:
                self.board.saw_row(row, self.now())
            return
        self.refresh()
        terms = self.store.history()
        with self.lock:
            self.board.saw_row(row, self.now())
            holder = self.board.sighting(row.holder.name) if row.holder else None
        self.told.noticed(old, row, terms, refused=holder is not None and holder.server.refused is not None)
        self.changed.ring()

    def refresh(self) -> None:
        """Read servers, registrations and the list of revoked certificates again; call it in a turn."""
        entries, members = self.store.servers(), self.store.members()
        self.roster = Roster(self.kit, self._signed, entries)
        with self.lock:
            self.board.sync(self.roster.names, members, self.now())
        self.synchronise()
        self._refreshed = self.now()

    def synchronise(self) -> None:
        """Take a newer list of revoked certificates from the store, or write this overseer's there; in a turn.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        added, row = self.revocations.synchronise()
        if added is not None:
            self.told.revoked(self.revocations.current, added, None)
            self.changed.ring()
        if row is not None:
            self.noted(row)

    def follow(self, kit: Kit) -> None:
        """Take a kit that took the former one's place: its roots, and its servers; times count from the next start."""
        with self.turn:
            self.revocations.trust(kit)
            self.kit = dataclasses.replace(kit, timing=self.kit.timing)
            self._signed = kit_date(kit)
            self.refresh()

    def noted(self, row: LeaseRow) -> None:
        """Take note of a row that this process wrote; call it in the same turn."""
        with self.lock:
            self.board.saw_row(row, self.now())
        self.changed.ring()


def _led_since_shutdown(store: LeaseStore, row: LeaseRow) -> bool:
    """Tell whether a server led after the shutdown in the row was asked for: then it is over.

    By the history's times: only what people are told depends on it.
    """
    asked = next((one.at for one in store.operations() if one.request_id == row.shutdown), None)
    return asked is not None and any(term.active_at is not None and term.active_at > asked for term in store.history())
