"""Whether a job may be recorded: its submitter signed this very job, and no site that it names would refuse them.

Every site decides again for itself. What is refused here is refused at once, before there is a job.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any, Protocol

from fedhelm.config.kit import Kit
from fedhelm.errors import KitError
from fedhelm.job.model import ALL_SITES
from fedhelm.security.authorization import Policy
from fedhelm.security.gates import admit_job
from fedhelm.security.identity import Principal
from fedhelm.security.job_signing import Submission, VerifiedSubmission, verify_submission
from fedhelm.security.kept_revocations import KeptRevocations
from fedhelm.security.statements import Trust

__all__ = ["Sites", "admit_at_sites", "named_sites", "signed_parts", "verify"]


def verify(
    kit: Kit, data: bytes, expected: Submission, revocations: KeptRevocations | None, *, caller: str, now: datetime
) -> VerifiedSubmission:
    """Verify what a submitter signed; blocking.

    Args:
        kit: this server's.
        data: what came with the request, from whomever.
        expected: what the server knows of the job: its id, and name and digest of the uploaded bundle.
        revocations: the certificates that count no longer; None: there are none.
        caller: who submits.
        now: by this server's clock.

    Raises:
        BadSignature: it does not hold for this job and this caller now; the message says why.
        KitError: this server's own root certificate cannot be read.
    """
    try:
        roots = kit.ca.read_bytes()
    except OSError as error:
        raise KitError(f"{kit.ca}: cannot be read: {error.strerror}") from error
    trust = Trust(roots, kit.project, now, None if revocations is None else revocations.current.revoked)
    return verify_submission(data, expected, trust, submitter=caller)


def signed_parts(data: bytes, verified: VerifiedSubmission) -> dict[str, str]:
    """Return what the record of the job says of its signature, once that is verified."""
    return {"submission": data.decode(), "submitter_org": verified.submitter.org}


def named_sites(config: Mapping[str, Any], known: Collection[str]) -> list[str]:
    """Return the sites that a job's configuration names, sorted; ``known``: what ``@ALL`` stands for."""
    named = {site for sites in config["deploy"].values() for site in sites}
    return sorted(known if ALL_SITES in named else named)


class Sites(Protocol):
    """What is known here of the sites."""

    def org_of(self, site: str) -> str | None:
        """A site's organisation; None: not known."""

    def takes_code(self, site: str) -> bool:
        """Whether it takes jobs that bring their own code; True where that is not known."""


def admit_at_sites(policy: Policy, submitter: Principal, named: Collection[str], sites: Sites) -> None:
    """Let a job pass that this server's policy lets go to each of its sites, and that none of them is known to refuse.

    The script of a job always comes with it, so it needs ``byoc`` as well; whether a site takes such jobs at all is in
    that site's kit, and the site's word. Where the organisation of a site is not known here, the most favourable one is
    taken: the site knows its own.

    Args:
        policy: this server's.
        submitter: who signed the job, with organisation.
        named: where it is to run.
        sites: what is known of them.

    Raises:
        NotAuthorised: names the site and the rule.
    """
    for site in named:
        org = sites.org_of(site) or submitter.org or None
        admit_job(policy, submitter, site, org, custom_code=True, enable_byoc=sites.takes_code(site))
