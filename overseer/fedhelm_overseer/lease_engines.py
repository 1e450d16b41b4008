"""The databases below the lease store: one SQLite file, or PostgreSQL where several overseers share one lease.

SQLite runs in WAL mode, and every transaction that writes begins with ``BEGIN IMMEDIATE``. Renewals go over connections
at ``synchronous=NORMAL``: one lost in a power cut only lengthens a wait. All else is at FULL.

PostgreSQL may freeze, vanish or come back older at any moment. No call waits for it longer than T/2 + Q, whatever the
network does, and after a failure calls fail at once until a thread of its own has reached the database again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import sqlalchemy as sa
from sqlalchemy import event, exc

from fedhelm.config.timing import Timing
from fedhelm.errors import BadInput, FedhelmError
from fedhelm_overseer.lease import StoreAway

if TYPE_CHECKING:
    from fedhelm_overseer.lease_postgres import Connector

__all__ = ["Engines", "PostgresEngines", "SqliteEngines"]

_POOL = 4
_RENEWAL_POOL = 2
_MORE = 6
_AWAY = "the lease store does not answer: "


class Engines(Protocol):
    """One database. ``renewals`` may lose the last moments in a crash of the machine, ``durable`` loses nothing."""

    @property
    def name(self) -> str:
        """How messages call the database; never with a password."""
        ...

    @property
    def durable(self) -> sa.Engine:
        """For decisions, history and reads."""
        ...

    @property
    def renewals(self) -> sa.Engine:
        """For renewals; each is one statement."""
        ...

    def opened(self, prepare: Callable[[], None]) -> None:
        """Take note of what makes the tables: it is called again when the database comes back."""
        ...

    def turn(self, *, writes: bool) -> Any:
        """Return the context that every transaction runs in; it raises ``StoreAway``."""
        ...

    def close(self) -> None:
        """Close the connections."""
        ...


class SqliteEngines:
    """One file, which is made if it is missing.

    Args:
        path: the database file.
        busy_s: longest wait for another process's transaction.
    """

    def __init__(self, path: Path, *, busy_s: float = 5.0) -> None:
        self.name = str(path)
        self.durable = _sqlite(path, "FULL", busy_s)
        self.renewals = _sqlite(path, "NORMAL", busy_s)
        # Threads of one process queue here: SQLite's own waiting sleeps for milliseconds at a time.
        self._writing = threading.Lock()

    def opened(self, prepare: Callable[[], None]) -> None:
        """Nothing to note: a local file does not go away."""

    @contextmanager
    def turn(self, *, writes: bool) -> Iterator[None]:
        """Let one thread write at a time."""
        with _told():
            if not writes:
                yield
                return
            with self._writing:
                yield

    def close(self) -> None:
        """Close the connections."""
        self.durable.dispose()
        self.renewals.dispose()


def _sqlite(path: Path, synchronous: str, busy_s: float) -> sa.Engine:
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


class PostgresEngines:
    """A PostgreSQL database.

    Args:
        url: as libpq reads it (``postgresql://user@host:port/database?sslmode=verify-full&passfile=...``).
        timing: the project's times; every time-out follows from them.
        folder: relative paths in the URL start here.

    Raises:
        BadInput: the URL cannot be read; the message does not repeat it.
        FedhelmError: psycopg is not installed.
    """

    def __init__(self, url: str, timing: Timing, folder: Path) -> None:
        try:
            from fedhelm_overseer.lease_postgres import connector, is_contention
        except ImportError as error:
            raise FedhelmError(
                f"PostgreSQL as the lease store needs psycopg: {error}", hint="pip install 'fedhelm[postgres]'"
            ) from error
        self._is_contention = is_contention
        self._outage = _Outage(timing.observe)
        connect = connector(url, timing, folder, lambda told: self._outage.begin(_AWAY + told))
        self.name = connect.name
        self.durable = self._engine(connect, timing, _POOL)
        quick = self._engine(connect.with_settings(synchronous_commit="off"), timing, _RENEWAL_POOL)
        # One statement is one transaction: no round trips for BEGIN and COMMIT, and no lock outlives an answer.
        self.renewals = quick.execution_options(isolation_level="AUTOCOMMIT")

    def _engine(self, connect: Connector, timing: Timing, size: int) -> sa.Engine:
        engine = sa.create_engine(
            "postgresql+psycopg://",
            isolation_level="READ COMMITTED",
            pool_size=size,
            max_overflow=_MORE,
            pool_timeout=timing.request,
            pool_pre_ping=True,
            pool_use_lifo=True,
            hide_parameters=True,
            use_native_hstore=False,
        )

        @event.listens_for(engine, "do_connect")
        def _connect(_dialect: Any, _record: Any, _args: Any, options: dict[str, Any]) -> Any:
            # A connection that did not answer its ping is replaced: not by a thread that has waited long enough.
            self._outage.check()
            return connect(context=options.get("context"))

        return engine

    def opened(self, prepare: Callable[[], None]) -> None:
        """Take note of what makes the tables; it is called until it succeeds when the database was away."""
        self._outage.mend = prepare

    @contextmanager
    def turn(self, *, writes: bool) -> Iterator[None]:
        """Fail at once while the database is away."""
        del writes
        self._outage.check()
        try:
            with _told():
                yield
        except StoreAway as error:
            if not self._is_contention(error.__cause__):
                self._outage.begin(error.message)
            raise

    def close(self) -> None:
        """Close the connections, and stop trying to get new ones."""
        self._outage.end()
        self.durable.dispose()
        self.renewals.dispose()


class _Outage:
    """While the database is away, one thread tries to reach it, and every other call fails at once."""

    def __init__(self, pause_s: float) -> None:
        self._pause_s = pause_s
        self._lock = threading.Lock()
        self._reason: str | None = None
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()
        self.mend: Callable[[], None] | None = None

    def check(self) -> None:
        """Raise StoreAway while there is an outage; the thread that mends it passes."""
        reason = self._reason
        if reason is not None and threading.current_thread() is not self._thread:
            raise StoreAway(reason)

    def begin(self, reason: str) -> None:
        """Take note of a failure."""
        with self._lock:
            if self.mend is None or self._reason is not None or self._closed.is_set():
                return
            self._reason = reason
            self._thread = threading.Thread(target=self._mend, name="reach lease store", daemon=True)
            self._thread.start()

    def end(self) -> None:
        """Stop trying."""
        with self._lock:
            self._closed.set()
            thread = self._thread
        if thread is not None:
            thread.join(timeout=5)

    def _mend(self) -> None:
        assert self.mend is not None
        while not self._closed.is_set():
            try:
                self.mend()
            except (FedhelmError, exc.SQLAlchemyError) as error:
                self._reason = _line(error)
            else:
                break
            self._closed.wait(self._pause_s)
        self._reason = None


@contextmanager
def _told() -> Iterator[None]:
    """Turn what the database layer raises into StoreAway."""
    try:
        yield
    except exc.IntegrityError:
        raise
    except exc.DataError as error:
        raise BadInput(f"the lease store cannot keep a value: {_line(error.orig)}") from error
    except exc.DBAPIError as error:
        raise StoreAway(_AWAY + _line(error.orig)) from error
    except (exc.NoResultFound, exc.TimeoutError) as error:
        raise StoreAway(_AWAY + _line(error)) from error


def _line(error: BaseException | None) -> str:
    return " ".join(str(error).split())
