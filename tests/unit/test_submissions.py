"""What becomes of a submission at a primary: it is recorded as it was signed, or nothing is."""

from __future__ import annotations

import json
from datetime import timedelta
from types import SimpleNamespace

import pytest

from fedhelm.errors import BadSignature, NotAuthorised
from fedhelm.job.bundle import pack
from fedhelm.persist.blobs import BlobWriter
from fedhelm.security.identity import Principal
from fedhelm.security.job_signing import sign_submission
from fedhelm.security.pki import CertificateAuthority
from fedhelm.v1 import admin_pb2 as admin
from fedhelm.v1 import common_pb2 as common
from fedhelm_server.places import bundle_owner
from fedhelm_server.streams import SiteStream
from tests.fakes.provision_clock import FixedClock
from tests.fakes.server_log import OTHER, Clock
from tests.support.calls import called
from tests.unit.test_primary_services import REQUEST, primary_in

AUTHORITY = CertificateAuthority.create("poc")
NOW = Clock().utcnow()


def submitter(tmp_path, kit, name):
    root = tmp_path / name
    (root / "startup").mkdir(parents=True)
    issued = AUTHORITY.issue("lead", name, "a", start=NOW - timedelta(days=1))
    certificate, key = root / "startup" / "client.crt", root / "startup" / "client.key"
    certificate.write_bytes(issued.cert)
    key.write_bytes(issued.key)
    return SimpleNamespace(project="poc", cluster=kit.cluster, key=key, cert=certificate)


class Console:
    """Who submits, to this primary."""

    def __init__(self, primary, tmp_path):
        self.primary, self.kit = primary, primary.runtime.kit
        self.kit.startup.mkdir()
        self.kit.ca.write_bytes(AUTHORITY.cert_pem)
        folder = tmp_path / "job"
        (folder / "app").mkdir(parents=True)
        (folder / "app" / "train.py").write_text("print(1)\n")
        said = {"name": "hello", "deploy": {"app": ["@ALL"]}, "workflow": [{"type": "fedavg", "rounds": 1}]}
        (folder / "job.yaml").write_text(json.dumps(said))
        pack(folder, tmp_path / "bundle")
        writer = BlobWriter(primary.blobs, bundle_owner(OTHER))
        writer.write((tmp_path / "bundle").read_bytes())
        self.bundle = writer.finish()
        self.bob = submitter(tmp_path, self.kit, "bob@a.org")
        self.eve = submitter(tmp_path, self.kit, "eve@a.org")
        self.kit.run.mkdir(exist_ok=True)

    def sign(self, who, clock_at=NOW):
        return sign_submission(who, OTHER, "hello", self.bundle.digest, clock=FixedClock(clock_at))

    async def submit(self, signed, request_id=REQUEST):
        ref = common.BlobRef(**self.bundle.to_json())
        request = admin.SubmitJobRequest(request_id=request_id, job=OTHER, bundle=ref, submission=signed)
        call = called(Principal("poc", "lead", "bob@a.org", "a", "1f"), "Admin.SubmitJob")
        return await self.primary.admin.submit_job(request, call)


async def test_a_job_is_recorded_as_it_was_signed_and_a_repeated_try_keeps_the_first_signature(tmp_path):
    async with primary_in(tmp_path) as primary:
        console = Console(primary, tmp_path)
        signed = console.sign(console.bob)
        reply = await console.submit(signed)
        job = primary.book.jobs[OTHER]
        assert (job.submission, job.submitter, job.submitter_org) == (signed.decode(), "bob@a.org", "a")
        end = primary.book.seq
        for again in (console.sign(console.bob, NOW + timedelta(seconds=9)), signed, b""):
            assert await console.submit(again) == reply
            assert await console.submit(again, request_id="request999") == reply
        assert (primary.book.seq, primary.book.jobs[OTHER].submission) == (end, signed.decode())


async def test_what_its_caller_did_not_sign_just_now_is_not_recorded(tmp_path):
    async with primary_in(tmp_path) as primary:
        console = Console(primary, tmp_path)
        end, signed = primary.book.seq, console.sign(console.bob)
        for data, why in (
            (b"", "there is none"),
            (console.sign(console.eve), r"signed by lead eve@a\.org, submitted by bob@a\.org"),
            (console.sign(console.bob, NOW - timedelta(minutes=16)), "signed at"),
            (signed.replace(b'"name":"hello"', b'"name":"jello"'), r"the signature is not that of lead bob@a\.org"),
            (b"x" * 40_000, "longer than"),
        ):
            with pytest.raises(BadSignature, match=why):
                await console.submit(data)
        assert (primary.book.seq, OTHER in primary.book.jobs) == (end, False)


async def test_a_job_for_a_site_that_would_refuse_it_is_not_recorded(tmp_path):
    async with primary_in(tmp_path) as primary:
        console = Console(primary, tmp_path)
        shut = SiteStream("site-2", "i", 2, "a", takes_code=False)
        primary.runtime.streams.open(shut)
        end = primary.book.seq
        with pytest.raises(NotAuthorised, match="site site-2 takes no job that brings its own code"):
            await console.submit(console.sign(console.bob))
        assert (primary.book.seq, OTHER in primary.book.jobs) == (end, False)
        primary.runtime.streams.close(shut)
        await console.submit(console.sign(console.bob))
        assert OTHER in primary.book.jobs
