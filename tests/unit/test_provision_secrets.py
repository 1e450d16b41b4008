"""Passwords of zips, the root key's passphrase, and who was revoked by name."""

from __future__ import annotations

import json
import shutil
import stat

import pytest
import pyzipper
from cryptography.hazmat.primitives import serialization

from fedhelm.errors import KitError
from fedhelm.provision import pki_cli, provision_cli
from fedhelm.provision.provisioned import ProjectFolder
from fedhelm.provision.root_passphrase import change_passphrase
from fedhelm.security.pki import load_key

TEXT = """\
api_version: 3
name: demo
snapshot_persistor: /shared/demo
participants:
- {name: overseer, type: overseer, org: nvidia}
- {name: server1, type: server, org: nvidia}
- {name: site-1, type: client, org: hospital}
- {name: bob@b.c, type: admin, org: nvidia, role: member}
"""


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "project.yml").write_text(TEXT)

    def call(command, *argv, status=0):
        main = provision_cli.main if command == "provision" else pki_cli.main
        found = main([*([] if command == "provision" else [command]), "-o", "json", *map(str, argv)])
        out = capsys.readouterr().out
        assert found == status, out
        return json.loads(out)["data" if status == 0 else "error"]

    return call


@pytest.fixture
def secret(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.write_text(text + "\n")
        path.chmod(0o600)
        return path

    return write


def opens(path, password):
    with pyzipper.AESZipFile(path) as archive:
        archive.setpassword(password)
        try:
            return bool(archive.read(next(one for one in archive.infolist() if one.file_size)))
        except RuntimeError:
            return False


def passwords_in(path):
    return dict(line.split(" ") for line in path.read_text().splitlines())


def test_each_zip_has_a_password_of_its_own(run, tmp_path):
    file = tmp_path / "zips.txt"
    run("provision", "--zip-passwords", file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    made = passwords_in(file)
    prod = tmp_path / "workspace" / "demo" / "prod_00"
    assert made.keys() == {"overseer", "server1", "site-1", "bob@b.c"}
    for name in made:
        assert [other for other in made if opens(prod / f"{name}.zip", made[other].encode())] == [name]
    said = run("renew", "site-1", "-w", prod.parent, "--zip-passwords", file, status=1)
    assert "exists already" in said["message"]
    run("renew", "site-1", "-w", prod.parent, "--zip-passwords", tmp_path / "more.txt")
    again = passwords_in(tmp_path / "more.txt")
    assert again.keys() == {"site-1"}
    assert again["site-1"] != made["site-1"]
    assert opens(prod.parent / "prod_01" / "site-1.zip", again["site-1"].encode())


def test_a_run_that_encrypts_nothing_leaves_no_file_of_passwords(run, tmp_path):
    run("provision")
    assert not run("provision", "--zip-passwords", tmp_path / "zips.txt")["changed"]
    assert not (tmp_path / "zips.txt").exists()


def test_who_was_revoked_by_name_comes_back_only_when_somebody_says_so(run, tmp_path):
    run("provision")
    root = tmp_path / "workspace" / "demo"
    run("revoke", "bob@b.c", "--reason", "left", "-w", root)
    more = TEXT + "- {name: site-2, type: client, org: hospital}\n"
    (tmp_path / "project.yml").write_text(more)
    data = run("provision")
    bob = next(one for one in data["participants"] if one["name"] == "bob@b.c")
    assert (bob["happens"], bob["kit"]) == ("revoked", None)
    assert ": left; fedhelm pki renew " in bob["why"]
    assert {path.name for path in (root / "prod_01").iterdir() if path.is_dir()} == {
        *("overseer", "server1", "site-1", "site-2")
    }
    assert not run("provision")["changed"]
    run("renew", "bob@b.c", "-w", root)
    assert (root / "prod_02" / "bob@b.c").is_dir()
    assert not run("provision")["changed"]


def test_a_plain_root_key_is_encrypted_and_its_passphrase_changed(run, secret, tmp_path):
    first, second = secret("first", "open sesame, please"), secret("second", "close sesame, please")
    run("provision", "--keep-keys")
    root = tmp_path / "workspace" / "demo"
    kept = len(list((root / "state" / "keys").iterdir()))
    assert kept == 4
    done = run("passphrase", "-w", root, "--new-passphrase-file", first)
    assert len(done["files"]) == kept + 1
    assert ProjectFolder.open(root).root_is_encrypted
    assert b"ENCRYPTED" in (root / "state" / "keys" / "site-1.key").read_bytes()
    before = (root / "state" / "rootCA.key").read_bytes()
    wrong = run("passphrase", "-w", root, "--passphrase-file", second, "--new-passphrase-file", first, status=4)
    assert "passphrase" in wrong["message"]
    assert (root / "state" / "rootCA.key").read_bytes() == before
    run("passphrase", "-w", root, "--passphrase-file", first, "--new-passphrase-file", second)
    run("renew", "site-1", "-w", root, "--passphrase-file", second)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (root / "state").rglob("*.key")} == {0o600}


def test_a_change_that_was_broken_off_is_done_again(run, tmp_path):
    run("provision", "--keep-keys")
    folder = ProjectFolder.open(tmp_path / "workspace" / "demo")
    change_passphrase(folder, None, b"open sesame, please")
    kept = folder.state / "keys" / "site-1.key"
    keys = kept.read_bytes(), (folder.state / "rootCA.key").read_bytes()
    change_passphrase(folder, b"open sesame, please", b"close sesame, please")
    (folder.state / "rootCA.key").write_bytes(keys[1])  # the root key is the last
    with pytest.raises(KitError):
        change_passphrase(folder, b"nothing of the kind", b"close sesame, please")
    change_passphrase(folder, b"open sesame, please", b"close sesame, please")
    for path in (kept, folder.state / "rootCA.key"):
        assert load_key(path.read_bytes(), str(path), b"close sesame, please")


def test_a_root_key_has_a_longer_passphrase_and_a_key_of_before_opens_with_its_shorter_one(run, secret, tmp_path):
    assert (
        "less than 12 characters"
        in run("provision", "--passphrase-file", secret("s", "11 letters!"), status=2)["message"]
    )
    assert not (tmp_path / "workspace").exists()
    run("provision", "--passphrase-file", secret("first", "open sesame, please"))
    root = tmp_path / "workspace" / "demo"
    said = run(
        "passphrase",
        "-w",
        root,
        "--passphrase-file",
        tmp_path / "first",
        "--new-passphrase-file",
        tmp_path / "s",
        status=2,
    )
    assert "less than 12 characters" in said["message"]
    key = load_key((root / "state" / "rootCA.key").read_bytes(), "x", b"open sesame, please")
    before = serialization.BestAvailableEncryption(b"8letters")  # 2,048 rounds, as former versions wrote it
    (root / "state" / "rootCA.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, before)
    )
    run("renew", "site-1", "-w", root, "--passphrase-file", secret("former", "8letters"))
    run("passphrase", "-w", root, "--passphrase-file", tmp_path / "former", "--new-passphrase-file", tmp_path / "first")
    assert ProjectFolder.open(root).authority(b"open sesame, please")


def test_who_has_no_terminal_is_told_the_option_that_names_a_file(run, secret, tmp_path):
    run("provision", "--passphrase-file", secret("first", "open sesame, please"))
    root = tmp_path / "workspace" / "demo"
    assert run("renew", "site-1", "-w", root, status=2)["hint"] == "--passphrase-file FILE names a file that holds it"
    assert "-w " + str(root) in run("list", "-w", root.parent, status=1)["hint"]


def test_a_kept_key_is_replaced_once_the_new_kit_is_there_and_not_before(run, tmp_path):
    run("provision", "--keep-keys")
    root = tmp_path / "workspace" / "demo"
    kept = root / "state" / "keys" / "site-1.key"
    before = kept.read_bytes()
    (root / "prod_01").write_text("in the way")
    run("renew", "site-1", "-w", root, status=1)
    assert kept.read_bytes() == before
    (root / "prod_01").unlink()
    run("renew", "site-1", "-w", root)
    new = (root / "prod_01" / "site-1" / "startup" / "client.key").read_bytes()
    assert load_key(kept.read_bytes(), "x").public_key() == load_key(new, "x").public_key()
    shutil.rmtree(root / "prod_00")
    shutil.rmtree(root / "prod_01")
    (tmp_path / "project.yml").write_text(TEXT + "- {name: site-2, type: client, org: hospital}\n")
    run("provision")
    assert (root / "prod_02" / "site-1" / "startup" / "client.key").read_bytes() == new


@pytest.mark.parametrize("days", ["nan", "1e12", "-1", "inf", "soon"])
def test_a_number_of_days_that_is_none_is_refused(run, tmp_path, days):
    run("provision")
    said = run("renew", "-w", tmp_path / "workspace" / "demo", f"--expiring={days}", status=2)
    assert (said["code"], days in said["message"]) == ("USAGE", True)


def test_renewing_everybody_brings_nobody_back_who_was_revoked(run, tmp_path):
    run("provision")
    root = tmp_path / "workspace" / "demo"
    run("revoke", "bob@b.c", "--reason", "left", "-w", root)
    assert [one["name"] for one in run("renew", "--all", "-w", root)["kits"]] == ["overseer", "server1", "site-1"]
    assert [one["name"] for one in run("renew", "bob@b.c", "-w", root)["kits"]] == ["bob@b.c"]
