"""A participant that makes its own key: nobody else has it, from the first kit to the last."""

from __future__ import annotations

import json
import shutil

import pytest

from fedhelm.provision import pki_cli, provision_cli
from fedhelm.provision.install import install
from fedhelm.provision.provisioned import ProjectFolder
from fedhelm.security.kit import open_kit
from fedhelm.security.pki import load_certificate, load_key

TEXT = """\
api_version: 3
name: demo
snapshot_persistor: /shared/demo
participants:
- {name: overseer, type: overseer, org: nvidia}
- {name: server1, type: server, org: nvidia}
- {name: site-1, type: client, org: hospital}
"""
OWN = "- {name: site-2, type: client, org: hospital, own_key: true}\n"
NOT_OWN = OWN.replace(", own_key: true", "")


class Office:
    """The administrator's side; ``ask`` is the site's."""

    def __init__(self, folder, capsys):
        self.folder, self._capsys = folder, capsys
        self.file, self.root = folder / "project.yml", folder / "workspace" / "demo"

    def __call__(self, command, *argv, status=0):
        if command == "provision":
            found = provision_cli.main(["-o", "json", "-p", str(self.file), "-w", str(self.root.parent), *argv])
        else:
            found = pki_cli.main(["-o", "json", command, *map(str, argv), "-w", str(self.root)])
        assert found == status
        return json.loads(self._capsys.readouterr().out)["error" if status else "data"]

    def provision(self, text, *argv):
        self.file.write_text(text)
        data = self("provision", *argv)
        return {one["name"]: one for one in data["participants"]}, data

    def ask(self, name="site-2", org="hospital", out="keys"):
        words = ["request", name, "--role", "site", "--org", org, "--out", str(self.folder / out), "-o", "json"]
        assert pki_cli.main(words) == 0
        return json.loads(self._capsys.readouterr().out)["data"]

    @property
    def state(self):
        return ProjectFolder.open(self.root)

    def startup(self, name="site-2"):
        return self.state.prods[-1] / name / "startup"

    def has_key(self, name="site-2"):
        return [path.name for path in self.startup(name).iterdir() if path.suffix in (".key", ".pfx")]

    def rotate(self):
        for step in ("begin", "switch", "finish"):
            self("rotate", step)

    def key_of(self, name="site-2"):
        return load_certificate((self.startup(name) / "client.crt").read_bytes(), "x").public_key()

    def listed(self):
        return [one.serial for one in self.state.revocation_list().entries]


@pytest.fixture
def office(tmp_path, capsys):
    return Office(tmp_path, capsys)


def test_no_kit_is_made_before_the_request_is_approved_and_no_key_ever(office):
    rows, data = office.provision(TEXT + OWN)
    assert (rows["site-2"]["happens"], rows["site-2"]["kit"]) == ("waits", None)
    assert "fedhelm pki request there, then fedhelm pki approve" in rows["site-2"]["why"]
    assert not (office.root / "prod_00" / "site-2").exists()
    assert not (office.root / "prod_00" / "site-2.zip").exists()
    assert not office.provision(TEXT + OWN)[1]["changed"]
    assert "no request of it was approved yet" in office("renew", "site-2", status=2)["message"]
    asked = office.ask()
    made = office("approve", asked["request"])["kits"][0]
    assert (made["own_key"], made["key_sha256"], made["revoked"]) == (True, asked["key_sha256"], [])
    assert office.has_key() == []
    assert office.provision(TEXT + OWN)[0]["site-2"]["happens"] == "same"
    own = load_key((office.folder / "keys" / "site-2.key").read_bytes(), "x").public_key()
    changes = (
        lambda: office.provision(TEXT + OWN.replace("org: hospital", "org: clinic")),
        lambda: office("renew", "site-2"),
        lambda: office("renew", "--all"),
        office.rotate,
        lambda: office.provision(TEXT + OWN.replace("org: hospital", "org: clinic") + NOT_OWN.replace("-2", "-3")),
    )
    for change in changes:
        change()
        assert office.has_key() == []
        assert office.key_of() == own
    assert data["changed"]


def test_a_project_all_of_whose_participants_wait_has_an_encrypted_root(office):
    (office.folder / "pass").write_text("open sesame, please")
    (office.folder / "pass").chmod(0o600)
    text = TEXT.replace("}", ", own_key: true}")
    rows, data = office.provision(text, "--passphrase-file", str(office.folder / "pass"))
    assert ({one["happens"] for one in rows.values()}, data["changed"]) == ({"waits"}, False)
    assert office.state.root_is_encrypted
    made = office("approve", office.ask("site-1")["request"], "--passphrase-file", office.folder / "pass")
    assert made["kits"][0]["kit"] == str(office.root / "prod_00" / "site-1")


def test_a_new_organisation_is_a_certificate_for_the_same_key_and_the_old_one_is_revoked(office):
    """Also where project.yml does not say ``own_key``: what was approved is remembered."""
    office.provision(TEXT + NOT_OWN)
    made = office("approve", office.ask()["request"])["kits"][0]
    own = office.key_of()
    rows, data = office.provision(TEXT + NOT_OWN.replace("hospital", "clinic"))
    assert (rows["site-2"]["happens"], rows["site-2"]["own_key"]) == ("new certificate", True)
    assert [one["serial"] for one in data["revoked"]] == [made["serial"]]
    assert (office.has_key(), office.key_of()) == ([], own)
    assert office.state.current("site-2").org == "clinic"


def test_who_expired_or_was_taken_out_and_put_back_keeps_its_own_key(office):
    office.provision(TEXT + OWN)
    office("approve", office.ask()["request"])
    own = office.key_of()
    path = office.root / "state" / "certificates.json"
    body = json.loads(path.read_text())
    body["certificates"][-1]["not_after"] = "2026-01-01T00:00:00.000Z"
    path.write_text(json.dumps(body))
    assert office.provision(TEXT + OWN)[0]["site-2"]["why"].startswith("the former one expired")
    assert (office.has_key(), office.key_of()) == ([], own)
    office.provision(TEXT)
    assert office.provision(TEXT + NOT_OWN)[0]["site-2"]["happens"] == "new certificate"
    assert (office.has_key(), office.key_of()) == ([], own)


def test_a_key_that_was_once_kept_is_not_taken_for_the_own_one(office):
    office.provision(TEXT + NOT_OWN, "--keep-keys")
    kept = office.root / "state" / "keys" / "site-2.key"
    data = kept.read_bytes()
    office("approve", office.ask()["request"])
    own = office.key_of()
    assert not kept.exists()
    kept.write_bytes(data)
    path = office.root / "state" / "certificates.json"
    path.write_text(path.read_text().replace(',\n      "own_key": true', "").replace(',\n      "own_key": false', ""))
    for prod in office.state.prods:
        shutil.rmtree(prod)
    made = office("renew", "site-2")["kits"][0]
    assert made["own_key"] is True
    assert (office.has_key(), office.key_of()) == ([], own)


def test_the_certificate_whose_key_was_made_here_is_revoked_by_the_approval(office):
    office.provision(TEXT + NOT_OWN)
    first = office.state.current("site-2").serial
    rows, data = office.provision(TEXT + OWN)
    assert (rows["site-2"]["happens"], data["changed"]) == ("same", False)
    assert "the one that was made here counts until then" in rows["site-2"]["why"]
    here = office.folder / "here"
    shutil.copytree(office.root / "prod_00" / "site-2", here)
    key = open_kit(here).key.read_bytes()
    office.provision(TEXT.replace("api_version: 3", "api_version: 3\ntiming: fast") + OWN + NOT_OWN.replace("-2", "-3"))
    assert office.has_key() == []
    install(here, office.root / "prod_01" / "site-2.zip")
    assert open_kit(here).key.read_bytes() == key, "the one that is in place stays"
    assert len(office.has_key("site-3")) == 2
    made = office("approve", office.ask()["request"])["kits"][0]
    assert made["revoked"] == [first]
    assert office.listed() == [first]
    again = office("approve", office.ask(out="other")["request"])["kits"][0]
    assert again["revoked"] == [], "a key of its own: the participant says when that is replaced"


def test_an_approval_that_broke_off_before_it_revoked_is_finished_by_provision(office):
    office.provision(TEXT + NOT_OWN)
    first = office.state.current("site-2").serial
    office("approve", office.ask()["request"])
    (office.root / "state" / "revoked.json").unlink()
    path = office.root / "state" / "certificates.json"
    body = json.loads(path.read_text())
    for one in body["certificates"]:
        one.pop("by", None)
        one["revoked_at"] = one["reason"] = None
    path.write_text(json.dumps(body))
    data = office.provision(TEXT + NOT_OWN)[1]
    assert [(one["serial"], one["reason"]) for one in data["revoked"]] == [(first, "it has a key of its own now")]
    assert office.listed() == [first]


def test_a_request_whose_fingerprint_is_another_than_was_told_is_refused(office):
    office.provision(TEXT + OWN)
    asked = office.ask()
    before = office.state.last_prod
    said = office("approve", asked["request"], "--fingerprint", "ab" * 32, status=2)
    assert asked["key_sha256"] in said["message"]
    assert office.state.last_prod == before
    told = asked["key_sha256"].upper()
    colons = ":".join(told[place : place + 2] for place in range(0, 64, 2))
    assert office("approve", asked["request"], "--fingerprint", colons)["kits"][0]["key_sha256"] == told.lower()


def test_the_fingerprint_is_printed_for_people_at_both_sides(office, capsys):
    office.provision(TEXT + NOT_OWN)
    words = ["request", "site-2", "--role", "site", "--org", "hospital", "--out", str(office.folder / "k")]
    assert pki_cli.main(words) == 0
    (told,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("SHA-256 ")]
    assert pki_cli.main(["approve", str(office.folder / "k" / "site-2.csr"), "-w", str(office.root)]) == 0
    out = capsys.readouterr().out
    assert told in out
    assert "Ask site-2 in some other way" in out
    assert "Revoked, because its key was made here" in out


def test_a_key_that_was_revoked_by_name_is_not_certified_again(office):
    office.provision(TEXT + OWN)
    asked = office.ask()
    office("approve", asked["request"])
    office("revoke", "site-2", "--reason", "removed from the project")
    rows, _ = office.provision(TEXT + OWN)
    assert (rows["site-2"]["happens"], "fedhelm pki approve, gives it another" in rows["site-2"]["why"]) == (
        "revoked",
        True,
    )
    assert "key is not made here" in office("renew", "site-2", status=2)["message"]
    assert "the key of this request was revoked" in office("approve", asked["request"], status=2)["message"]
    office("approve", office.ask(out="new")["request"])
    assert office.has_key() == []


def test_the_kit_goes_in_place_with_the_own_key(office, tmp_path):
    office.provision(TEXT + NOT_OWN)
    shutil.copytree(office.root / "prod_00" / "site-2", tmp_path / "site-2")
    asked = office.ask()
    made = office("approve", asked["request"])["kits"][0]
    install(tmp_path / "site-2", office.root / "prod_01" / "site-2.zip", key=office.folder / "keys" / "site-2.key")
    kit = open_kit(tmp_path / "site-2")
    assert kit.key.read_bytes() == (office.folder / "keys" / "site-2.key").read_bytes()
    assert made["serial"] == office.state.current("site-2").serial


def test_lines_of_before_are_understood_by_the_kits_that_are_there(office):
    """Those of a former version do not say whose key it is: the first kit that held the certificate has one, or none."""
    office.provision(TEXT + NOT_OWN + NOT_OWN.replace("-2", "-3"))
    first = office.state.current("site-2").serial
    office("approve", office.ask()["request"])
    state = office.root / "state"
    body = json.loads((state / "certificates.json").read_text())
    for one in body["certificates"]:
        for later in ("own_key", "by"):
            one.pop(later, None)
        one["revoked_at"] = one["reason"] = None  # it revoked nothing either
    (state / "certificates.json").write_text(json.dumps(body))
    (state / "revoked.json").unlink()
    own = office.key_of()
    office.provision(TEXT + NOT_OWN.replace("hospital", "clinic") + NOT_OWN.replace("-2", "-3"))
    assert (office.has_key(), office.key_of()) == ([], own)
    assert first in office.listed(), "it is of the former organisation"
    made = office("approve", office.ask("site-3", out="third")["request"])["kits"][0]
    assert len(made["revoked"]) == 1
    assert office.has_key("site-3") == []
