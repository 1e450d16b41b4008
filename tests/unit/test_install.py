from __future__ import annotations

import json
import shutil
import stat
import zipfile
from pathlib import Path

import pytest
import pyzipper

from fedhelm.errors import Conflict, FedhelmError, KitError, NotFound, Refused
from fedhelm.provision import install as installing
from fedhelm.provision.install import exchange, install, main
from fedhelm.provision.kit_source import MAX_BYTES, read_startup
from fedhelm.security.kit import open_kit
from fedhelm.security.pki import CertificateAuthority
from fedhelm.security.reloading import ReloadingKit
from fedhelm.security.signing import make_manifest, verify_startup
from tests.support.kits import make_kits


@pytest.fixture
def authority():
    return CertificateAuthority.create("poc")


@pytest.fixture
def kit(tmp_path, authority):
    (tmp_path / "here").mkdir()
    return make_kits(tmp_path / "here", authority=authority, cluster="c1")["site-1"]


@pytest.fixture
def kit_of(tmp_path, authority):
    """Make a later kit of a participant, as the administrator would hand it over."""

    def make(version=2, *, name="site-1", by=authority, trusting=None, cluster="c1", own_key=False, **change):
        folder = tmp_path / f"new-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        new = make_kits(folder, authority=by, cluster=cluster)[name]
        new.ca.write_bytes((trusting or by).cert_pem)
        for file, data in change.items():
            (new.startup / f"{file}.sh").write_bytes(data)
        files = {path.name: path.read_bytes() for path in new.startup.iterdir() if path.name != "signature.json"}
        if own_key:
            del files[new.key.name]
            shutil.move(new.key, folder / "own.key")
        (new.startup / "signature.json").write_bytes(make_manifest(files, by, version, own_key=own_key))
        return new.root

    return make


def zipped(folder, password=None, top="site-1"):
    target = folder.with_name(f"{folder.name}.zip")
    with pyzipper.AESZipFile(target, "w", encryption=pyzipper.WZ_AES if password else None) as archive:
        if password:
            archive.setpassword(password.encode())
        for path in sorted(folder.rglob("*")):
            archive.write(path, Path(top, path.relative_to(folder)))
    return target


def refused(kit, source, kind=KitError, **options):
    before = {path: path.read_bytes() for path in sorted(kit.root.rglob("*")) if path.is_file()}
    with pytest.raises(kind) as caught:
        install(kit.root, source, **options)
    assert {path: path.read_bytes() for path in sorted(kit.root.rglob("*")) if path.is_file()} == before
    assert "\n" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("form", ["folder", "zip", "zip without its name", "zip with a password"])
def test_a_newer_kit_takes_the_place_and_leaves_all_else(kit, kit_of, form):
    (kit.local / "mine.yaml").write_text("mine")
    (kit.run).mkdir()
    (kit.run / "outbox").write_text("result")
    new = kit_of(start=b"#!/bin/sh\n")
    expected = {path.name: path.read_bytes() for path in (new / "startup").iterdir()}
    source = (
        new
        if form == "folder"
        else zipped(new, "geheim" if "password" in form else None, "" if "without" in form else "x")
    )
    done = install(kit.root, source, password="geheim" if "password" in form else None)
    assert (done.before, done.after, done.changed) == (1, 2, True)
    assert {path.name: path.read_bytes() for path in kit.startup.iterdir()} == expected
    modes = {path.suffix: stat.S_IMODE(path.stat().st_mode) for path in kit.startup.iterdir()}
    assert (modes[".key"], modes[".sh"], stat.S_IMODE(kit.startup.stat().st_mode)) == (0o600, 0o755, 0o700)
    assert (kit.local / "mine.yaml").read_text() == "mine"
    assert (kit.run / "outbox").read_text() == "result"
    assert sorted(path.name for path in kit.root.iterdir()) == ["local", "run", "startup"]
    assert json.loads((kit.run / "kit.json").read_text()) == {"version": 2}


def test_the_same_kit_again_changes_nothing(kit, kit_of):
    new = kit_of()
    install(kit.root, new)
    inode = kit.startup.stat().st_ino
    assert install(kit.root, new).changed is False
    assert kit.startup.stat().st_ino == inode


def test_what_may_not_take_the_place(kit, kit_of):
    newest = kit_of(3)
    install(kit.root, newest)
    assert "has version 2, and version 3 is in use" in refused(kit, kit_of(2))
    assert "another kit of the same version, 3" in refused(kit, kit_of(3), Refused)
    assert "is of server server1 in poc" in refused(kit, kit_of(4, name="server1"))
    assert "cluster c2" in refused(kit, kit_of(4, cluster="c2"))
    other = CertificateAuthority.create("poc")
    assert "was not signed by the root that site-1 trusts now" in refused(kit, kit_of(4, by=other))
    damaged = kit_of(4)
    (damaged / "startup" / "readme.txt").write_text("changed")
    assert "readme.txt was changed" in refused(kit, damaged)


def test_a_root_is_rotated_kit_by_kit(kit, kit_of, authority):
    new = CertificateAuthority.create("poc")
    last = kit_of(4, by=new)
    assert "trusts now" in refused(kit, last)
    install(kit.root, kit_of(2, trusting=authority.trusting(new.signing_pem)))
    install(kit.root, kit_of(3, by=new, trusting=new.trusting(authority.signing_pem)))
    install(kit.root, last)
    assert open_kit(kit.root).ca.read_bytes() == new.cert_pem


def test_a_kit_without_a_key_takes_the_one_that_is_there_or_that_is_named(kit, kit_of, authority, tmp_path):
    new = kit_of(own_key=True)
    own = new.parent / "own.key"
    assert f"the new kit has no key, and {kit.key} does not belong" in refused(kit, new)
    assert "No such file" in refused(kit, new, key=tmp_path / "nowhere")
    install(kit.root, new, key=own)
    assert kit.key.read_bytes() == own.read_bytes()
    # the next one has a new certificate for the same key
    issued = authority.issue_for(installing.load_key(own.read_bytes(), "x").public_key(), "site", "site-1", "nvidia")
    (new / "startup" / "client.crt").write_bytes(issued)
    files = {path.name: path.read_bytes() for path in (new / "startup").iterdir() if path.name != "signature.json"}
    (new / "startup" / "signature.json").write_bytes(make_manifest(files, authority, 3, own_key=True))
    assert install(kit.root, new).after == 3
    assert open_kit(kit.root).cert.read_bytes() == issued


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_crash_leaves_a_kit_that_opens_and_the_next_installation_works(kit, kit_of, when):
    def crash(one, other):
        if when == "after":
            exchange(one, other)
        raise KeyboardInterrupt

    new = kit_of()
    with pytest.raises(KeyboardInterrupt):
        install(kit.root, new, swap=crash)
    assert verify_startup(open_kit(kit.root).startup) == (2 if when == "after" else 1)
    assert install(kit.root, new).after == 2


@pytest.mark.parametrize("step", ["first", "second"])
def test_a_crash_between_two_renames_is_put_right(kit, kit_of, step):
    """What is left where the file system cannot exchange two folders."""
    draft = kit.root / ".startup.new"
    draft.mkdir()
    shutil.copytree(kit.startup, draft / "startup")
    kit.startup.rename(draft / "startup.former")
    if step == "second":
        (draft / "startup").rename(kit.startup)
    assert install(kit.root, kit_of()).after == 2
    assert not draft.exists()


def test_two_folders_are_exchanged(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "is").write_text(name)
    exchange(tmp_path / "a", tmp_path / "b")
    assert [(tmp_path / name / "is").read_text() for name in "ab"] == ["b", "a"]
    with pytest.raises(FileNotFoundError):
        exchange(tmp_path / "a", tmp_path / "c")


def test_only_one_installation_at_a_time(kit, kit_of):
    def meanwhile(one, other):
        with pytest.raises(Conflict, match="another installation"):
            install(kit.root, other.parent)
        exchange(one, other)

    assert install(kit.root, kit_of(), swap=meanwhile).after == 2


def test_a_running_participant_takes_the_installed_kit(kit, kit_of):
    running = ReloadingKit(kit)
    install(kit.root, kit_of())
    assert running.look() is not None
    assert running.version == 2


def archive(path, *names, link=None, data=b"x"):
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            info = zipfile.ZipInfo(name)
            if name == link:
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
            file.writestr(info, data, zipfile.ZIP_DEFLATED)
    return path


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["startup/a", "startup/../../b"], "has no place in a kit"),
        (["/startup/a"], "has no place"),
        (["startup/a", "x\\y"], "has no place"),
        (["startup/link"], "has no place"),
        (["x/startup/a", "y/startup/b"], "2 folders called startup"),
        (["local/a"], "0 folders called startup"),
        (["a/b/startup/c"], "0 folders"),
        ([f"startup/{number}" for number in range(1001)], "1001 entries"),
    ],
)
def test_an_archive_that_no_kit_is_gets_nowhere(tmp_path, names, message):
    with pytest.raises(KitError, match=message):
        read_startup(archive(tmp_path / "a.zip", *names, link="startup/link"))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice_and_a_bomb(tmp_path):
    with pytest.raises(KitError, match="there twice"):
        read_startup(archive(tmp_path / "a.zip", "startup/a", "startup/a"))
    with pytest.raises(KitError, match="more than"):
        read_startup(archive(tmp_path / "b.zip", "startup/a", data=bytes(MAX_BYTES + 1)))


def test_passwords_and_what_is_no_zip(kit, kit_of, tmp_path):
    locked = zipped(kit_of(), "geheim")
    assert "is encrypted" in refused(kit, locked)
    assert "does not open with this password" in refused(kit, locked, password="falsch")
    assert "no such file" in refused(kit, tmp_path / "nowhere", NotFound)
    (tmp_path / "b").write_bytes(locked.read_bytes()[:-100])
    assert "damaged" in refused(kit, tmp_path / "b", password="geheim")
    (tmp_path / "e").mkdir()
    assert "no startup folder" in refused(kit, tmp_path / "e")
    (tmp_path / "e" / "startup").mkdir()
    (tmp_path / "e" / "startup" / "a").symlink_to("/etc/passwd")
    assert "not a plain file" in refused(kit, tmp_path / "e")
    assert issubclass(KitError, FedhelmError)


def test_the_command(kit, kit_of, tmp_path, capsys):
    source = zipped(kit_of(), "geheim")
    (tmp_path / "pw").write_text("geheim\n")
    assert main(["install", str(kit.root), str(source), "-o", "json"]) == 4
    assert "is encrypted" in json.loads(capsys.readouterr().out)["error"]["message"]
    assert main(["install", str(kit.root), str(source), "--password-file", str(tmp_path / "pw")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"site-1: version 2 of its kit is in {kit.root} now (it was 1)",
        f"{source} may hold the same private key: delete it, or keep it where no job's script can read it",
    ]
    assert main(["install", str(kit.root), str(source), "--password-file", str(tmp_path / "pw"), "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["data"]["after"] == 2
    assert main(["install"]) == 2
