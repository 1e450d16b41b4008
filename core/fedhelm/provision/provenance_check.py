"""A downloaded result against its ``provenance.json``: models, code and submission, without asking anybody."""

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
from fedhelm.security.provenance import PROVENANCE_FILE, Provenance, VerifiedProvenance, verify_provenance
from fedhelm.security.statements import Trust

__all__ = ["Check", "check_folder", "find_kit", "trust_of_kit"]

_MAX_STATEMENT = 64 * 1024 * 1024 + 1


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that was looked at: ``good`` is None where it is not there to be looked at."""

    what: str
    good: bool | None
    told: str


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
    return Trust(root, kit.project), kit.cluster


def check_folder(folder: Path, trust: Trust, cluster: str) -> tuple[VerifiedProvenance, list[Check]]:
    """Verify a folder's ``provenance.json``, then everything in the folder that it speaks of.

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
        _final(folder, provenance),
        _best(folder, provenance),
        _code(folder, provenance),
        _summary(folder, provenance),
        _submission(provenance, trust),
    ]


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
    from fedhelm.job.bundle import pack
    from fedhelm.wire.bulk import manifest_of

    with tempfile.TemporaryDirectory(prefix="fedhelm-provenance-") as scratch:
        archive = Path(scratch) / "bundle"
        try:
            pack(folder / "job", archive)
        except BadInput as error:
            return Check("job", False, error.message)
        found = manifest_of(archive).digest
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


def _submission(provenance: Provenance, trust: Trust) -> Check:
    if provenance.submission is None:
        return Check("submission", None, "the job was submitted before jobs were signed")
    expected = Submission(provenance.project, provenance.cluster, provenance.job, provenance.name, provenance.code)
    try:
        verified = verify_submission(
            provenance.submission.encode("utf-8", "replace"), expected, trust, submitter=provenance.submitter
        )
    except FedhelmError as error:
        return Check("submission", False, error.message)
    return Check("submission", True, f"signed by {verified.submitter} ({verified.submitter.org}), {verified.time}")
