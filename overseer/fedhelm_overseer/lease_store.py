"""The lease store on SQLAlchemy Core: the same statements on SQLite and on PostgreSQL.

Every decision is one short transaction with a compare-and-set on the row, at READ COMMITTED on PostgreSQL: of two that
decide on one row, the second waits for the first and then finds the row changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import exc

from fedhelm.errors import Corrupt
from fedhelm.wire.overseer_api import Intent
from fedhelm_overseer.lease import Holder, LeaseRow, MemberRow, Operation, ServerEntry, Term
from fedhelm_overseer.lease_engines import Engines
from fedhelm_overseer.lease_tables import (
    COUNTERS,
    HISTORY,
    LEASE,
    MEMBERS,
    OPERATIONS,
    REVOCATIONS,
    SERVERS,
    lease_row,
    make_tables,
    operation_row,
    server_row,
    term_row,
)

__all__ = ["SqlLeaseStore"]

_TRIES = 3
_NO_INTENT = {"intent_target": None, "intent_request": None, "intent_by": None}

_R = TypeVar("_R")


class SqlLeaseStore:
    """A :class:`fedhelm_overseer.lease.LeaseStore` in a database, whose tables are made if they are missing.

    Args:
        engines: the database; closed with the store.
        project: whose row it is.

    Raises:
        StoreUnavailable: the database cannot be reached or written.
        Corrupt: it is not a database, or of a later schema.
    """

    def __init__(self, engines: Engines, project: str) -> None:
        self._engines = engines
        self._project = project
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise
        engines.opened(self._prepare)

    def read(self) -> LeaseRow:
        """Return the row."""
        with self._reading() as conn:
            return lease_row(conn.execute(sa.select(LEASE).where(self._mine())).mappings().one())

    def renew(self, epoch: int, holder: Holder, log_seq: int) -> LeaseRow | None:
        """Count a renewal; None if ``holder`` does not hold ``epoch`` (any more)."""
        values = {"renew_seq": LEASE.c.renew_seq + 1, "log_seq": _highest(log_seq)}
        with self._transaction(self._engines.renewals) as conn:
            return self._change(conn, self._held(epoch, holder), values, decision=False)

    def activate(
        self, epoch: int, holder: Holder, log_seq: int, at: str, gap_s: float | None, *, jobs: int | None = None
    ) -> LeaseRow | None:
        """Turn ``granted`` into ``active`` and write history; None if the row is not the holder's grant."""
        values = {"state": "active", "log_seq": _highest(log_seq), **_NO_INTENT}
        with self._transaction() as conn:
            row = self._change(conn, sa.and_(self._held(epoch, holder), LEASE.c.state == "granted"), values)
            if row is not None:
                self._write_history(conn, epoch, "active", at, holder, gap_s=gap_s, jobs=jobs)
            return row

    def release(self, epoch: int, holder: Holder, cause: str, *, refused: bool) -> LeaseRow | None:
        """Turn the holder's row into ``released``; None if it is not the holder's."""
        with self._transaction() as conn:
            row = self._change(conn, self._held(epoch, holder), {"state": "released", "cause": cause})
            if row is not None:
                self._mark(conn, holder, {"refused": cause} if refused else {"spent": True})
            return row

    def grant(
        self, row: LeaseRow, epoch: int, holder: Holder, cause: str, at: str, *, keep_intent: bool
    ) -> LeaseRow | None:
        """Give ``epoch`` to ``holder`` if the row still is ``row``; history in the same transaction."""
        values = self._new_term(row, epoch, holder, "granted", cause)
        intent = row.intent if keep_intent else None
        told = {"request_id": intent.request_id, "asked_by": row.intent_by} if intent else {}
        values |= {} if keep_intent else _NO_INTENT
        try:
            with self._transaction() as conn:
                new = self._change(conn, self._unchanged(row), values)
                if new is not None:
                    self._write_history(conn, epoch, "granted", at, holder, cause=cause, previous=_holder(row), **told)
                    self._spend(conn, row)
                return new
        except exc.IntegrityError:
            self._catch_up(row)
            return None

    def adopt(self, row: LeaseRow, epoch: int, holder: Holder, log_seq: int, at: str) -> LeaseRow | None:
        """Take a live writer's higher epoch over if the row still is ``row``."""
        values = self._new_term(row, epoch, holder, "active", "adopted")
        values |= {"log_seq": log_seq, **_NO_INTENT}
        with self._transaction() as conn:
            new = self._change(conn, self._unchanged(row), values)
            known = sa.select(HISTORY.c.epoch).where(HISTORY.c.project == self._project, HISTORY.c.epoch == epoch)
            if new is not None and conn.scalar(known) is None:
                self._write_history(conn, epoch, "granted", at, holder, cause="adopted", previous=_holder(row))
                self._write_history(conn, epoch, "active", at, holder)
            return new

    def set_intent(self, row: LeaseRow, intent: Intent | None, *, by: str | None = None) -> LeaseRow | None:
        """Set or clear the intent if the version is still that of ``row``."""
        values: dict[str, Any] = dict(_NO_INTENT)
        if intent is not None:
            values = {"intent_target": intent.target, "intent_request": intent.request_id, "intent_by": by}
        with self._transaction() as conn:
            return self._change(conn, LEASE.c.version == row.version, values)

    def set_paused(
        self, row: LeaseRow, paused: bool, by: str, *, request_id: str, at: str, reason: str = ""
    ) -> LeaseRow | None:
        """Pause or resume failover if the version is still that of ``row``; once for each request id."""
        operation = Operation(request_id, "pause" if paused else "resume", by, at, reason=reason)
        told = {"paused_by": by, "pause_reason": reason} if paused else {"paused_by": None, "pause_reason": None}

        def change(conn: sa.Connection) -> LeaseRow | None:
            return self._change(conn, LEASE.c.version == row.version, {"paused": paused, **told})

        return self._once(operation, change, self._row)

    def set_shutdown(self, request_id: str, by: str, *, at: str, reason: str = "") -> LeaseRow:
        """Write a shutdown into the row; once for each request id."""

        def change(conn: sa.Connection) -> LeaseRow | None:
            return self._change(conn, sa.true(), {"shutdown": request_id})

        row = self._once(Operation(request_id, "shutdown", by, at, reason=reason), change, self._row)
        assert row is not None
        return row

    def operations(self) -> tuple[Operation, ...]:
        """Return what admins asked for, oldest first."""
        query = sa.select(OPERATIONS).where(OPERATIONS.c.project == self._project)
        with self._reading() as conn:
            lines = conn.execute(query.order_by(OPERATIONS.c.at, OPERATIONS.c.request_id)).mappings().all()
        return tuple(map(operation_row, lines))

    def register(self, holder: Holder) -> MemberRow:
        """Write a registration and return it."""
        same = MEMBERS.c.incarnation == holder.incarnation
        values = {
            "incarnation": holder.incarnation,
            "spent": sa.case((same, MEMBERS.c.spent), else_=sa.false()),
            "refused": None,
        }
        update = sa.update(MEMBERS).where(self._member(holder.name)).values(values).returning(MEMBERS.c.spent)
        new = {"name": holder.name, "incarnation": holder.incarnation, "spent": False}

        def write(conn: sa.Connection) -> MemberRow:
            spent = conn.scalar(update)
            if spent is None:
                conn.execute(sa.insert(MEMBERS).values(project=self._project, **new))
            return MemberRow(holder.name, holder.incarnation, spent=bool(spent))

        return self._settled(write)

    def members(self) -> tuple[MemberRow, ...]:
        """Return the registrations, by name."""
        query = sa.select(MEMBERS).where(MEMBERS.c.project == self._project).order_by(MEMBERS.c.name)
        with self._reading() as conn:
            return tuple(
                MemberRow(row["name"], row["incarnation"], bool(row["spent"]), row["refused"])
                for row in conn.execute(query).mappings()
            )

    def servers(self) -> tuple[ServerEntry, ...]:
        """Return the servers that announced themselves, and those that were removed, by name."""
        query = sa.select(SERVERS).where(SERVERS.c.project == self._project).order_by(SERVERS.c.name)
        with self._reading() as conn:
            return tuple(map(server_row, conn.execute(query).mappings()))

    def announce(self, entry: ServerEntry) -> ServerEntry:
        """Write a server down, unless a newer kit or a removal stands against it; return the line in force."""
        values = {field: getattr(entry, field) for field in entry.__dataclass_fields__}
        allowed = sa.and_(
            SERVERS.c.kit_date <= entry.kit_date,
            sa.or_(SERVERS.c.removed_at.is_(None), SERVERS.c.removed_at < entry.kit_date),
        )

        def write(conn: sa.Connection) -> ServerEntry:
            known = self._server(conn, entry.name)
            if known is None:
                conn.execute(sa.insert(SERVERS).values(project=self._project, **values))
            elif known != entry:
                conn.execute(sa.update(SERVERS).where(self._entry(entry.name), allowed).values(values))
            return self._server(conn, entry.name) or entry

        return self._settled(write)

    def remove(self, name: str, by: str, *, request_id: str, at: str, reason: str = "") -> ServerEntry:
        """Take a server and its registration out; once for each request id."""

        def change(conn: sa.Connection) -> ServerEntry | None:
            done = conn.execute(sa.update(SERVERS).where(self._entry(name)).values(removed_at=at))
            if done.rowcount == 0:
                bare = {"name": name, "host": "", "fed_learn_port": 0, "admin_port": 0, "org": "", "kit_date": ""}
                conn.execute(sa.insert(SERVERS).values(project=self._project, removed_at=at, **bare))
            conn.execute(sa.delete(MEMBERS).where(self._member(name)))
            return self._server(conn, name)

        operation = Operation(request_id, "remove", by, at, name, reason)
        return self._once(operation, change, lambda conn: self._server(conn, name)) or ServerEntry(name)

    def history(self) -> tuple[Term, ...]:
        """Return the epochs, oldest first."""
        query = sa.select(HISTORY).where(HISTORY.c.project == self._project).order_by(HISTORY.c.epoch)
        with self._reading() as conn:
            lines = conn.execute(query).mappings().all()
        active = {line["epoch"]: line for line in lines if line["step"] == "active"}
        return tuple(term_row(line, active.get(line["epoch"])) for line in lines if line["step"] == "granted")

    def revocations(self, above: int = 0) -> tuple[int, bytes]:
        """Return version and text of the signed list of revoked certificates; no text if it is not above ``above``."""
        kept = REVOCATIONS.c.project == self._project
        text = sa.case((REVOCATIONS.c.version > above, REVOCATIONS.c.data), else_="")
        with self._reading() as conn:
            found = conn.execute(sa.select(REVOCATIONS.c.version, text).where(kept)).one_or_none()
        return (0, b"") if found is None else (found[0], found[1].encode())

    def revoke(self, version: int, data: bytes, *, over: int) -> LeaseRow | None:
        """Keep a list if the one that is kept has the version ``over``; None if it has another one."""
        if version <= over:
            raise ValueError(f"version {version} does not rise above {over}")
        kept = REVOCATIONS.c.project == self._project
        values = {"version": version, "data": data.decode()}

        def write(conn: sa.Connection) -> LeaseRow | None:
            now = conn.scalar(sa.select(REVOCATIONS.c.version).where(kept))
            if now is None and over == 0:
                conn.execute(sa.insert(REVOCATIONS).values(project=self._project, **values))
            else:
                update = sa.update(REVOCATIONS).where(kept, REVOCATIONS.c.version == over).values(values)
                if conn.execute(update).rowcount == 0:
                    return None
            return self._change(conn, sa.true(), {})

        return self._settled(write)

    def count_start(self) -> int:
        """Count a start of an overseer; return the number, from 1."""
        starts = sa.and_(COUNTERS.c.project == self._project, COUNTERS.c.name == "starts")
        update = sa.update(COUNTERS).where(starts).values(value=COUNTERS.c.value + 1).returning(COUNTERS.c.value)

        def write(conn: sa.Connection) -> int:
            value = conn.scalar(update)
            if value is None:
                conn.execute(sa.insert(COUNTERS).values(project=self._project, name="starts", value=1))
            return int(value or 1)

        return self._settled(write)

    def close(self) -> None:
        """Close the connections."""
        self._engines.close()

    def _prepare(self) -> None:
        """Make what is missing; also after the database was emptied while the store was open."""
        where = self._engines.name
        with self._engines.turn(writes=True):
            for attempt in range(_TRIES):
                try:
                    with self._engines.durable.begin() as conn:
                        make_tables(conn, self._project, where)
                except exc.OperationalError:
                    raise
                except exc.DatabaseError as error:
                    # Another overseer may have made them in this instant. The next look tells.
                    if attempt == _TRIES - 1:
                        raise Corrupt(f"{where} is not a lease store: {error.orig}") from None
                else:
                    return

    @contextmanager
    def _transaction(self, engine: sa.Engine | None = None) -> Iterator[sa.Connection]:
        with self._engines.turn(writes=True), (engine or self._engines.durable).begin() as conn:
            yield conn

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with self._engines.turn(writes=False), self._engines.durable.connect() as raw:
            conn = raw.execution_options(fedhelm_reads=True)
            with conn.begin():
                yield conn

    def _settled(self, write: Callable[[sa.Connection], _R]) -> _R:
        """Run a transaction that inserts what it did not find; again if another overseer inserted it first."""
        for _ in range(_TRIES - 1):
            try:
                with self._transaction() as conn:
                    return write(conn)
            except exc.IntegrityError:
                continue
        with self._transaction() as conn:
            return write(conn)

    def _once(
        self,
        operation: Operation,
        change: Callable[[sa.Connection], _R | None],
        present: Callable[[sa.Connection], _R | None],
    ) -> _R | None:
        """Write an operation down with its effect, or return what is there if its request id was used before."""
        key = sa.and_(OPERATIONS.c.project == self._project, OPERATIONS.c.request_id == operation.request_id)
        values = {
            "request_id": operation.request_id,
            "kind": operation.kind,
            "asked_by": operation.by,
            "at": operation.at,
            "target": operation.target,
            "reason": operation.reason,
        }

        def write(conn: sa.Connection) -> _R | None:
            if conn.scalar(sa.select(OPERATIONS.c.kind).where(key)) is not None:
                return present(conn)
            done = change(conn)
            if done is not None:
                conn.execute(sa.insert(OPERATIONS).values(project=self._project, **values))
            return done

        return self._settled(write)

    def _catch_up(self, row: LeaseRow) -> None:
        """The history has the epoch that was to be granted: the row is older than it. The next grant goes above both.

        It happens when the row alone came from a backup. Nobody is left to whom the old row would be of use: who holds
        its epoch let it run out or gave it back.
        """
        top = sa.select(sa.func.max(HISTORY.c.epoch)).where(HISTORY.c.project == self._project).scalar_subquery()
        with self._transaction() as conn:
            self._change(conn, self._unchanged(row), {"epoch": top})

    def _row(self, conn: sa.Connection) -> LeaseRow:
        return lease_row(conn.execute(sa.select(LEASE).where(self._mine())).mappings().one())

    def _server(self, conn: sa.Connection, name: str) -> ServerEntry | None:
        found = conn.execute(sa.select(SERVERS).where(self._entry(name))).mappings().one_or_none()
        return None if found is None else server_row(found)

    def _change(
        self, conn: sa.Connection, where: sa.ColumnElement[bool], values: dict[str, Any], *, decision: bool = True
    ) -> LeaseRow | None:
        """Compare and set in one statement; return the new row, or None when nothing matched."""
        if decision:
            values = values | {"version": LEASE.c.version + 1}
        update = sa.update(LEASE).where(self._mine(), where).values(values).returning(*LEASE.c)
        changed = conn.execute(update).mappings().one_or_none()
        return None if changed is None else lease_row(changed)

    def _spend(self, conn: sa.Connection, row: LeaseRow) -> None:
        """Bar the incarnation that let the lease of ``row`` run out."""
        if row.holder is not None and row.state in {"granted", "active"}:
            self._mark(conn, row.holder, {"spent": True})

    def _mark(self, conn: sa.Connection, holder: Holder, values: dict[str, Any]) -> None:
        who = sa.and_(self._member(holder.name), MEMBERS.c.incarnation == holder.incarnation)
        conn.execute(sa.update(MEMBERS).where(who).values(values))

    def _write_history(self, conn: sa.Connection, epoch: int, step: str, at: str, holder: Holder, **told: Any) -> None:
        who = {"holder": holder.name, "incarnation": holder.incarnation}
        conn.execute(sa.insert(HISTORY).values(project=self._project, epoch=epoch, step=step, at=at, **who, **told))

    def _mine(self) -> sa.ColumnElement[bool]:
        return LEASE.c.project == self._project

    def _member(self, name: str) -> sa.ColumnElement[bool]:
        return sa.and_(MEMBERS.c.project == self._project, MEMBERS.c.name == name)

    def _entry(self, name: str) -> sa.ColumnElement[bool]:
        return sa.and_(SERVERS.c.project == self._project, SERVERS.c.name == name)

    @staticmethod
    def _held(epoch: int, holder: Holder) -> sa.ColumnElement[bool]:
        return sa.and_(
            LEASE.c.epoch == epoch,
            LEASE.c.holder == holder.name,
            LEASE.c.incarnation == holder.incarnation,
            LEASE.c.state.in_(("granted", "active")),
        )

    @staticmethod
    def _unchanged(row: LeaseRow) -> sa.ColumnElement[bool]:
        # The version is not enough: a renewal leaves it.
        seen = (LEASE.c.epoch == row.epoch, LEASE.c.renew_seq == row.renew_seq, LEASE.c.state == row.state)
        return sa.and_(*seen, LEASE.c.version == row.version)

    @staticmethod
    def _new_term(row: LeaseRow, epoch: int, holder: Holder, state: str, cause: str) -> dict[str, Any]:
        if epoch <= row.epoch:
            raise ValueError(f"epoch {epoch} does not rise above {row.epoch}")
        return {
            "epoch": epoch,
            "holder": holder.name,
            "incarnation": holder.incarnation,
            "renew_seq": LEASE.c.renew_seq + 1,
            "state": state,
            "cause": cause,
        }


def _highest(log_seq: int) -> sa.ColumnElement[int]:
    return sa.case((LEASE.c.log_seq < log_seq, log_seq), else_=LEASE.c.log_seq)


def _holder(row: LeaseRow) -> str | None:
    return row.holder.name if row.holder else None
