"""Overseers on one database, of either kind: what one is handed, all refuse; what the database loses, they bring back."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import sqlalchemy as sa

from fedhelm.config.timing import PROFILES
from fedhelm.security.kept_revocations import KeptRevocations
from fedhelm.security.pki import CertificateAuthority
from fedhelm_overseer.desk import Desk
from fedhelm_overseer.lease_engines import PostgresEngines, SqliteEngines
from fedhelm_overseer.lease_store import SqlLeaseStore
from tests.fakes.overseer_clock import FakeClock
from tests.support.kits import ADMIN, make_kits
from tests.support.postgres import postgres  # noqa: F401  a fixture
from tests.support.revoking import serial_of, signed_list


class Shared:
    """One database, and overseers each with a disk of its own."""

    def __init__(self, folder, url):
        self.authority = CertificateAuthority.create("poc")
        self.kits = make_kits(folder, servers=1, authority=self.authority, cluster="c1")
        self.clock = FakeClock()
        self.folder, self.url = folder, url
        self.stores = []

    def store(self):
        # Profile wan: nobody gives up waiting for a lock, however busy the machine is.
        engines = (
            PostgresEngines(self.url, PROFILES["wan"], Path("/"))
            if self.url
            else SqliteEngines(self.folder / "overseer.db")
        )
        self.stores.append(SqlLeaseStore(engines, "poc"))
        return self.stores[-1]

    def overseer(self, name):
        root = self.folder / name
        if not root.exists():
            shutil.copytree(self.kits["overseer"].root / "startup", root / "startup")
        kit = dataclasses.replace(self.kits["overseer"], root=root)
        return Desk(kit, self.store(), self.clock, KeptRevocations(kit))

    def signed(self, version, *names):
        return signed_list(self.authority, version, *(self.kits[name] for name in names))

    def refused(self, desk, name):
        return not desk.revocations.counts(serial_of(self.kits[name]))

    def empty(self):
        """Take the list out of the database, behind the overseers' back."""
        with self.stores[0]._engines.durable.begin() as conn:
            conn.execute(sa.text("DELETE FROM revocations"))

    def pass_a_term(self, *desks):
        self.clock.advance(self.kits["overseer"].timing.lease)
        for desk in desks:
            desk.observe()


@pytest.fixture(params=["sqlite", "postgres"])
def shared(request, tmp_path):
    server = request.getfixturevalue("postgres") if request.param == "postgres" else None
    made = Shared(tmp_path, server and server.url(server.database()))
    yield made
    for store in made.stores:
        store.close()


def test_what_one_is_handed_all_refuse_and_what_the_database_loses_they_bring_back(shared):
    one, two = shared.overseer("one"), shared.overseer("two")
    assert one.trust.hand_over(ADMIN, shared.signed(1, "site-1")).taken
    two.observe()
    assert shared.refused(one, "site-1")
    assert shared.refused(two, "site-1"), "with its next look at the row"
    assert two.trust.hand_over(ADMIN, shared.signed(2, "site-1", "server1")).taken
    one.observe()
    assert shared.refused(one, "server1")
    assert one.revocations.signed == two.revocations.signed

    shared.empty()
    shared.pass_a_term(one, two)
    assert shared.store().revocations() == (2, one.revocations.signed)
    assert shared.refused(shared.overseer("three"), "server1"), "one that is new has it from the database"


def test_two_that_are_handed_different_versions_at_once_end_with_the_higher_one(shared):
    one, two = shared.overseer("one"), shared.overseer("two")
    one.trust.hand_over(ADMIN, shared.signed(3, "site-1"))
    two.trust.hand_over(ADMIN, shared.signed(4, "site-1", "server1"))
    shared.pass_a_term(one, two)
    assert one.revocations.current == two.revocations.current
    assert shared.store().revocations()[0] == 4
    assert one.trust.hand_over(ADMIN, shared.signed(4, "site-1", "server1")).taken is False


def test_an_emptied_database_is_filled_by_an_overseer_that_starts(shared):
    shared.overseer("one").trust.hand_over(ADMIN, shared.signed(1, "site-1"))
    shared.empty()
    shared.overseer("one")
    assert shared.store().revocations()[0] == 1
