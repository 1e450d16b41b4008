"""Who gets the lease: a pure function of the row, what was seen, and the time (docs/ha.md, sections 3 and 4).

``decide`` is asked every P and after every event. It returns one action; the store applies it by compare-and-set, so
that two overseers that decide at once change the row once. Times are boot time of the observer's own machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fedhelm.config.timing import Timing
from fedhelm.wire.overseer_api import Role
from fedhelm_overseer.lease import HANDOFF, Holder, LeaseRow

__all__ = [
    "EXPIRED",
    "HOLD_DOWN",
    "Action",
    "Adopt",
    "DropIntent",
    "Grant",
    "Seen",
    "Server",
    "Wait",
    "after_primary",
    "decide",
    "rank",
    "unfit",
]

HOLD_DOWN = 30.0
"""Seconds for which a server that lost the lease by expiry is not preferred."""

EXPIRED = "lease expired"
"""Cause of a grant whose predecessor fell silent."""

_WRITERS = frozenset({"ACTIVE", "DRAINING", "UNLEASED", "READONLY"})
_ROLL_BACK = 2.0
_INTENT_TERMS = 4


@dataclass(frozen=True, slots=True)
class Server:
    """A registered incarnation and what it last reported; ``live``: heard within T."""

    name: str
    incarnation: str
    order: int
    live: bool = True
    role: Role = "STANDBY"
    ready: bool = True
    store_ok: bool = True
    unleased: bool = False
    log_epoch: int = 0
    log_seq: int = 0
    spent: bool = False
    refused: str | None = None

    @property
    def holder(self) -> Holder:
        """Name and incarnation."""
        return Holder(self.name, self.incarnation)


@dataclass(frozen=True, slots=True)
class Seen:
    """What this observer knows.

    Attributes:
        expected: number of servers that the project has.
        servers: those registered, by name.
        unchanged_since: when (epoch, renewals, state) last changed, the observer started, or its view was interrupted.
        version_since: the same for the row's version.
        first_fit_since: when the first server that may be granted the lease appeared; None while there is none.
        held_down: names that lost the lease by expiry within ``HOLD_DOWN``.
    """

    expected: int
    servers: Mapping[str, Server]
    unchanged_since: float
    version_since: float
    first_fit_since: float | None = None
    held_down: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True)
class Grant:
    """Give ``epoch`` to ``holder``. ``expired``: the holder before let its lease run out."""

    epoch: int
    holder: Holder
    cause: str
    expired: bool = False
    keep_intent: bool = False


@dataclass(frozen=True, slots=True)
class Adopt:
    """The row is behind a live writer: take its epoch over."""

    epoch: int
    holder: Holder
    log_seq: int


@dataclass(frozen=True, slots=True)
class DropIntent:
    """The primary did not drain for the switchover in time: forget it."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do.

    ``alarm``: nobody leads, and nobody will before somebody does something. ``paused``: because an admin paused it.
    """

    reason: str
    alarm: bool = False
    paused: bool = False


Action = Grant | Adopt | DropIntent | Wait


@dataclass(frozen=True, slots=True)
class _Due:
    cause: str
    expired: bool = False


def decide(row: LeaseRow, seen: Seen, timing: Timing, now: float) -> Action:
    """Return what to do about ``row`` now."""
    top = max((server.log_epoch for server in seen.servers.values()), default=0)
    writer = _live_writer(row, seen, top)
    if writer is not None:
        return Adopt(top, writer.holder, writer.log_seq)
    due = _due(row, seen, timing, now, top)
    if isinstance(due, Wait):
        return _intent_overdue(row, seen, timing, now) or due
    if row.paused and not _asked_for(row):
        return Wait(f"failover is paused: nothing is granted ({due.cause})", alarm=True, paused=True)
    fit = [server for server in seen.servers.values() if unfit(server, row) is None]
    if not fit:
        return Wait(_nobody(row, seen), alarm=True)
    chosen = min(fit, key=lambda server: rank(server, row, seen))
    handed = row.state == "released" and row.cause == HANDOFF
    on_target = handed and row.intent is not None and chosen.name == row.intent.target
    cause = "switchover" if on_target else due.cause
    return Grant(max(row.epoch, top) + 1, chosen.holder, cause, expired=due.expired, keep_intent=on_target)


def unfit(server: Server, row: LeaseRow) -> str | None:
    """Return why ``server`` may not be granted the lease, or None if it may."""
    obstacles = (
        (not server.live, "it is down"),
        (server.holder == row.holder and row.state in {"granted", "active"}, "it holds the lease"),
        (server.refused is not None, f"it refused: {server.refused}"),
        (server.spent and not _never_led(server, row), "this incarnation held the lease before"),
        (server.role != "STANDBY", f"it is {server.role}"),
        (not server.store_ok, "its write probe of the store fails"),
        (not server.ready, "it is not ready"),
    )
    return next((why for obstructs, why in obstacles if obstructs), None)


def after_primary(row: LeaseRow, seen: Seen, timing: Timing, now: float) -> Action:
    """Return what would be done if the primary's machine died now, and a term had passed: ``decide`` itself says."""
    silent = {
        name: replace(server, live=server.live and server.holder != row.holder) for name, server in seen.servers.items()
    }
    past = now - timing.lease
    return decide(row, replace(seen, servers=silent, unchanged_since=past, first_fit_since=past), timing, now)


def _never_led(server: Server, row: LeaseRow) -> bool:
    """Tell whether a spent incarnation may be trusted again: its grant came to nothing, and can come to nothing more.

    It is a standby yet, though a child that led never is again; and it has read a fence above the epoch it was granted,
    so that it cannot use that one any more. Else a standby that missed its grant would be out until it is restarted.
    """
    return server.holder != row.holder and row.state == "active" and server.log_epoch >= row.epoch


def _asked_for(row: LeaseRow) -> bool:
    """Tell whether an admin asked for what is due: the grant of a planned switchover, or the way back from it.

    The way back is due when the target does not come to lead: it falls silent, or dies and its supervisor says so.
    """
    if row.intent is None:
        return False
    handed = row.state == "released" and row.cause == HANDOFF
    given_up = row.state == "released" and row.holder is not None and row.holder.name == row.intent.target
    return handed or given_up or row.state == "granted"


def _live_writer(row: LeaseRow, seen: Seen, top: int) -> Server | None:
    """Return the one live server that writes under an epoch above the row's (database emptied or restored)."""
    if top <= row.epoch:
        return None
    writers = [
        server
        for server in seen.servers.values()
        if server.live and server.log_epoch == top and (server.role in _WRITERS or server.unleased)
    ]
    # Two that claim one epoch: one of them has not read its foreign fence yet. Wait until it has.
    return writers[0] if len(writers) == 1 else None


def _due(row: LeaseRow, seen: Seen, timing: Timing, now: float, top: int) -> _Due | Wait:
    """Return why the lease may be granted now, or what is waited for."""
    stood_still = now - seen.unchanged_since >= timing.lease
    if top > row.epoch:
        # Whatever the row says is older than the log: a holder that we do not know may live.
        return _Due(f"log at epoch {top}", expired=True) if stood_still else Wait("the row is behind the log")
    if row.state == "released":
        return _Due(row.cause or "released")
    if row.state == "never":
        return _first_grant(seen, timing, now, stood_still=stood_still)
    return _held(row, seen, timing, now, stood_still=stood_still)


def _held(row: LeaseRow, seen: Seen, timing: Timing, now: float, *, stood_still: bool) -> _Due | Wait:
    if stood_still:
        return _Due(EXPIRED, expired=True)
    handed_to_target = row.state == "granted" and row.intent is not None
    if handed_to_target and now - seen.version_since >= max(_ROLL_BACK, timing.promote):
        return _Due("switchover rolled back")
    return Wait("the lease is held")


def _first_grant(seen: Seen, timing: Timing, now: float, *, stood_still: bool) -> _Due | Wait:
    if any(server.log_seq > 0 for server in seen.servers.values()):
        # Records beyond genesis and no epoch: not the log of a fresh project.
        return _Due("first grant") if stood_still else Wait("the log is not fresh")
    fit = sum(unfit(server, LeaseRow()) is None for server in seen.servers.values())
    if fit >= seen.expected:
        return _Due("first grant")
    if seen.first_fit_since is not None and now - seen.first_fit_since >= 2 * timing.renew:
        return _Due("first grant")
    return Wait("waiting for all servers to register")


def _intent_overdue(row: LeaseRow, seen: Seen, timing: Timing, now: float) -> DropIntent | None:
    pending = row.state == "active" and row.intent is not None
    return DropIntent() if pending and now - seen.version_since >= _INTENT_TERMS * timing.lease else None


def rank(server: Server, row: LeaseRow, seen: Seen) -> tuple[bool, bool, int, int, int]:
    """Smaller is better: the target asked for, not the one that just lost it, longest log, order of the project."""
    asked = row.intent is not None and server.name == row.intent.target
    lost = (row.holder is not None and server.name == row.holder.name) or server.name in seen.held_down
    return (not asked, lost, -server.log_epoch, -server.log_seq, server.order)


def _nobody(row: LeaseRow, seen: Seen) -> str:
    if not seen.servers:
        return "no server has registered"
    reasons = (f"{server.name}: {unfit(server, row)}" for server in seen.servers.values())
    return "nobody may be granted the lease: " + "; ".join(reasons)
