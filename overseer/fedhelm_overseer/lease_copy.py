"""A project's part of the lease store as a JSON value, for backups: the same from SQLite and from PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

from fedhelm.config.kit import SQLITE, Kit
from fedhelm.errors import BadInput
from fedhelm_overseer.lease_engines import Engines
from fedhelm_overseer.lease_place import lease_engines, lease_file, lease_place
from fedhelm_overseer.lease_tables import (
    COUNTERS,
    HISTORY,
    LEASE,
    MEMBERS,
    OPERATIONS,
    REVOCATIONS,
    SCHEMA,
    SERVERS,
    make_tables,
)

__all__ = ["check_copy", "copy_in", "copy_out", "known_end", "opened", "tell_end"]

# Registrations are of processes that are gone when a backup is restored.
_KEPT = (LEASE, HISTORY, OPERATIONS, SERVERS, REVOCATIONS)
_MINE = (*_KEPT, MEMBERS, COUNTERS)
_FREE: dict[str, Any] = {
    "holder": None,
    "incarnation": None,
    "state": "released",
    "intent_target": None,
    "intent_request": None,
    "intent_by": None,
}


@contextmanager
def opened(kit: Kit) -> Iterator[tuple[Engines, str]]:
    """Yield the database of an overseer's kit, and the key under which the project's rows are.

    Raises:
        KitError: ``local/overseer.json`` is wrong.
        BadInput, FedhelmError: as ``PostgresEngines``.
    """
    engines, key = lease_engines(kit, lease_place(kit))
    try:
        yield engines, key
    finally:
        engines.close()


def copy_out(engines: Engines, project: str) -> dict[str, Any]:
    """Return the project's lease row, history, operations and servers, as of one moment.

    Raises:
        StoreUnavailable: the database does not answer.
    """
    with engines.turn(writes=True), engines.durable.begin() as conn:
        make_tables(conn, project, engines.name)  # of an overseer that has never run, or of an older version
        tables = {
            table.name: [
                {key: value for key, value in row.items() if key != "project"}
                for row in conn.execute(sa.select(table).where(table.c.project == project)).mappings()
            ]
            for table in _KEPT
        }
    return {"schema": SCHEMA, "tables": tables}


def copy_in(engines: Engines, project: str, copy: Mapping[str, Any], *, epoch: int, log_seq: int) -> None:
    """Replace what the database says of the project by ``copy``, with the lease free.

    The row is *released* at ``epoch``, whatever it was: nobody who held it when the copy was made lives any more. So
    the first server that is fit is granted the next epoch at once.

    Args:
        engines: the database.
        project: whose part it is.
        copy: from `copy_out`.
        epoch: the highest epoch of the restored log.
        log_seq: its last slot.

    Raises:
        BadInput: the copy is of a later schema, or is no copy.
        StoreUnavailable: the database does not answer; nothing was changed.
    """
    rows = _rows(copy)
    with engines.turn(writes=True), engines.durable.begin() as conn:
        make_tables(conn, project, engines.name)
        for table in _MINE:
            keep = sa.and_(table.c.project == project, *([table.c.name != "schema"] if table is COUNTERS else []))
            conn.execute(sa.delete(table).where(keep))
        for table in _KEPT:
            for row in rows[table.name]:
                known = {key: value for key, value in row.items() if key in table.columns}
                if table is LEASE:
                    known |= _free(row, epoch, log_seq)
                conn.execute(sa.insert(table).values(project=project, **known))


def check_copy(copy: Mapping[str, Any]) -> None:
    """Refuse what `copy_in` would refuse.

    Raises:
        BadInput: the copy is of a later schema, or is no copy.
    """
    _rows(copy)


def known_end(kit: Kit) -> int:
    """Return the last slot that the lease of an overseer's kit knows of, -1 if of none; nothing is made or changed.

    Raises:
        KitError, BadInput, FedhelmError: as ``opened``.
        StoreUnavailable: the database does not answer.
    """
    if lease_place(kit) == SQLITE and not lease_file(kit).exists():
        return -1
    with opened(kit) as (engines, key), engines.turn(writes=False), engines.durable.connect() as raw:
        conn = raw.execution_options(fedhelm_reads=True)
        if not sa.inspect(conn).has_table(LEASE.name):
            return -1
        seq = conn.scalar(sa.select(LEASE.c.log_seq).where(LEASE.c.project == key))
    return -1 if seq is None else int(seq)


def tell_end(engines: Engines, project: str, log_seq: int) -> None:
    """Free the lease of a log that was cut, and have it know of nothing after slot ``log_seq``; all else stays.

    Raises:
        StoreUnavailable: the database does not answer; nothing was changed.
    """
    free = _FREE | {"cause": "the log was cut", "log_seq": log_seq, "version": LEASE.c.version + 1}
    with engines.turn(writes=True), engines.durable.begin() as conn:
        conn.execute(sa.update(LEASE).where(LEASE.c.project == project).values(**free))


def _rows(copy: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    try:
        schema, tables = copy["schema"], copy["tables"]
        # A copy of before has no list of revoked certificates.
        tables = {REVOCATIONS.name: (), **tables}
        rows = {table.name: [_row(table, row) for row in tables[table.name]] for table in _KEPT}
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"this is no copy of a lease store: {error!r:.200}") from error
    if type(schema) is not int or schema > SCHEMA:
        raise BadInput(f"the copy of the lease store has schema {schema!r:.40}, this version reads up to {SCHEMA}")
    for table in _KEPT:
        keys = [tuple(row.get(column.name) for column in table.primary_key) for row in rows[table.name]]
        if len(set(keys)) != len(keys):
            raise BadInput(f"the copy of the lease store has a row of {table.name} twice")
    if len(rows[LEASE.name]) != 1:
        raise BadInput(f"the copy of the lease store has {len(rows[LEASE.name])} rows, not one")
    return rows


def _row(table: sa.Table, said: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row that the table can take, whatever database it is in.

    Raises:
        ValueError: a column that must have a value has none, or one of another kind; also TypeError.
    """
    row = dict(said)
    for column in table.columns:
        value, kind = row.get(column.name), column.type.python_type
        if column.name == "project" or (value is None and column.nullable):
            continue
        good = type(value) is kind or (kind is float and type(value) is int)
        if isinstance(value, str):
            good = good and "\0" not in value and value.encode() is not None  # a UnicodeEncodeError is a ValueError
        elif isinstance(value, int):
            good = good and -(2**63) <= value < 2**63 - 1
        if not good:
            raise ValueError(f"{table.name}.{column.name} is {value!r:.80}")
    return row


def _free(row: Mapping[str, Any], epoch: int, log_seq: int) -> dict[str, Any]:
    return _FREE | {
        "version": row["version"] + 1,
        "epoch": epoch,
        "cause": "restored from a backup",
        "log_seq": log_seq,
        "paused": False,
        "paused_by": None,
        "pause_reason": None,
        "shutdown": None,
    }
