"""Jobs are signed by their submitter. The server verifies before it acknowledges, every site before it unpacks."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from fedhelm.clock import Clock, SystemClock, iso
from fedhelm.config.kit import Kit
from fedhelm.errors import BadSignature, KitError
from fedhelm.security.identity import Principal
from fedhelm.security.policy import PERMISSIONS
from fedhelm.security.statements import Signed, Trust, moment, seal, unseal

__all__ = ["MAX_AGE", "MAX_BYTES", "Submission", "VerifiedSubmission", "sign_submission", "verify_submission"]

MAX_BYTES: Final = 32 * 1024
"""Largest signed submission."""

MAX_AGE: Final = timedelta(minutes=15)
"""How far the time of signing may be from the server's clock when it takes a submission."""

_DOMAIN: Final = b"fedhelm job submission"
_FORMAT: Final = 1


@dataclasses.dataclass(frozen=True)
class Submission:
    """What a submitter signs.

    Attributes:
        project: the project.
        cluster: the federation: a job signed for one cannot be submitted to another.
        job: the job's id.
        name: its name, as its ``job.yaml`` says.
        bundle: digest of the bundle's manifest, which names all of its bytes.
    """

    project: str
    cluster: str
    job: str
    name: str
    bundle: str


@dataclasses.dataclass(frozen=True)
class VerifiedSubmission:
    """A submission that holds. ``submitter`` has organisation and serial; ``time`` is that of signing, ISO 8601."""

    submission: Submission
    submitter: Principal
    time: str


def sign_submission(kit: Kit, job: str, name: str, bundle: str, *, clock: Clock | None = None) -> bytes:
    """Sign a submission with the key of an admin's kit; what comes back travels with the job, as it is.

    Args:
        kit: the submitter's.
        job: the job's id.
        name: its name.
        bundle: digest of the uploaded bundle's manifest.
        clock: for the time of signing.

    Raises:
        KitError: key or certificate cannot be read.
    """
    submission = Submission(kit.project, kit.cluster, job, name, bundle)
    body = {"format": _FORMAT, "time": iso((clock or SystemClock()).utcnow()), **dataclasses.asdict(submission)}
    return seal(_DOMAIN, body, kit.key, _certificate(kit.cert))


def verify_submission(
    data: bytes, expected: Submission, trust: Trust, *, submitter: str | None = None
) -> VerifiedSubmission:
    """Verify that this very job was signed by somebody who may submit.

    A server gives ``trust.now`` (the signature must also be fresh, :data:`MAX_AGE`) and ``submitter``, the caller. A
    site leaves both out: a job may wait for longer than its submitter's certificate lasts.

    Args:
        data: what :func:`sign_submission` gave, from whomever it came.
        expected: what the verifier knows of the job from elsewhere.
        trust: what it goes by.
        submitter: who must have signed.

    Raises:
        BadSignature: it does not hold, whatever bytes it is; the message says why.
    """
    what = f"the signature of job {expected.job:.20}"
    if len(data) > MAX_BYTES:
        raise BadSignature(f"{what}: longer than {MAX_BYTES} bytes")
    if not data:
        raise BadSignature(f"{what}: there is none", hint="submit with the console of this version")
    signed = unseal(_DOMAIN, data, what, trust, PERMISSIONS["job.submit"])
    _check_body(signed, expected, what)
    if submitter is not None and signed.signer.name != submitter:
        raise BadSignature(f"{what}: signed by {signed.signer}, submitted by {submitter}")
    time = str(signed.body["time"])
    signed_at = moment(time)
    if trust.now is not None and signed_at is not None and abs(trust.now - signed_at) > MAX_AGE:
        raise BadSignature(
            f"{what}: signed at {time}, and this machine's clock says {iso(trust.now)}", hint="set the clock"
        )
    return VerifiedSubmission(expected, signed.signer, time)


def _check_body(signed: Signed, expected: Submission, what: str) -> None:
    fields: dict[str, Any] = {"format": _FORMAT, **dataclasses.asdict(expected)}
    if signed.body.keys() != {*fields, "time"}:
        raise BadSignature(f"{what}: not a submission of format {_FORMAT}")
    for key, value in fields.items():
        said = signed.body[key]
        if type(said) is not type(value) or said != value:
            raise BadSignature(f"{what}: {key} is {said!r:.80} there, and {value!r:.80} here")


def _certificate(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise KitError(f"{path}: cannot be read: {error.strerror}") from error
