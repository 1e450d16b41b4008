"""What a runner signs of a job that completes, and what it does where that cannot be read, kept or signed."""

from __future__ import annotations

import dataclasses

import pytest

from fedhelm.errors import Corrupt, StoreUnavailable
from fedhelm.persist.blobs import BlobReader, BlobRef
from fedhelm.security.pki import CertificateAuthority
from fedhelm.security.provenance import verify_provenance
from fedhelm.security.statements import Trust
from fedhelm_server.job_provenance import TRIES, Statement
from fedhelm_server.job_state import JobState, Segment
from tests.fakes.persist_memory import MemoryBlobStore
from tests.fakes.server_child import FaultyBlobs
from tests.fakes.server_kit import server_kit
from tests.fakes.server_log import JOB, blob, closed, submitted

AUTHORITY = CertificateAuthority.create("poc")


@pytest.fixture
def kit(tmp_path):
    (tmp_path / "startup").mkdir()
    kit = dataclasses.replace(server_kit(tmp_path), cluster="c" * 32)
    issued = AUTHORITY.issue("server", "server1", "nvidia")
    kit.cert.write_bytes(issued.cert)
    kit.key.write_bytes(issued.key)
    return kit


def job_of(*rounds):
    item = submitted()
    named = ("job", "name", "submitter", "request_id", "bundle", "config")
    job = JobState(**{key: item[key] for key in named}, submit_time=item["time"], seq=2)
    job.closed = [{**closed(number), "epoch": 1, "seq": 2 + number, "primary": "server1"} for number in rounds]
    return job


def test_it_is_signed_once_and_kept_under_an_owner_of_its_own(kit):
    blobs, job = MemoryBlobStore(), job_of(1, 2)
    statement = Statement(kit, blobs)
    made = statement.of(job)
    assert made["owner"] == f"jobs/{JOB}/provenance"
    assert statement.of(job) == made
    assert statement.problem == ""
    data = BlobReader(blobs, BlobRef.from_json(made)).read()
    assert len(data) == made["size"]
    said = verify_provenance(data, Trust(AUTHORITY.cert_pem, "poc")).provenance
    assert [(one.round, one.members) for one in said.rounds] == [(n, ("site-1", "site-2")) for n in (1, 2)]
    assert Statement(kit, blobs).of(job) != made, "another process would sign anew: the log has the first"


def test_a_job_without_a_model_has_a_statement_too(kit):
    job = job_of(1)
    job.closed = [{**entry, "model": None, "model_sha256": None, "kind": "evaluate"} for entry in job.closed]
    blobs = MemoryBlobStore()
    data = BlobReader(blobs, BlobRef.from_json(Statement(kit, blobs).of(job))).read()
    said = verify_provenance(data, Trust(AUTHORITY.cert_pem, "poc")).provenance
    assert (said.final_model_sha256, said.members) == (None, ())


def test_a_segment_that_was_merged_meanwhile_is_tried_again_and_a_damaged_one_given_up(kit):
    job = job_of(2)
    job.segments = [Segment(3, blob(f"jobs/{JOB}/lines/{3:016d}"))]  # nobody has it
    statement = Statement(kit, MemoryBlobStore())
    for _ in range(TRIES - 1):
        with pytest.raises(Corrupt):
            statement.of(job)
    assert statement.of(job) is None
    assert statement.problem.endswith("is missing")

    merged = Statement(kit, MemoryBlobStore())
    with pytest.raises(Corrupt):
        merged.of(job)
    job.segments = []
    assert merged.of(job) is not None


def test_a_store_that_is_full_is_waited_for(kit):
    blobs = FaultyBlobs(MemoryBlobStore())
    blobs.full = 2
    statement = Statement(kit, blobs)
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            statement.of(job_of(1))
    assert statement.of(job_of(1)) is not None
    assert statement.problem == ""


def test_a_statement_that_nobody_would_read_is_not_made(kit, monkeypatch):
    monkeypatch.setattr("fedhelm_server.job_provenance.MAX_BYTES", 500)
    blobs = MemoryBlobStore()
    statement = Statement(kit, blobs)
    assert statement.of(job_of(1)) is None
    assert "bytes for 1 rounds are more than anybody would read (500)" in statement.problem
    assert blobs.owners("jobs") == []
