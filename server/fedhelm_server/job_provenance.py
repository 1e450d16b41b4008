"""The statement that comes with a job's models: gathered from the book and the segments, signed once, kept as a blob.

An ECDSA signature over the same words differs each time. So the blob is named by the record that ends the job, and
every server gives the same bytes. What was signed by a runner that died before that is garbage of the same owner.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fedhelm.config.kit import Kit
from fedhelm.errors import Corrupt, FedhelmError, StoreUnavailable
from fedhelm.persist.base import BlobStore
from fedhelm.persist.blobs import BlobWriter
from fedhelm.security.provenance import MAX_BYTES, Provenance, TrainedRound, sign_provenance, software_versions
from fedhelm_server.job_state import JobState, counted
from fedhelm_server.places import provenance_owner
from fedhelm_server.segments import read_rounds

__all__ = ["Statement", "job_provenance"]

TRIES = 5
"""How often what is to be signed is read, where it seems damaged."""


def job_provenance(
    kit: Kit, job: JobState, rounds: Iterable[Mapping[str, Any]], software: Mapping[str, str]
) -> Provenance:
    """Return what is to be signed of a job. Pure.

    Args:
        kit: of the server that finishes it.
        job: its state, before its end.
        rounds: its closed rounds, whole, in the order of closing.
        software: package -> version.
    """
    trained = tuple(map(_round, rounds))
    made = [one.model_sha256 for one in trained if one.model_sha256 is not None]
    return Provenance(
        project=kit.project,
        cluster=kit.cluster,
        job=job.job,
        name=job.name,
        submitter=job.submitter,
        submitter_org=job.submitter_org,
        code=job.bundle["digest"],
        submission=job.submission,
        rounds=trained,
        final_model_sha256=made[-1] if made else None,
        software=software,
    )


def _round(entry: Mapping[str, Any]) -> TrainedRound:
    return TrainedRound(
        step=entry["step"],
        round=entry["round"],
        kind=entry["kind"],
        epoch=entry["epoch"],
        primary=entry["primary"],
        members=tuple(counted(entry)),
        model_sha256=entry["model_sha256"],
        closed=entry["time"],
    )


class Statement:
    """The statement of one job, signed once by one process.

    Args:
        kit: of the server that finishes the job.
        blobs: where the statement is kept.

    Attributes:
        problem: why there is none; empty where there is one, or nobody asked yet.
    """

    def __init__(self, kit: Kit, blobs: BlobStore) -> None:
        self._kit, self._blobs = kit, blobs
        self._made: dict[str, Any] | None = None
        self._tries = 0
        self.problem = ""

    def of(self, job: JobState) -> dict[str, Any] | None:
        """Return the statement's blob, signed and kept; None where there can be none: that costs nobody a result.

        Raises:
            Corrupt: a segment is damaged, or was merged into another one meanwhile: read on in the log, and try again.
            StoreUnavailable: the store cannot be read or written: try again.
        """
        if self._made is None and not self.problem:
            try:
                self._made = self._sign(job)
            except StoreUnavailable:
                raise
            except FedhelmError as error:
                self._tries += 1
                if isinstance(error, Corrupt) and self._tries < TRIES:
                    raise
                self.problem = error.message
        return self._made

    def _sign(self, job: JobState) -> dict[str, Any]:
        rounds = {entry["seq"]: entry for entry in (*job.closed, *read_rounds(self._blobs, job.segments))}
        whole = [rounds[slot] for slot in sorted(rounds)]
        data = sign_provenance(self._kit, job_provenance(self._kit, job, whole, software_versions()))
        if len(data) > MAX_BYTES:
            raise FedhelmError(
                f"{len(data)} bytes for {len(whole)} rounds are more than anybody would read ({MAX_BYTES})"
            )
        writer = BlobWriter(self._blobs, provenance_owner(job.job))
        writer.write(data)
        return writer.finish().to_json()
