"""A downloaded result against its ``provenance.json``: signer, models, code and submission, without asking anybody."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

from fedhelm.config.kit import read_kit
from fedhelm.errors import BadInput, BadSignature, FedhelmError, KitError, NotFound
from fedhelm.security.job_signing import Submission, verify_submission
from fedhelm.security.kept_revocations import REVOKED_FILE, KeptRevocations
from fedhelm.security.provenance import PROVENANCE_FILE, Provenance, VerifiedProvenance, verify_provenance
from fedhelm.security.retired import read_retired
from fedhelm.security.revocation import MAX_BYTES as MAX_LIST
from fedhelm.security.revocation import RevocationList, Revoked
from fedhelm.security.statements import Trust

__all__ = ["Check", "Revocations", "check_folder", "find_kit", "revocations_of_kit", "trust_of_kit"]

_MAX_STATEMENT = 64 * 1024 * 1024 + 1


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that was looked at: ``good`` is None where it is not there to be looked at."""

    what: str
    good: bool | None
    told: str


@dataclasses.dataclass(frozen=True)
class Revocations:
    """The list of revoked certificates that is gone by.

    Attributes:
        known: the list, verified; None where there is none.
        where: the file; where there is no list, why.
        believe_time: whether a statement that names a time before the revocation holds. Whoever has a stolen key
            writes any time that they like, so this is for certificates that were revoked for another reason.
    """

    known: RevocationList | None
    where: str
    believe_time: bool = False


def find_kit(folder: Path) -> Path:
    """Return the kit that a downloaded folder lies in.

    Raises:
        NotFound: none of the folders above has a ``startup/``.
    """
    for parent in folder.resolve().parents:
        if (parent / "startup" / "rootCA.pem").is_file():
            return parent
    raise NotFound(f"{folder} lies in no kit", hint="--kit KIT, any kit of the project")


def trust_of_kit(kit_root: Path) -> tuple[Trust, str]:
    """Return what a kit's owner goes by, and the kit's federation.

    Raises:
        KitError: no kit, or its root certificate cannot be read.
    """
    kit = read_kit(kit_root)
    try:
        root = kit.ca.read_bytes()
    except OSError as error:
        raise KitError(f"{kit.ca}: cannot be read: {error.strerror}") from error
    return Trust(root, kit.project, retired_pem=read_retired(kit)), kit.cluster


def revocations_of_kit(kit_root: Path, file: Path | None = None, *, believe_time: bool = False) -> Revocations:
    """Return the list of revoked certificates that a kit's owner knows: ``run/revoked.json``, or ``file``.

    Raises:
        KitError: ``file`` cannot be read, or holds no list that the kit's root signed.
    """
    kit = read_kit(kit_root)
    if file is not None:
        try:
            with file.open("rb") as opened:
                data = opened.read(MAX_LIST + 1)
            found = RevocationList.parse(data, kit.ca.read_bytes(), kit.project, kit.cluster)
        except OSError as error:
            raise KitError(f"{error.filename or file}: cannot be read: {error.strerror}") from error
        except KitError as error:
            raise KitError(f"{file}: {error.message}") from error
        return Revocations(found, str(file), believe_time)
    kept = KeptRevocations(kit)
    if kept.problem is not None:
        return Revocations(None, str(kept.problem), believe_time)
    path = kit.run / REVOKED_FILE
    return Revocations(kept.current, str(path), believe_time) if kept.signed else Revocations(None, f"no {path}")


def check_folder(
    folder: Path, trust: Trust, cluster: str, revocations: Revocations | None = None
) -> tuple[VerifiedProvenance, list[Check]]:
    """Verify a folder's ``provenance.json``, then everything in the folder that it speaks of.

    Args:
        folder: what ``download_job`` made.
        trust: whom the verifier goes by.
        cluster: the verifier's federation.
        revocations: which certificates count no longer; None: nobody asks.

    Raises:
        NotFound: there is none.
        BadSignature: it does not hold; what follows would mean nothing.
    """
    path = folder / PROVENANCE_FILE
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_STATEMENT)
    except FileNotFoundError:
        raise NotFound(f"{path}: there is none", hint="a folder that download_job made") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from error
    verified = verify_provenance(data, trust, what=str(path))
    provenance = verified.provenance
    if provenance.cluster != cluster:
        raise BadSignature(f"{path}: is of another federation of project {trust.project}")
    return verified, [
        *([] if revocations is None else [_signer(verified, revocations)]),
        _final(folder, provenance),
        _best(folder, provenance),
        _code(folder, provenance),
        _summary(folder, provenance),
        _submission(provenance, trust, revocations),
    ]


def _signer(verified: VerifiedProvenance, revocations: Revocations) -> Check:
    """A server's certificate that was revoked signs nothing any more, whatever time the statement says."""
    if revocations.known is None:
        return Check("signer", None, f"whether its certificate was revoked is not known here: {revocations.where}")
    entry = revocations.known.revoked(verified.signer.serial)
    if entry is None:
        return Check("signer", True, f"not revoked, by version {revocations.known.version} of the list")
    if verified.time >= entry.at:
        return Check("signer", False, f"{_revoked(entry)}, before the time that the statement says")
    if revocations.believe_time:
        return Check("signer", True, f"{_revoked(entry)}, after the time that the statement says, which is believed")
    told = "whoever has its key can write an earlier time (--believe-time, if the key was not stolen)"
    return Check("signer", False, f"{_revoked(entry)}; {told}")


def _revoked(entry: Revoked) -> str:
    reason = f" ({entry.reason})" if entry.reason else ""
    return f"the certificate of {entry.role} {entry.name} was revoked on {entry.at}{reason}"


def _sha256(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from error


def _final(folder: Path, provenance: Provenance) -> Check:
    name = "models/final.safetensors"
    found = _sha256(folder / name)
    if found is None:
        return Check(name, None, "is not there")
    good = found == provenance.final_model_sha256
    return Check(name, good, "is the model of the last round" if good else f"is another model: sha256 {found}")


def _best(folder: Path, provenance: Provenance) -> Check:
    name = "models/best.safetensors"
    found = _sha256(folder / name)
    if found is None:
        return Check(name, None, "is not there")
    rounds = [str(one.round) for one in provenance.rounds if one.model_sha256 == found]
    told = f"is the model of round {rounds[0]}" if rounds else f"is of no round: sha256 {found}"
    return Check(name, bool(rounds), told)


def _code(folder: Path, provenance: Provenance) -> Check:
    if not (folder / "job").is_dir():
        return Check("job", None, "is not there")
    from fedhelm.job.bundle import left_behind, pack
    from fedhelm.wire.bulk import manifest_of

    with tempfile.TemporaryDirectory(prefix="fedhelm-provenance-") as scratch:
        archive = Path(scratch) / "bundle"
        try:
            strange = next(left_behind(folder / "job"), None)
            pack(folder / "job", archive)
        except BadInput as error:
            return Check("job", False, error.message)
        except OSError as error:
            raise BadInput(f"{error.filename or folder}: cannot be read: {error.strerror}") from error
        found = manifest_of(archive).digest
    if strange is not None:
        return Check("job", False, f"has job/{strange}, which is of no job: hidden, or byte code that Python would run")
    good = found == provenance.code
    return Check("job", good, "is the code that ran" if good else f"is other code: digest {found}")


def _summary(folder: Path, provenance: Provenance) -> Check:
    name = "summary.json"
    try:
        summary: Any = json.loads((folder / name).read_bytes())
        said = summary["job_id"], summary["submitter"], summary["final_model_sha256"]
    except FileNotFoundError:
        return Check(name, None, "is not there")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return Check(name, False, f"cannot be read: {type(error).__name__}")
    good = said == (provenance.job, provenance.submitter, provenance.final_model_sha256)
    return Check(name, good, "says the same" if good else "says another job, submitter or model")


def _submission(provenance: Provenance, trust: Trust, revocations: Revocations | None) -> Check:
    """The submitter's certificate had to count when the job was submitted: the server that signs here saw to that."""
    if provenance.submission is None:
        return Check("submission", None, "the job was submitted before jobs were signed")
    expected = Submission(provenance.project, provenance.cluster, provenance.job, provenance.name, provenance.code)
    try:
        verified = verify_submission(
            provenance.submission.encode("utf-8", "replace"), expected, trust, submitter=provenance.submitter
        )
    except FedhelmError as error:
        return Check("submission", False, error.message)
    told = f"signed by {verified.submitter} ({verified.submitter.org}), {verified.time}"
    known = None if revocations is None else revocations.known
    entry = None if known is None else known.revoked(verified.submitter.serial)
    if entry is None:
        return Check("submission", True, told)
    since = verified.time < entry.at
    return Check("submission", since, f"{told}; {_revoked(entry)}{', later' if since else ', before that'}")
