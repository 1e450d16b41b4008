"""Whether a job may run at this site: by what its submitter signed and by its bundle. The server's word is not enough.

The signature is verified before anything is fetched, the rest before anything is unpacked. A job that was unpacked here
before goes on: it was admitted then, or came before jobs were signed.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from fedhelm.config.kit import Kit
from fedhelm.errors import BadInput, BadSignature, KitError
from fedhelm.job import bundle
from fedhelm.job.loading import JOB_FILE
from fedhelm.job.model import JobConfig
from fedhelm.job.rules import parse_config
from fedhelm.security.gates import admit_job, read_policy
from fedhelm.security.identity import Principal
from fedhelm.security.job_signing import Submission, verify_submission
from fedhelm.security.kept_revocations import KeptRevocations
from fedhelm.security.statements import Trust
from fedhelm.v1 import fleet_pb2

__all__ = ["admit", "brings_code", "check_signed", "check_unpacked"]


def check_signed(kit: Kit, assigned: fleet_pb2.AssignedJob) -> Principal:
    """Verify that this very job was signed by somebody who may submit; blocking.

    A job may have waited for longer than its submitter's certificate lasts: that had to be valid when it signed, and
    must not have been revoked since.

    Returns:
        Who signed, with organisation.

    Raises:
        BadSignature: it was not; the message names the site and says why.
        KitError: the site's own root certificate cannot be read.
    """
    try:
        roots = kit.ca.read_bytes()
    except OSError as error:
        raise KitError(f"{kit.ca}: cannot be read: {error.strerror}") from error
    trust = Trust(roots, kit.project, revoked=KeptRevocations(kit).current.revoked)
    expected = Submission(kit.project, kit.cluster, assigned.job, assigned.name, assigned.bundle.digest)
    try:
        return verify_submission(assigned.submission, expected, trust).submitter
    except BadSignature as error:
        raise BadSignature(f"site {kit.name}: {error.message}", hint=error.hint) from error


def admit(kit: Kit, assigned: fleet_pb2.AssignedJob, archive: Path, submitter: Principal) -> None:
    """Let a job pass that this site's own policy and its ``enable_byoc`` let run here; blocking.

    Args:
        kit: the site's.
        assigned: what the server says.
        archive: the bundle, whose digest is the one that was signed; nothing of it is unpacked.
        submitter: who signed.

    Raises:
        NotAuthorised: names the site and the rule; BadSignature: the server says something else than the bundle.
        BadInput: the bundle is damaged or hostile; or a mistake in the site's policy.
        KitError: the site's policy is missing.
    """
    config = _parse(bundle.read_member(archive, JOB_FILE))
    _check_same(kit, assigned, config)
    admit_job(
        read_policy(kit.root),
        submitter,
        kit.name,
        kit.org,
        custom_code=brings_code(config, bundle.index(archive)),
        enable_byoc=kit.enable_byoc,
    )


def check_unpacked(kit: Kit, assigned: fleet_pb2.AssignedJob, folder: Path) -> None:
    """Check that the server still says of a job that goes on here what its unpacked bundle says; blocking.

    Raises:
        BadSignature: something else. BadInput: the bundle is damaged.
    """
    try:
        data = (folder / JOB_FILE).read_bytes()
    except OSError as error:
        raise BadInput(f"{JOB_FILE} of the job's bundle cannot be read: {error.strerror}") from error
    _check_same(kit, assigned, _parse(data))


def brings_code(config: JobConfig, files: Collection[str]) -> bool:
    """Tell whether a job runs code of its own: the script that its ``job.yaml`` names is among the bundle's files."""
    return config.script_path in files


def _parse(data: bytes) -> JobConfig:
    try:
        return parse_config(data.decode(), JOB_FILE)
    except UnicodeDecodeError:
        raise BadInput(f"{JOB_FILE}: not UTF-8 text") from None


def _check_same(kit: Kit, assigned: fleet_pb2.AssignedJob, config: JobConfig) -> None:
    """What runs here, and with what, was signed: the server only passes it on."""
    try:
        options = json.loads(assigned.options_json or "{}")
    except (ValueError, RecursionError):
        options = None
    said = {
        "name": (assigned.name, config.name),
        "app": (assigned.app, config.app),
        "script": (assigned.script, config.script),
        "options": (options, config.to_json()["options"]),
    }
    for key, (there, here) in said.items():
        if there != here:
            raise BadSignature(f"site {kit.name}: the server says another {key} than {JOB_FILE} of job {assigned.job}")
    if config.sites is not None and kit.name not in config.sites:
        raise BadSignature(f"site {kit.name}: job {assigned.job} was not submitted for this site")
