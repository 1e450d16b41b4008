"""What a server shows of its kit: it convinces an overseer of the same project, and nobody else can make one."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import pytest

from fedhelm.errors import KitError
from fedhelm.security.pki import CertificateAuthority
from fedhelm.security.signing import make_manifest, parse_manifest
from fedhelm.wire.announcement import announcement_of, verify_announcement
from fedhelm.wire.overseer_api import Announcement
from tests.support.kits import ADMIN, make_kits


@pytest.fixture(scope="module")
def authority():
    return CertificateAuthority.create("poc")


@pytest.fixture(scope="module")
def kits(tmp_path_factory, authority):
    return make_kits(tmp_path_factory.mktemp("kits"), servers=2, authority=authority)


def why_not(kits, announcement, name="server2"):
    with pytest.raises(KitError) as caught:
        verify_announcement(announcement, kits["overseer"], name)
    return caught.value.message


def forged(kits, authority, **changes):
    """A configuration of server2 with changes, properly signed by ``authority``."""
    config = json.dumps(json.loads(announcement_of(kits["server2"]).config) | changes)
    manifest = make_manifest({"fed_server.json": config.encode()}, authority).decode()
    return Announcement(manifest=manifest, signature="", config=config)


def test_the_own_kits_addresses_and_time_come_out(kits):
    announced = verify_announcement(announcement_of(kits["server2"]), kits["overseer"], "server2")
    assert announced.address == kits["server2"].own_server
    assert announced.kit_time == parse_manifest((kits["server2"].startup / "signature.json").read_bytes(), "x").created
    assert announced.kit_time > "2020"


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
    assert "manifest" in why_not(kits, Announcement(manifest=manifest, signature="", config="{}"))


def test_an_announcement_without_readable_files_says_so(kits, tmp_path):
    with pytest.raises(KitError):
        announcement_of(dataclasses.replace(kits["server2"], root=tmp_path))
