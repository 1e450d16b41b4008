"""The lease store's tables, how an older version's become these, and their lines as values."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from fedhelm.errors import Corrupt
from fedhelm.wire.overseer_api import Intent
from fedhelm_overseer.lease import Holder, LeaseRow, Operation, OperationKind, ServerEntry, Term

__all__ = [
    "COUNTERS",
    "HISTORY",
    "LEASE",
    "MEMBERS",
    "OPERATIONS",
    "REVOCATIONS",
    "SCHEMA",
    "SERVERS",
    "lease_row",
    "make_tables",
    "operation_row",
    "server_row",
    "term_row",
]

SCHEMA = 2

_metadata = sa.MetaData()


def _project() -> sa.Column[str]:
    return sa.Column("project", sa.String(64), primary_key=True)


def _name(label: str, **options: Any) -> sa.Column[str]:
    return sa.Column(label, sa.String(253), **options)


LEASE = sa.Table(
    "lease",
    _metadata,
    _project(),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    _name("holder"),
    sa.Column("incarnation", sa.String(64)),
    sa.Column("renew_seq", sa.BigInteger, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    _name("intent_target"),
    sa.Column("intent_request", sa.String(64)),
    sa.Column("paused", sa.Boolean, nullable=False),
    sa.Column("log_seq", sa.BigInteger, nullable=False),
    sa.Column("cause", sa.Text),
    # since schema 2
    sa.Column("intent_by", sa.Text),
    sa.Column("paused_by", sa.Text),
    sa.Column("pause_reason", sa.Text),
    sa.Column("shutdown", sa.String(64)),
)
# Append-only: a grant writes one line, its activation another. The key allows one grant of an epoch, whatever happens.
HISTORY = sa.Table(
    "history",
    _metadata,
    _project(),
    sa.Column("epoch", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("step", sa.String(16), primary_key=True),
    sa.Column("at", sa.String(32), nullable=False),
    _name("holder", nullable=False),
    sa.Column("incarnation", sa.String(64), nullable=False),
    sa.Column("cause", sa.Text),
    _name("previous"),
    sa.Column("request_id", sa.String(64)),
    sa.Column("gap_s", sa.Float),
    # since schema 2
    sa.Column("asked_by", sa.Text),
    sa.Column("jobs", sa.BigInteger),
)
MEMBERS = sa.Table(
    "members",
    _metadata,
    _project(),
    _name("name", primary_key=True),
    sa.Column("incarnation", sa.String(64), nullable=False),
    sa.Column("spent", sa.Boolean, nullable=False),
    sa.Column("refused", sa.Text),
)
COUNTERS = sa.Table(
    "counters",
    _metadata,
    _project(),
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)
# Since schema 2. The key allows a request id one effect.
OPERATIONS = sa.Table(
    "operations",
    _metadata,
    _project(),
    sa.Column("request_id", sa.String(64), primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("asked_by", sa.Text, nullable=False),
    sa.Column("at", sa.String(32), nullable=False),
    _name("target"),
    sa.Column("reason", sa.Text, nullable=False),
)
SERVERS = sa.Table(
    "servers",
    _metadata,
    _project(),
    _name("name", primary_key=True),
    _name("host", nullable=False),
    sa.Column("fed_learn_port", sa.Integer, nullable=False),
    sa.Column("admin_port", sa.Integer, nullable=False),
    sa.Column("org", sa.Text, nullable=False),
    sa.Column("kit_date", sa.String(32), nullable=False),
    sa.Column("removed_at", sa.String(32)),
)
# One line for each project, once anything was revoked. Overseers of before do not look at it: no schema of its own.
REVOCATIONS = sa.Table(
    "revocations",
    _metadata,
    _project(),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("data", sa.Text, nullable=False),
)


def make_tables(conn: sa.Connection, project: str, where: str) -> None:
    """Make or complete the tables, and the project's row; nothing that is there is lost.

    Args:
        conn: in a transaction.
        project: whose row it is.
        where: how messages call the database.

    Raises:
        Corrupt: a later version's tables.
    """
    _metadata.create_all(conn)
    counter = sa.and_(COUNTERS.c.project == project, COUNTERS.c.name == "schema")
    schema = conn.scalar(sa.select(COUNTERS.c.value).where(counter))
    if schema is not None and schema > SCHEMA:
        raise Corrupt(f"{where} has schema {schema}, this version reads up to {SCHEMA}")
    if schema != SCHEMA:
        _complete(conn)
        if schema is None:
            conn.execute(sa.insert(COUNTERS).values(project=project, name="schema", value=SCHEMA))
        else:
            conn.execute(sa.update(COUNTERS).where(counter).values(value=SCHEMA))
    if conn.scalar(sa.select(LEASE.c.version).where(LEASE.c.project == project)) is None:
        first = {"version": 0, "epoch": 0, "renew_seq": 0, "state": "never", "paused": False, "log_seq": -1}
        conn.execute(sa.insert(LEASE).values(project=project, **first))


def _complete(conn: sa.Connection) -> None:
    """Add the columns that an older version's tables lack; all of them may be empty."""
    preparer = conn.dialect.identifier_preparer
    for table in (LEASE, HISTORY):
        there = {column["name"] for column in sa.inspect(conn).get_columns(table.name)}
        for column in table.columns:
            if column.name not in there:
                kind = column.type.compile(conn.dialect)
                what = f"{preparer.format_table(table)} ADD COLUMN {preparer.format_column(column)} {kind}"
                conn.exec_driver_sql(f"ALTER TABLE {what}")


def lease_row(row: sa.RowMapping) -> LeaseRow:
    """Return a line of ``LEASE`` as a value."""
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
        intent_by=row["intent_by"],
        paused_by=row["paused_by"],
        pause_reason=row["pause_reason"],
        shutdown=row["shutdown"],
    )


def server_row(row: sa.RowMapping) -> ServerEntry:
    """Return a line of ``SERVERS`` as a value."""
    return ServerEntry(**{key: value for key, value in row.items() if key != "project"})


def operation_row(row: sa.RowMapping) -> Operation:
    """Return a line of ``OPERATIONS`` as a value."""
    kind: OperationKind = row["kind"]
    return Operation(row["request_id"], kind, row["asked_by"], row["at"], row["target"], row["reason"])


def term_row(granted: sa.RowMapping, active: sa.RowMapping | None) -> Term:
    """Return an epoch from its one or two lines of ``HISTORY``."""
    return Term(
        epoch=granted["epoch"],
        holder=Holder(granted["holder"], granted["incarnation"]),
        cause=granted["cause"],
        granted_at=granted["at"],
        previous=granted["previous"],
        request_id=granted["request_id"],
        active_at=active["at"] if active else None,
        gap_s=active["gap_s"] if active else None,
        by=granted["asked_by"],
        jobs=active["jobs"] if active else None,
    )
