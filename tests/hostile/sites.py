"""Decoders of what a site decides by: the job that a server assigns, its bundle, and the site's privacy policy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import DecodeError

from fedhelm.config.kit import Kit
from fedhelm.errors import FedhelmError
from fedhelm.job.rules import parse_config
from fedhelm.privacy.files import PRIVACY_FILE
from fedhelm.privacy.policy import PRIVACY_SAMPLE
from fedhelm.security.identity import Principal
from fedhelm.security.job_signing import sign_submission
from fedhelm.security.kept_revocations import KeptRevocations
from fedhelm.security.pki import CertificateAuthority
from fedhelm.v1 import common_pb2 as common
from fedhelm.v1 import fleet_pb2 as fleet
from fedhelm.wire.bulk import manifest_of
from fedhelm.wire.overseer_answers import revocations_of
from fedhelm.wire.overseer_api import REVOCATIONS_HEADER
from fedhelm_client.admission import admit, check_signed, check_unpacked
from fedhelm_client.folders import JobFolder
from fedhelm_client.outgoing import check_privacy, outgoing_of_job
from tests.hostile.decoder import Decoder, as_text, dump
from tests.hostile.jobs_and_models import JOB_YAML, _with_checksums, good_bundle
from tests.hostile.participants import in_file
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
    site = kits["site-1"]
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

    def assigned(data: bytes) -> object:
        message = fleet.AssignedJob.FromString(data)
        try:
            check_signed(site, message, nobody)
        finally:
            admit(site, message, whole, submitter)
        return message

    seeds = (signed.SerializeToString(),)
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
