from __future__ import annotations

import json
import shutil
import stat

import pytest

from fedhelm.errors import KitError, NotFound, Refused
from fedhelm.provision import lifetimes, rotation
from fedhelm.provision.install import install
from fedhelm.provision.pki_cli import main
from fedhelm.provision.project_file import read_project_file
from fedhelm.provision.provisioned import ProjectFolder
from fedhelm.provision.provisioning import Secrets, provision
from fedhelm.security.kit import open_kit
from fedhelm.security.pki import load_certificate, load_key, load_roots, serial_of
from fedhelm.security.requests import make_request, read_request
from fedhelm.security.revocation import RevocationList
from tests.fakes.provision_clock import FixedClock

GIVEN = Secrets(b"correct horse")
PROJECT = """\
api_version: 3
name: hosp
participants:
  - {name: overseer, type: overseer, org: nv, protocol: https, api_root: /api/v1, port: 8443}
  - {name: server1, type: server, org: nv, fed_learn_port: 8002, admin_port: 8003}
  - {name: site-1, type: client, org: a}
  - {name: bob@a.org, type: admin, org: a, role: member}
snapshot_persistor: /shared/hosp
"""
NAMES = ("overseer", "server1", "site-1", "bob@a.org")


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "project.yml"
    path.write_text(PROJECT)
    file = read_project_file(path)
    return provision(file.project, file.source, tmp_path, GIVEN)[0]


@pytest.fixture
def here(folder, tmp_path):
    """The kits as the participants unpacked them."""
    place = tmp_path / "here"
    shutil.copytree(folder.prods[-1], place, ignore=shutil.ignore_patterns("*.zip"))
    return place


def install_all(here, prod, names=NAMES):
    return {name: install(here / name, prod / f"{name}.zip").after for name in names}


def names_of(made):
    return [one.name for one in made]


def asked(name="site-1", role="site", org="a"):
    key, request = make_request(role, name, org)
    return key, read_request(request, "a.csr")


def test_a_renewed_certificate_comes_in_a_kit_of_its_own_and_the_former_one_still_counts(folder, here):
    former = folder.current("site-1")
    made = lifetimes.renew(folder, ["site-1", "site-1"], GIVEN)
    assert names_of(made) == ["site-1"]
    assert sorted(path.name for path in folder.prods[-1].iterdir()) == ["site-1", "site-1.zip"]
    assert install(here / "site-1", made[0].zip).after == 2
    kit = open_kit(here / "site-1")
    assert serial_of(load_certificate(kit.cert.read_bytes(), "x")) == made[0].serial == folder.current("site-1").serial
    states = {one.serial: one.revoked for one in folder.certificates() if one.name == "site-1"}
    assert states == {former.serial: False, made[0].serial: False}
    file = read_project_file(folder.project_file)
    assert provision(file.project, file.source, folder.root.parent, GIVEN)[1].empty, "there is nothing left to do"


def test_a_key_that_is_not_here_is_certified_again(folder, here):
    for prod in folder.prods:
        shutil.rmtree(prod)
    (made,) = lifetimes.renew(folder, ["site-1"], GIVEN)
    assert made.own_key
    assert not (made.kit / "startup" / "client.key").exists()
    key = open_kit(here / "site-1").key.read_bytes()
    install(here / "site-1", made.zip)
    assert open_kit(here / "site-1").key.read_bytes() == key


def test_a_participant_with_its_own_key(folder, here, tmp_path):
    key, request = asked()
    made = lifetimes.approve(folder, request, GIVEN)
    assert made.own_key
    (tmp_path / "own.key").write_bytes(key)
    install(here / "site-1", made.zip, key=tmp_path / "own.key")
    kit = open_kit(here / "site-1")
    assert (kit.key.read_bytes(), stat.S_IMODE(kit.key.stat().st_mode)) == (key, 0o600)
    kit.key.write_bytes(make_request("site", "x", "y")[0])
    with pytest.raises(KitError, match=r"client\.key does not belong to client\.crt"):
        open_kit(kit.root)
    kit.key.write_bytes(key)
    (again,) = lifetimes.renew(folder, ["site-1"], GIVEN)
    assert install(kit.root, again.zip).after == 3
    assert open_kit(kit.root).key.read_bytes() == key
    for path in folder.root.rglob("*"):
        assert not path.is_file() or key not in path.read_bytes(), path


def test_a_request_gets_what_the_project_file_says_and_nothing_else(folder):
    with pytest.raises(Refused, match="asks for the role 'server', the project file says 'site'"):
        lifetimes.approve(folder, asked(role="server")[1], GIVEN)
    with pytest.raises(Refused, match="asks for the organisation 'b'"):
        lifetimes.approve(folder, asked(org="b")[1], GIVEN)
    with pytest.raises(NotFound, match="no participant called site-9"):
        lifetimes.approve(folder, asked("site-9")[1], GIVEN)
    _, request = asked()
    lifetimes.approve(folder, request, GIVEN)
    lifetimes.revoke(folder, "site-1", "lost", GIVEN)
    with pytest.raises(Refused, match="the key of this request was revoked"):
        lifetimes.approve(folder, request, GIVEN)
    with pytest.raises(Refused, match="its certificate was revoked, and its key is not made here"):
        lifetimes.renew(folder, ["site-1"], GIVEN)


def test_what_is_revoked_is_on_the_signed_list_that_others_verify(folder, here):
    (made,) = lifetimes.renew(folder, ["site-1"], GIVEN)
    gone = lifetimes.revoke(folder, "site-1", "laptop stolen", GIVEN)
    kit = open_kit(here / "server1")
    listed = RevocationList.parse(folder.revocations(), kit.ca.read_bytes(), kit.project, kit.cluster)
    assert (listed.version, len(gone)) == (1, 2)
    assert listed.revoked(made.serial).reason == "laptop stolen"
    assert listed.revoked(folder.current("server1").serial) is None
    with pytest.raises(NotFound, match="site-1 has no certificate that still counts"):
        lifetimes.revoke(folder, "site-1", "again", GIVEN)
    (new,) = lifetimes.renew(folder, ["site-1"], GIVEN)
    assert folder.revocation_list().revoked(new.serial) is None
    assert lifetimes.revoke(folder, "site-1", "one", GIVEN, serial=new.serial)[0].serial == new.serial
    assert folder.revocation_list().version == 2


def test_the_passphrase_is_needed_for_each_and_nothing_is_half_done(folder):
    before = {path: path.read_bytes() for path in folder.root.rglob("*") if path.is_file()}
    for step in (
        lambda given: lifetimes.renew(folder, ["site-1"], given),
        lambda given: lifetimes.revoke(folder, "site-1", "x", given),
        lambda given: lifetimes.approve(folder, asked()[1], given),
        lambda given: rotation.begin_rotation(folder, given),
    ):
        for given in (Secrets(), Secrets(b"wrong wrong")):
            with pytest.raises(KitError, match="root key"):
                step(given)
    after = {path: path.read_bytes() for path in folder.root.rglob("*") if path.is_file() and path.name != "lock"}
    assert after == {path: data for path, data in before.items() if path.name != "lock"}


def test_who_expires_soon(folder):
    clock = FixedClock(load_certificate(folder.current("site-1").cert_pem.encode(), "x").not_valid_before_utc)
    assert lifetimes.expiring(folder, 30, clock.utcnow()) == []
    clock.shift(days=340)
    assert lifetimes.expiring(folder, 30, clock.utcnow()) == list(NAMES)


def test_the_root_is_rotated_and_every_kit_opens_at_every_step(folder, here):
    former = folder.trust.read_bytes()
    lifetimes.revoke(folder, "bob@a.org", "left", GIVEN)
    stay = NAMES[:3]
    with pytest.raises(Refused, match="no rotation was begun"):
        rotation.switch_root(folder, GIVEN)
    with pytest.raises(Refused, match="no rotation is on its way"):
        rotation.finish_rotation(folder, GIVEN)
    install_all(here, rotation.begin_rotation(folder, GIVEN), stay)
    with pytest.raises(Refused, match="not switched yet"):
        rotation.finish_rotation(folder, GIVEN)
    made = rotation.switch_root(folder, GIVEN)
    assert names_of(made) == list(stay)
    roots = open_kit(here / "site-1").ca.read_bytes()
    assert RevocationList.parse(folder.revocations(), roots, folder.project, folder.cluster).version == 2
    install_all(here, folder.prods[-1], stay)
    assert rotation.switch_root(folder, GIVEN) == []
    with pytest.raises(Refused, match="switched already"):
        rotation.begin_rotation(folder, GIVEN)
    install_all(here, rotation.finish_rotation(folder, GIVEN), stay)
    (root,) = load_roots(folder.trust.read_bytes(), "x")
    assert root not in load_roots(former, "x")
    for name in stay:
        assert open_kit(here / name).ca.read_bytes() == folder.trust.read_bytes()
    assert folder.revocation_list().version == 2
    assert folder.root_is_encrypted
    assert sorted(path.name for path in folder.state.glob("rootCA*")) == ["rootCA.key", "rootCA.pem"]


@pytest.mark.parametrize("after", ["key", "certificate"])
def test_a_switch_that_was_broken_off_goes_on(folder, here, after):
    install_all(here, rotation.begin_rotation(folder, GIVEN))
    shutil.copy(folder.state / "rootCA.next.key", folder.state / "rootCA.key")
    if after == "certificate":
        folder.trust.write_bytes(folder.authority(GIVEN.passphrase).cert_pem)
    assert names_of(rotation.switch_root(ProjectFolder.open(folder.root), GIVEN)) == list(NAMES)
    install_all(here, folder.prods[-1])
    install_all(here, rotation.finish_rotation(folder, GIVEN))


def test_a_beginning_that_was_broken_off_goes_on_with_the_same_root(folder, here):
    rotation.begin_rotation(folder, GIVEN)
    new = (folder.state / "rootCA.next.pem").read_bytes()
    assert rotation.begin_rotation(folder, GIVEN) == folder.prods[-1]
    assert (folder.state / "rootCA.next.pem").read_bytes() == new
    install_all(here, folder.prods[-1])


# -- the command


@pytest.fixture
def run(folder, tmp_path, capsys):
    secret = tmp_path / "root.pass"
    secret.touch(mode=0o600)
    secret.write_bytes(GIVEN.passphrase + b"\n")

    def call(*words, status=0, state=True):
        where = ["-w", str(folder.root)] if state else []
        opened = ["--passphrase-file", str(secret)] if state and words[0] != "list" else []
        assert main([*words, *where, *opened, "-o", "json"]) == status
        body = json.loads(capsys.readouterr().out)
        return body["data"] if status == 0 else body["error"]["message"]

    return call


def test_request_and_approval(run, tmp_path):
    made = run("request", "site-1", "--role", "site", "--org", "a", "--out", str(tmp_path / "keys"), state=False)
    key = tmp_path / "keys" / "site-1.key"
    assert (made["key"], stat.S_IMODE(key.stat().st_mode)) == (str(key), 0o600)
    assert load_key(key.read_bytes(), "x")
    again = run(
        "request", "site-1", "--role", "site", "--org", "a", "--out", str(tmp_path / "keys"), state=False, status=1
    )
    assert again == f"{key} exists already"
    assert run("approve", made["request"])["kits"][0]["own_key"] is True
    assert "not a certificate request" in run("approve", str(key), status=4)
    assert "No such file" in run("approve", str(tmp_path / "nowhere"), status=2)


def test_renewal_revocation_and_the_list(run):
    assert names_of_rows(run("list")) == [(name, "valid") for name in NAMES]
    assert [one["name"] for one in run("renew", "--all")["kits"]] == list(NAMES)
    assert run("renew", "--expiring", "30")["kits"] == []
    assert "no participant called nobody" in run("renew", "nobody", status=1)
    assert "required" in run("renew", status=2)
    done = run("revoke", "site-1", "--reason", "laptop stolen")
    assert (len(done["revoked"]), done["version"]) == (2, 1)
    assert "one printable line" in run("revoke", "server1", "--reason", "a\nb", status=2)
    rows = [row for row in run("list", "--all")["certificates"] if row["name"] in ("site-1", "server1")]
    assert [row["state"].partition(" on ")[0] for row in rows] == ["valid, replaced", "revoked", "valid", "revoked"]
    assert [row["name"] for row in run("list")["certificates"]] == ["overseer", "server1", "bob@a.org"]


def names_of_rows(data):
    return [(row["name"], row["state"]) for row in data["certificates"]]


def test_rotation(run, folder):
    assert run("rotate", "begin")["prod"] == str(folder.prod(1))
    assert len(run("rotate", "switch")["kits"]) == 4
    assert run("rotate", "finish")["prod"] == str(folder.prod(3))
    assert "no rotation" in run("rotate", "finish", status=2)


def test_for_people(folder, tmp_path, capsys):
    assert main(["list", "-w", str(folder.root)]) == 0
    assert capsys.readouterr().out.startswith("NAME ")
    assert main(["request", "site-1", "--role", "site", "--org", "a", "--out", str(tmp_path / "k")]) == 0
    assert "it stays here" in capsys.readouterr().out
    assert main(["list", "-w", str(tmp_path)]) == 1
    assert "no provisioned project" in capsys.readouterr().err
