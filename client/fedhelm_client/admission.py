"""Whether a job may run at this site: by what its submitter signed and by its bundle. The server's word is not enough.

The signature is verified before anything is fetched, the rest before anything is unpacked. A job that was unpacked here
before goes on: it was admitted then, or came before jobs were signed. Whatever a server says of a job later is compared
with what was signed once more.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from fedhelm.config.kit import Kit
from fedhelm.errors import BadInput, BadSignature, FedhelmError, KitError
from fedhelm.ids import check_host_name
from fedhelm.job import bundle
from fedhelm.job.loading import JOB_FILE
from fedhelm.job.model import JobConfig
from fedhelm.job.rules import parse_config
from fedhelm.plain_json import NotPlainJson, parse_plain
from fedhelm.security.gates import admit_job, read_policy
from fedhelm.security.identity import Principal
from fedhelm.security.job_signing import Submission, VerifiedSubmission, verify_submission
from fedhelm.security.kept_revocations import KeptRevocations
from fedhelm.security.retired import read_retired
from fedhelm.security.statements import Trust
from fedhelm.v1 import fleet_pb2
from fedhelm_client.site_trail import SiteTrail

__all__ = ["Admitted", "admit", "check_said", "check_signed", "check_unpacked"]

_log = logging.getLogger("fedhelm.client")


def check_signed(kit: Kit, assigned: fleet_pb2.AssignedJob, revocations: KeptRevocations) -> VerifiedSubmission:
    """Verify that this very job was signed by somebody who may submit; blocking.

    A job may have waited for longer than its submitter's certificate lasts: that had to be valid when it signed, and
    must not have been revoked since.

    Args:
        kit: the site's.
        assigned: what the server says.
        revocations: the list in force at this site.

    Returns:
        Who signed, with organisation, and when.

    Raises:
        BadSignature: it was not; the message names the site and says why.
        KitError: the site's own root certificate cannot be read, or its list of revoked certificates is damaged.
    """
    if revocations.problem is not None:  # an empty list in its place would let a thief's jobs in
        raise KitError(
            f"site {kit.name} takes no job in before an overseer gave it the list of revoked certificates again: "
            f"{revocations.problem.message}",
            hint="look at the site's log.txt; submit again once it says that a version is in force",
        )
    try:
        roots = kit.ca.read_bytes()
    except OSError as error:
        raise KitError(f"{kit.ca}: cannot be read: {error.strerror}") from error
    trust = Trust(roots, kit.project, revoked=revocations.current.revoked, retired_pem=read_retired(kit))
    expected = Submission(kit.project, kit.cluster, assigned.job, assigned.name, assigned.bundle.digest)
    try:
        return verify_submission(assigned.submission, expected, trust)
    except BadSignature as error:
        raise BadSignature(f"site {kit.name}: {error.message}", hint=error.hint) from error


def admit(kit: Kit, assigned: fleet_pb2.AssignedJob, archive: Path, submitter: Principal) -> None:
    """Let a job pass that this site's own policy and its ``enable_byoc`` let run here; blocking.

    The script of a job always comes with it, so it needs ``byoc`` as well, as at the server.

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
    check_said(kit, assigned, _parse(bundle.read_member(archive, JOB_FILE)))
    admit_job(read_policy(kit.root), submitter, kit.name, kit.org, custom_code=True, enable_byoc=kit.enable_byoc)


def check_unpacked(kit: Kit, assigned: fleet_pb2.AssignedJob, folder: Path) -> JobConfig:
    """Check that the server says of a job what its unpacked bundle says, and return that; blocking.

    Raises:
        BadSignature: something else. BadInput: the bundle is damaged.
    """
    try:
        data = (folder / JOB_FILE).read_bytes()
    except OSError as error:
        raise BadInput(f"{JOB_FILE} of the job's bundle cannot be read: {error.strerror}") from error
    config = _parse(data)
    check_said(kit, assigned, config)
    return config


def check_said(kit: Kit, assigned: fleet_pb2.AssignedJob, config: JobConfig) -> None:
    """Compare what a server says of a job that runs with what was signed: the server only passes it on.

    Members are what the server says where the job is for ``@ALL`` sites: nobody signed their names.

    Args:
        kit: the site's.
        assigned: what the server says.
        config: the ``job.yaml`` of the bundle that was signed.

    Raises:
        BadSignature: the server says something else, or has the job run at a site that it was not submitted for.
    """
    said = {
        "name": (assigned.name, config.name),
        "app": (assigned.app, config.app),
        "script": (assigned.script, config.script),
        "options": (_options(assigned.options_json), _canonical(config.to_json()["options"])),
    }
    for key, (there, here) in said.items():
        if there != here:
            raise BadSignature(f"site {kit.name}: the server says another {key} than {JOB_FILE} of job {assigned.job}")
    if config.sites is not None:
        if kit.name not in config.sites:
            raise BadSignature(f"site {kit.name}: job {assigned.job} was not submitted for this site")
        if strangers := sorted(set(assigned.members) - set(config.sites)):
            raise BadSignature(
                f"site {kit.name}: the server says that {strangers[0]!r:.80} is a member of job {assigned.job}, which "
                "was not submitted for it"
            )
    for member in assigned.members:
        try:
            check_host_name(member)
        except BadInput as error:
            raise BadSignature(
                f"site {kit.name}: the server gives job {assigned.job} a member {member!r:.80}"
            ) from error


class Admitted:
    """What was admitted of one job that runs here, and whether what a server says later still is that.

    Args:
        trail: is told what is not.
    """

    def __init__(self, trail: SiteTrail) -> None:
        self._trail = trail
        self._what: tuple[fleet_pb2.AssignedJob, JobConfig] | None = None
        self._said = ""

    def nothing(self) -> None:
        """The job is about to be admitted; until then what a server says is compared with nothing."""
        self._what = None

    def this(self, assigned: fleet_pb2.AssignedJob, config: JobConfig) -> None:
        """The job was admitted as this."""
        self._what = assigned, config

    @property
    def config(self) -> JobConfig:
        """What was signed."""
        assert self._what is not None, "no script is let in before"
        return self._what[1]

    @property
    def members(self) -> tuple[str, ...]:
        """The job's sites, sorted, as the server named them then."""
        assert self._what is not None, "no script is let in before"
        return tuple(sorted(self._what[0].members))

    def takes(self, kit: Kit, assigned: fleet_pb2.AssignedJob, *, ended: bool) -> bool:
        """Tell whether an assignment may take the place of the one before; if not, say so in the log and audit file.

        Args:
            kit: the site's.
            assigned: what the server says now.
            ended: whether the one before said that the job is over.
        """
        try:
            self._check(kit, assigned, ended=ended)
        except FedhelmError as error:
            if str(error) != self._said:  # a server says it again with every change
                self._said = str(error)
                _log.error("job %s: what the primary says now is not taken: %s", assigned.job, error)
                self._trail.job(assigned.job, None, error)
            return False
        self._said = ""
        return True

    def _check(self, kit: Kit, assigned: fleet_pb2.AssignedJob, *, ended: bool) -> None:
        if assigned.status.startswith("FINISHED"):
            return  # whoever leads may end a job, and nothing else of it counts then
        if ended:
            raise BadSignature(f"site {kit.name}: job {assigned.job} has ended here and is not run again")
        if self._what is None:
            return
        admitted, config = self._what
        if _identity(assigned) == _identity(admitted):
            return
        if assigned.bundle != admitted.bundle:
            raise BadSignature(f"site {kit.name}: the server says another bundle of job {assigned.job}")
        check_said(kit, assigned, config)


def _identity(assigned: fleet_pb2.AssignedJob) -> tuple[object, ...]:
    """Return what is in the signature, as it was spelled: most assignments are that of before and need no parsing."""
    bundle = (assigned.bundle.owner, assigned.bundle.digest, assigned.bundle.size)
    return (assigned.name, assigned.app, assigned.script, assigned.options_json, tuple(assigned.members), bundle)


def _parse(data: bytes) -> JobConfig:
    try:
        return parse_config(data.decode(), JOB_FILE)
    except UnicodeDecodeError:
        raise BadInput(f"{JOB_FILE}: not UTF-8 text") from None


def _options(text: str) -> str | None:
    try:
        return _canonical(parse_plain(text or "{}"))
    except NotPlainJson:
        return None


def _canonical(value: object) -> str:
    """Return JSON in which 1, 1.0 and true differ, as they do to a script; Python says that they are equal."""
    return json.dumps(value, sort_keys=True)
