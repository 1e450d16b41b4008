from __future__ import annotations

import json
import os
import stat
import subprocess

import pytest

from fedhelm.errors import BadInput, WorkspaceExists
from fedhelm.provision.kits import write_kit, write_kits
from fedhelm.provision.project import Participant, Project
from fedhelm.security.kit import open_kit
from fedhelm.security.pki import CertificateAuthority
from fedhelm.security.policy import PERMISSIONS
from tests.support.kits import ADMIN, make_project

COMMON = {"rootCA.pem", "readme.txt", "signature.json"}
RUN = {"start.sh", "stop_fl.sh"}
OVERSEER = Participant("overseer", "overseer", "nvidia", ports=(8443,))
SERVER = Participant("server1", "server", "nvidia", ports=(8002, 8003))


@pytest.fixture
def authority():
    return CertificateAuthority.create("poc")


@pytest.fixture
def kits(tmp_path, authority):
    return write_kits(make_project(), authority, tmp_path)


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("overseer", COMMON | RUN | {"fed_overseer.json", "overseer.crt", "overseer.key"}),
        ("server1", COMMON | RUN | {"fed_server.json", "server.crt", "server.key", "authorization.json"}),
        ("site-1", COMMON | RUN | {"fed_client.json", "client.crt", "client.key", "authorization.json"}),
        (ADMIN, COMMON | {"fed_admin.json", "client.crt", "client.key", "fl_admin.sh"}),
    ],
)
def test_a_kit_holds_what_its_role_needs_and_no_more(kits, name, files):
    root = kits[name]
    assert {path.name for path in (root / "startup").iterdir()} == files
    assert {path.name for path in root.iterdir()} == {"startup", "local"} | ({"transfer"} if name == ADMIN else set())
    assert {path.name for path in (root / "local").iterdir()} == {"local.yaml"}


def test_modes_do_not_depend_on_the_umask(tmp_path, authority):
    old = os.umask(0)
    try:
        root = write_kit(make_project(), SERVER, authority, tmp_path)
    finally:
        os.umask(old)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (root / "startup").iterdir()}
    assert modes["server.key"] == 0o600
    assert modes["start.sh"] == 0o755
    assert modes["server.crt"] == 0o644
    assert stat.S_IMODE(root.stat().st_mode) == 0o700


def test_no_kit_holds_the_roots_key(kits, authority):
    for root in kits.values():
        for path in root.rglob("*"):
            assert not path.is_file() or authority.key_pem() not in path.read_bytes()


def test_the_default_policy_is_the_one_that_is_enforced(kits):
    body = json.loads((kits["site-1"] / "startup" / "authorization.json").read_text())
    assert body["permissions"] == {permission: sorted(roles) for permission, roles in PERMISSIONS.items()}


def test_a_participant_can_be_added_later_to_the_same_root(kits, authority, tmp_path):
    again = CertificateAuthority.load("poc", authority.cert_pem, authority.key_pem())
    root = write_kit(make_project(), Participant("site-9", "site", "elsewhere"), again, tmp_path)
    assert open_kit(root).ca.read_bytes() == (kits["server1"] / "startup" / "rootCA.pem").read_bytes()
    assert open_kit(root).enable_byoc is False


def test_a_kit_is_never_written_over_another(kits, authority, tmp_path):
    with pytest.raises(WorkspaceExists, match="site-1 exists already"):
        write_kit(make_project(), Participant("site-1", "site", "nvidia"), authority, tmp_path)
    assert open_kit(kits["site-1"]).name == "site-1"


def test_scripts_are_valid_shell(kits):
    for root in kits.values():
        for script in (root / "startup").glob("*.sh"):
            subprocess.run(["sh", "-n", script], check=True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("Site 1", "site", "o"), "not a host name"),
        (("../x", "site", "o"), "not a host name"),
        (("admin", "project_admin", "o"), "name@domain"),
        (("lead", "lead", "o"), "name@domain"),
        (("root@a.b", "root", "o"), "role 'root'"),
        (("site-1", "site", " "), "organisation"),
        (("s", "server", "o", "", (1,)), "has 2 ports, not 1"),
        (("s", "server", "o", "", (1, 65536)), "65536 is not a port"),
        (("s", "site", "o", "", (1,)), "has 0 ports"),
    ],
)
def test_a_participant_with_a_wrong_value_is_refused(values, message):
    with pytest.raises(BadInput, match=message):
        Participant(*values)


@pytest.mark.parametrize(
    ("participants", "message"),
    [
        ((OVERSEER, SERVER, Participant("server1", "site", "o")), "2 participants are called server1"),
        ((SERVER,), "at least one overseer"),
        ((OVERSEER,), "at least one server"),
    ],
)
def test_a_project_that_cannot_work_is_refused(participants, message):
    with pytest.raises(BadInput, match=message):
        Project("poc", participants, store="/store")
    with pytest.raises(BadInput, match="project name"):
        Project("my project", (OVERSEER, SERVER), store="/store")


def test_a_name_is_the_host_where_none_is_given():
    project = Project("poc", (OVERSEER, SERVER), store="/store")
    assert project.servers[0].host == "server1"
    assert project.overseers[0].host == "overseer"
