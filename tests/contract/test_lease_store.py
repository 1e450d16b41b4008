"""What every lease store must do; run on the SQL store and on the fake."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from fedhelm.config.timing import PROFILES
from fedhelm.errors import Corrupt, StoreUnavailable
from fedhelm.wire.overseer_api import Intent
from fedhelm_overseer.lease import Holder, LeaseRow, MemberRow, Operation, ServerEntry
from fedhelm_overseer.lease_engines import PostgresEngines, SqliteEngines
from fedhelm_overseer.lease_store import SqlLeaseStore
from tests.fakes.overseer_store import MemoryLeaseStore
from tests.support.postgres import postgres  # noqa: F401  a fixture

AT, LATER = "2026-11-22T15:00:00.000Z", "2026-11-22T16:00:00.000Z"
ONE, TWO = Holder("server1", "aa"), Holder("server2", "bb")


def sqlite(path, **options):
    return SqlLeaseStore(SqliteEngines(path, **options), "poc")


def on_postgres(url):
    # Profile wan: nobody gives up waiting for a lock, however busy the machine is.
    return SqlLeaseStore(PostgresEngines(url, PROFILES["wan"], Path("/")), "poc")


@pytest.fixture(params=["sqlite", "postgres", "memory"])
def store(request, tmp_path):
    if request.param == "sqlite":
        made = sqlite(tmp_path / "overseer.db")
    elif request.param == "postgres":
        server = request.getfixturevalue("postgres")
        made = on_postgres(server.url(server.database()))
    else:
        made = MemoryLeaseStore()
    yield made
    made.close()


def grant(store, holder, epoch, cause="first grant", keep_intent=False):
    row = store.grant(store.read(), epoch, holder, cause, AT, keep_intent=keep_intent)
    assert row is not None
    return row


def test_a_new_store_has_a_row_that_was_never_granted(store):
    assert store.read() == LeaseRow()
    assert store.history() == ()
    assert store.members() == ()


def test_a_grant_needs_the_row_it_was_decided_on(store):
    row = store.read()
    assert grant(store, ONE, 1).holder == ONE
    assert store.grant(row, 2, TWO, "late", AT, keep_intent=False) is None
    assert (store.read().epoch, store.read().holder) == (1, ONE)
    assert [term.epoch for term in store.history()] == [1]


def test_a_renewal_between_decision_and_grant_wins(store):
    before = grant(store, ONE, 1)
    assert store.renew(1, ONE, 5).log_seq == 5
    assert store.grant(before, 2, TWO, "lease expired", AT, keep_intent=False) is None
    assert store.read().holder == ONE


def test_a_pause_or_an_intent_between_decision_and_grant_wins(store):
    grant(store, ONE, 1)
    before = store.read()
    assert store.set_paused(before, True, "admin", request_id="r1", at=AT) is not None
    assert store.grant(before, 2, TWO, "lease expired", AT, keep_intent=False) is None
    assert store.adopt(before, 5, TWO, 9, AT) is None
    before = store.read()
    assert store.set_intent(before, Intent(target="server2", request_id="r2")) is not None
    assert store.grant(before, 2, TWO, "lease expired", AT, keep_intent=False) is None
    row = store.read()
    assert (row.epoch, row.holder, row.paused, row.intent.target) == (1, ONE, True, "server2")
    assert [term.epoch for term in store.history()] == [1]
    assert store.grant(row, 2, TWO, "lease expired", AT, keep_intent=False) is not None


def test_renewals_change_no_version_and_the_log_position_never_falls(store):
    row = grant(store, ONE, 1)
    renewed = store.renew(1, ONE, 9)
    assert (renewed.version, renewed.renew_seq, renewed.log_seq) == (row.version, row.renew_seq + 1, 9)
    assert store.renew(1, ONE, 3).log_seq == 9


@pytest.mark.parametrize(
    ("epoch", "holder"), [(0, ONE), (2, ONE), (1, TWO), (1, Holder("server1", "cc")), (1, Holder("server2", "aa"))]
)
def test_only_the_holding_incarnation_in_its_epoch_may_call(store, epoch, holder):
    row = grant(store, ONE, 1)
    assert store.renew(epoch, holder, 1) is None
    assert store.activate(epoch, holder, 1, AT, None) is None
    assert store.release(epoch, holder, "no", refused=False) is None
    assert store.read() == row


def test_an_epoch_must_rise(store):
    row = grant(store, ONE, 4)
    with pytest.raises(ValueError, match="rise"):
        store.grant(row, 4, TWO, "again", AT, keep_intent=False)
    with pytest.raises(ValueError, match="rise"):
        store.adopt(row, 3, TWO, 0, AT)


def test_after_a_release_nothing_of_that_epoch_is_accepted(store):
    grant(store, ONE, 1)
    store.activate(1, ONE, 1, AT, None)
    released = store.release(1, ONE, "exit status -9", refused=False)
    assert (released.state, released.cause) == ("released", "exit status -9")
    assert store.renew(1, ONE, 2) is None
    assert store.release(1, ONE, "again", refused=False) is None
    assert store.activate(1, ONE, 2, AT, None) is None


def test_activation_is_once_and_written_into_history_with_the_gap(store):
    grant(store, ONE, 1)
    assert store.activate(1, ONE, 1, AT, None).state == "active"
    assert store.activate(1, ONE, 1, AT, None) is None
    store.release(1, ONE, "crash", refused=False)
    grant(store, TWO, 2, "crash")
    store.activate(2, TWO, 2, AT, 0.25)
    first, second = store.history()
    assert (first.holder, first.previous, first.gap_s, first.active_at) == (ONE, None, None, AT)
    assert (second.holder, second.previous, second.gap_s, second.cause) == (TWO, "server1", 0.25, "crash")


def test_a_grant_keeps_the_intent_only_when_told_and_activation_clears_it(store):
    grant(store, ONE, 1)
    row = store.activate(1, ONE, 1, AT, None)
    intent = Intent(target="server2", request_id="r1")
    assert store.set_intent(row, intent).intent == intent
    assert store.set_intent(row, None) is None, "the version moved"
    store.release(1, ONE, "handoff", refused=False)
    assert grant(store, TWO, 2, "switchover", keep_intent=True).intent == intent
    assert store.history()[-1].request_id == "r1"
    assert store.activate(2, TWO, 3, AT, 0.1).intent is None
    store.set_intent(store.read(), intent)
    assert grant(store, ONE, 3, "lease expired").intent is None
    assert store.history()[-1].request_id is None


def test_an_incarnation_that_lost_or_released_the_lease_is_spent_until_a_new_one_registers(store):
    store.register(ONE)
    store.register(TWO)
    grant(store, ONE, 1)
    assert store.members() == (MemberRow("server1", "aa"), MemberRow("server2", "bb"))
    grant(store, TWO, 2, "lease expired")
    assert store.members()[0].spent
    assert store.register(ONE).spent, "the same incarnation stays spent"
    assert store.register(Holder("server1", "cc")) == MemberRow("server1", "cc")
    store.release(2, TWO, "stopped", refused=False)
    assert store.members()[1].spent


def test_a_refusal_is_forgotten_when_the_incarnation_registers_again(store):
    store.register(ONE)
    grant(store, ONE, 1)
    store.release(1, ONE, "store went backwards", refused=True)
    assert store.members() == (MemberRow("server1", "aa", spent=False, refused="store went backwards"),)
    assert store.register(ONE) == MemberRow("server1", "aa")


def test_adoption_takes_epoch_and_holder_over_as_active(store):
    row = store.read()
    adopted = store.adopt(row, 7, TWO, 120, AT)
    assert (adopted.epoch, adopted.holder, adopted.state, adopted.log_seq) == (7, TWO, "active", 120)
    assert store.adopt(row, 8, ONE, 0, AT) is None
    assert [(term.epoch, term.cause, term.active_at) for term in store.history()] == [(7, "adopted", AT)]


def test_of_many_threads_that_decide_on_one_row_one_grants(store):
    for holder in range(8):
        store.register(Holder(f"server{holder}", "aa"))
    row = store.read()
    won, barrier = [], threading.Barrier(8)

    def compete(number):
        barrier.wait()
        if store.grant(row, 1, Holder("server1", str(number)), "race", AT, keep_intent=False):
            won.append(number)

    threads = [threading.Thread(target=compete, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.read().holder == Holder("server1", str(won[0]))


def test_starts_are_counted(store):
    assert [store.count_start() for _ in range(3)] == [1, 2, 3]


def test_the_history_says_who_asked_for_a_switchover_and_how_many_jobs_went_on(store):
    grant(store, ONE, 1)
    row = store.activate(1, ONE, 1, AT, None, jobs=0)
    row = store.set_intent(row, Intent(target="server2", request_id="r1"), by="admin@nvidia.com")
    assert row.intent_by == "admin@nvidia.com"
    store.release(1, ONE, "handoff", refused=False)
    grant(store, TWO, 2, "switchover", keep_intent=True)
    assert store.activate(2, TWO, 3, AT, 0.1, jobs=2).intent_by is None
    first, second = store.history()
    assert (first.by, first.jobs) == (None, 0)
    assert (second.by, second.jobs, second.request_id) == ("admin@nvidia.com", 2, "r1")
    store.set_intent(store.read(), Intent(target="server1", request_id="r2"), by="admin@nvidia.com")
    assert store.set_intent(store.read(), None).intent_by is None


def test_failover_is_paused_and_resumed_once_for_each_request(store):
    row = store.read()
    paused = store.set_paused(row, True, "admin@nvidia.com", request_id="p1", at=AT, reason="upgrade")
    assert (paused.paused, paused.paused_by, paused.pause_reason) == (True, "admin@nvidia.com", "upgrade")
    assert paused.version == row.version + 1
    assert store.set_paused(row, False, "x", request_id="p2", at=AT) is None, "the version moved"
    resumed = store.set_paused(paused, False, "other@nvidia.com", request_id="p3", at=LATER)
    assert (resumed.paused, resumed.paused_by, resumed.pause_reason) == (False, None, None)
    assert store.set_paused(resumed, True, "admin@nvidia.com", request_id="p1", at=LATER) == resumed, "repeated"
    assert store.operations() == (
        Operation("p1", "pause", "admin@nvidia.com", AT, reason="upgrade"),
        Operation("p3", "resume", "other@nvidia.com", LATER),
    )


def test_a_shutdown_is_written_once_for_each_request_and_survives_grants(store):
    assert store.set_shutdown("s1", "admin@nvidia.com", at=AT).shutdown == "s1"
    version = store.set_shutdown("s2", "admin@nvidia.com", at=LATER, reason="move").version
    again = store.set_shutdown("s1", "admin@nvidia.com", at=LATER)
    assert (again.shutdown, again.version) == ("s2", version), "an old request that comes late"
    assert grant(store, ONE, 1).shutdown == "s2"
    assert store.read().view().shutdown == "s2"
    assert [one.request_id for one in store.operations()] == ["s1", "s2"]


def entry(kit_date="2026-11-20T00:00:00.000Z", host="10.0.0.3", name="server3"):
    return ServerEntry(name, host, 8002, 8003, "hospital", kit_date)


def test_a_newer_kit_replaces_the_addresses_and_an_older_one_does_not(store):
    assert store.announce(entry()) == entry()
    assert store.announce(entry()) == entry()
    moved = entry("2026-11-21T00:00:00.000Z", "10.0.0.4")
    assert store.announce(moved) == moved
    assert store.announce(entry()) == moved
    other = entry(name="server1")
    store.announce(other)
    assert store.servers() == (other, moved)


def test_a_removed_server_stays_out_until_it_has_a_kit_from_after_the_removal(store):
    store.announce(entry())
    store.register(Holder("server3", "cc"))
    store.register(ONE)
    gone = store.remove("server3", "admin@nvidia.com", request_id="d1", at=AT, reason="sold")
    assert gone == replace(entry(), removed_at=AT)
    assert store.members() == (MemberRow("server1", "aa"),)
    assert store.announce(entry()) == gone
    assert store.announce(entry(AT)) == gone, "issued at the instant of the removal"
    back = entry(LATER)
    assert store.announce(back) == back
    repeated = store.remove("server3", "admin@nvidia.com", request_id="d1", at=LATER)
    assert repeated == back, "the same request again removes nothing that came later"
    assert store.operations() == (Operation("d1", "remove", "admin@nvidia.com", AT, "server3", "sold"),)


def test_a_server_that_was_never_announced_can_be_removed(store):
    assert store.remove("server2", "admin@nvidia.com", request_id="d1", at=AT) == ServerEntry("server2", removed_at=AT)
    assert store.announce(entry(name="server2")).removed_at == AT
    assert store.servers() == (ServerEntry("server2", removed_at=AT),)


class TestSqlite:
    def test_everything_survives_a_restart(self, tmp_path):
        first = sqlite(tmp_path / "o.db")
        first.register(ONE)
        grant(first, ONE, 1)
        first.activate(1, ONE, 1, AT, None)
        first.renew(1, ONE, 44)
        row, members, history = first.read(), first.members(), first.history()
        first.close()
        again = sqlite(tmp_path / "o.db")
        assert (again.read(), again.members(), again.history()) == (row, members, history)
        again.close()

    def test_two_processes_on_one_file_grant_once(self, tmp_path):
        first, second = (sqlite(tmp_path / "o.db") for _ in range(2))
        row = second.read()
        grant(first, ONE, 1)
        assert second.grant(row, 1, TWO, "race", AT, keep_intent=False) is None
        assert second.read().holder == ONE
        first.close()
        second.close()

    def test_a_file_that_is_no_database_is_refused_by_name(self, tmp_path):
        path = tmp_path / "overseer.db"
        path.write_bytes(b"not a database, but long enough to have a header" * 100)
        with pytest.raises(Corrupt, match=r"overseer\.db"):
            sqlite(path)

    def test_a_missing_folder_is_an_error_not_a_new_store(self, tmp_path):
        with pytest.raises(StoreUnavailable):
            sqlite(tmp_path / "missing" / "overseer.db")

    def test_a_locked_database_is_unavailable_and_then_works_again(self, tmp_path):
        store = sqlite(tmp_path / "o.db", busy_s=0.05)
        other = sqlite(tmp_path / "o.db")
        with other._transaction(), pytest.raises(StoreUnavailable):
            store.grant(LeaseRow(), 1, ONE, "first grant", AT, keep_intent=False)
        assert store.read().state == "never"
        grant(store, ONE, 1)
        store.close()
        other.close()


def test_no_list_of_revoked_certificates_is_kept_at_first(store):
    assert store.revocations() == (0, b"")


def test_a_list_replaces_the_version_it_was_compared_with_and_no_other(store):
    before = store.read().version
    assert store.revoke(3, "{äé}".encode(), over=0).version == before + 1
    assert store.revocations() == (3, "{äé}".encode())
    assert store.revoke(5, b"{}", over=0) is None
    assert store.revoke(5, b"{}", over=4) is None
    assert store.read().version == before + 1
    assert store.revoke(5, b"{}", over=3).version == before + 2
    assert store.revocations() == (5, b"{}")
    with pytest.raises(ValueError, match="rise"):
        store.revoke(5, b"{}", over=5)


def test_the_text_of_a_list_is_read_only_where_it_is_newer(store):
    store.revoke(3, b"{}" * 1000, over=0)
    assert store.revocations(above=3) == (3, b"")
    assert store.revocations(above=2) == (3, b"{}" * 1000)


def test_of_many_overseers_that_hand_over_the_first_list_one_writes_it(store):
    start, done = threading.Barrier(4), []

    def hand_over(version):
        start.wait(timeout=30)
        done.append((version, store.revoke(version, b"%d" % version, over=0)))

    threads = [threading.Thread(target=hand_over, args=(version,)) for version in (1, 2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    (winner,) = [version for version, row in done if row is not None]
    assert store.revocations() == (winner, b"%d" % winner)


def test_a_list_and_the_lease_do_not_disturb_one_another(store):
    row = grant(store, ONE, 1)
    assert store.revoke(1, b"{}", over=0).holder == ONE
    assert store.renew(1, ONE, 5) is not None, "a renewal does not ask for the version"
    assert store.grant(row, 2, TWO, "late", AT, keep_intent=False) is None, "decided on an older row: look again"
    assert store.activate(1, ONE, 6, AT, None) is not None
