from __future__ import annotations

import asyncio
import logging
import threading
from datetime import timedelta

import pytest

from fedhelm.clock import SystemClock
from fedhelm.errors import BadCertificate, Unreachable
from fedhelm.provision.install import install
from fedhelm.security.pki import CertificateAuthority, load_certificate, serial_of
from fedhelm.security.revocation import RevocationList, Revoked
from fedhelm.tasks import cancel, spawn
from fedhelm_client import site_trust
from fedhelm_client.site_trust import SiteTrust, in_daemon
from tests.support.kits import make_kits, newer_kit
from tests.support.waiting import eventually

AT = "2026-11-22T15:04:05.123Z"


@pytest.fixture
def authority():
    return CertificateAuthority.create("poc")


@pytest.fixture
def kits(tmp_path, authority):
    return make_kits(tmp_path, authority=authority, cluster="c1")


@pytest.fixture
def kit(kits):
    return kits["site-1"]


class Overseers:
    """Holds each question until there is a list that is newer, as an overseer does."""

    def __init__(self):
        self.asked = []
        self.fails = []
        self.reconnected = 0
        self._list = (0, b"")
        self._news = threading.Condition()
        self._ended = False

    def revocations(self, after=0, wait_s=0.0):
        assert wait_s > 0
        with self._news:
            self.asked.append(after)
            if self.fails:
                raise self.fails.pop(0)
            self._news.wait_for(lambda: self._ended or self._list[0] > after, 10)
            return self._list[1] if self._list[0] > after else b""

    def reconnect(self):
        self.reconnected += 1

    def say(self, version, data):
        with self._news:
            self._list = (version, data)
            self._news.notify_all()

    def end(self):
        with self._news:
            self._ended = True
            self._news.notify_all()


@pytest.fixture
async def world(kit, monkeypatch):
    monkeypatch.setattr(site_trust, "_FIRST", (0.0, 0.0))
    monkeypatch.setattr(site_trust, "_PAUSE", (0.01, 0.01))
    trust, overseers, kits, changes = SiteTrust(kit), Overseers(), [], []
    running = spawn(trust.run(overseers, kits.append, lambda: changes.append(trust.trouble), look=0.01), "trust")
    yield trust, overseers, kits, changes
    overseers.end()
    await cancel(running)


def signed(authority, version, *entries):
    revoked = tuple(Revoked(serial, role, name, AT, "stolen") for serial, role, name in entries)
    return RevocationList("poc", "c1", version, AT, revoked).to_bytes(authority)


def own(kit):
    return serial_of(load_certificate(kit.cert.read_bytes(), "x"))


async def test_the_newest_list_is_kept_on_disk_whatever_fails_in_between(world, authority, kit, caplog):
    caplog.set_level(logging.INFO, "fedhelm.client")
    trust, overseers, _, _ = world
    await eventually(lambda: overseers.asked == [0])  # it is held
    overseers.fails = [Unreachable("no overseer answers")] * 3
    data = signed(authority, 2, ("1f", "lead", "bob@a.org"))
    overseers.say(2, data)
    await eventually(lambda: overseers.asked == [0, 2, 2, 2, 2])  # the last one is held: it waits for what is newer
    assert (kit.run / "revoked.json").read_bytes() == data
    assert [one.getMessage() for one in caplog.records if "is kept" in one.getMessage()] == [
        "version 2 of the list of revoked certificates is kept: no overseer answers"
    ]
    with pytest.raises(BadCertificate):
        trust.revocations.check("1f")
    assert (trust.trouble, overseers.reconnected) == (None, 0)
    overseers.say(3, signed(authority, 3, ("2f", "overseer", "overseer")))
    await eventually(lambda: overseers.reconnected == 1)


async def test_a_site_that_was_revoked_knows_it_until_it_has_a_new_kit(world, authority, kit, tmp_path):
    trust, overseers, kits, changes = world
    overseers.say(2, signed(authority, 2, (own(kit), "site", "site-1")))
    await eventually(lambda: changes and changes[-1] is not None)
    assert trust.trouble == ("the certificate of site site-1 was revoked on 2026-11-22: stolen: install a new kit")
    newer_kit(kit, authority, tmp_path / "new", 2)
    await asyncio.to_thread(install, kit.root, tmp_path / "new")
    await eventually(lambda: kits)
    assert (kits, trust.trouble, changes[-1], overseers.reconnected) == ([kit], None, None, 1)


def test_an_expired_certificate_is_known_without_anybody_saying_so(kit, authority):
    issued = authority.issue(
        "site", "site-1", "nvidia", start=SystemClock().utcnow() - timedelta(days=2), life=timedelta(days=1)
    )
    kit.cert.write_bytes(issued.cert)
    kit.key.write_bytes(issued.key)
    assert "the certificate of site-1 expired on 20" in SiteTrust(kit).trouble
    assert SiteTrust(kit).trouble.endswith(": install a new kit")


async def test_a_blocking_call_brings_its_answer_or_its_error():
    assert await in_daemon(lambda: 7, "seven") == 7

    def fails():
        raise Unreachable("nobody")

    with pytest.raises(Unreachable, match="nobody"):
        await in_daemon(fails, "fails")
