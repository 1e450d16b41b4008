"""Which servers a project has, and what a server must show to become one of them."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import pytest

from fedhelm.errors import KitError, NotFound, Refused
from fedhelm.security.pki import CertificateAuthority
from fedhelm.security.signing import make_manifest, parse_manifest
from fedhelm.wire.announcement import announcement_of
from fedhelm.wire.overseer_api import Announcement
from fedhelm_overseer.lease import ServerEntry
from fedhelm_overseer.members import Roster, kit_date, verified
from tests.support.kits import ADMIN, make_kits


@pytest.fixture(scope="module")
def authority():
    return CertificateAuthority.create("poc")


@pytest.fixture(scope="module")
def kits(tmp_path_factory, authority):
    return make_kits(tmp_path_factory.mktemp("kits"), servers=2, authority=authority)


def why_not(kits, announcement, name="server2"):
    with pytest.raises(KitError) as caught:
        verified(announcement, kits["overseer"], name)
    return caught.value.message


def forged(kits, authority, **changes):
    """A configuration of server2 with changes, properly signed by ``authority``."""
    config = json.dumps(json.loads(announcement_of(kits["server2"]).config) | changes)
    manifest = make_manifest({"fed_server.json": config.encode()}, authority).decode()
    return Announcement(manifest=manifest, config=config)


def test_the_own_kits_addresses_and_time_come_out(kits):
    entry = verified(announcement_of(kits["server2"]), kits["overseer"], "server2")
    own = kits["server2"].own_server
    assert (entry.host, entry.fed_learn_port, entry.admin_port) == (own.host, own.fed_learn_port, own.admin_port)
    assert entry.org == "nvidia"
    assert entry.kit_date == kit_date(kits["server2"]) > "2020"
    assert entry.removed_at is None


def test_nobody_announces_another_servers_kit(kits):
    assert "its name is server2, not server1" in why_not(kits, announcement_of(kits["server2"]), "server1")


def test_another_root_signs_in_vain(kits):
    assert "not signed by" in why_not(kits, forged(kits, CertificateAuthority.create("poc")))


def test_a_changed_configuration_is_found(kits):
    real = announcement_of(kits["server2"])
    changed = real.model_copy(update={"config": real.config.replace("127.0.0.1", "10.0.0.66")})
    assert changed.config != real.config
    assert "not the one that was signed" in why_not(kits, changed)
    files = parse_manifest(real.manifest, "x").files | {
        "fed_server.json": hashlib.sha256(changed.config.encode()).hexdigest()
    }
    manifest = json.dumps(json.loads(real.manifest) | {"files": files})
    assert "not signed by" in why_not(kits, changed.model_copy(update={"manifest": manifest}))


@pytest.mark.parametrize("name", ["site-1", ADMIN, "overseer"])
def test_the_kit_of_another_role_is_refused(kits, name):
    # The manifest of a site is signed, but covers no configuration of a server.
    assert "not the one that was signed" in why_not(kits, announcement_of(kits[name]), name)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"role": "site"}, "role"),
        ({"project": "other"}, "project"),
        ({"cluster": "c9"}, "cluster"),
        ({"servers": []}, "no server"),
    ],
)
def test_what_is_signed_but_of_something_else_is_refused(kits, authority, change, why):
    assert why in why_not(kits, forged(kits, authority, **change))


@pytest.mark.parametrize(
    "manifest", ["", "{}", "[]", "null", '{"format": 1, "version": 1, "files": [], "signature": ""}']
)
def test_no_manifest_is_refused_with_a_reason(kits, manifest):
    assert "manifest" in why_not(kits, Announcement(manifest=manifest, config="{}"))


def test_an_announcement_without_readable_files_says_so(kits, tmp_path):
    with pytest.raises(KitError):
        announcement_of(dataclasses.replace(kits["server2"], root=tmp_path))


class TestTheRoster:
    OLD, KIT, LATER, LAST = (f"202{year}-01-01T00:00:00.000Z" for year in (4, 5, 6, 7))

    def roster(self, kits, *entries):
        return Roster(kits["overseer"], self.KIT, entries)

    def at(self, name, date, host="10.0.0.9", **rest):
        return ServerEntry(name, host, 7001, 7002, "nvidia", date, **rest)

    def test_begins_as_the_kit_says(self, kits):
        roster = self.roster(kits)
        assert roster.names == ("server1", "server2")
        assert roster.addresses == kits["overseer"].servers
        assert roster.address("server9") is None

    def test_puts_who_announced_itself_behind_by_name(self, kits):
        roster = self.roster(kits, self.at("zeta", self.OLD), self.at("alpha", self.LATER))
        assert roster.names == ("server1", "server2", "alpha", "zeta")
        assert roster.address("zeta").host == "10.0.0.9"

    def test_lets_the_kit_signed_last_say_where_a_server_is(self, kits):
        assert self.roster(kits, self.at("server2", self.LATER)).address("server2").host == "10.0.0.9"
        assert self.roster(kits, self.at("server2", self.OLD)).address("server2").host == "127.0.0.1"
        assert self.roster(kits, self.at("server2", self.LATER)).names == ("server1", "server2")

    def test_leaves_out_who_was_removed_unless_the_own_kit_is_newer(self, kits):
        assert self.roster(kits, ServerEntry("server2", removed_at=self.LATER)).names == ("server1",)
        assert self.roster(kits, ServerEntry("server2", removed_at=self.OLD)).names == ("server1", "server2")

    def test_admits_its_own_without_a_word_and_strangers_with_their_kit_alone(self, kits):
        roster = self.roster(kits)
        assert roster.admit("server1", None) is None
        with pytest.raises(NotFound, match="server9"):
            roster.admit("server9", None)
        new = self.at("server9", "")
        assert roster.admit("server9", new) is new

    def test_writes_down_what_changed_and_nothing_else(self, kits):
        roster = self.roster(kits)
        own = kits["overseer"].server("server2")
        same = ServerEntry("server2", own.host, own.fed_learn_port, own.admin_port, "nvidia", self.LATER)
        assert roster.admit("server2", same) is None
        moved = self.at("server2", self.LATER)
        assert roster.admit("server2", moved) is moved
        assert self.roster(kits, moved).admit("server2", moved) is None

    def test_refuses_the_old_kit_of_a_server_that_was_replaced(self, kits):
        roster = self.roster(kits, self.at("server2", self.LATER))
        with pytest.raises(Refused, match=r"server2 answers at 10\.0\.0\.9:7001 by a kit signed at 2026"):
            roster.admit("server2", self.at("server2", self.KIT, host="127.0.0.1"))

    def test_refuses_a_removed_server_until_its_kit_is_newer_than_the_removal(self, kits):
        roster = self.roster(kits, ServerEntry("server2", removed_at=self.LATER))
        with pytest.raises(Refused, match="server2 was removed at 2026"):
            roster.admit("server2", None)
        for date in (self.OLD, self.LATER, ""):
            with pytest.raises(Refused, match=r"removed at 2026.*signed before"):
                roster.admit("server2", self.at("server2", date))
        new = self.at("server2", self.LAST)
        assert roster.admit("server2", new) is new
