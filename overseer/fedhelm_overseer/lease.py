"""The values of the lease and the contract of the store that keeps them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, Protocol

from fedhelm.errors import StoreUnavailable
from fedhelm.wire.overseer_api import Intent, LeaseState, LeaseView

__all__ = [
    "HANDOFF",
    "Holder",
    "LeaseRow",
    "LeaseStore",
    "MemberRow",
    "Operation",
    "OperationKind",
    "ServerEntry",
    "StoreAway",
    "Term",
]

OperationKind = Literal["pause", "resume", "shutdown", "remove"]

HANDOFF = "handoff"
"""Cause in the row after a release for a planned switchover."""


class StoreAway(StoreUnavailable):
    """The database below the lease store does not answer.

    ``message`` has what the database said: for the log, and for whoever runs the overseer. Addresses, names and users
    may be in it, so callers are told ``public`` and ``HINT``.
    """

    HINT: Final = "the overseer's log.txt has the reason"
    public: str = "the lease store does not answer"


@dataclass(frozen=True, slots=True)
class Holder:
    """Who may hold the lease: a server's name and one incarnation of its child."""

    name: str
    incarnation: str


@dataclass(frozen=True, slots=True)
class LeaseRow:
    """The lease row; ``version`` rises with every change but a renewal, ``renew_seq`` with renewals.

    ``intent_by`` is the admin who asked for the switchover, ``paused_by`` the one who paused failover, and why.
    ``shutdown`` is the request id of the newest shutdown.
    """

    version: int = 0
    epoch: int = 0
    holder: Holder | None = None
    renew_seq: int = 0
    state: LeaseState = "never"
    intent: Intent | None = None
    paused: bool = False
    log_seq: int = -1
    cause: str | None = None
    intent_by: str | None = None
    paused_by: str | None = None
    pause_reason: str | None = None
    shutdown: str | None = None

    def view(self) -> LeaseView:
        """Return the row as the API shows it."""
        return LeaseView(
            version=self.version,
            epoch=self.epoch,
            holder=self.holder.name if self.holder else None,
            incarnation=self.holder.incarnation if self.holder else None,
            renew_seq=self.renew_seq,
            state=self.state,
            intent=self.intent,
            paused=self.paused,
            log_seq=self.log_seq,
            cause=self.cause,
            shutdown=self.shutdown,
        )


@dataclass(frozen=True, slots=True)
class MemberRow:
    """A registration.

    ``spent``: this incarnation held the lease, and lost it or gave it back; only another one may be granted it.
    ``refused``: why it gave a grant back; cleared when it registers again.
    """

    name: str
    incarnation: str
    spent: bool = False
    refused: str | None = None


@dataclass(frozen=True, slots=True)
class Term:
    """One epoch of the history.

    ``request_id`` is that of the switchover that led to it, ``by`` the admin who asked for that; ``jobs`` had begun
    before and went on in this epoch.
    """

    epoch: int
    holder: Holder
    cause: str
    granted_at: str
    previous: str | None = None
    request_id: str | None = None
    active_at: str | None = None
    gap_s: float | None = None
    by: str | None = None
    jobs: int | None = None


@dataclass(frozen=True, slots=True)
class Operation:
    """What an admin asked for, once for each ``request_id``; ``target`` is the server of a removal."""

    request_id: str
    kind: OperationKind
    by: str
    at: str
    target: str | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ServerEntry:
    """A server that announced itself with its signed kit, or that was removed.

    ``kit_date`` (when the kit was issued) and ``removed_at`` are times as :func:`fedhelm.clock.iso` writes them, which
    compare as text. A removed server keeps its line, so that a kit from before the removal stays out; what was never
    announced has no addresses then.
    """

    name: str
    host: str = ""
    fed_learn_port: int = 0
    admin_port: int = 0
    org: str = ""
    kit_date: str = ""
    removed_at: str | None = None


class LeaseStore(Protocol):
    """One project's lease row, history and registrations.

    Each decision is one compare-and-set: it returns the new row, or None with nothing changed when the row was not as
    expected. Methods may be called from any thread, and raise ``StoreUnavailable`` when the store does not answer.
    """

    def read(self) -> LeaseRow:
        """Return the row."""
        ...

    def renew(self, epoch: int, holder: Holder, log_seq: int) -> LeaseRow | None:
        """Count a renewal, if ``holder`` holds ``epoch`` and has not released it. ``log_seq`` never goes back."""
        ...

    def activate(
        self, epoch: int, holder: Holder, log_seq: int, at: str, gap_s: float | None, *, jobs: int | None = None
    ) -> LeaseRow | None:
        """Turn ``granted`` into ``active``, clear the intent, and write history."""
        ...

    def release(self, epoch: int, holder: Holder, cause: str, *, refused: bool) -> LeaseRow | None:
        """Turn the holder's row into ``released``; the incarnation is then refused (with the cause) or spent."""
        ...

    def grant(
        self, row: LeaseRow, epoch: int, holder: Holder, cause: str, at: str, *, keep_intent: bool
    ) -> LeaseRow | None:
        """Give a higher ``epoch`` to ``holder`` if epoch, renewals and state are still those of ``row``.

        The holder before is spent unless it was refused. History is written in the same transaction, with the intent's
        request id and admin if the intent is kept.
        """
        ...

    def adopt(self, row: LeaseRow, epoch: int, holder: Holder, log_seq: int, at: str) -> LeaseRow | None:
        """Take a live writer's higher epoch over, as ``active``, if the row is still ``row``."""
        ...

    def set_intent(self, row: LeaseRow, intent: Intent | None, *, by: str | None = None) -> LeaseRow | None:
        """Set (asked for by the admin ``by``) or clear the intent if the version is still that of ``row``."""
        ...

    def set_paused(
        self, row: LeaseRow, paused: bool, by: str, *, request_id: str, at: str, reason: str = ""
    ) -> LeaseRow | None:
        """Pause or resume failover if the version is still that of ``row``.

        A request id that was used before changes nothing; the row is returned as it is.
        """
        ...

    def set_shutdown(self, request_id: str, by: str, *, at: str, reason: str = "") -> LeaseRow:
        """Write a shutdown into the row; a request id that was used before changes nothing."""
        ...

    def operations(self) -> tuple[Operation, ...]:
        """Return what admins asked for, oldest first."""
        ...

    def servers(self) -> tuple[ServerEntry, ...]:
        """Return the servers that announced themselves, and those that were removed, by name."""
        ...

    def announce(self, entry: ServerEntry) -> ServerEntry:
        """Write a server down, and return the line that is in force.

        That is ``entry``, unless a newer kit announced this name before, or it was removed after the kit was issued.
        """
        ...

    def remove(self, name: str, by: str, *, request_id: str, at: str, reason: str = "") -> ServerEntry:
        """Take a server and its registration out; return its line with ``removed_at``.

        A request id that was used before changes nothing.
        """
        ...

    def register(self, holder: Holder) -> MemberRow:
        """Write a registration; a new incarnation is not spent, and none is refused any more."""
        ...

    def members(self) -> tuple[MemberRow, ...]:
        """Return the registrations, by name."""
        ...

    def history(self) -> tuple[Term, ...]:
        """Return the epochs, oldest first."""
        ...

    def revocations(self, above: int = 0) -> tuple[int, bytes]:
        """Return version and text of the signed list of revoked certificates, (0, b"") if none is kept.

        The text is empty where the version is not above ``above``: it may be some megabytes.
        """
        ...

    def revoke(self, version: int, data: bytes, *, over: int) -> LeaseRow | None:
        """Keep a list if the one that is kept still has the version ``over``, 0 for none; the row's version rises.

        Nothing is verified here.
        """
        ...

    def count_start(self) -> int:
        """Count a start of an overseer; return the number, from 1."""
        ...

    def close(self) -> None:
        """Close the connections."""
        ...
