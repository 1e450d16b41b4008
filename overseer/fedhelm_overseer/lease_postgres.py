"""Connections to PostgreSQL that never wait for long. Imported only where PostgreSQL is used: it needs psycopg.

The URL is handed to libpq as it is, so that TLS (``sslmode``, ``sslrootcert``), several hosts and services work as its
manual says. Passwords come from ``passfile`` or the environment; no message repeats the URL.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict

from fedhelm.config.timing import Timing
from fedhelm.errors import BadInput

__all__ = ["Connector", "connector", "is_contention"]

_CONNECT_S = 2  # the shortest that libpq knows
_FILES = ("passfile", "sslcert", "sslkey", "sslrootcert", "sslcrl", "sslcrldir")
_CONTENTION = (errors.LockNotAvailable, errors.QueryCanceled, errors.SerializationFailure, errors.DeadlockDetected)

_R = TypeVar("_R")


@dataclass(frozen=True)
class Connector:
    """Opens connections.

    ``name`` is how messages call the database; ``limit_s`` the longest wait for an answer, after which ``late`` is
    called with what happened.
    """

    name: str
    limit_s: float
    late: Callable[[str], None]
    _options: Mapping[str, Any]

    def __call__(self, context: Any = None) -> psycopg.Connection[Any]:
        """Open a connection.

        Raises:
            psycopg.Error: it cannot be had.
        """
        connection = _Bounded.connect(**self._options, context=context, prepare_threshold=None)
        connection.limit_s, connection.late = self.limit_s, self.late
        return connection

    def with_settings(self, **settings: str) -> Connector:
        """Return one whose sessions have more settings."""
        return replace(self, _options={**self._options, "options": _settings(self._options["options"], settings)})

    def __repr__(self) -> str:
        """Show no options: a password may be among them."""
        return f"Connector({self.name!r})"


class _Late(Exception):
    """The database did not answer in time."""


class _Bounded(psycopg.Connection[Any]):
    """A connection that is given up when the database does not answer.

    Time-outs of the server itself need a server that runs, those of TCP a peer that is gone: one that was stopped, or
    whose disk hangs, keeps its connections and says nothing.
    """

    limit_s = math.inf
    late: Callable[[str], None] | None = None

    def wait(self, gen: Generator[Any, Any, _R], *args: Any, **options: Any) -> _R:
        """Run one exchange with the server, for ``limit_s`` at most."""
        try:
            return super().wait(_until(gen, time.monotonic() + self.limit_s), *args, **options)
        except _Late:
            self.pgconn.finish()  # what it would answer later belongs to nobody
            told = f"no answer within {self.limit_s:g} s"
            if self.late is not None:
                self.late(told)
            raise psycopg.OperationalError(told) from None


def _until(gen: Generator[Any, Any, _R], deadline: float) -> Generator[Any, Any, _R]:
    """Pass an exchange on; raise _Late where it waits beyond ``deadline``. It is woken ten times a second."""
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if not ready and time.monotonic() > deadline:
                gen.close()
                raise _Late
            wanted = gen.send(ready)
    except StopIteration as stop:
        value: _R = stop.value
        return value


def connector(url: str, timing: Timing, folder: Path, late: Callable[[str], None]) -> Connector:
    """Return what opens connections to the database of ``url``; see ``lease_engines.PostgresEngines``."""
    try:
        given = {key: value for key, value in conninfo_to_dict(url).items() if value is not None}
    except psycopg.Error:
        # libpq's message may repeat a part of the URL, and that part may be the password.
        raise BadInput(
            "the lease store's URL cannot be read", hint="postgresql://USER@HOST:PORT/DATABASE?passfile=FILE"
        ) from None
    for key in _FILES:
        if given.get(key, "system") != "system":  # sslrootcert=system: the machine's own authorities
            given[key] = str(folder / str(given[key]))
    half = timing.lease / 2
    settings = {
        "statement_timeout": _ms(half),
        "lock_timeout": _ms(timing.request),
        "idle_in_transaction_session_timeout": _ms(half),
    }
    options = {
        "application_name": "fedhelm",
        **given,
        "connect_timeout": _CONNECT_S,
        "tcp_user_timeout": _ms(timing.lease),
        "keepalives": 1,
        "keepalives_idle": math.ceil(timing.lease),
        "keepalives_interval": math.ceil(timing.lease / 3),
        "keepalives_count": 3,
        "options": _settings(str(given.get("options", "")), settings),
    }
    where = f"{given.get('host', 'localhost')}:{given.get('port', 5432)}"
    name = f"PostgreSQL at {where}, database {given.get('dbname', given.get('user', ''))}"
    return Connector(name, half + timing.request, late, options)


def is_contention(error: BaseException | None) -> bool:
    """Tell whether the database works, and only somebody else held what was asked for."""
    return isinstance(getattr(error, "orig", None), _CONTENTION)


def _ms(seconds: float) -> str:
    return str(max(1, round(seconds * 1000)))


def _settings(before: str, settings: Mapping[str, str]) -> str:
    """Append settings to a session's start-up options; the last word on a setting holds."""
    return " ".join([before, *(f"-c {name}={value}" for name, value in settings.items())]).strip()
