from __future__ import annotations

import json
import shutil
import stat
import zipfile

import pytest

from fedhelm.provision.install import main
from fedhelm.provision.kits import Identity, write_kit
from fedhelm.provision.zips import write_zip
from fedhelm.security.kit import open_kit
from fedhelm.security.pki import CertificateAuthority, load_key
from fedhelm.security.requests import make_request
from tests.support.kits import ADMIN, make_kits, make_project


@pytest.fixture
def kits(tmp_path):
    return make_kits(tmp_path / "made")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "made").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def run(capsys, *argv, status=0):
    assert main(["unpack", *map(str, argv), "-o", "json"]) == status
    return json.loads(capsys.readouterr().out)["data" if status == 0 else "error"]


def modes(root):
    return {str(path.relative_to(root)): stat.S_IMODE(path.stat().st_mode) for path in root.rglob("*")}


@pytest.mark.parametrize("name", ["server1", "site-1", ADMIN])
def test_a_zip_becomes_the_kit_that_it_was_made_of(kits, folder, capsys, name):
    write_zip(kits[name].root, folder / "kit.zip")
    data = run(capsys, "kit.zip")
    assert (data["name"], data["kit"]) == (name, str(folder / name))
    assert open_kit(folder / name).name == name
    assert modes(folder / name) == modes(kits[name].root)
    assert (folder / name / "local" / "local.yaml").read_text() == (kits[name].local / "local.yaml").read_text()
    assert {path.name for path in folder.iterdir()} == {"kit.zip", name}


def test_a_person_is_told_that_the_zip_is_as_secret_as_the_kit(kits, folder, capsys):
    write_zip(kits["site-1"].root, folder / "kit.zip")
    assert main(["unpack", "kit.zip"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"site-1: its kit is in {folder / 'site-1'}",
        "kit.zip may hold the same private key: delete it, or keep it where no job's script can read it",
    ]
    assert main(["unpack", str(kits["server1"].root)]) == 0
    assert "delete it" not in capsys.readouterr().out, "a folder that is a kit in use, perhaps"


def test_an_encrypted_zip_needs_its_password(kits, folder, capsys):
    write_zip(kits["site-1"].root, folder / "kit.zip", b"correct horse")
    (folder / "pass").write_text("wrong horse\n")
    assert "is encrypted" in run(capsys, "kit.zip", status=4)["message"]
    error = run(capsys, "kit.zip", "--password-file", "pass", status=4)
    assert "does not open with this password" in error["message"]
    assert {path.name for path in folder.iterdir()} == {"kit.zip", "pass"}
    (folder / "pass").write_text("correct horse\n")
    (folder / "elsewhere").mkdir()
    assert run(capsys, "kit.zip", "--password-file", "pass", "-w", "elsewhere")["role"] == "site"
    assert open_kit(folder / "elsewhere" / "site-1").name == "site-1"


def test_a_kit_that_is_there_is_left_alone(kits, folder, capsys):
    write_zip(kits["site-1"].root, folder / "kit.zip")
    (folder / "site-1").mkdir()
    error = run(capsys, "kit.zip", status=1)
    assert error["code"] == "WORKSPACE_EXISTS"
    assert "fedhelm kit install" in error["hint"]
    assert list((folder / "site-1").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda startup: (startup / "start.sh").write_text("#!/bin/sh\n"), "start.sh was changed"),
        (lambda startup: (startup / "signature.json").unlink(), "signature.json is missing"),
        (lambda startup: (startup / "fed_client.json").unlink(), "exactly one of"),
        (shutil.rmtree, "0 folders called startup"),
    ],
)
def test_a_zip_with_something_else_in_it_leaves_nothing(kits, folder, capsys, change, message):
    change(kits["site-1"].startup)
    write_zip(kits["site-1"].root, folder / "kit.zip")
    assert message in run(capsys, "kit.zip", status=4)["message"]
    assert [path.name for path in folder.iterdir()] == ["kit.zip"]


def test_names_that_lead_out_of_the_folder_are_refused(folder, capsys):
    with zipfile.ZipFile(folder / "kit.zip", "w") as archive:
        archive.writestr("../../evil/startup/x", "x")
    assert "has no place in a kit" in run(capsys, "kit.zip", status=4)["message"]


@pytest.mark.parametrize("other", ["CLIENT.KEY", "client.\u212aey"])  # the sign for kelvin folds to k
def test_names_that_are_one_elsewhere_are_refused(kits, folder, capsys, other):
    write_zip(kits["site-1"].root, folder / "kit.zip")
    with zipfile.ZipFile(folder / "kit.zip", "a") as archive:
        archive.writestr(f"site-1/startup/{other}", "mine")
    message = run(capsys, "kit.zip", status=4)["message"]
    assert f"'client.key' and {other!r} are one name on some file systems" in message
    assert [path.name for path in folder.iterdir()] == ["kit.zip"]


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_what_is_packed_as_no_kit_is_packed_is_not_even_begun(folder, capsys, method):
    with zipfile.ZipFile(folder / "kit.zip", "w", compression=method) as archive:
        archive.writestr("site-1/startup/client.key", "x" * 1000)
    message = run(capsys, "kit.zip", status=4)["message"]
    assert "'site-1/startup/client.key' is packed in a way that no kit is" in message


def test_a_folder_that_is_not_there_is_named(kits, folder, capsys):
    write_zip(kits["site-1"].root, folder / "kit.zip")
    assert run(capsys, "none.zip", status=1)["code"] == "NOT_FOUND"


def test_the_key_of_a_participant_that_made_it_itself_goes_into_its_kit(kits, folder, capsys):
    key, _ = make_request("site", "site-1", "nvidia")
    authority = CertificateAuthority.create("poc")
    public = load_key(key, "x").public_key()
    cert = authority.issue_for(public, "site", "site-1", "nvidia")
    one = make_project().of("site")[0]
    root = write_kit(make_project(), one, authority, folder, identity=Identity(cert, None))
    write_zip(root, folder / "kit.zip")
    shutil.rmtree(root)
    (folder / "other.key").write_bytes(kits["site-1"].key.read_bytes())
    (folder / "mine.key").write_bytes(key)
    for wrong, said in (("other.key", "does not belong to client.crt"), ("none.key", "No such file")):
        assert said in run(capsys, "kit.zip", "--key", wrong, status=4)["message"]
        assert not (folder / "site-1").exists()
    run(capsys, "kit.zip", "--key", "mine.key")
    kit = open_kit(folder / "site-1")
    assert (kit.key.read_bytes(), stat.S_IMODE(kit.key.stat().st_mode)) == (key, 0o600)
    write_zip(kits["server1"].root, folder / "server.zip")
    assert "has its key" in run(capsys, "server.zip", "--key", "mine.key", status=4)["message"]
