from __future__ import annotations

import json
import shutil
import stat
import zipfile

import pytest
import pyzipper

from fedhelm.provision import provision_cli
from fedhelm.provision.provisioned import ProjectFolder
from fedhelm.security.kit import open_kit
from fedhelm.security.pki import load_key
from fedhelm.security.signing import parse_manifest

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

SITE = "- {name: site-2, type: client, org: hospital}\n"


class Tool:
    """``fedhelm provision`` in a folder of its own."""

    def __init__(self, folder, capsys):
        self.folder, self._capsys = folder, capsys

    @property
    def root(self):
        return self.folder / "workspace" / "demo"

    def text(self, *argv):
        status = provision_cli.main(list(argv))
        return status, self._capsys.readouterr()

    def __call__(self, text=None, *argv, status=0):
        if text is not None:
            (self.folder / "project.yml").write_text(text)
        found, (out, err) = self.text("-o", "json", *argv)
        assert (found, err) == (status, ""), out
        return json.loads(out)["data" if status == 0 else "error"]

    def kit(self, name, prod=0):
        return open_kit(self.root / f"prod_{prod:02d}" / name)

    def secret(self, name, text, mode=0o600):
        path = self.folder / name
        path.write_text(f"{text}\nand more\n")
        path.chmod(mode)
        return str(path)


@pytest.fixture
def tool(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Tool(tmp_path, capsys)


def happens(data):
    return {one["name"]: one["happens"] for one in data["participants"]}


def snapshot(root):
    return {
        path.relative_to(root): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in root.rglob("*")
        if path.name != "lock"
    }


def test_one_file_becomes_kits_zips_resources_and_state(tool):
    data = tool(TEXT)
    assert (data["prod"], data["changed"], data["folder"]) == ("prod_00", True, str(tool.root))
    assert set(happens(data).values()) == {"new"}
    assert {path.name for path in tool.root.iterdir()} == {"prod_00", "resources", "state"}
    names = {"overseer", "server1", "site-1", "bob@b.c"}
    assert {path.name for path in (tool.root / "prod_00").iterdir()} == names | {f"{name}.zip" for name in names}
    assert [tool.kit(name).role for name in ("overseer", "server1", "site-1", "bob@b.c")] == [
        "overseer",
        "server",
        "site",
        "member",
    ]
    assert (tool.root / "resources" / "project.yml").read_text() == TEXT
    assert {"Dockerfile", "compose.yaml", "requirements.txt"} <= {
        path.name for path in (tool.root / "resources").iterdir()
    }
    assert str(tool.kit("server1").store) == "/shared/demo"
    assert tool.folder.joinpath("workspace").stat().st_mode & 0o077 == 0


def test_no_key_is_in_the_state_and_none_can_be_read_by_others(tool):
    tool(TEXT)
    keys = [path for path in tool.root.rglob("*") if path.suffix in (".key", ".pfx")]
    assert len(keys) == 4 * 2 + 1
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys} == {0o600}
    assert {path.name for path in (tool.root / "state").iterdir()} == {
        "rootCA.key",
        "rootCA.pem",
        "certificates.json",
        "project.json",
        "lock",
    }
    assert stat.S_IMODE((tool.root / "state").stat().st_mode) == 0o700


def test_a_zip_is_the_kit_with_the_modes_of_its_files(tool):
    tool(TEXT)
    with zipfile.ZipFile(tool.root / "prod_00" / "site-1.zip") as archive:
        for one in archive.infolist():
            (tool.folder / "there" / archive.extract(one, tool.folder / "there")).chmod(one.external_attr >> 16 & 0o777)
    scripts = list((tool.folder / "there" / "site-1" / "startup").glob("*.sh"))
    assert {stat.S_IMODE(path.stat().st_mode) for path in scripts} == {0o755}
    assert open_kit(tool.folder / "there" / "site-1").name == "site-1"


def test_a_second_run_changes_nothing_and_needs_no_passphrase(tool):
    first = tool(TEXT, "--passphrase-file", tool.secret("root", "open sesame, please"))
    before = snapshot(tool.root)
    again = tool()
    assert (again["changed"], again["prod"], set(happens(again).values())) == (False, None, {"same"})
    assert first["changed"]
    assert snapshot(tool.root) == before


def test_a_comment_in_the_file_makes_no_new_kits(tool):
    tool(TEXT)
    assert not tool(TEXT + "# nothing\n")["changed"]
    assert (tool.root / "resources" / "project.yml").read_text().endswith("# nothing\n")
    assert not (tool.root / "prod_01").exists()


def test_a_site_that_is_added_uses_root_and_certificates_again(tool):
    tool(TEXT)
    data = tool(TEXT + SITE)
    assert happens(data) == {
        "overseer": "same",
        "server1": "new kit",
        "site-1": "same",
        "bob@b.c": "new kit",
        "site-2": "new",
    }
    for name in ("overseer", "server1", "site-1", "bob@b.c"):
        old, new = tool.kit(name), tool.kit(name, 1)
        assert old.cert.read_bytes() == new.cert.read_bytes()
        assert old.key.read_bytes() == new.key.read_bytes()
        assert old.ca.read_bytes() == new.ca.read_bytes()
        assert old.cluster == new.cluster
    assert tool.kit("server1", 1).sites == ("site-1", "site-2")
    versions = [
        parse_manifest((tool.root / prod / "site-1" / "startup" / "signature.json").read_bytes(), prod).version
        for prod in ("prod_00", "prod_01")
    ]
    assert versions == [1, 2]


def test_a_dry_run_says_what_would_change_and_writes_nothing(tool):
    data = tool(TEXT, "--dry-run")
    assert (data["dry_run"], data["prod"]) == (True, "prod_00")
    assert not (tool.folder / "workspace").exists()
    tool(TEXT, "--passphrase-file", tool.secret("root", "open sesame, please"))
    before = snapshot(tool.root)
    data = tool(TEXT + SITE, "--dry-run")
    assert (happens(data)["site-2"], data["prod"], data["participants"][0]["kit"]) == ("new", "prod_01", None)
    assert snapshot(tool.root) == before


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [("role: member", "role: lead", "role was member"), ("nvidia, role", "acme, role", "organisation was nvidia")],
)
def test_a_changed_role_or_organisation_is_one_new_certificate_and_one_revoked(tool, old, new, why):
    tool(TEXT)
    before = tool.kit("bob@b.c")
    data = tool(TEXT.replace(old, new))
    assert happens(data) == {"overseer": "same", "server1": "same", "site-1": "same", "bob@b.c": "new certificate"}
    assert why in data["participants"][-1]["why"]
    after = tool.kit("bob@b.c", 1)
    assert after.key.read_bytes() != before.key.read_bytes()
    folder = ProjectFolder.open(tool.root)
    serials = [one.serial for one in folder.certificates() if one.name == "bob@b.c"]
    assert [one.serial for one in folder.revocation_list().entries] == serials[:1] == [data["revoked"][0]["serial"]]
    assert not tool()["changed"]


def test_who_is_removed_is_revoked_and_who_comes_back_gets_another_certificate(tool):
    tool(TEXT + SITE)
    data = tool(TEXT)
    assert happens(data)["site-2"] == "removed"
    assert [one["name"] for one in data["revoked"]] == ["site-2"]
    assert not (tool.root / "prod_01" / "site-2").exists()
    assert not tool()["changed"]
    back = tool(TEXT + SITE)
    assert (happens(back)["site-2"], back["revoked"]) == ("new certificate", [])
    assert tool.kit("site-2", 2).cert.read_bytes() != tool.kit("site-2").cert.read_bytes()


def test_a_key_that_is_nowhere_any_more_is_left_out_of_the_new_kit(tool):
    tool(TEXT)
    key = tool.kit("site-1").key.read_bytes()
    shutil.rmtree(tool.root / "prod_00")
    data = tool(TEXT + SITE)
    assert data["prod"] == "prod_01"
    startup = tool.root / "prod_01" / "site-1" / "startup"
    assert not (startup / "client.key").exists()
    assert "THE KEY IS NOT IN THIS KIT" in (startup / "readme.txt").read_text()
    (startup / "client.key").write_bytes(key)
    (startup / "client.key").chmod(0o600)
    assert tool.kit("site-1", 1).name == "site-1"


def test_kept_keys_are_encrypted_as_the_roots_and_used_again(tool):
    passphrase = tool.secret("root", "open sesame, please")
    tool(TEXT, "--keep-keys", "--passphrase-file", passphrase)
    kept = tool.root / "state" / "keys" / "site-1.key"
    key = tool.kit("site-1").key.read_bytes()
    assert b"ENCRYPTED" in kept.read_bytes()
    assert load_key(kept.read_bytes(), "x", b"open sesame, please").public_key() == load_key(key, "x").public_key()
    shutil.rmtree(tool.root / "prod_00")
    tool(TEXT + SITE, "--passphrase-file", passphrase)
    assert tool.kit("site-1", 1).key.read_bytes() == key


def test_the_root_key_does_not_open_without_its_passphrase(tool):
    tool(TEXT, "--passphrase-file", tool.secret("root", "open sesame, please"))
    before = snapshot(tool.root)
    assert "no terminal to ask on" in tool(TEXT + SITE, status=2)["message"]
    wrong = tool(TEXT + SITE, "--passphrase-file", tool.secret("wrong", "open barley, please"), status=4)
    assert "passphrase is wrong" in wrong["message"]
    assert "barley" not in json.dumps(wrong)
    assert snapshot(tool.root) == before


def test_a_zip_with_a_password_does_not_open_without_it(tool):
    tool(TEXT, "--zip-password-file", tool.secret("zip", "correct horse"))
    path = tool.root / "prod_00" / "site-1.zip"
    name = "site-1/startup/client.key"
    with zipfile.ZipFile(path) as archive, pytest.raises((RuntimeError, NotImplementedError)):
        archive.read(name)
    with pyzipper.AESZipFile(path) as archive:
        with pytest.raises(RuntimeError):
            archive.read(name)
        with pytest.raises(RuntimeError):
            archive.read(name, pwd=b"correct horsf")
        assert archive.read(name, pwd=b"correct horse") == tool.kit("site-1").key.read_bytes()
        assert all(one.flag_bits & 1 for one in archive.infolist() if not one.is_dir())
    assert tool.kit("site-1").key.read_bytes() not in path.read_bytes()


@pytest.mark.parametrize(
    ("text", "mode", "message"),
    [("open sesame, please", 0o640, "can be read by others"), ("short", 0o600, "less than "), ("", 0o600, "less")],
)
def test_a_file_that_is_no_secret_is_refused_before_anything_is_written(tool, text, mode, message):
    for option in ("--passphrase-file", "--zip-password-file"):
        error = tool(TEXT, option, tool.secret("f", text, mode), status=2)
        assert message in error["message"]
        assert not (tool.folder / "workspace").exists()
    assert "cannot be read" in tool(TEXT, "--passphrase-file", str(tool.folder / "none"), status=2)["message"]


def test_a_mistake_in_the_file_writes_nothing(tool):
    error = tool(TEXT.replace("site-1", "Site"), status=2)
    assert error["message"].startswith("project.yml:7:4: participants[2].name: ")
    assert not (tool.folder / "workspace").exists()


def test_a_run_that_breaks_leaves_what_was_there(tool, monkeypatch):
    tool(TEXT)
    before = snapshot(tool.root)
    (tool.root / "prod_01").write_text("in the way")
    assert tool(TEXT + SITE, status=1)["code"] == "INTERNAL"
    (tool.root / "prod_01").unlink()
    after = snapshot(tool.root)
    changed = {path.name for path in before if before[path] != after.get(path)}
    assert changed <= {"state", "project.json", "certificates.json", "demo"}
    assert set(before) == set(after)
    data = tool()
    assert (data["prod"], happens(data)["site-2"]) == ("prod_01", "new")
    assert len({one.serial for one in ProjectFolder.open(tool.root).certificates()}) == 5


def test_a_folder_that_is_something_else_is_left_alone(tool):
    tool.root.mkdir(parents=True)
    (tool.root / "thesis.txt").write_text("x")
    assert tool(TEXT, status=1)["code"] == "WORKSPACE_EXISTS"
    assert [path.name for path in tool.root.parent.rglob("*")] == ["demo", "thesis.txt"]


def test_a_damaged_state_is_named(tool):
    tool(TEXT)
    (tool.root / "state" / "certificates.json").write_text("{}")
    assert "certificates.json" in tool(TEXT + SITE, status=4)["message"]


def test_without_arguments_it_offers_a_sample(tool, monkeypatch, capsys):
    def answer(text):
        (tool.folder / "answer").write_text(text)
        with (tool.folder / "answer").open() as file:
            monkeypatch.setattr("sys.stdin", file)
            return tool.text()

    question = "No project.yml found in current folder. Is it OK to generate one for you? (y/N) "
    for no in ("", "\n", "n\n", "what\n"):
        status, (out, err) = answer(no)
        assert (status, out) == (2, "")
        assert err.startswith(question)
        assert not (tool.folder / "project.yml").exists()
    status, (out, err) = answer("y\n")
    assert (status, err) == (0, question)
    assert "project.yml was written" in out
    status, (out, err) = tool.text()
    assert status == 0
    assert (tool.folder / "workspace" / "example_project" / "prod_00" / "site-2.zip").is_file()
    assert "rootCA.key is not encrypted" in err


def test_what_is_printed_for_people(tool):
    (tool.folder / "project.yml").write_text(TEXT.replace("role: member", "role: super"))
    status, (out, err) = tool.text("-p", "project.yml", "--zip-password-file", tool.secret("z", "correct horse"))
    assert status == 0
    assert "note: project.yml:8:51: role super is project_admin here" in err
    assert "server1/startup/start.sh --found-store" in out
    assert "correct horse" not in out + err
    status, (out, err) = tool.text("--dry-run")
    assert out.endswith("No kit has changed: there is no new prod folder.\n")


def test_many_sites_are_provisioned_completely(tool):
    names = [f"site-{number}" for number in range(3, 43)]
    data = tool(TEXT + "".join(f"- {{name: {name}, type: client, org: hospital}}\n" for name in names))
    assert len(data["participants"]) == 44
    prod = tool.root / "prod_00"
    serials = set()
    for one in data["participants"]:
        kit = open_kit(prod / one["name"])
        serials.add(kit.cert.read_bytes())
        with zipfile.ZipFile(prod / f"{kit.name}.zip") as archive:
            files = {path for path in kit.root.rglob("*") if path.is_file()}
            assert {str(path.relative_to(prod)) for path in files} == {
                entry.filename for entry in archive.infolist() if not entry.is_dir()
            }
            assert archive.testzip() is None
    assert len(serials) == 44
    assert {one.name for one in ProjectFolder.open(tool.root).certificates()} == {
        one["name"] for one in data["participants"]
    }
