"""A downloaded result: nothing planted beside the code that ran, and nothing signed by a certificate that was revoked."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from fedhelm.clock import SystemClock, iso
from fedhelm.job.bundle import pack, unpack
from fedhelm.provision.audit_cli import main
from fedhelm.security.identity import principal_from_certificate
from fedhelm.security.job_signing import sign_submission
from fedhelm.security.pki import CertificateAuthority, load_certificate
from fedhelm.security.provenance import Provenance, sign_provenance
from fedhelm.security.revocation import RevocationList, Revoked
from fedhelm.wire.bulk import manifest_of
from tests.support.kits import ADMIN, make_kits

JOB = "k7m3tq4w2zpx"


@pytest.fixture(scope="module")
def authority():
    return CertificateAuthority.create("poc")


@pytest.fixture
def kits(tmp_path, authority):
    return make_kits(tmp_path, authority=authority)


@pytest.fixture
def folder(kits, tmp_path):
    """What a download brings, in the admin's transfer."""
    admin, server = kits[ADMIN], kits["server1"]
    source, target = tmp_path / "source", admin.root / "transfer" / JOB
    (source / "app").mkdir(parents=True)
    (source / "job.yaml").write_text("name: hello\n")
    (source / "app" / "train.py").write_text("import helper\n")
    pack(source, tmp_path / "bundle")
    unpack(tmp_path / "bundle", target / "job")
    code = manifest_of(tmp_path / "bundle").digest
    submission = sign_submission(admin, JOB, "hello", code).decode()
    provenance = Provenance(
        "poc", server.cluster, JOB, "hello", ADMIN, "nvidia", code, submission, (), None, {"fedhelm": "1"}
    )
    (target / "provenance.json").write_bytes(sign_provenance(server, provenance))
    return target


@pytest.fixture
def look(folder, capsys):
    """Return (exit status, what -> (good, told)) of the command."""

    def command(*words):
        status = main(["provenance", str(folder), "-o", "json", *map(str, words)])
        body = json.loads(capsys.readouterr().out)
        if body["error"] is not None:
            return status, body["error"]["message"]
        return status, {one["what"]: (one["good"], one["told"]) for one in body["data"]["checks"]}

    return command


def revoke(kit, authority, at, *, reason="laptop stolen", cluster=None):
    certificate = load_certificate(kit.cert.read_bytes(), "c")
    serial = principal_from_certificate(certificate, kit.project).serial
    empty = RevocationList(kit.project, cluster or kit.cluster)
    return empty.with_revoked((Revoked(serial, kit.role, kit.name, at, reason),), at).to_bytes(authority)


def in_force(kit, data):
    kit.run.mkdir(exist_ok=True)
    (kit.run / "revoked.json").write_bytes(data)


EARLIER = "2020-01-01T00:00:00.000Z"


@pytest.fixture
def later():
    return iso(SystemClock().utcnow() + timedelta(days=1))


def test_a_clean_download_is_the_code_that_ran(look):
    assert look()[1]["job"] == (True, "is the code that ran")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("job/app/helper.pyc", "job/app/helper.pyc"),
        ("job/app/__pycache__/helper.cpython-311.pyc", "job/app/__pycache__"),
        ("job/.hidden", "job/.hidden"),
        ("job/app/.git/hooks/x", "job/app/.git"),
    ],
)
def test_what_python_would_run_and_no_bundle_has_is_named(folder, look, name, shown):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"planted")
    status, checks = look()
    assert status == 1
    assert checks["job"] == (False, f"has {shown}, which is of no job: hidden, or byte code that Python would run")


def test_without_a_list_nobody_knows_what_was_revoked(kits, look):
    status, checks = look()
    assert status == 0
    assert checks["signer"] == (
        None,
        f"whether its certificate was revoked is not known here: no {kits[ADMIN].run / 'revoked.json'}",
    )


def test_a_list_that_does_not_name_the_server(kits, authority, look, later):
    in_force(kits[ADMIN], revoke(kits["site-1"], authority, later))
    status, checks = look()
    assert (status, checks["signer"]) == (0, (True, "not revoked, by version 1 of the list"))


def test_a_statement_of_a_revoked_server_does_not_hold(kits, authority, look):
    in_force(kits[ADMIN], revoke(kits["server1"], authority, EARLIER))
    told = f"the certificate of server server1 was revoked on {EARLIER} (laptop stolen), before the time that the statement says"
    for words in ((), ("--believe-time",)):
        status, checks = look(*words)
        assert (status, checks["signer"]) == (1, (False, told))


def test_a_time_before_the_revocation_is_believed_only_where_somebody_says_so(kits, authority, look, later):
    """Whoever stole a key writes the time that they like."""
    in_force(kits[ADMIN], revoke(kits["server1"], authority, later))
    status, checks = look()
    assert (status, checks["signer"][0]) == (1, False)
    assert "whoever has its key can write an earlier time" in checks["signer"][1]
    status, checks = look("--believe-time")
    assert (status, checks["signer"][0]) == (0, True)
    assert "which is believed" in checks["signer"][1]


def test_a_submitter_who_was_revoked_later_had_submitted_all_the_same(kits, authority, look, later):
    in_force(kits[ADMIN], revoke(kits[ADMIN], authority, later, reason=""))
    status, checks = look()
    assert (status, checks["submission"][0]) == (0, True)
    assert checks["submission"][1].endswith(f"was revoked on {later}, later")
    in_force(kits[ADMIN], revoke(kits[ADMIN], authority, EARLIER))
    status, checks = look()
    assert (status, checks["submission"][0]) == (1, False)


def test_a_list_from_elsewhere_is_verified(kits, authority, look, tmp_path):
    path = tmp_path / "list.json"
    path.write_bytes(revoke(kits["server1"], authority, EARLIER))
    assert look("--revoked", path)[1]["signer"][0] is False
    path.write_bytes(revoke(kits["server1"], CertificateAuthority.create("poc"), EARLIER))
    status, message = look("--revoked", path)
    assert (status, "was not signed by this project's root" in message) == (4, True)
    assert look("--revoked", tmp_path / "none")[0] == 4


def test_a_list_in_place_that_does_not_hold_is_said(kits, authority, look):
    in_force(kits[ADMIN], revoke(kits["server1"], authority, EARLIER, cluster="f" * 32))
    good, told = look()[1]["signer"]
    assert good is None
    assert "the list of revoked certificates is of project 'poc', cluster 'ffff" in told
