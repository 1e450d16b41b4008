"""A root that was rotated away is good for what was signed before, and for nothing else; or for nothing at all."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys

import pytest
from cryptography import x509

from fedhelm.errors import BadCertificate, BadSignature, KitError
from fedhelm.provision import pki_cli
from fedhelm.provision.install import install
from fedhelm.provision.project_file import read_project_file
from fedhelm.provision.provenance_check import trust_of_kit
from fedhelm.provision.provisioned import ProjectFolder
from fedhelm.provision.provisioning import Secrets, provision
from fedhelm.security.job_signing import Submission, sign_submission, verify_submission
from fedhelm.security.kept_revocations import KeptRevocations
from fedhelm.security.kit import open_kit
from fedhelm.security.pki import load_certificate, load_roots
from fedhelm.security.provenance import Provenance, sign_provenance, verify_provenance
from fedhelm.security.reloading import check_successor
from fedhelm.security.revocation import RevocationList
from fedhelm.security.statements import Trust
from fedhelm.v1 import common_pb2, fleet_pb2
from fedhelm_client.admission import check_signed

PROJECT = """\
api_version: 3
name: hosp
participants:
  - {name: overseer, type: overseer, org: nv}
  - {name: server1, type: server, org: nv}
  - {name: site-1, type: client, org: a}
  - {name: bob@a.org, type: admin, org: a, role: lead}
snapshot_persistor: /shared/hosp
"""
NAMES = ("overseer", "server1", "site-1", "bob@a.org")
JOB = "2och7mr62ge3"

KILLED = """
import os, signal, sys
from fedhelm.provision import pki_cli, rotation

rotation.provision = lambda *args, **more: os.kill(os.getpid(), signal.SIGKILL)
sys.exit(pki_cli.main(sys.argv[1:]))
"""


class Hospital:
    """A project, and the kits as their participants have them."""

    def __init__(self, folder, capsys):
        self._capsys, self.here = capsys, folder / "here"
        (folder / "project.yml").write_text(PROJECT)
        file = read_project_file(folder / "project.yml")
        self.root = provision(file.project, file.source, folder, Secrets())[0].root
        shutil.copytree(self.root / "prod_00", self.here, ignore=shutil.ignore_patterns("*.zip"))
        bob, server = self.kit("bob@a.org"), self.kit("server1")
        self.expected = Submission(bob.project, bob.cluster, JOB, "x", "ab" * 32)
        self.signed = sign_submission(bob, JOB, "x", "ab" * 32)
        told = Provenance(bob.project, bob.cluster, JOB, "x", bob.name, "a", "ab" * 32, None, (), None, {})
        self.provenance = sign_provenance(server, told)

    def kit(self, name):
        return open_kit(self.here / name)

    def rotate(self, *steps):
        for step in steps:
            words = step.split(" ")
            assert pki_cli.main(["rotate", *words, "-w", str(self.root), "-o", "json"]) == 0
            data = json.loads(self._capsys.readouterr().out)["data"]
            self.install()
        return data

    def install(self):
        prod = ProjectFolder.open(self.root).prods[-1]
        for name in NAMES:
            install(self.here / name, prod / f"{name}.zip")

    def at_the_site(self):
        """Say who signed the job, as a site finds it that is told of the job now."""
        blob = common_pb2.BlobRef(digest=self.expected.bundle)
        told = fleet_pb2.AssignedJob(job=JOB, name="x", submission=self.signed, bundle=blob)
        kit = self.kit("site-1")
        return check_signed(kit, told, KeptRevocations(kit)).submitter.name

    def audited(self):
        trust, _ = trust_of_kit(self.here / "bob@a.org")
        return verify_provenance(self.provenance, trust).signer.name


@pytest.fixture
def hospital(tmp_path, capsys):
    return Hospital(tmp_path, capsys)


def test_a_job_that_was_queued_and_a_model_that_was_finished_before_a_rotation_still_count(hospital):
    former = hospital.kit("site-1").ca.read_bytes()
    for step in ("begin", "switch", "finish"):
        data = hospital.rotate(step)
        assert (hospital.at_the_site(), hospital.audited()) == ("bob@a.org", "server1")
    assert data["retired"] == 1
    hospital.rotate("begin", "switch", "finish")
    assert (hospital.at_the_site(), hospital.audited()) == ("bob@a.org", "server1"), "after two rotations as well"
    for name in NAMES:
        kit = hospital.kit(name)
        assert len(load_roots(kit.ca.read_bytes(), "x")) == 1
        retired = x509.load_pem_x509_certificates((kit.startup / "retiredCA.pem").read_bytes())
        assert (len(retired), retired[0]) == (2, load_certificate(former, "x"))
        assert "retiredCA.pem" in (kit.startup / "readme.txt").read_text()


def test_a_retired_root_is_good_for_no_kit_connection_list_or_new_submission(hospital, tmp_path):
    before, site = tmp_path / "before", hospital.here / "site-1"
    shutil.copytree(hospital.here, before)
    authority = ProjectFolder.open(hospital.root).authority()
    old_list = RevocationList("hosp", hospital.expected.cluster).with_revoked((), "2026-01-01T00:00:00.000Z")
    hospital.rotate("begin", "switch", "finish")
    kit = hospital.kit("site-1")
    now = kit.ca.read_bytes()
    with pytest.raises(KitError, match="was not signed by the root"):
        check_successor(open_kit(before / "site-1"), now)
    with pytest.raises(KitError, match="was not signed by this project's root"):
        RevocationList.parse(old_list.to_bytes(authority), now, "hosp", hospital.expected.cluster)
    with pytest.raises(BadSignature, match="not issued by this project's root"):  # what a server asks of a new one
        verify_submission(hospital.signed, hospital.expected, Trust(now, "hosp"))
    for name in ("client.crt", "client.key"):
        (site / "startup" / name).write_bytes((before / "site-1" / "startup" / name).read_bytes())
    manifest = json.loads((site / "startup" / "signature.json").read_text())
    with pytest.raises((KitError, BadCertificate)):
        open_kit(site)
    assert manifest["files"]["retiredCA.pem"]


def test_a_changed_file_of_retired_roots_is_named(hospital):
    hospital.rotate("begin", "switch", "finish")
    path = hospital.here / "site-1" / "startup" / "retiredCA.pem"
    good = path.read_bytes()
    path.write_bytes(good[:100] + bytes([good[100] ^ 1]) + good[101:])
    with pytest.raises(KitError, match=r"retiredCA\.pem was changed"):
        open_kit(hospital.here / "site-1")
    path.unlink()
    with pytest.raises(KitError, match=r"retiredCA\.pem is missing"):
        open_kit(hospital.here / "site-1")


def test_a_root_that_may_have_been_stolen_counts_for_nothing(hospital):
    hospital.rotate("begin", "switch")
    assert hospital.rotate("finish --distrust")["retired"] == 0
    assert not (hospital.here / "site-1" / "startup" / "retiredCA.pem").exists()
    for look in (hospital.at_the_site, hospital.audited):
        with pytest.raises(BadSignature, match="not issued by this project's root"):
            look()


def test_a_former_root_can_be_distrusted_later(hospital, capsys):
    hospital.rotate("begin", "switch", "finish")
    assert hospital.at_the_site() == "bob@a.org"
    assert hospital.rotate("finish --distrust")["retired"] == 0
    with pytest.raises(BadSignature, match="not issued by this project's root"):
        hospital.at_the_site()
    for words in (["finish", "--distrust"], ["finish"], ["switch", "--distrust"]):
        assert pki_cli.main(["rotate", *words, "-w", str(hospital.root)]) == 2
    capsys.readouterr()
    assert pki_cli.main(["rotate", "begin", "-w", str(hospital.root)]) == 0
    assert pki_cli.main(["rotate", "switch", "-w", str(hospital.root)]) == 0
    assert pki_cli.main(["rotate", "finish", "--distrust", "-w", str(hospital.root)]) == 0
    said = capsys.readouterr().out
    assert "submit those again" in said
    assert "fedhelm audit provenance" in said


def test_a_finish_that_was_killed_before_its_kits_is_run_again(hospital):
    hospital.rotate("begin", "switch")
    words = [sys.executable, "-c", KILLED, "rotate", "finish", "-w", str(hospital.root)]
    assert subprocess.run(words, check=False, timeout=60).returncode == -signal.SIGKILL
    assert len(load_roots((hospital.root / "state" / "rootCA.pem").read_bytes(), "x")) == 1
    assert hospital.rotate("finish")["retired"] == 1
    assert (hospital.at_the_site(), hospital.audited()) == ("bob@a.org", "server1")
    assert len(load_roots(hospital.kit("site-1").ca.read_bytes(), "x")) == 1


def test_a_step_that_is_run_again_after_its_kits_were_handed_over_says_so(hospital, capsys):
    hospital.rotate("begin")
    for prod in ProjectFolder.open(hospital.root).prods:
        shutil.rmtree(prod)
    assert pki_cli.main(["rotate", "begin", "-w", str(hospital.root), "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["data"]["prod"] is None
    assert pki_cli.main(["rotate", "begin", "-w", str(hospital.root)]) == 0
    assert "the kits were written before, and are not here any more" in capsys.readouterr().out


def test_a_damaged_list_is_told_before_the_key_that_signed_it_is_gone(hospital):
    lists = hospital.root / "state" / "revoked.json"
    assert pki_cli.main(["revoke", "bob@a.org", "--reason", "left", "-w", str(hospital.root)]) == 0
    assert pki_cli.main(["rotate", "begin", "-w", str(hospital.root)]) == 0
    good, key = lists.read_bytes(), (hospital.root / "state" / "rootCA.key").read_bytes()
    lists.write_bytes(good[:-10])
    assert pki_cli.main(["rotate", "switch", "-w", str(hospital.root)]) == 4
    assert (hospital.root / "state" / "rootCA.key").read_bytes() == key
    lists.write_bytes(good)
    assert pki_cli.main(["rotate", "switch", "-w", str(hospital.root)]) == 0
    assert ProjectFolder.open(hospital.root).revocation_list().version == 2
