"""Does what ``decide`` says: reads the row, asks, writes by compare-and-set, and tells."""

from __future__ import annotations

from fedhelm_overseer.decide import Action, Adopt, DropIntent, Grant, Wait, decide
from fedhelm_overseer.lease import LeaseRow
from fedhelm_overseer.table import Table

__all__ = ["Decider"]


class Decider:
    """The overseer's own part, beside what it is asked for. Any thread.

    Args:
        table: the overseer's state.
    """

    def __init__(self, table: Table) -> None:
        self._table = table
        self._alarm_since: float | None = None
        self._alarmed = False

    def observe(self) -> Action:
        """Read the row, decide, and do what was decided.

        Raises:
            StoreUnavailable: the store does not answer; the wait of T begins again when it was away for long.
        """
        with self._table.turn:
            row = self._table.read()
            now = self._table.now()
            with self._table.lock:
                self._table.board.observed(now)
                seen = self._table.board.seen(now)
                came, went = self._table.board.movements(seen)
            action = decide(row, seen, self._table.kit.timing, now)
            self._apply(action, row)
        self._table.told.moved(came, went)
        return action

    def _apply(self, action: Action, row: LeaseRow) -> LeaseRow | None:
        self._raise_alarm(action, row)
        if isinstance(action, Wait):
            return None
        if isinstance(action, Grant):
            return self._grant(action, row)
        if isinstance(action, Adopt):
            return self.adopt(action, row)
        assert isinstance(action, DropIntent)
        new = self._table.store.set_intent(row, None)
        if new is not None and row.intent is not None:
            self._table.noted(new)
            self._table.told.given_up(row.intent)
        return new

    def _grant(self, action: Grant, row: LeaseRow) -> LeaseRow | None:
        stamp = self._table.stamp()
        new = self._table.store.grant(
            row, action.epoch, action.holder, action.cause, stamp, keep_intent=action.keep_intent
        )
        if new is None:
            return None
        now = self._table.now()
        with self._table.lock:
            if row.holder is not None and row.state in {"granted", "active"}:
                (self._table.board.expired(row.holder, now) if action.expired else self._table.board.spend(row.holder))
            self._table.board.saw_row(new, now)
        self._table.changed.ring()
        self._table.told.granted(
            action.epoch, action.holder.name, action.cause, row.holder.name if row.holder else None
        )
        return new

    def adopt(self, action: Adopt, row: LeaseRow) -> LeaseRow | None:
        """Take a live writer over; None if the row changed. Call it in a turn."""
        new = self._table.store.adopt(row, action.epoch, action.holder, action.log_seq, self._table.stamp())
        if new is None:
            return None
        now = self._table.now()
        with self._table.lock:
            self._table.board.saw_row(new, now)
            self._table.board.activated(action.holder.name, now, action.epoch, action.log_seq)
        self._table.changed.ring()
        self._table.told.adopted(action.epoch, action.holder.name)
        return new

    def _raise_alarm(self, action: Action, row: LeaseRow) -> None:
        """Alarm once when nobody may be granted the lease for T, at once when that is for a pause."""
        now = self._table.now()
        with self._table.lock:
            down = self._table.board.down_asked()
        if not isinstance(action, Wait) or not action.alarm or down or (row.state == "never" and not action.paused):
            self._alarm_since, self._alarmed = None, False
            self._table.metrics.alarm(raised=False)
            return
        if self._alarm_since is None:
            self._alarm_since = now
        due = action.paused or now - self._alarm_since >= self._table.kit.timing.lease
        if due and not self._alarmed:
            self._alarmed = True
            self._table.metrics.alarm(raised=True)
            self._table.told.alarm(action.reason)
