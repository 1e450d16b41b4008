"""What a lease store must do when its database is older, restored, frozen, restarted, emptied or locked."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from fedhelm.config.timing import PROFILES
from fedhelm.errors import BadInput, Corrupt, FedhelmError, StoreUnavailable
from fedhelm.security.pki import CertificateAuthority
from fedhelm_overseer.lease import Holder, LeaseRow, MemberRow
from fedhelm_overseer.lease_engines import PostgresEngines, SqliteEngines
from fedhelm_overseer.lease_store import SqlLeaseStore
from tests.support.federation import free_base_port
from tests.support.postgres import postgres  # noqa: F401  a fixture
from tests.support.proxy import Wires
from tests.support.waiting import eventually_sync

AT = "2026-11-22T15:00:00.000Z"
ONE, TWO = Holder("server1", "aa"), Holder("server2", "bb")
FAST = PROFILES["fast"]
PATIENT = PROFILES["wan"]  # nobody gives up waiting for the others, however busy the machine is

SCHEMA_1 = """
CREATE TABLE lease (project VARCHAR(64) NOT NULL, version BIGINT NOT NULL, epoch BIGINT NOT NULL, holder VARCHAR(253),
 incarnation VARCHAR(64), renew_seq BIGINT NOT NULL, state VARCHAR(16) NOT NULL, intent_target VARCHAR(253),
 intent_request VARCHAR(64), paused BOOLEAN NOT NULL, log_seq BIGINT NOT NULL, cause TEXT, PRIMARY KEY (project));
CREATE TABLE history (project VARCHAR(64) NOT NULL, epoch BIGINT NOT NULL, step VARCHAR(16) NOT NULL,
 at VARCHAR(32) NOT NULL, holder VARCHAR(253) NOT NULL, incarnation VARCHAR(64) NOT NULL, cause TEXT,
 previous VARCHAR(253), request_id VARCHAR(64), gap_s FLOAT, PRIMARY KEY (project, epoch, step));
CREATE TABLE members (project VARCHAR(64) NOT NULL, name VARCHAR(253) NOT NULL, incarnation VARCHAR(64) NOT NULL,
 spent BOOLEAN NOT NULL, refused TEXT, PRIMARY KEY (project, name));
CREATE TABLE counters (project VARCHAR(64) NOT NULL, name VARCHAR(32) NOT NULL, value BIGINT NOT NULL,
 PRIMARY KEY (project, name));
INSERT INTO counters VALUES ('poc', 'schema', 1), ('poc', 'starts', 3);
INSERT INTO lease VALUES ('poc', 5, 2, 'server2', 'bb', 70, 'active', NULL, NULL, false, 33, 'crash');
INSERT INTO history VALUES ('poc', 1, 'granted', 't', 'server1', 'aa', 'first grant', NULL, NULL, NULL),
 ('poc', 1, 'active', 't', 'server1', 'aa', NULL, NULL, NULL, NULL),
 ('poc', 2, 'granted', 't', 'server2', 'bb', 'crash', 'server1', NULL, NULL),
 ('poc', 2, 'active', 't', 'server2', 'bb', NULL, NULL, NULL, 0.25);
INSERT INTO members VALUES ('poc', 'server1', 'aa', true, NULL), ('poc', 'server2', 'bb', false, NULL);
"""


class Database:
    """One database of either kind: open stores on it, and speak to it behind their back."""

    def __init__(self, kind, request, tmp_path):
        self._server = request.getfixturevalue("postgres") if kind == "postgres" else None
        self.url = self._server and self._server.url(self._server.database())
        self._path = tmp_path / "overseer.db"
        self._opened = []

    def engines(self, timing=FAST):
        return PostgresEngines(self.url, timing, Path("/")) if self.url else SqliteEngines(self._path)

    def open(self, timing=FAST):
        self._opened.append(SqlLeaseStore(self.engines(timing), "poc"))
        return self._opened[-1]

    def execute(self, script):
        engines = self.engines()
        try:
            with engines.durable.begin() as conn:
                for statement in filter(str.strip, script.split(";")):
                    conn.execute(sa.text(statement))
        finally:
            engines.close()

    def close(self):
        for store in self._opened:
            store.close()


@pytest.fixture(params=["sqlite", "postgres"])
def database(request, tmp_path):
    made = Database(request.param, request, tmp_path)
    yield made
    made.close()


@pytest.fixture
def on_postgres(request, tmp_path):
    made = Database("postgres", request, tmp_path)
    yield made
    made.close()


def grant(store, holder, epoch):
    row = store.grant(store.read(), epoch, holder, "test", AT, keep_intent=False)
    assert row is not None
    return row


# -- both


def test_the_tables_of_schema_1_are_completed_and_keep_what_they_hold(database):
    database.execute(SCHEMA_1)
    store = database.open()
    row = store.read()
    assert row == LeaseRow(5, 2, TWO, 70, "active", log_seq=33, cause="crash")
    assert store.members() == (MemberRow("server1", "aa", spent=True), MemberRow("server2", "bb"))
    assert [(one.epoch, one.gap_s, one.by, one.jobs) for one in store.history()] == [
        (1, None, None, None),
        (2, 0.25, None, None),
    ]
    assert store.count_start() == 4
    assert store.set_paused(row, True, "admin@nvidia.com", request_id="p1", at=AT).paused_by == "admin@nvidia.com"
    store.release(2, TWO, "crash", refused=False)
    grant(store, ONE, 3)
    store.activate(3, ONE, 40, AT, 0.1, jobs=2)
    assert store.history()[-1].jobs == 2
    assert database.open().read() == store.read()


def test_the_tables_of_a_later_version_are_refused(database):
    database.open()
    database.execute("UPDATE counters SET value = 3 WHERE name = 'schema'")
    with pytest.raises(Corrupt, match="schema 3, this version reads up to 2"):
        database.open()


def test_two_projects_in_one_database_do_not_meet(database):
    store, other = database.open(), SqlLeaseStore(database.engines(), "second")
    grant(store, ONE, 1)
    store.set_shutdown("s1", "admin@nvidia.com", at=AT)
    assert (other.read(), other.history(), other.operations()) == (LeaseRow(), (), ())
    other.close()


def test_a_row_that_is_older_than_the_history_is_granted_above_both(database):
    store = database.open()
    for epoch in (1, 2, 3):
        grant(store, ONE, epoch)
    store.release(3, ONE, "crash", refused=False)
    database.execute("UPDATE lease SET epoch = 1, state = 'released'")  # one table restored from a backup
    assert store.grant(store.read(), 2, TWO, "test", AT, keep_intent=False) is None
    row = store.read()
    assert (row.epoch, row.state) == (3, "released")
    assert grant(store, TWO, 4).holder == TWO
    assert [term.epoch for term in store.history()] == [1, 2, 3, 4]


def test_an_older_database_adopts_an_epoch_that_its_history_has_already(database):
    store = database.open()
    for epoch in (1, 2, 3):
        grant(store, ONE, epoch)
    database.execute("UPDATE lease SET epoch = 1")
    assert store.adopt(store.read(), 3, ONE, 50, AT).epoch == 3
    assert [term.epoch for term in store.history()] == [1, 2, 3]


def test_of_many_overseers_that_decide_on_one_row_one_grants(database):
    stores = [database.open(PATIENT) for _ in range(4)]
    row = stores[0].read()
    for epoch in range(1, 6):
        won, barrier = [], threading.Barrier(8)

        def compete(number, row=row, epoch=epoch, won=won, barrier=barrier):
            barrier.wait()
            if stores[number % 4].grant(row, epoch, Holder("server1", str(number)), "race", AT, keep_intent=False):
                won.append(number)

        run_all([threading.Thread(target=compete, args=(number,)) for number in range(8)])
        assert len(won) == 1
        row = stores[epoch % 4].read()
        assert row.holder == Holder("server1", str(won[0]))
    assert [term.epoch for term in stores[0].history()] == [1, 2, 3, 4, 5]


def test_overseers_that_write_the_same_at_once_agree(database):
    stores = [database.open(PATIENT) for _ in range(4)]
    numbers, rows, barrier = [], [], threading.Barrier(8)

    def work(number):
        store = stores[number % 4]
        barrier.wait()
        numbers.append(store.count_start())
        store.register(ONE)
        rows.append(store.set_shutdown("s1", "admin@nvidia.com", at=AT).version)

    run_all([threading.Thread(target=work, args=(number,)) for number in range(8)])
    assert sorted(numbers) == list(range(1, 9))
    assert rows == [1] * 8
    assert stores[0].members() == (MemberRow("server1", "aa"),)


def run_all(threads):
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# -- PostgreSQL


def test_overseers_that_start_together_on_an_empty_database_all_start(on_postgres):
    barrier, opened = threading.Barrier(6), []

    def start():
        barrier.wait()
        # They wait for one another's tables: on a slow machine longer than a lock may be waited for. Then they try again.
        opened.append(eventually_sync(lambda: answers(on_postgres.open), 60))

    run_all([threading.Thread(target=start) for _ in range(6)])
    assert [store.read() for store in opened] == [LeaseRow()] * 6


def test_sessions_have_the_time_outs_that_the_project_asks_for(on_postgres):
    engines = on_postgres.engines()

    def shown(engine):
        names = ("idle_in_transaction_session_timeout", "statement_timeout", "lock_timeout", "synchronous_commit")
        with engine.connect() as conn:
            return [conn.scalar(sa.text(f"SHOW {name}")) for name in (*names, "transaction_isolation")]

    assert shown(engines.durable) == ["750ms", "750ms", "250ms", "on", "read committed"]
    assert shown(engines.renewals)[3] == "off"
    engines.close()


def test_a_frozen_database_costs_one_short_wait_and_then_nothing(on_postgres, postgres):  # noqa: F811
    store = on_postgres.open()
    grant(store, ONE, 1)
    store.renew(1, ONE, 0)
    with postgres.frozen():
        begun = time.monotonic()
        with pytest.raises(StoreUnavailable, match="no answer within 1 s"):
            store.renew(1, ONE, 1)
        first = time.monotonic() - begun
        begun = time.monotonic()
        for _ in range(20):
            with pytest.raises(StoreUnavailable):
                store.read()
        rest = time.monotonic() - begun
    # The first wait is T/2 + Q = 1 s; a loaded machine may add to it, but the twenty must not wait at all.
    assert first < 5
    assert rest < first
    assert eventually_sync(lambda: answers(store.read), 20).epoch == 1
    assert store.renew(1, ONE, 2).log_seq == 2


@pytest.mark.parametrize("mode", ["drop", "no-answers", "no-requests", "reject"])
def test_a_store_that_is_cut_off_fails_soon_while_another_goes_on(on_postgres, postgres, mode):  # noqa: F811
    other = on_postgres.open()
    port = free_base_port(1)
    with closing(Wires({"db": (port, postgres.port)})) as wires:
        store = SqlLeaseStore(
            PostgresEngines(on_postgres.url.replace(f":{postgres.port}/", f":{port}/"), FAST, Path("/")), "poc"
        )
        grant(store, ONE, 1)
        store.renew(1, ONE, 1)
        wires.set(["db"], mode)
        begun = time.monotonic()
        for _ in range(10):
            with pytest.raises(StoreUnavailable):
                store.renew(1, ONE, 2)
        assert time.monotonic() - begun < 5, "one wait of T/2 + Q for all of them, on a machine that may be busy"
        assert other.renew(1, ONE, 3).log_seq == 3
        wires.heal()
        assert eventually_sync(lambda: answers(lambda: store.renew(1, ONE, 4)), 20).log_seq == 4
        store.close()


def test_a_restarted_database_is_used_again_by_itself(on_postgres, postgres):  # noqa: F811
    store = on_postgres.open()
    grant(store, ONE, 1)
    postgres.stop()
    try:
        with pytest.raises(StoreUnavailable):
            store.renew(1, ONE, 1)
        with pytest.raises(StoreUnavailable):
            on_postgres.open()
    finally:
        postgres.start()
    assert eventually_sync(lambda: answers(store.read), 20).holder == ONE
    assert store.renew(1, ONE, 7).log_seq == 7


def test_a_database_that_is_emptied_under_an_open_store_begins_again(on_postgres):
    store = on_postgres.open()
    grant(store, ONE, 4)
    on_postgres.execute("DROP TABLE lease; DROP TABLE history; DROP TABLE counters")
    with pytest.raises(StoreUnavailable):
        store.renew(4, ONE, 1)
    assert eventually_sync(lambda: answers(store.read), 20) == LeaseRow()
    on_postgres.execute("DELETE FROM lease")
    with pytest.raises(StoreUnavailable):
        store.read()
    assert eventually_sync(lambda: answers(store.read), 20) == LeaseRow()
    assert store.adopt(store.read(), 4, ONE, 9, AT).epoch == 4


def test_a_frozen_overseer_that_holds_the_row_delays_the_others_for_half_a_lease(on_postgres):
    store, frozen = on_postgres.open(), on_postgres.engines()
    grant(store, ONE, 1)
    with frozen.durable.connect() as conn:
        conn.execute(sa.text("UPDATE lease SET paused = paused"))
        with pytest.raises(StoreUnavailable, match="lock timeout"):
            store.renew(1, ONE, 1)
        assert store.read().epoch == 1, "a row that somebody holds is no outage"
        eventually_sync(lambda: answers(lambda: store.renew(1, ONE, 2)), 20)
        conn.invalidate()
    frozen.close()


def answers(call):
    try:
        return call()
    except StoreUnavailable:
        return None


def test_the_password_is_in_no_message(on_postgres, tmp_path):
    secret = "correct-horse"
    host = on_postgres.url.split("@")[1].split("?")[0]
    with pytest.raises(StoreUnavailable) as caught:
        SqlLeaseStore(PostgresEngines(f"postgresql://fedhelm:{secret}@{host}", FAST, tmp_path), "poc")
    engines = PostgresEngines(f"postgresql://fedhelm:{secret}@{host}", FAST, tmp_path)
    shown = [str(caught.value), repr(caught.value.__cause__), engines.name, repr(engines.durable), repr(vars(engines))]
    engines.close()
    assert "password authentication failed" in shown[0]
    for url in (f"postgresql://fedhelm:{secret}@[::1/db", f"postgresql://u:{secret}@h/db?port", f"{secret} ="):
        with pytest.raises(BadInput) as refused:
            PostgresEngines(url, FAST, tmp_path)
        shown.append(repr(refused.value) + repr(refused.value.__cause__))
    assert not any(secret in one for one in shown)


def test_files_in_the_url_are_found_from_the_folder(on_postgres, tmp_path):
    passfile = on_postgres.url.split("passfile=")[1]
    (tmp_path / "pgpass").write_bytes(Path(passfile).read_bytes())
    (tmp_path / "pgpass").chmod(0o600)
    url = on_postgres.url.replace(passfile, "pgpass")
    store = SqlLeaseStore(PostgresEngines(url, FAST, tmp_path), "poc")
    assert store.read() == LeaseRow()
    store.close()
    assert not Path("pgpass").exists(), "it was not found from here"


def test_tls_is_what_the_url_asks_for(on_postgres, postgres, tmp_path):  # noqa: F811
    def opened(**parameters):
        host, rest = on_postgres.url.split("@")[1].split("/", 1)
        url = f"postgresql://fedhelm@db.example:{host.split(':')[1]}/{rest}&hostaddr=127.0.0.1"
        url += "".join(f"&{key}={value}" for key, value in parameters.items())
        store = SqlLeaseStore(PostgresEngines(url, FAST, tmp_path), "poc")
        try:
            return store.read()
        finally:
            store.close()

    with pytest.raises(StoreUnavailable, match="does not support SSL"):
        opened(sslmode="require")
    authority, other = CertificateAuthority.create("db"), CertificateAuthority.create("db")
    issued = authority.issue("server", "db.example", "test")
    postgres.enable_tls(issued.cert, issued.key)
    (tmp_path / "db-ca.pem").write_bytes(authority.cert_pem)
    (tmp_path / "other-ca.pem").write_bytes(other.cert_pem)
    assert opened(sslmode="verify-full", sslrootcert="db-ca.pem") == LeaseRow()
    with pytest.raises(StoreUnavailable, match="certificate verify failed"):
        opened(sslmode="verify-full", sslrootcert="other-ca.pem")


def test_without_the_driver_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.delitem(sys.modules, "fedhelm_overseer.lease_postgres", raising=False)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(FedhelmError) as caught:
        PostgresEngines("postgresql://u@h/db", FAST, tmp_path)
    assert caught.value.hint == "pip install 'fedhelm[postgres]'"
