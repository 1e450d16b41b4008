"""Decoders of what a site decides by: the job that a server assigns, its bundle, a download, an order, and what the site
keeps of its own: privacy policy, jobs that ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from google.protobuf.message import DecodeError

from fedhelm.clock import SystemClock
from fedhelm.config.kit import Kit
from fedhelm.errors import FedhelmError
from fedhelm.job.rules import parse_config
from fedhelm.persist.blobs import Manifest, blake3_hex
from fedhelm.privacy.files import PRIVACY_FILE
from fedhelm.privacy.policy import PRIVACY_SAMPLE
from fedhelm.security import order_signing
from fedhelm.security.identity import Principal
from fedhelm.security.job_signing import sign_submission
from fedhelm.security.kept_revocations import KeptRevocations
from fedhelm.security.order_signing import SiteOrder, sign_order
from fedhelm.security.pki import CertificateAuthority
from fedhelm.v1 import common_pb2 as common
from fedhelm.v1 import fleet_pb2 as fleet
from fedhelm.wire.bulk import fetch_blob, manifest_of
from fedhelm.wire.overseer_answers import revocations_of
from fedhelm.wire.overseer_api import REVOCATIONS_HEADER
from fedhelm_client.admission import Admitted, admit, check_signed, check_unpacked
from fedhelm_client.ended_jobs import EndedJobs
from fedhelm_client.folders import JobFolder
from fedhelm_client.orders import check_order
from fedhelm_client.outgoing import check_privacy, outgoing_of_job
from fedhelm_client.site_trail import SiteTrail
from tests.hostile.decoder import Decoder, as_text, dump
from tests.hostile.jobs_and_models import JOB_YAML, _with_checksums, good_bundle
from tests.hostile.participants import in_file
from tests.hostile.provisioned import _sealed_anew
from tests.support.kits import ADMIN, make_kits

JOB = "abcdefghijkl"
POLICY = b"""{
  "format_version": "1.0", // mine
  "filters": [
    {"type": "min_samples", "samples": 50}, {"type": "weight", "value": 1}, {"type": "limits", "tensors": 500},
    {"type": "exclude", "tensors": ["head.*"]}, {"type": "clip", "norm": 1.0},
    {"type": "gaussian_noise", "norm": 1.0, "multiplier": 0.8}, {"type": "keep_largest", "share": 0.1, "limit": 0.01}],
  "metrics": {"only": ["loss", "acc*"], "digits": 3}, "lines": ["scalar"], "show_parameters": false
}
"""


def decoders(place: Path) -> Iterator[Decoder]:
    authority = CertificateAuthority.create("poc")
    (place / "kits").mkdir()
    kits = make_kits(place / "kits", authority=authority)
    yield from _admission(place, kits["site-1"], kits[ADMIN])
    yield from _orders(kits["site-1"], kits[ADMIN])
    yield Decoder("a download: manifest and bytes", _Download(place / "download"), _Download.seeds(), _Download.refuses)
    site = kits["site-1"]
    path = place / "ended_jobs.txt"
    ended = in_file(path, lambda: EndedJobs(path, SystemClock()).check_age(JOB, "2026-01-01T00:00:00.000Z"))
    line = f"before 2025-01-01T00:00:00.000Z\n{JOB} 2025-06-01T00:00:00.000Z\n".encode()
    yield Decoder("run/ended_jobs.txt", ended, (line,))
    privacy = in_file(site.local / PRIVACY_FILE, lambda: check_privacy(site))
    yield Decoder("local/privacy.json", privacy, (POLICY, PRIVACY_SAMPLE.encode()))
    folder = JobFolder.of(site, JOB)
    folder.bundle.mkdir(parents=True)
    kept = in_file(folder.privacy, lambda: outgoing_of_job(site, folder))
    yield Decoder("run/jobs: privacy.json", kept, (dump([["startup/privacy.json", POLICY.decode()]]),))
    yield Decoder(
        "overseer: version of revocations", as_text(lambda text: revocations_of({REVOCATIONS_HEADER: text})), (b"17",)
    )


def _admission(place: Path, site: Kit, admin: Kit) -> Iterator[Decoder]:
    archive, unpacked = place / "bundle", place / "unpacked"
    archive.write_bytes(good_bundle())
    config = parse_config(JOB_YAML.decode(), "job.yaml")
    digest = manifest_of(archive).digest
    signed = fleet.AssignedJob(
        job=JOB,
        name=config.name,
        status="RUNNING",
        bundle=common.BlobRef(owner=f"jobs/{JOB}/bundle", digest=digest, size=archive.stat().st_size),
        app=config.app,
        script=config.script,
        options_json='{"lr":0.1,"deep":{"er":[1,"two",null,true]}}',
        submission=sign_submission(admin, JOB, config.name, digest),
    )
    submitter = Principal("poc", "project_admin", ADMIN, "nvidia", "5f")
    whole = place / "whole"
    whole.write_bytes(good_bundle())
    nobody = KeptRevocations(site)
    admitted = Admitted(SiteTrail(site))
    admitted.this(signed, config)

    def said(data: bytes) -> object:
        return admitted.takes(site, fleet.AssignedJob.FromString(data), ended=False)

    def assigned(data: bytes) -> object:
        message = fleet.AssignedJob.FromString(data)
        try:
            check_signed(site, message, nobody)
        finally:
            admit(site, message, whole, submitter)
        return message

    seeds = (signed.SerializeToString(),)
    yield Decoder("protobuf: a later word on a job", said, seeds, (DecodeError,))
    yield Decoder("protobuf: a job for a site", assigned, seeds, (FedhelmError, DecodeError))
    yield Decoder(
        "bundle: of a job for a site",
        in_file(archive, lambda: admit(site, signed, archive, submitter)),
        (good_bundle(),),
        repair=_with_checksums,
    )
    yield Decoder(
        "job.yaml of an unpacked job",
        in_file(unpacked / "job.yaml", lambda: check_unpacked(site, signed, unpacked)),
        (JOB_YAML,),
    )


def _orders(site: Kit, admin: Kit) -> Iterator[Decoder]:
    nobody, now = KeptRevocations(site), SystemClock().utcnow()  # of then: an order has an age
    statement = sign_order(admin, SiteOrder("poc", site.cluster, "r1234567", "restart", ("@ALL",), "new driver"))
    order = fleet.Order(id="r1234567", action="restart", statement=statement)

    def whole(data: bytes) -> object:
        return check_order(site, fleet.Order.FromString(data), nobody, now)

    def signed(data: bytes) -> object:
        return check_order(site, fleet.Order(id=order.id, action=order.action, statement=data), nobody, now)

    yield Decoder("protobuf: an order", whole, (order.SerializeToString(),), (FedhelmError, DecodeError))
    yield Decoder("statement: order", signed, (statement,))
    yield Decoder("statement: order, signed", signed, (statement,), repair=_sealed_anew(order_signing._DOMAIN, admin))


class _Download:
    """A server's manifest (two bytes of its length before it), then its messages of 100 bytes; its digest always fits."""

    refuses = (FedhelmError, DecodeError, OSError)

    def __init__(self, place: Path) -> None:
        place.mkdir()
        self._target = place / "model"
        self._manifest = common.Manifest()
        self._data = b""

    @staticmethod
    def seeds() -> tuple[bytes, ...]:
        data = bytes(range(250))
        chunks = [blake3_hex(data[at : at + 100]) for at in range(0, 250, 100)]
        manifest = common.Manifest(size=250, chunk_size=100, chunks=chunks).SerializeToString()
        return (len(manifest).to_bytes(2, "big") + manifest + data,)

    def __call__(self, data: bytes) -> object:
        length = int.from_bytes(data[:2], "big")
        one = self._manifest = common.Manifest.FromString(data[2 : 2 + length])
        self._data = data[2 + length :]
        named = Manifest(one.size, one.chunk_size, tuple(one.chunks))
        blob = common.BlobRef(owner=f"jobs/{JOB}/0-1/model", digest=named.digest, size=named.size)
        return asyncio.run(fetch_blob(self, blob, self._target))

    async def get_manifest(self, blob: common.BlobRef, timeout: float) -> common.Manifest:
        return self._manifest

    async def get_blob(self, request: common.GetBlobRequest) -> AsyncIterator[bytes]:
        data = self._data[request.offset :]
        for at in range(0, len(data), 100):
            yield data[at : at + 100]
