from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from fedhelm.config.kit import ADMIN_ROLES, OverseerAddress, ServerAddress, kit_from_json, kit_to_json, read_kit
from fedhelm.errors import BadCertificate, KitError
from fedhelm.provision.kits import write_kits
from fedhelm.security.kit import open_kit
from fedhelm.security.pki import CertificateAuthority
from fedhelm.security.signing import make_manifest
from tests.fakes.provision_clock import FixedClock
from tests.support.kits import ADMIN, make_kits, make_project


@pytest.fixture
def authority():
    return CertificateAuthority.create("poc")


@pytest.fixture
def kits(tmp_path, authority):
    return make_kits(tmp_path, servers=2, sites=2, base_port=20000, authority=authority)


def resign(kit, authority, version=1):
    files = {path.name: path.read_bytes() for path in kit.startup.iterdir() if path.name != "signature.json"}
    (kit.startup / "signature.json").write_bytes(make_manifest(files, authority, version))


def refused(root, kind=KitError, **options):
    with pytest.raises(kind) as caught:
        open_kit(root, **options)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_everybody_knows_the_whole_federation(kits):
    assert list(kits) == ["overseer", "server1", "server2", "site-1", "site-2", ADMIN]
    assert len({kit.cluster for kit in kits.values()}) == 1
    for kit in kits.values():
        assert kit.overseers == (OverseerAddress("overseer", "127.0.0.1", 20000, "/api/v1"),)
        assert kit.servers == (
            ServerAddress("server1", "127.0.0.1", 20001, 20002),
            ServerAddress("server2", "127.0.0.1", 20003, 20004),
        )
        everybody = ("site-1", "site-2")
        assert kit.sites == {"overseer": (), "site": (kit.name,)}.get(kit.role, everybody)
        assert kit.project == "poc"


def test_only_servers_know_the_store_and_they_share_it(kits, tmp_path):
    stores = {name: kit.store for name, kit in kits.items()}
    expected = {"server1": tmp_path / "store", "server2": tmp_path / "store"}
    assert stores == {name: expected.get(name) for name in kits}


def test_a_participants_own_address(kits):
    assert kits["server2"].own_server == kits["site-1"].server("server2")
    assert kits["overseer"].own_overseer.port == 20000
    with pytest.raises(KitError, match="no server called site-1"):
        _ = kits["site-1"].own_server
    with pytest.raises(KitError, match="no overseer called server1"):
        _ = kits["server1"].own_overseer


def test_a_kit_reached_through_a_link_is_the_same_kit(kits, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "server1")
    assert open_kit(tmp_path / "link") == kits["server1"]


def test_a_relative_path_is_the_same_kit(kits, monkeypatch):
    monkeypatch.chdir(kits["server1"].local)
    assert open_kit(Path("..")) == kits["server1"]


def test_another_roles_kit_is_refused(kits):
    message = refused(kits["site-1"].root, role="server")
    assert message.endswith("is the kit of a site (site-1), not of a server")


def test_one_of_several_roles_is_taken(kits):
    admins = [kit for kit in kits.values() if kit.role in ADMIN_ROLES]
    assert [open_kit(kit.root, role=ADMIN_ROLES) for kit in admins] == admins
    message = refused(kits["site-1"].root, role=ADMIN_ROLES)
    assert message.endswith("is the kit of a site (site-1), not of a project_admin or org_admin or lead or member")


def test_a_folder_that_is_no_kit(tmp_path):
    assert "it has no startup folder" in refused(tmp_path)
    (tmp_path / "startup").mkdir()
    assert "exactly one of" in refused(tmp_path)


def test_a_missing_and_a_changed_file_are_named(kits):
    kits["site-1"].cert.unlink()
    assert refused(kits["site-1"].root).endswith("site-1/startup/client.crt is missing")
    with (kits["site-2"].startup / "start.sh").open("a") as file:
        file.write("# mine\n")
    assert refused(kits["site-2"].root).endswith("site-2/startup/start.sh was changed")


def test_a_key_that_others_can_read_is_refused(kits):
    kit = kits["server1"]
    kit.key.chmod(0o640)
    assert refused(kit.root) == f"{kit.key} can be read by others (mode 0640)"
    kit.key.chmod(0o600)
    assert open_kit(kit.root) == kit


def test_the_clock_before_the_certificates_start(tmp_path):
    clock = FixedClock()
    authority = CertificateAuthority.create("poc", clock=clock)
    root = write_kits(make_project(), authority, tmp_path)["site-1"]
    clock.shift(minutes=-4)
    assert open_kit(root, clock=clock).name == "site-1"
    clock.shift(minutes=-2)
    message = refused(root, BadCertificate, clock=clock)
    assert "client.crt is not valid before 2025-12-31T23:55:00.000Z" in message
    assert "clock says 2025-12-31T23:54:00.000Z" in message


def test_an_expired_certificate_says_when(tmp_path):
    clock = FixedClock()
    authority = CertificateAuthority.create("poc", clock=clock)
    root = write_kits(make_project(), authority, tmp_path)["server1"]
    clock.shift(days=364)
    assert open_kit(root, clock=clock).name == "server1"
    clock.shift(days=1)
    assert "server.crt expired on 2026-12-31T23:55:00.000Z" in refused(root, BadCertificate, clock=clock)


@pytest.mark.parametrize(
    ("issuer", "identity", "message"),
    [
        ("other", ("site", "site-1"), "was not issued by this project's root"),
        ("own", ("site", "site-2"), "is the certificate of site site-2, the kit is of site site-1"),
        ("own", ("server", "site-1"), "is the certificate of server site-1, the kit is of site site-1"),
    ],
)
def test_a_certificate_of_somebody_else_is_refused(kits, authority, issuer, identity, message):
    kit = kits["site-1"]
    root = authority if issuer == "own" else CertificateAuthority.create("poc")
    issued = root.issue(*identity, "nvidia")
    kit.cert.write_bytes(issued.cert)
    kit.key.write_bytes(issued.key)
    resign(kit, authority)
    assert message in refused(kit.root, BadCertificate)


def test_a_key_of_another_certificate_is_refused(kits, authority):
    kit = kits["site-1"]
    kit.key.write_bytes(authority.issue("site", "site-1", "nvidia").key)
    resign(kit, authority)
    assert refused(kit.root) == f"{kit.key} does not belong to client.crt"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"version": 2}, "version 2 of the format"),
        ({"role": "root"}, "role 'root'"),
        ({"name": "../x"}, "not a host name"),
        ({"name": 7}, "name is missing"),
        ({"overseers": {}}, "overseers is missing or not a list"),
        (
            {"servers": [{"name": "s", "host": "h", "fed_learn_port": 1, "admin_port": 70000}]},
            r"servers\[0\]: admin_port",
        ),
        ({"servers": ["x"]}, r"servers\[0\]: not a JSON object"),
        ({"sites": ["A B"]}, "site 'A B'"),
        ({"timing": {}}, "timing"),
        ({"store": 3}, "store"),
        ({"enable_byoc": "no"}, "enable_byoc"),
        ({"resources": [1]}, "resources is not an object"),
        ({"role": "server", "resources": {"gpu": [0]}}, "resources is not an object, or not a site's"),
        ({"docker_image": 5}, "docker_image"),
        ({"site_orgs": ["site-1"]}, "site_orgs is not an object"),
        ({"site_orgs": {"site-1": ""}}, "site_orgs is not an object of texts"),
        ({"site_orgs": {"../x": "a"}}, "not a host name"),
    ],
)
def test_a_configuration_with_a_wrong_value_names_file_and_key(kits, tmp_path, change, what):
    data = kit_to_json(kits["site-1"]) | change
    with pytest.raises(KitError, match=what) as caught:
        kit_from_json(tmp_path, data, "fed_client.json")
    assert caught.value.message.startswith("fed_client.json: ")


def test_a_configuration_that_is_no_json_is_named(kits):
    path = kits["site-1"].startup / "fed_client.json"
    path.write_text("{")
    with pytest.raises(KitError, match=r"fed_client\.json: cannot be read"):
        read_kit(kits["site-1"].root)


def test_the_configuration_can_be_read_by_people(kits):
    data = json.loads((kits["server1"].startup / "fed_server.json").read_text())
    assert data["store"] == "../store"
    assert data["timing"]["name"] == "fast"


@pytest.mark.parametrize("name", ["signature.json", "fed_client.json"])
def test_json_without_end_is_an_error_that_names_the_file(tmp_path, name):
    kit = make_kits(tmp_path)["site-1"]
    (kit.startup / name).write_text("[" * 100_000)
    with pytest.raises(KitError, match=name):
        open_kit(kit.root)


@pytest.mark.parametrize("role", ADMIN_ROLES)
def test_a_kit_says_the_role_of_its_admin_who_has_an_address(tmp_path, kits, role):
    data = kit_to_json(kits[ADMIN]) | {"role": role}
    assert kit_from_json(tmp_path, data, "fed_admin.json").role == role
    with pytest.raises(KitError, match="name@domain"):
        kit_from_json(tmp_path, data | {"name": "site-1"}, "fed_admin.json")


def test_resources_and_image_come_back_and_kits_without_them_are_read(kits, tmp_path):
    kit = dataclasses.replace(kits["site-1"], resources={"gpu": [0, 1]}, docker_image="fedhelm:0.1")
    data = json.loads(json.dumps(kit_to_json(kit)))
    assert kit_from_json(kit.root, data, "fed_client.json") == kit
    former = kit_to_json(kits["site-1"])
    assert not {"resources", "docker_image"} & set(former)
    assert kit_from_json(kit.root, former, "fed_client.json").resources == {}


def test_a_servers_kit_knows_the_organisations_of_the_sites_and_one_of_before_knows_none(kits):
    server = kits["server1"]
    assert dict(server.site_orgs) == {name: kits[name].org for name in server.sites}
    assert dict(kits["site-1"].site_orgs) == {}
    former = {key: value for key, value in kit_to_json(server).items() if key != "site_orgs"}
    assert kit_from_json(server.root, former, "fed_server.json").site_orgs == {}


def own_key_kit(kit, authority, *, key=True):
    """Make the kit one whose participant made its key itself: the manifest says so and does not list the key."""
    files = {path.name: path.read_bytes() for path in kit.startup.iterdir() if path.name != "signature.json"}
    own = files.pop(kit.key.name)
    (kit.startup / "signature.json").write_bytes(make_manifest(files, authority, own_key=True))
    if not key:
        kit.key.unlink()
    return own


def test_a_key_that_the_participant_made_is_in_no_manifest_and_must_fit(kits, authority):
    kit = kits["site-1"]
    own = own_key_kit(kit, authority, key=False)
    assert refused(kit.root) == f"{kit.key} is missing"
    kit.key.touch(mode=0o600)
    kit.key.write_bytes(own)
    assert open_kit(kit.root) == kit
    kit.key.write_bytes(authority.issue("site", "site-1", "nvidia").key)
    assert refused(kit.root) == f"{kit.key} does not belong to client.crt"
    (kit.startup / "server.key").write_bytes(own)
    assert refused(kit.root) == f"{kit.startup / 'server.key'} does not belong to the kit"


def test_a_changed_byte_of_an_own_key_is_named(kits, authority):
    kit = kits["site-1"]
    own = own_key_kit(kit, authority)
    for index in range(0, len(own) - 1, 5):  # what ends the last line is no part of a key
        kit.key.write_bytes(own[:index] + bytes([own[index] ^ 0x11]) + own[index + 1 :])
        assert str(kit.key) in refused(kit.root)


def test_an_older_kit_than_was_in_use_is_refused_by_name(kits, authority):
    kit = kits["site-1"]
    resign(kit, authority, version=3)
    open_kit(kit.root)
    assert not kit.run.exists(), "who only looks writes nothing"
    open_kit(kit.root, remember=True)
    open_kit(kit.root, remember=True)
    resign(kit, authority, version=2)
    for remember in (False, True):
        message = refused(kit.root, remember=remember)
        assert message == f"{kit.startup}: version 2 of the kit of site-1; version 3 was in use here before"
    resign(kit, authority, version=4)
    open_kit(kit.root, remember=True)
    resign(kit, authority, version=3)
    assert "version 4 was in use" in refused(kit.root)


@pytest.mark.parametrize("text", ["", "[" * 100_000, "[]", '{"version": "3"}', '{"version": true}', "\xff"])
def test_a_damaged_memory_of_the_version_is_named(kits, text):
    kit = kits["site-1"]
    kit.run.mkdir()
    (kit.run / "kit.json").write_bytes(text.encode("latin-1"))
    assert refused(kit.root).startswith(f"{kit.run / 'kit.json'} does not say")


def test_while_the_root_is_rotated_certificates_of_both_are_good(kits, authority):
    kit, new = kits["site-1"], CertificateAuthority.create("poc")
    for both in (authority.trusting(new.signing_pem), new.trusting(authority.signing_pem)):
        kit.ca.write_bytes(both.cert_pem)
        resign(kit, both)
        assert open_kit(kit.root) == kit
    issued = new.issue("site", "site-1", "nvidia")
    kit.cert.write_bytes(issued.cert)
    kit.key.write_bytes(issued.key)
    resign(kit, new)
    assert open_kit(kit.root) == kit
    kit.ca.write_bytes(authority.cert_pem)
    resign(kit, authority)
    assert "was not issued by this project's root" in refused(kit.root, BadCertificate)
