"""Where a model comes from: a statement that comes with it, signed by the primary that finished the job.

It names project, job, submitter, code, every round with its members, epoch and model, and the versions of the software.
Whoever has the project's root certificate can verify it, without asking anybody.
"""

from __future__ import annotations

import dataclasses
import platform
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any, Final

from fedhelm.clock import Clock, SystemClock, iso
from fedhelm.config.kit import Kit
from fedhelm.errors import BadSignature, KitError
from fedhelm.security.identity import Principal
from fedhelm.security.statements import Trust, seal, unseal

__all__ = [
    "MAX_BYTES",
    "PROVENANCE_FILE",
    "Provenance",
    "TrainedRound",
    "VerifiedProvenance",
    "sign_provenance",
    "software_versions",
    "verify_provenance",
]

PROVENANCE_FILE: Final = "provenance.json"
"""Name of the statement in what a download brings."""

MAX_BYTES: Final = 64 * 1024 * 1024
"""Largest statement that is read: some 10,000 rounds of 500 sites."""

_DOMAIN: Final = b"fedhelm provenance"
_FORMAT: Final = 1
_HEX64 = re.compile(r"[0-9a-f]{64}")
_PACKAGES: Final = ("fedhelm", "numpy", "cryptography", "grpcio", "protobuf", "blake3")
_MAX_TEXT: Final = 1024


@dataclasses.dataclass(frozen=True)
class TrainedRound:
    """One closed round.

    Attributes:
        step: index in the job's workflow.
        round: its number, from 1.
        kind: ``train`` or ``evaluate``.
        epoch: of the primary that closed it.
        primary: that server's name.
        members: the sites whose contributions are in it, sorted.
        model_sha256: of the model that it made; None of an evaluation.
        closed: when, ISO 8601 UTC.
    """

    step: int
    round: int
    kind: str
    epoch: int
    primary: str
    members: tuple[str, ...]
    model_sha256: str | None
    closed: str


@dataclasses.dataclass(frozen=True)
class Provenance:
    """What is signed.

    Attributes:
        project: the project.
        cluster: the federation.
        job: the job's id.
        name: its name.
        submitter: who submitted it.
        submitter_org: their organisation; empty where the job was submitted before that was known.
        code: digest of the bundle's manifest: job.yaml, scripts, initial model.
        submission: what the submitter signed, as it came; None of a job of before jobs were signed.
        rounds: every round in the order of closing.
        final_model_sha256: of ``models/final.safetensors``; None of a job without one.
        software: package -> version, at the server.
    """

    project: str
    cluster: str
    job: str
    name: str
    submitter: str
    submitter_org: str
    code: str
    submission: str | None
    rounds: tuple[TrainedRound, ...]
    final_model_sha256: str | None
    software: Mapping[str, str]

    @property
    def members(self) -> tuple[str, ...]:
        """Every site that gave something to a round that made a model, sorted."""
        return tuple(sorted({site for one in self.rounds if one.kind == "train" for site in one.members}))

    @property
    def epochs(self) -> tuple[int, ...]:
        """The epochs in which rounds were closed, sorted."""
        return tuple(sorted({one.epoch for one in self.rounds}))


@dataclasses.dataclass(frozen=True)
class VerifiedProvenance:
    """A statement that holds, the server that signed it, and when."""

    provenance: Provenance
    signer: Principal
    time: str


def software_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result depends on, as they are installed here."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def sign_provenance(kit: Kit, provenance: Provenance, *, clock: Clock | None = None) -> bytes:
    """Return the content of ``provenance.json``, signed with the key of a server's kit.

    Raises:
        KitError: key or certificate cannot be read.
        BadSignature: what it says could not be read again: a mistake in the program.
    """
    body = {"format": _FORMAT, "time": iso((clock or SystemClock()).utcnow()), **dataclasses.asdict(provenance)}
    body["rounds"] = [{**dataclasses.asdict(one), "members": list(one.members)} for one in provenance.rounds]
    body["software"] = dict(provenance.software)
    _parse(body, PROVENANCE_FILE)
    try:
        certificate = kit.cert.read_bytes()
    except OSError as error:
        raise KitError(f"{kit.cert}: cannot be read: {error.strerror}") from error
    return seal(_DOMAIN, body, kit.key, certificate) + b"\n"


def verify_provenance(data: bytes, trust: Trust, *, what: str = PROVENANCE_FILE) -> VerifiedProvenance:
    """Verify a statement, whatever bytes it is.

    Leave ``trust.now`` out: a result is kept for longer than the certificate that signed it lasts.

    Args:
        data: the content of ``provenance.json``.
        trust: what the verifier goes by.
        what: how messages call it.

    Raises:
        BadSignature: it does not hold; the message says why.
    """
    if len(data) > MAX_BYTES:
        raise BadSignature(f"{what}: longer than {MAX_BYTES} bytes")
    signed = unseal(_DOMAIN, data, what, trust, ("server",))
    provenance = _parse(signed.body, what)
    if provenance.project != trust.project:
        raise BadSignature(f"{what}: is of project {provenance.project!r:.80}, not of {trust.project!r:.80}")
    return VerifiedProvenance(provenance, signed.signer, str(signed.body["time"]))


class _Fields:
    """Typed access to an object that has exactly these keys; anything else is a BadSignature that names the key."""

    def __init__(self, value: Any, keys: Sequence[str], what: str) -> None:
        if not isinstance(value, Mapping) or {*value} != {*keys}:
            raise BadSignature(f"{what}: not of format {_FORMAT}")
        self._value, self._what = value, what

    def wrong(self, key: str) -> BadSignature:
        return BadSignature(f"{self._what}: {key} does not have its form")

    def text(self, key: str) -> str:
        value = self._value[key]
        if not isinstance(value, str) or len(value) > _MAX_TEXT:
            raise self.wrong(key)
        return value

    def whole(self, key: str) -> int:
        value = self._value[key]
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
            raise self.wrong(key)
        return value

    def digest(self, key: str) -> str:
        value = self.text(key)
        if not _HEX64.fullmatch(value):
            raise self.wrong(key)
        return value

    def digest_or_none(self, key: str) -> str | None:
        return None if self._value[key] is None else self.digest(key)

    def items(self, key: str) -> Sequence[Any]:
        value = self._value[key]
        if not isinstance(value, list | tuple):
            raise self.wrong(key)
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        values = self.items(key)
        if not all(isinstance(one, str) and len(one) <= _MAX_TEXT for one in values):
            raise self.wrong(key)
        return tuple(values)

    def any(self, key: str) -> Any:
        return self._value[key]


_ROUND_KEYS: Final = tuple(field.name for field in dataclasses.fields(TrainedRound))
_KEYS: Final = ("format", "time", *(field.name for field in dataclasses.fields(Provenance)))


def _round(value: Any, what: str) -> TrainedRound:
    fields = _Fields(value, _ROUND_KEYS, what)
    return TrainedRound(
        step=fields.whole("step"),
        round=fields.whole("round"),
        kind=fields.text("kind"),
        epoch=fields.whole("epoch"),
        primary=fields.text("primary"),
        members=fields.texts("members"),
        model_sha256=fields.digest_or_none("model_sha256"),
        closed=fields.text("closed"),
    )


def _parse(body: Mapping[str, Any], what: str) -> Provenance:
    fields = _Fields(body, _KEYS, what)
    if fields.any("format") != _FORMAT or isinstance(fields.any("format"), bool):
        raise BadSignature(f"{what}: not of format {_FORMAT}")
    software, submission = fields.any("software"), fields.any("submission")
    if not isinstance(software, Mapping) or not all(isinstance(one, str) for one in software.values()):
        raise fields.wrong("software")
    if submission is not None and not isinstance(submission, str):
        raise fields.wrong("submission")
    rounds = tuple(_round(one, f"{what}: rounds[{place}]") for place, one in enumerate(fields.items("rounds")))
    final = fields.digest_or_none("final_model_sha256")
    made = [one.model_sha256 for one in rounds if one.model_sha256 is not None]
    if final != (made[-1] if made else None):
        raise BadSignature(f"{what}: final_model_sha256 is not that of the last round that made a model")
    return Provenance(
        project=fields.text("project"),
        cluster=fields.text("cluster"),
        job=fields.text("job"),
        name=fields.text("name"),
        submitter=fields.text("submitter"),
        submitter_org=fields.text("submitter_org"),
        code=fields.digest("code"),
        submission=submission,
        rounds=rounds,
        final_model_sha256=final,
        software=dict(software),
    )
