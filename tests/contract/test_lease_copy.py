"""A copy of the lease store says the same wherever it is put."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedhelm.config.timing import PROFILES
from fedhelm.errors import BadInput
from fedhelm_overseer.lease import Holder
from fedhelm_overseer.lease_copy import copy_in, copy_out
from fedhelm_overseer.lease_engines import PostgresEngines, SqliteEngines
from fedhelm_overseer.lease_store import SqlLeaseStore
from tests.support.postgres import postgres  # noqa: F401  a fixture

FIRST, SECOND = Holder("server1", "a" * 16), Holder("server2", "b" * 16)


@pytest.fixture(params=["sqlite", "postgres"])
def engines(request, tmp_path):
    """Two databases; the second is of the other kind than the first."""
    server = request.getfixturevalue("postgres")
    made = [
        PostgresEngines(server.url(server.database()), PROFILES["default"], Path("/")),
        SqliteEngines(tmp_path / "lease.db"),
    ]
    yield made if request.param == "postgres" else made[::-1]
    for one in made:
        one.close()


def lived(engines):
    store = SqlLeaseStore(engines, "poc")
    store.grant(store.read(), 1, FIRST, "first grant", "2026-01-01T00:00:00Z", keep_intent=False)
    store.activate(1, FIRST, 3, "2026-01-01T00:00:01Z", None)
    store.release(1, FIRST, "child exited", refused=False)
    store.grant(store.read(), 2, SECOND, "child exited", "2026-01-01T00:00:02Z", keep_intent=False)
    store.activate(2, SECOND, 9, "2026-01-01T00:00:03Z", 0.5)
    return store


def test_history_survives_and_the_lease_is_free(engines):
    first, second = engines
    before = lived(first)
    copy = json.loads(json.dumps(copy_out(first, "poc")))
    copy_in(second, "poc", copy, epoch=1048578, log_seq=40)
    after = SqlLeaseStore(second, "poc")
    assert after.history() == before.history()
    row = after.read()
    assert (row.epoch, row.state, row.holder, row.log_seq) == (1048578, "released", None, 40)
    assert row.version > before.read().version
    assert after.members() == ()


def test_it_replaces_what_was_there_even_in_the_same_database(engines):
    first, _ = engines
    store = lived(first)
    copy = copy_out(first, "poc")
    store.release(2, SECOND, "gone", refused=False)
    store.grant(store.read(), 3, FIRST, "gone", "2026-01-01T00:00:05Z", keep_intent=False)
    copy_in(first, "poc", copy, epoch=7, log_seq=9)
    assert [term.epoch for term in store.history()] == [1, 2]
    assert store.read().epoch == 7


@pytest.mark.parametrize("spoil", [{"schema": 99}, {"tables": {}}, {"tables": None}])
def test_what_is_no_copy_changes_nothing(engines, spoil):
    first, second = engines
    lived(first)
    there = lived(second)
    with pytest.raises(BadInput):
        copy_in(second, "poc", copy_out(first, "poc") | spoil, epoch=5, log_seq=1)
    assert there.read().epoch == 2


def test_the_list_of_revoked_certificates_goes_along_and_a_copy_of_before_has_none(engines):
    first, second = engines
    lived(first).revoke(4, b'{"version": 4}', over=0)
    copy = json.loads(json.dumps(copy_out(first, "poc")))
    copy_in(second, "poc", copy, epoch=7, log_seq=9)
    after = SqlLeaseStore(second, "poc")
    assert after.revocations() == (4, b'{"version": 4}')
    del copy["tables"]["revocations"]
    copy_in(second, "poc", copy, epoch=7, log_seq=9)
    assert after.revocations() == (0, b"")
