from __future__ import annotations

import dataclasses
import json
import logging
import os
import stat
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives.serialization import pkcs12

from fedhelm.config.log_levels import apply_levels, levels_of, parse_levels
from fedhelm.errors import BadInput, KitError, WorkspaceExists
from fedhelm.provision.kits import Identity, digest_of, write_kit, write_kits
from fedhelm.provision.project import Participant, Project
from fedhelm.security.authorization import DEFAULT_AUTHORIZATION
from fedhelm.security.kit import open_kit
from fedhelm.security.pki import CertificateAuthority, load_certificate
from tests.support.kits import ADMIN, make_project

COMMON = {"rootCA.pem", "readme.txt", "signature.json", "log.config"}
RUN = {"start.sh", "stop_fl.sh", "sub_start.sh"}
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
        (
            "overseer",
            COMMON | RUN | {"fed_overseer.json", "overseer.crt", "overseer.key", "overseer.pfx", "authorization.json"},
        ),
        ("server1", COMMON | RUN | {"fed_server.json", "server.crt", "server.key", "server.pfx", "authorization.json"}),
        ("site-1", COMMON | RUN | {"fed_client.json", "client.crt", "client.key", "client.pfx", "authorization.json"}),
        (ADMIN, COMMON | {"fed_admin.json", "client.crt", "client.key", "client.pfx", "fl_admin.sh"}),
    ],
)
def test_a_kit_holds_what_its_role_needs_and_no_more(kits, name, files):
    root = kits[name]
    assert {path.name for path in (root / "startup").iterdir()} == files
    assert {path.name for path in root.iterdir()} == {"startup", "local"} | ({"transfer"} if name == ADMIN else set())
    sample = {"privacy.json.sample"} if name == "site-1" else set()
    assert {path.name for path in (root / "local").iterdir()} == {"local.yaml"} | sample


def test_sites_alone_get_the_projects_privacy_policy(tmp_path, authority):
    project = dataclasses.replace(make_project(), privacy='{"format_version": "1.0", "lines": ["scalar"]}\n')
    kits = write_kits(project, authority, tmp_path)
    assert [name for name, root in kits.items() if (root / "startup" / "privacy.json").exists()] == ["site-1"]
    assert (kits["site-1"] / "startup" / "privacy.json").read_text() == project.privacy
    assert "privacy.json" in (kits["site-1"] / "startup" / "readme.txt").read_text()
    assert open_kit(kits["site-1"]).name == "site-1"


def test_modes_do_not_depend_on_the_umask(tmp_path, authority):
    old = os.umask(0)
    try:
        root = write_kit(make_project(), SERVER, authority, tmp_path)
    finally:
        os.umask(old)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (root / "startup").iterdir()}
    assert modes["server.key"] == modes["server.pfx"] == 0o600
    assert modes["start.sh"] == 0o755
    assert modes["server.crt"] == 0o644
    assert stat.S_IMODE(root.stat().st_mode) == 0o700


def test_no_kit_holds_the_roots_key(kits, authority):
    for root in kits.values():
        for path in root.rglob("*"):
            assert not path.is_file() or authority.key_pem() not in path.read_bytes()


def test_all_who_decide_have_the_default_policy_or_the_projects(kits, authority, tmp_path):
    for name in ("overseer", "server1", "site-1"):
        assert (kits[name] / "startup" / "authorization.json").read_text() == DEFAULT_AUTHORIZATION
    own = dataclasses.replace(make_project(), authorization="{}")
    (tmp_path / "own").mkdir()
    for one in (OVERSEER, SERVER):
        root = write_kit(own, one, authority, tmp_path / "own")
        assert (root / "startup" / "authorization.json").read_text() == "{}"


@pytest.mark.parametrize(("name", "stem"), [("overseer", "overseer"), ("server1", "server"), (ADMIN, "client")])
def test_the_pfx_holds_certificate_key_and_root(kits, name, stem):
    startup = kits[name] / "startup"
    key, certificate, others = pkcs12.load_key_and_certificates((startup / f"{stem}.pfx").read_bytes(), None)
    assert certificate == load_certificate((startup / f"{stem}.crt").read_bytes(), "crt")
    assert key.public_key() == certificate.public_key()
    assert others == [load_certificate((startup / "rootCA.pem").read_bytes(), "root")]


def test_a_kit_without_the_participants_own_key_says_what_belongs_into_it(authority, tmp_path):
    issued = authority.issue("server", "server1", "nvidia")
    root = write_kit(make_project(), SERVER, authority, tmp_path, identity=Identity(issued.cert, None), version=7)
    assert not {"server.key", "server.pfx"} & {path.name for path in (root / "startup").iterdir()}
    assert issued.serial in (root / "startup" / "readme.txt").read_text()
    with pytest.raises(KitError, match=r"server\.key"):
        open_kit(root)
    (root / "startup" / "server.key").write_bytes(issued.key)
    (root / "startup" / "server.key").chmod(0o600)
    assert open_kit(root).name == "server1"
    assert json.loads((root / "startup" / "signature.json").read_text())["version"] == 7


def test_the_digest_of_a_kit_changes_with_what_it_says_and_with_nothing_else(authority):
    first, second = (authority.issue("server", "server1", "nvidia") for _ in range(2))
    project, roots = make_project(), authority.cert_pem
    digest = digest_of(project, SERVER, roots, first.cert)
    assert digest_of(make_project(), SERVER, roots, first.cert) != digest, "another cluster"
    assert digest_of(project, SERVER, roots, first.cert) == digest
    assert digest_of(project, SERVER, roots, second.cert) != digest
    more = dataclasses.replace(project, participants=(*project.participants, Participant("site-2", "site", "o")))
    assert digest_of(more, SERVER, roots, first.cert) != digest
    for one in (project.of("site")[0], project.of("overseer")[0]):
        cert = authority.issue(one.role, one.name, one.org).cert
        assert digest_of(more, one, roots, cert) == digest_of(project, one, roots, cert), "no other site matters to it"


def test_only_a_project_with_an_image_has_docker_scripts(kits, authority, tmp_path):
    assert not list(tmp_path.glob("*/startup/docker.sh"))
    (tmp_path / "own").mkdir()
    image = dataclasses.replace(make_project(), docker_image="fedhelm:0.1")
    kits = write_kits(image, authority, tmp_path / "own")
    assert all((root / "startup" / "docker.sh").is_file() for root in kits.values())
    assert open_kit(kits["site-1"]).docker_image == "fedhelm:0.1"


def test_scripts_name_the_interpreter_that_made_the_kit_only_where_that_is_wanted(kits, authority, tmp_path):
    assert sys.executable in (kits["site-1"] / "startup" / "start.sh").read_text()
    (tmp_path / "own").mkdir()
    root = write_kit(dataclasses.replace(make_project(), interpreter=""), SERVER, authority, tmp_path / "own")
    assert sys.prefix not in (root / "startup" / "start.sh").read_text()
    subprocess.run(["sh", "-n", root / "startup" / "start.sh"], check=True)


def test_the_levels_of_the_log_can_be_read_by_the_participant(kits):
    kit = open_kit(kits["server1"])
    assert levels_of(kit) == {"fedhelm": logging.INFO}
    (kit.local / "log.config").write_text("[levels]\n# mine\nfedhelm.wire = DEBUG\n")
    assert levels_of(kit) == {"fedhelm": logging.INFO, "fedhelm.wire": logging.DEBUG}
    logger = logging.getLogger("fedhelm.wire")
    before = [(one, one.level) for one in (logger, logging.getLogger("fedhelm"))]
    try:
        apply_levels(kit)
        assert logger.level == logging.DEBUG
    finally:
        for one, level in before:
            one.setLevel(level)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "one section is needed"),
        ("[levels]\nx\n", "log.config:2: not of the form"),
        ("[levels]\nfedhelm = LOUD\n", "fedhelm: 'LOUD' is not one of DEBUG"),
        ("[levels]\nfedhelm = INFO\nfedhelm = INFO\n", "already exists"),
        ("[handlers]\nargs = (sys.stdout,)\n", "one section is needed"),
        ("fedhelm = INFO\n", "log.config:1: [levels] is missing"),
        ("[levels]\na b = INFO\n", "not the name of a logger"),
        ("[levels]\nfedhelm = %(x)s\n", "not one of DEBUG"),
    ],
)
def test_a_wrong_level_is_named(text, message):
    with pytest.raises(BadInput) as caught:
        parse_levels(text, "log.config")
    assert message in caught.value.message
    assert "\n" not in caught.value.message


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
