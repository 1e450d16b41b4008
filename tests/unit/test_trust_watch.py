from __future__ import annotations

import asyncio
import logging

import pytest

from fedhelm.errors import KitError, Refused, Unreachable
from fedhelm.provision.install import install
from fedhelm.security.pki import CertificateAuthority, load_certificate, serial_of
from fedhelm.security.revocation import RevocationList, Revoked
from fedhelm.tasks import cancel, spawn
from fedhelm_server import trust_watch
from fedhelm_server.trust_watch import TrustWatch
from tests.support.kits import make_kits, newer_kit
from tests.support.waiting import eventually

AT = "2026-11-22T15:04:05.123Z"


@pytest.fixture
def authority():
    return CertificateAuthority.create("poc")


@pytest.fixture
def kit(tmp_path, authority):
    return make_kits(tmp_path, authority=authority, cluster="c1")["server1"]


class Overseers:
    """Overseers that have a list each; ``watch`` is told of changes, as by the client."""

    def __init__(self, *lists):
        self.lists = list(lists)
        self.fails = []
        self.fetched = []
        self.given = []
        self.reconnected = []
        self.warned = []
        self.watch = None

    def _versions(self):
        return [self._version(one) for one in self.lists]

    @staticmethod
    def _version(data):
        return int(data.split(b'"version": ')[1].split(b",")[0]) if data else 0

    @property
    def revocations_version(self):
        return max(self._versions())

    @property
    def revocations_lowest(self):
        return min(self._versions())

    async def revocations(self, after=0):
        self.fetched.append(after)
        if self.fails:
            raise self.fails.pop(0)
        return max(self.lists, key=self._version)

    async def revoke(self, data):
        self.given.append(self._version(data))
        if self.fails:
            raise self.fails.pop(0)
        self.lists = [max(data, one, key=self._version) for one in self.lists]

    def reconnect(self, kit=None):
        self.reconnected.append(kit)

    def say(self, *lists):
        self.lists = list(lists)
        self.watch.announced(self.revocations_version)


@pytest.fixture
async def world(kit, monkeypatch):
    """A watch that runs: (watch, overseers, what the child was told)."""
    monkeypatch.setattr(trust_watch, "_PAUSE_S", 0.01)
    watch, overseers, told = TrustWatch(kit), Overseers(b""), []
    overseers.watch = watch
    running = spawn(watch.run(overseers, told.append, overseers.warned.append), "trust")
    yield watch, overseers, told
    await cancel(running)


def signed(authority, version, *serials, role="site"):
    entries = tuple(Revoked(serial, role, f"{role}-{serial}", AT, "stolen") for serial in serials)
    return RevocationList("poc", "c1", version, AT, entries).to_bytes(authority)


async def test_a_newer_list_is_fetched_verified_kept_and_the_child_told(world, authority, kit):
    watch, overseers, told = world
    overseers.say(signed(authority, 2, "1f"))
    await eventually(lambda: told)
    assert (told, overseers.fetched, overseers.reconnected) == ([2], [0], [])
    assert watch.revocations.current.version == 2
    assert (kit.run / "revoked.json").read_bytes() == overseers.lists[0]
    overseers.say(signed(authority, 3, "1f", "2f", role="overseer"))
    await eventually(lambda: overseers.reconnected == [None])  # an overseer was revoked: it has to show itself again
    assert told == [2, 3]


async def test_an_overseer_that_lost_its_list_gets_it_back(world, authority):
    watch, overseers, told = world
    overseers.say(signed(authority, 2, "1f"), b"")
    await eventually(lambda: overseers.given == [2])
    overseers.fails = [Refused("there is a newer one")]
    newer = signed(authority, 3, "1f")
    overseers.lists = [b"", newer]
    watch.announced(0)
    await eventually(lambda: watch.revocations.current.version == 3)
    await eventually(lambda: overseers.lists == [newer, newer])
    assert told == [2, 3]


async def test_a_list_that_cannot_be_had_or_is_forged_changes_nothing_and_is_asked_for_again(world, authority, caplog):
    caplog.set_level(logging.WARNING, "fedhelm.supervisor")
    watch, overseers, told = world
    overseers.fails = [Unreachable("no overseer answers")] * 3
    overseers.say(signed(CertificateAuthority.create("poc"), 7, "1f"))
    await eventually(lambda: len(overseers.fetched) > 5)
    assert (told, watch.revocations.current.version) == ([], 0)
    said = [one.getMessage() for one in caplog.records]
    assert len(said) == 2, "each reason once"
    assert "no overseer answers" in said[0]
    assert "was not signed by this project's root" in said[1]
    overseers.say(signed(authority, 7, "1f"))
    await eventually(lambda: told == [7])


async def test_a_server_that_was_revoked_itself_says_so_and_a_new_kit_is_taken(world, authority, kit, tmp_path, caplog):
    watch, overseers, told = world
    own = serial_of(load_certificate(kit.cert.read_bytes(), "x"))
    trouble = f"the certificate of server server-{own} was revoked on 2026-11-22: stolen: install a new kit"
    overseers.say(signed(authority, 2, own, role="server"))
    await eventually(lambda: told)
    await eventually(lambda: overseers.warned == [trouble])
    assert [one.getMessage() for one in caplog.records].count(trouble) == 1
    newer_kit(kit, authority, tmp_path / "new", 2)
    await asyncio.to_thread(install, kit.root, tmp_path / "new")
    await eventually(lambda: overseers.reconnected == [kit])
    await eventually(lambda: overseers.warned == [trouble, None])
    with pytest.raises(KitError):
        watch.revocations.offer(b"")
