from __future__ import annotations

import asyncio
import dataclasses
import logging

import pytest

from fedhelm.errors import FedhelmError, KitError
from fedhelm.security.pki import CertificateAuthority
from fedhelm.security.reloading import KitMark, ReloadingKit, replaces, watch_kit
from fedhelm.security.signing import make_manifest
from tests.fakes.provision_clock import FixedClock
from tests.support.kits import make_kits
from tests.support.waiting import eventually

OLD = KitMark("poc", "c1", "site", "site-1", 3, "a")


@pytest.fixture
def authority():
    return CertificateAuthority.create("poc")


@pytest.fixture
def kit(tmp_path, authority):
    return make_kits(tmp_path, authority=authority)["site-1"]


def replace(kit, authority, version, trusting=None):
    """Give the kit a new certificate and key, signed; as an installed kit, with a manifest of its own."""
    issued = authority.issue(kit.role, kit.name, kit.org)
    kit.cert.write_bytes(issued.cert)
    kit.key.write_bytes(issued.key)
    kit.ca.write_bytes((trusting or authority).cert_pem)
    files = {path.name: path.read_bytes() for path in kit.startup.iterdir() if path.name != "signature.json"}
    draft = kit.root / "draft"
    draft.write_bytes(make_manifest(files, authority, version))
    draft.replace(kit.startup / "signature.json")
    return issued


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        ({}, False),
        ({"version": 4, "digest": "b"}, True),
        ({"version": 3, "digest": "b"}, True),
        ({"version": 2, "digest": "b"}, "has version 2, and version 3 is in use"),
        ({"name": "site-2", "digest": "b"}, "is of site site-2 .* does not replace that of site site-1"),
        ({"role": "server", "digest": "b"}, "is of server"),
        ({"project": "other", "digest": "b"}, "in other"),
        ({"cluster": "c2", "digest": "b"}, "cluster c2"),
    ],
)
def test_which_kit_takes_the_place_of_which(change, answer):
    new = dataclasses.replace(OLD, **change)
    if isinstance(answer, bool):
        assert replaces(new, OLD) is answer
    else:
        with pytest.raises(KitError, match=answer):
            replaces(new, OLD)


def test_an_administrators_role_may_change():
    member = dataclasses.replace(OLD, role="member", name="a@b.c")
    assert replaces(dataclasses.replace(member, role="lead", digest="b"), member)


def test_a_new_kit_is_taken_and_remembered(kit, authority):
    running = ReloadingKit(kit)
    assert (running.look(), running.version) == (None, 1)
    replace(kit, authority, 2)
    assert running.look() == kit
    assert (running.version, running.problem, running.look()) == (2, None, None)
    replace(kit, authority, 1)
    assert running.look() is None
    assert "version 1 of the kit of site-1; version 2 was in use" in str(running.problem)
    assert running.version == 2


def test_a_kit_on_its_way_or_damaged_is_not_taken_until_it_is_whole(kit, authority):
    running = ReloadingKit(kit)
    whole = kit.cert.read_bytes()
    issued = replace(kit, authority, 2)
    kit.cert.write_bytes(whole)
    assert running.look() is None
    assert str(running.problem) == f"{kit.cert} was changed"
    kit.cert.write_bytes(issued.cert)
    assert running.look() == kit
    assert running.problem is None


def test_a_missing_manifest_is_a_problem_and_no_end(kit):
    running = ReloadingKit(kit)
    manifest = (kit.startup / "signature.json").read_bytes()
    (kit.startup / "signature.json").unlink()
    assert running.look() is None
    assert "signature.json is missing" in str(running.problem)
    (kit.startup / "signature.json").write_bytes(manifest)
    assert running.look() is None
    assert running.problem is None


def test_a_root_that_a_kit_brings_itself_proves_nothing(kit, authority):
    running, new = ReloadingKit(kit), CertificateAuthority.create("poc")
    replace(kit, new, 2)
    assert running.look() is None
    assert "was not signed by the root that site-1 trusts now" in str(running.problem)
    replace(kit, authority, 3, trusting=authority.trusting(new.signing_pem))
    assert running.look() == kit
    replace(kit, new, 4)
    assert running.look() == kit


def test_the_certificate_in_use_says_when_it_expires(tmp_path):
    clock = FixedClock()
    authority = CertificateAuthority.create("poc")
    kit = make_kits(tmp_path, authority=authority)["site-1"]
    clock.now = authority._clock.utcnow()
    running = ReloadingKit(kit, clock=clock)
    assert running.expiry() is None
    clock.shift(days=340)
    assert "expires on" in running.expiry()


async def test_the_watcher_tells_of_each_new_kit_and_survives_what_cannot_be_used(kit, authority, caplog):
    caplog.set_level(logging.INFO, "fedhelm.kit")
    taken = []

    def take(new):
        taken.append(new)
        if len(taken) == 1:
            raise FedhelmError("no such file")

    running = ReloadingKit(kit)
    task = asyncio.ensure_future(watch_kit(running, take, interval=0.01))
    try:
        replace(kit, authority, 2)
        await eventually(lambda: "cannot be used: no such file" in caplog.text)
        with kit.cert.open("ab") as file:
            file.write(b"\n")
        (kit.startup / "signature.json").touch()
        await eventually(lambda: "is not used" in caplog.text)
        replace(kit, authority, 3)
        await eventually(lambda: "version 3 of the kit of site-1 is in use now" in caplog.text)
        assert len(taken) == 2
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
