"""The lease store on SQLAlchemy Core: SQLite here; the statements are plain enough for PostgreSQL.

SQLite runs in WAL mode, and every transaction that writes begins with ``BEGIN IMMEDIATE``. Renewals go over connections
at ``synchronous=NORMAL``: one lost in a power cut only lengthens a wait. All else is at FULL.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event, exc

from fedhelm.errors import Corrupt, StoreUnavailable
from fedhelm.wire.overseer_api import Intent
from fedhelm_overseer.lease import Holder, LeaseRow, MemberRow, Term

__all__ = ["SqlLeaseStore"]

_SCHEMA = 1

_metadata = sa.MetaData()
_lease = sa.Table(
    "lease",
    _metadata,
    sa.Column("project", sa.String(64), primary_key=True),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("holder", sa.String(253)),
    sa.Column("incarnation", sa.String(64)),
    sa.Column("renew_seq", sa.BigInteger, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("intent_target", sa.String(253)),
    sa.Column("intent_request", sa.String(64)),
    sa.Column("paused", sa.Boolean, nullable=False),
    sa.Column("log_seq", sa.BigInteger, nullable=False),
    sa.Column("cause", sa.Text),
)
# Append-only: a grant writes one line, its activation another. The key allows one grant of an epoch, whatever happens.
_history = sa.Table(
    "history",
    _metadata,
    sa.Column("project", sa.String(64), primary_key=True),
    sa.Column("epoch", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("step", sa.String(16), primary_key=True),
    sa.Column("at", sa.String(32), nullable=False),
    sa.Column("holder", sa.String(253), nullable=False),
    sa.Column("incarnation", sa.String(64), nullable=False),
    sa.Column("cause", sa.Text),
    sa.Column("previous", sa.String(253)),
    sa.Column("request_id", sa.String(64)),
    sa.Column("gap_s", sa.Float),
)
_members = sa.Table(
    "members",
    _metadata,
    sa.Column("project", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(253), primary_key=True),
    sa.Column("incarnation", sa.String(64), nullable=False),
    sa.Column("spent", sa.Boolean, nullable=False),
    sa.Column("refused", sa.Text),
)
_counters = sa.Table(
    "counters",
    _metadata,
    sa.Column("project", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)


class SqlLeaseStore:
    """A :class:`fedhelm_overseer.lease.LeaseStore` in one SQLite file, which is made if it is missing.

    Args:
        path: the database file.
        project: whose row it is.
        busy_s: longest wait for another process's transaction.

    Raises:
        StoreUnavailable: the file cannot be opened or written.
        Corrupt: it is not a database, or of another schema.
    """

    def __init__(self, path: Path, project: str, *, busy_s: float = 5.0) -> None:
        self._project = project
        # Threads of one process queue here: SQLite's own waiting sleeps for milliseconds at a time.
        self._writing = threading.Lock()
        self._durable = _engine(path, "FULL", busy_s)
        self._renewals = _engine(path, "NORMAL", busy_s)
        try:
            self._prepare(path)
        except BaseException:
            self.close()
            raise

    def read(self) -> LeaseRow:
        """Return the row."""
        with self._reading() as conn:
            return self._row(conn)

    def renew(self, epoch: int, holder: Holder, log_seq: int) -> LeaseRow | None:
        """Count a renewal; None if ``holder`` does not hold ``epoch`` (any more)."""
        values = {"renew_seq": _lease.c.renew_seq + 1, "log_seq": _highest(log_seq)}
        with self._transaction(self._renewals) as conn:
            return self._change(conn, self._held(epoch, holder), values, decision=False)

    def activate(self, epoch: int, holder: Holder, log_seq: int, at: str, gap_s: float | None) -> LeaseRow | None:
        """Turn ``granted`` into ``active`` and write history; None if the row is not the holder's grant."""
        values = {"state": "active", "log_seq": _highest(log_seq), "intent_target": None, "intent_request": None}
        with self._transaction() as conn:
            row = self._change(conn, sa.and_(self._held(epoch, holder), _lease.c.state == "granted"), values)
            if row is not None:
                self._write_history(conn, epoch, "active", at, holder, gap_s=gap_s)
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
        if epoch <= row.epoch:
            raise ValueError(f"epoch {epoch} does not rise above {row.epoch}")
        values = self._new_term(epoch, holder, "granted", cause)
        if not keep_intent:
            values |= {"intent_target": None, "intent_request": None}
        with self._transaction() as conn:
            new = self._change(conn, self._unchanged(row), values)
            if new is not None:
                request = row.intent.request_id if keep_intent and row.intent else None
                self._write_history(conn, epoch, "granted", at, holder, cause=cause, row=row, request_id=request)
                self._spend(conn, row)
            return new

    def adopt(self, row: LeaseRow, epoch: int, holder: Holder, log_seq: int, at: str) -> LeaseRow | None:
        """Take a live writer's higher epoch over if the row still is ``row``."""
        if epoch <= row.epoch:
            raise ValueError(f"epoch {epoch} does not rise above {row.epoch}")
        values = self._new_term(epoch, holder, "active", "adopted")
        values |= {"log_seq": log_seq, "intent_target": None, "intent_request": None}
        with self._transaction() as conn:
            new = self._change(conn, self._unchanged(row), values)
            if new is not None:
                self._write_history(conn, epoch, "granted", at, holder, cause="adopted", row=row)
                self._write_history(conn, epoch, "active", at, holder)
            return new

    def set_intent(self, row: LeaseRow, intent: Intent | None) -> LeaseRow | None:
        """Set or clear the intent if the version is still that of ``row``."""
        values = {
            "intent_target": intent.target if intent else None,
            "intent_request": intent.request_id if intent else None,
        }
        with self._transaction() as conn:
            return self._change(conn, _lease.c.version == row.version, values)

    def register(self, holder: Holder) -> MemberRow:
        """Write a registration and return it."""
        with self._transaction() as conn:
            known = conn.execute(sa.select(_members).where(self._member(holder.name))).mappings().one_or_none()
            if known is None:
                conn.execute(
                    sa.insert(_members).values(
                        project=self._project, name=holder.name, incarnation=holder.incarnation, spent=False
                    )
                )
                return MemberRow(holder.name, holder.incarnation)
            spent = bool(known["spent"]) and known["incarnation"] == holder.incarnation
            values = {"incarnation": holder.incarnation, "spent": spent, "refused": None}
            conn.execute(sa.update(_members).where(self._member(holder.name)).values(values))
            return MemberRow(holder.name, holder.incarnation, spent=spent)

    def members(self) -> tuple[MemberRow, ...]:
        """Return the registrations, by name."""
        query = sa.select(_members).where(_members.c.project == self._project).order_by(_members.c.name)
        with self._reading() as conn:
            return tuple(
                MemberRow(row["name"], row["incarnation"], bool(row["spent"]), row["refused"])
                for row in conn.execute(query).mappings()
            )

    def history(self) -> tuple[Term, ...]:
        """Return the epochs, oldest first."""
        query = sa.select(_history).where(_history.c.project == self._project).order_by(_history.c.epoch)
        with self._reading() as conn:
            lines = conn.execute(query).mappings().all()
        active = {line["epoch"]: line for line in lines if line["step"] == "active"}
        return tuple(_term(line, active.get(line["epoch"])) for line in lines if line["step"] == "granted")

    def count_start(self) -> int:
        """Count a start of an overseer; return the number, from 1."""
        with self._transaction() as conn:
            return self._count(conn, "starts")

    def close(self) -> None:
        """Close the connections."""
        self._durable.dispose()
        self._renewals.dispose()

    def _prepare(self, path: Path) -> None:
        try:
            with self._transaction() as conn:
                _metadata.create_all(conn)
                schema = conn.scalar(sa.select(_counters.c.value).where(self._counter("schema")))
                if schema is None:
                    schema = _SCHEMA
                    conn.execute(sa.insert(_counters).values(project=self._project, name="schema", value=schema))
                if conn.scalar(sa.select(_lease.c.version).where(self._mine())) is None:
                    conn.execute(
                        sa.insert(_lease).values(
                            project=self._project,
                            version=0,
                            epoch=0,
                            renew_seq=0,
                            state="never",
                            paused=False,
                            log_seq=-1,
                        )
                    )
        except exc.DatabaseError as error:
            raise Corrupt(f"{path} is not a lease store: {error.orig}") from None
        if schema != _SCHEMA:
            raise Corrupt(f"{path} has schema {schema}, this version reads {_SCHEMA}")

    @contextmanager
    def _transaction(self, engine: sa.Engine | None = None) -> Iterator[sa.Connection]:
        with _translated(), self._writing, (engine or self._durable).begin() as conn:
            yield conn

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with _translated(), self._durable.connect() as raw:
            conn = raw.execution_options(fedhelm_reads=True)
            with conn.begin():
                yield conn

    def _row(self, conn: sa.Connection) -> LeaseRow:
        row = conn.execute(sa.select(_lease).where(self._mine())).mappings().one()
        intent = row["intent_target"]
        return LeaseRow(
            version=row["version"],
            epoch=row["epoch"],
            holder=Holder(row["holder"], row["incarnation"]) if row["holder"] else None,
            renew_seq=row["renew_seq"],
            state=row["state"],
            intent=Intent(target=intent, request_id=row["intent_request"]) if intent else None,
            paused=bool(row["paused"]),
            log_seq=row["log_seq"],
            cause=row["cause"],
        )

    def _change(
        self, conn: sa.Connection, where: sa.ColumnElement[bool], values: dict[str, Any], *, decision: bool = True
    ) -> LeaseRow | None:
        """Compare and set; return the new row, or None when nothing matched."""
        if decision:
            values = values | {"version": _lease.c.version + 1}
        done = conn.execute(sa.update(_lease).where(self._mine(), where).values(values))
        return self._row(conn) if done.rowcount == 1 else None

    def _spend(self, conn: sa.Connection, row: LeaseRow) -> None:
        """Bar the incarnation that let the lease of ``row`` run out."""
        if row.holder is not None and row.state in {"granted", "active"}:
            self._mark(conn, row.holder, {"spent": True})

    def _mark(self, conn: sa.Connection, holder: Holder, values: dict[str, Any]) -> None:
        who = sa.and_(self._member(holder.name), _members.c.incarnation == holder.incarnation)
        conn.execute(sa.update(_members).where(who).values(values))

    def _write_history(
        self,
        conn: sa.Connection,
        epoch: int,
        step: str,
        at: str,
        holder: Holder,
        *,
        cause: str | None = None,
        row: LeaseRow | None = None,
        request_id: str | None = None,
        gap_s: float | None = None,
    ) -> None:
        conn.execute(
            sa.insert(_history).values(
                project=self._project,
                epoch=epoch,
                step=step,
                at=at,
                holder=holder.name,
                incarnation=holder.incarnation,
                cause=cause,
                previous=row.holder.name if row and row.holder else None,
                request_id=request_id,
                gap_s=gap_s,
            )
        )

    def _count(self, conn: sa.Connection, name: str) -> int:
        value = conn.scalar(sa.select(_counters.c.value).where(self._counter(name)))
        if value is None:
            conn.execute(sa.insert(_counters).values(project=self._project, name=name, value=1))
            return 1
        conn.execute(sa.update(_counters).where(self._counter(name)).values(value=value + 1))
        return int(value) + 1

    def _mine(self) -> sa.ColumnElement[bool]:
        return _lease.c.project == self._project

    def _member(self, name: str) -> sa.ColumnElement[bool]:
        return sa.and_(_members.c.project == self._project, _members.c.name == name)

    def _counter(self, name: str) -> sa.ColumnElement[bool]:
        return sa.and_(_counters.c.project == self._project, _counters.c.name == name)

    @staticmethod
    def _held(epoch: int, holder: Holder) -> sa.ColumnElement[bool]:
        return sa.and_(
            _lease.c.epoch == epoch,
            _lease.c.holder == holder.name,
            _lease.c.incarnation == holder.incarnation,
            _lease.c.state.in_(("granted", "active")),
        )

    @staticmethod
    def _unchanged(row: LeaseRow) -> sa.ColumnElement[bool]:
        return sa.and_(_lease.c.epoch == row.epoch, _lease.c.renew_seq == row.renew_seq, _lease.c.state == row.state)

    @staticmethod
    def _new_term(epoch: int, holder: Holder, state: str, cause: str) -> dict[str, Any]:
        return {
            "epoch": epoch,
            "holder": holder.name,
            "incarnation": holder.incarnation,
            "renew_seq": _lease.c.renew_seq + 1,
            "state": state,
            "cause": cause,
        }


def _highest(log_seq: int) -> sa.ColumnElement[int]:
    return sa.case((_lease.c.log_seq < log_seq, log_seq), else_=_lease.c.log_seq)


def _term(granted: sa.RowMapping, active: sa.RowMapping | None) -> Term:
    return Term(
        epoch=granted["epoch"],
        holder=Holder(granted["holder"], granted["incarnation"]),
        cause=granted["cause"],
        granted_at=granted["at"],
        previous=granted["previous"],
        request_id=granted["request_id"],
        active_at=active["at"] if active else None,
        gap_s=active["gap_s"] if active else None,
    )


def _engine(path: Path, synchronous: str, busy_s: float) -> sa.Engine:
    url = sa.URL.create("sqlite", database=str(path))
    engine = sa.create_engine(url, connect_args={"timeout": busy_s, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: Any) -> None:
        # The driver would begin transactions by itself, and only at the first write; _begin does it.
        connection.isolation_level = None
        for pragma in ("journal_mode=WAL", f"synchronous={synchronous}"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(conn: sa.Connection) -> None:
        reads = conn.get_execution_options().get("fedhelm_reads", False)
        conn.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except exc.OperationalError as error:
        raise StoreUnavailable(f"the lease store does not answer: {error.orig}") from error
