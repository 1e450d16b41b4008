"""A kit that was changed, is too old, too young, of another role or of another project; a port that is taken."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import shutil
import socket

import pytest

from fedhelm.admin.network import WireNetwork
from fedhelm.clock import SystemClock
from fedhelm.config.kit import CERT_STEM
from fedhelm.errors import NotAuthorised
from fedhelm.process import marked_processes
from fedhelm.security.kit import open_kit
from fedhelm.security.pki import CertificateAuthority
from fedhelm.security.signing import SIGNATURE_FILE, make_manifest
from tests.support.federation import Federation
from tests.support.kits import ADMIN, make_kits

pytestmark = [pytest.mark.processes, pytest.mark.xdist_group("kits")]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A workspace in which nothing runs."""
    made = Federation(tmp_path_factory.mktemp("prepared"))
    try:
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def _spoilt(federation, name):
    """Yield a participant's startup folder; it is as before afterwards, and nothing of it runs."""
    startup = federation.kit(name) / "startup"
    backup = federation.folder / f"{name}.backup"
    shutil.copytree(startup, backup)
    try:
        yield startup
    finally:
        federation.stop_one(name) if (startup / "stop_fl.sh").exists() else None
        shutil.rmtree(startup)
        backup.rename(startup)


def _refused(federation, name, code, *said):
    answer = federation.script(name, "start.sh")
    assert answer.rc != 0, answer.out
    assert f"error[{code}]" in answer.err
    for word in said:
        assert word in answer.err, answer.err
    assert "Traceback" not in answer.err
    assert marked_processes(federation.kit(name)) == []
    return answer


# -- changed files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("overseer", "fed_overseer.json"),
        ("server1", "rootCA.pem"),
        ("site-1", "client.key"),
        ("site-1", "signature.json"),
    ],
)
def test_one_changed_byte_is_named(prepared, name, file):
    """By the process itself; tests/unit/test_flipped_bytes.py has every file of every kit."""
    with _spoilt(prepared, name) as startup:
        path = startup / file
        data = bytearray(path.read_bytes())
        place = data.rindex(b"a")  # a letter, so that JSON stays JSON
        data[place] = ord("b")
        path.write_bytes(data)
        assert _refused(prepared, name, "BAD_KIT", file).rc == 4


@pytest.mark.parametrize("file", ["fed_client.json", "client.key", "readme.txt"])
def test_a_missing_file_is_named(prepared, file):
    with _spoilt(prepared, "site-1") as startup:
        (startup / file).unlink()
        assert _refused(prepared, "site-1", "BAD_KIT", file).rc == 4


def test_a_file_that_nobody_signed_is_named(prepared):
    with _spoilt(prepared, "server2") as startup:
        (startup / "extra.json").write_text("{}")
        assert _refused(prepared, "server2", "BAD_KIT", "extra.json").rc == 4


def test_poc_start_names_it_too_and_stop_works_with_a_damaged_kit(prepared):
    with _spoilt(prepared, "site-2") as startup:
        (startup / "fed_client.json").write_text((startup / "fed_client.json").read_text().replace("site-2", "site-9"))
        answer = prepared.poc("start")
        assert (answer.rc, answer.error["code"]) == (4, "BAD_KIT")
        assert "fed_client.json" in answer.error["message"]
        prepared.stop()


# -- certificates -----------------------------------------------------------------------------------------------------


def _issue_anew(federation, name, **validity):
    """Give a participant a certificate of other dates, in a kit that is signed as it should be."""
    kit, state = open_kit(federation.kit(name)), federation.root / "state"
    ours = CertificateAuthority.load(
        kit.project, (state / "rootCA.pem").read_bytes(), (state / "rootCA.key").read_bytes()
    )
    issued = ours.issue(kit.role, kit.name, kit.org, **validity)
    (kit.startup / f"{CERT_STEM[kit.role]}.crt").write_bytes(issued.cert)
    (kit.startup / f"{CERT_STEM[kit.role]}.key").write_bytes(issued.key)
    files = {path.name: path.read_bytes() for path in kit.startup.iterdir() if path.name != SIGNATURE_FILE}
    (kit.startup / SIGNATURE_FILE).write_bytes(make_manifest(files, ours))


DAY = dt.timedelta(days=1)


@pytest.mark.parametrize("name", ["server1", "site-1"])
def test_an_expired_certificate_is_refused(prepared, name):
    with _spoilt(prepared, name) as startup:
        _issue_anew(prepared, name, start=SystemClock().utcnow() - 3 * DAY, life=2 * DAY)
        assert _refused(prepared, name, "BAD_CERTIFICATE", "expired", f"{startup}").rc == 4


def test_a_clock_before_the_certificates_start_is_said(prepared):
    with _spoilt(prepared, "site-1"):
        _issue_anew(prepared, "site-1", start=SystemClock().utcnow() + DAY)
        assert _refused(prepared, "site-1", "BAD_CERTIFICATE", "not valid", "clock").rc == 4


def test_the_console_says_both_too(prepared):
    with _spoilt(prepared, ADMIN):
        _issue_anew(prepared, ADMIN, start=SystemClock().utcnow() - 3 * DAY, life=2 * DAY)
        answer = prepared.console("list_jobs")
        assert (answer.rc, answer.error["code"]) == (4, "BAD_CERTIFICATE")
        assert "expired" in answer.error["message"]
    with _spoilt(prepared, ADMIN):
        _issue_anew(prepared, ADMIN, start=SystemClock().utcnow() + DAY)
        answer = prepared.console("list_jobs")
        assert (answer.rc, answer.error["code"]) == (4, "BAD_CERTIFICATE")
        assert "clock" in answer.error["message"] + (answer.error["hint"] or "")


# -- ports and workspaces ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("offset", "name"), [(0, "overseer"), (4, "server2")])
def test_a_taken_port_is_named_at_start(prepared, offset, name):
    port = prepared.base_port + offset
    with socket.create_server(("127.0.0.1", port)):
        answer = _refused(prepared, name, "PORT_TAKEN", str(port), name)
        assert answer.rc == 1
        together = prepared.poc("start")
        assert (together.rc, together.error["code"]) == (1, "PORT_TAKEN")
        assert str(port) in together.error["message"]
        prepared.stop()


def test_prepare_names_taken_ports_and_leaves_nothing(prepared, tmp_path):
    with socket.create_server(("127.0.0.1", prepared.base_port + 2)):
        words = ["-n", "1", "--base-port", str(prepared.base_port), "-w", str(tmp_path / "new"), "-o", "json"]
        answer = prepared.run("poc", "prepare", *words)
    assert (answer.rc, answer.error["code"]) == (1, "PORT_TAKEN")
    assert str(prepared.base_port + 2) in answer.error["message"]
    assert "server1" in answer.error["message"]
    assert list(tmp_path.iterdir()) == []


def test_a_workspace_that_exists_is_left_alone(prepared, tmp_path):
    before = sorted(path.stat().st_mtime_ns for path in prepared.root.rglob("*"))
    answer = prepared.poc("prepare", "-n", "1", "--base-port", str(prepared.base_port))
    assert (answer.rc, answer.error["code"]) == (1, "WORKSPACE_EXISTS")
    assert sorted(path.stat().st_mtime_ns for path in prepared.root.rglob("*")) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    for action in ("prepare", "start", "stop", "clean", "status"):
        answer = prepared.run("poc", action, "-w", str(tmp_path / "mine"), "-o", "json")
        assert answer.rc in (1, 2), action
        assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


# -- strangers --------------------------------------------------------------------------------------------------------


def test_a_sites_kit_cannot_use_the_admin_port(standing):
    answer = standing.run("console", str(standing.kit("site-1")), "-o", "json", "-c", "list_jobs")
    assert answer.rc == 4
    assert "site-1" in answer.error["message"]
    # Nor by going round the console, with the certificate that it has.
    kit = open_kit(standing.kit("site-1"))
    for server in kit.servers:
        stub, channel = WireNetwork(kit).dial(server)
        with contextlib.closing(channel), pytest.raises(NotAuthorised):
            stub.challenge(timeout=10)


def test_a_console_of_another_project_gets_nowhere(standing, tmp_path):
    # The same names, addresses and project name; another root.
    strangers = make_kits(tmp_path, servers=2, sites=2, base_port=standing.base_port, timing="default")
    answer = standing.run("console", str(strangers[ADMIN].root), "-o", "json", "--timeout", "15", "-c", "list_jobs")
    assert answer.rc in (3, 4)
    assert answer.error["code"] in ("BAD_CERTIFICATE", "UNREACHABLE")
    assert "certificate" in json.dumps(answer.error).lower()
    assert standing.console("list_jobs").rc == 0
