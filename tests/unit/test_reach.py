"""What a job's script reaches of the files near its site's kit: in the layouts that the commands make, in both ways."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from fedhelm.config.kit import read_kit
from fedhelm.provision import provision_cli
from fedhelm.provision.install import exchange
from fedhelm.provision.install import main as kit_main
from fedhelm.provision.zips import write_zip
from fedhelm_client.reach import protected_paths
from tests.support.kits import make_kits
from tests.support.shut_in import both_ways, shut_in

PROJECT = """\
api_version: 3
name: demo
snapshot_persistor: /nowhere/demo
participants:
- {name: overseer, type: overseer, org: nvidia}
- {name: server1, type: server, org: nvidia}
- {name: site-1, type: client, org: hospital}
- {name: bob@b.c, type: admin, org: nvidia, role: member}
"""

CLOSED = """
def is_closed(path):
    if not os.path.lexists(path):
        return True
    return refused(path.read_bytes) and refused(lambda: open(path, "ab").close()) and refused(
        lambda: os.truncate(path, 0)) and refused(path.unlink) and refused(lambda: path.rename(job / "work/taken"))
for name, path in paths.items():
    out[name] = is_closed(Path(path))
"""


@pytest.fixture
def project(tmp_path, monkeypatch, capsys):
    """What `fedhelm provision` makes, twice."""
    monkeypatch.chdir(tmp_path)
    for extra in ("", "- {name: site-2, type: client, org: hospital}\n"):
        (tmp_path / "project.yml").write_text(PROJECT + extra)
        assert provision_cli.main(["-p", "project.yml"]) == 0
    capsys.readouterr()
    root = tmp_path / "workspace" / "demo"
    assert {"prod_00", "prod_01", "resources", "state"} <= {path.name for path in root.iterdir()}
    return root


def files_of(root, but=()):
    found = {str(path.relative_to(root)): str(path) for path in sorted(root.rglob("*")) if path.is_file()}
    return {name: path for name, path in found.items() if not name.startswith(tuple(but))}


def try_all(kit, paths, way, more=""):
    before = {path: Path(path).read_bytes() for path in paths.values()}
    out = shut_in(kit, f"paths = {paths!r}\n{CLOSED}\n{more}", way)
    assert out == dict.fromkeys(out, True)
    assert len(out) >= len(paths) > 0
    assert {path: Path(path).read_bytes() for path in before} == before


@both_ways
def test_nothing_of_a_provisioned_project_is_in_reach_of_a_site_in_it(project, way):
    kit = read_kit(project / "prod_00" / "site-1")
    for name in ("site-1", "server1", "overseer"):
        (project / "prod_00" / name / "audit.jsonl").write_text("{}\n")
    paths = files_of(project)
    assert {"state/rootCA.key", "prod_00/site-1.zip", "prod_00/server1/startup/server.key"} <= paths.keys()
    assert {"prod_01/site-2.zip", "resources/Dockerfile", "prod_00/overseer/audit.jsonl"} <= paths.keys()
    try_all(kit, paths, way)


@both_ways
def test_a_kit_that_was_unpacked_beside_its_zip_or_the_project_is_closed_with_them(project, tmp_path, way, capsys):
    shutil.copy(project / "prod_00" / "site-1.zip", tmp_path)
    assert kit_main(["unpack", "site-1.zip"]) == 0
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "site-1.key").write_text("made by fedhelm pki request")
    (tmp_path / "keys" / "images.zip").write_text("data")
    for number in range(1000):
        (tmp_path / "keys" / f"junk-{number}").mkdir()
    (tmp_path / "root.pass").write_text("a passphrase")
    (tmp_path / "data.csv").write_text("1,2\n")
    (tmp_path / "workspace" / "notes.txt").write_text("mine")
    kit = read_kit(tmp_path / "site-1")
    paths = files_of(tmp_path, but=("project.yml", "data.csv", "workspace/notes.txt", "keys/images.zip"))
    assert {"site-1.zip", "site-1/startup/client.key", "workspace/demo/state/rootCA.key"} <= paths.keys()
    assert {"keys/site-1.key", "root.pass"} <= paths.keys()
    try_all(
        kit,
        paths,
        way,
        """
out["data"] = (kit.parent / "data.csv").read_text() == "1,2\\n"
out["zip"] = (kit.parent / "keys/images.zip").read_text() == "data"
out["notes"] = (kit.parent / "workspace/notes.txt").read_text() == "mine"
""",
    )


@pytest.fixture
def site(tmp_path):
    """A site of a workspace, where all kinds of files lie about."""
    kits = make_kits(tmp_path, sites=2)
    for name in ("site-1", "site-2", "server1", "overseer"):
        root = kits[name].root
        for file in ("audit.jsonl", "audit-000000000009.jsonl", ".startup.new/startup/client.key", "log.txt"):
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_text("{}\n")
        write_zip(root, tmp_path / f"{name}.zip")
    for file in ("store/log/0", "state/rootCA.key", ".kit.12ab.tmp/startup/client.key", "copy/kits/site-1/startup/x"):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text("{}\n")
    (tmp_path / "copy" / "backup.json").write_text("{}")
    (tmp_path / "link").symlink_to(kits["site-1"].startup)
    kits["site-1"].run.mkdir()
    (kits["site-1"].run / "kit.json").write_text("{}")
    return kits["site-1"]


@both_ways
def test_audit_files_logs_drafts_and_kits_of_a_workspace_are_closed(site, tmp_path, way):
    paths = {**files_of(tmp_path), "by a link": str(tmp_path / "link" / "client.key")}
    assert {"site-1/audit.jsonl", "site-1/audit-000000000009.jsonl", "server1/audit.jsonl"} <= paths.keys()
    assert {"site-1/.startup.new/startup/client.key", "site-2.zip", "state/rootCA.key"} <= paths.keys()
    try_all(site, paths, way)


@both_ways
def test_no_kit_can_be_moved_or_given_a_new_file(site, tmp_path, way):
    out = shut_in(
        site,
        """
        for one in (kit, kit.parent / "site-2", kit.parent / "store", kit.parent / "state"):
            out[f"rename {one.name}"] = refused(lambda: one.rename(kit.parent / "elsewhere"))
            out[f"take {one.name}"] = one == kit or refused(lambda: one.rename(job / "work/taken"))
            out[f"new in {one.name}"] = refused(lambda: (one / "new").write_text("x"))
        out["replace"] = refused(lambda: (job / "work/tmp").rename(kit.parent / "site-2"))
        out["jobs"] = refused(lambda: (kit / "run/jobs/b").mkdir())
        out["beside"] = refused(lambda: (kit.parent / "site-3").mkdir())
        """,
        way,
    )
    assert out == dict.fromkeys(out, True)
    assert (tmp_path / "site-1" / "audit.jsonl").exists()


@both_ways
def test_what_comes_while_a_script_runs_is_out_of_its_reach(site, tmp_path, way):
    def meanwhile():
        draft = site.root / ".startup.later" / "startup"
        shutil.copytree(site.startup, draft)
        (draft / "client.key").write_text("THE NEW PRIVATE KEY")
        exchange(site.startup, draft)
        (tmp_path / "newer.zip").write_text("the new kit")
        (tmp_path / "site-3" / "startup").mkdir(parents=True)
        (tmp_path / "site-3" / "startup" / "client.key").write_text("another's key")
        (site.root / "audit-000000000010.jsonl").write_text("{}\n")

    out = shut_in(
        site,
        """
        wait()
        out["renewed"] = refused((kit / "startup/client.key").read_bytes)
        out["former"] = refused((kit / ".startup.later/startup/client.key").read_bytes)
        out["zip"] = refused((kit.parent / "newer.zip").read_bytes)
        out["another"] = refused((kit.parent / "site-3/startup/client.key").read_bytes)
        out["audit"] = refused((kit / "audit-000000000010.jsonl").read_bytes)
        """,
        way,
        meanwhile=meanwhile,
    )
    assert site.key.read_text() == "THE NEW PRIVATE KEY"
    assert out == dict.fromkeys(out, True)


def test_a_kit_at_the_root_of_the_file_system_is_closed_itself(site):
    kit = dataclasses.replace(site, root=Path("/kit"))
    protected = protected_paths(kit)
    assert Path("/kit") in protected
    assert Path("/") not in protected
