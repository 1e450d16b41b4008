"""The two gates of a call, one after the other, and the table of what every call touches.

Gate one: the role has the permission that the method or route declares. Gate two: the policy gives the right that
belongs to the permission, for the object that the call touches. Servers, sites and overseers keep a policy each; an
overseer is asked about what belongs to the federation as a whole.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from fedhelm.errors import BadInput, KitError, NotAuthorised
from fedhelm.security.authorization import Decision, Object, Policy, Right, Subject, decide, default_policy
from fedhelm.security.identity import Principal
from fedhelm.security.policy import PERMISSIONS, check_permission, check_role

__all__ = [
    "AUTHORIZATION_FILE",
    "ENDPOINTS",
    "RIGHT_OF",
    "Endpoint",
    "Touches",
    "admit",
    "admit_job",
    "ask",
    "ask_job",
    "check_endpoint",
    "read_local_policy",
    "read_policy",
    "read_signed_policy",
    "subject_of",
]

AUTHORIZATION_FILE: Final = "authorization.json"
"""Name of the policy in ``startup/`` (signed) and in ``local/`` (may only tighten)."""

_MAX_BYTES = 1 << 20

RIGHT_OF: Mapping[str, Right | None] = MappingProxyType(
    {
        "site.connect": None,
        "site.upload": None,
        "site.fetch": None,
        "site.contribute": None,
        "admin.login": None,
        "job.submit": Right.SUBMIT_JOB,
        "job.view": Right.VIEW,
        "job.manage": Right.MANAGE_JOB,
        "job.download": Right.DOWNLOAD_JOB,
        "system.view": Right.VIEW,
        "system.operate": Right.OPERATE,
        "system.command": Right.OPERATE,
        "overseer.health": None,
        "overseer.view": None,
        "lease.hold": None,
        "lease.promote": Right.OPERATE,
        "trust.revoke": None,  # the list is signed by the root: whoever hands it over can change nothing in it
    }
)
"""Permission -> the right of gate two; None: gate one alone decides, and the handler about what is the caller's own."""

_COMMANDS: Final = frozenset({
    "job.submit", "job.manage", "job.download", "system.operate", "system.command", "lease.promote", "trust.revoke"
})  # fmt: skip


class Touches(enum.StrEnum):
    """What a call touches: which :class:`Object` gate two is asked about."""

    NOTHING = "nothing"
    """Nobody's object, or one that the handler itself ties to the caller's name (a site's own upload)."""
    NEW_JOB = "new job"
    """A job of the caller's own: ``Object(submitter=caller, submitter_org=caller's)``; then once more at each site."""
    JOB = "job"
    """The job that is named: ``Object(submitter=..., submitter_org=...)`` of its record."""
    JOBS = "jobs"
    """Each job of the answer; those that the caller may not see are left out."""
    SITES = "sites"
    """Each site that is named, ``@ALL`` being all; one that is denied denies the call. The server: ``Object()``."""
    SITE_ROWS = "site rows"
    """Each site of the answer; those that the caller may not see are left out."""
    FEDERATION = "federation"
    """``Object()``: what is no organisation's own."""


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """A gRPC method (``Service.Method``) or a route of the overseer (``VERB /path``).

    ``written``: whether a call that succeeded is worth a line of the audit file. One that was denied always is.
    """

    permission: str
    touches: Touches
    written: bool = True

    @property
    def right(self) -> Right | None:
        """The right of gate two; None where gate one alone decides."""
        return RIGHT_OF[self.permission]

    @property
    def answered_when_written(self) -> bool:
        """Whether a success is not answered before its line is in the audit file: what a person commands or takes away.

        Never what machines ask of one another: no disk of an audit file may keep them from it.
        """
        return self.written and self.permission in _COMMANDS


ENDPOINTS: Mapping[str, Endpoint] = MappingProxyType(
    {
        "Fleet.Connect": Endpoint("site.connect", Touches.NOTHING),
        "Fleet.MissingChunks": Endpoint("site.upload", Touches.NOTHING, written=False),
        "Fleet.PutBlob": Endpoint("site.upload", Touches.NOTHING, written=False),
        "Fleet.GetManifest": Endpoint("site.fetch", Touches.NOTHING, written=False),
        "Fleet.GetBlob": Endpoint("site.fetch", Touches.NOTHING, written=False),
        "Fleet.Contribute": Endpoint("site.contribute", Touches.NOTHING, written=False),
        "Fleet.PushLines": Endpoint("site.contribute", Touches.NOTHING, written=False),
        "Fleet.ReportFailure": Endpoint("site.contribute", Touches.NOTHING, written=False),
        "Admin.Challenge": Endpoint("admin.login", Touches.NOTHING, written=False),
        "Admin.Login": Endpoint("admin.login", Touches.NOTHING),
        "Admin.MissingChunks": Endpoint("job.submit", Touches.NEW_JOB, written=False),
        "Admin.PutBlob": Endpoint("job.submit", Touches.NEW_JOB, written=False),
        "Admin.SubmitJob": Endpoint("job.submit", Touches.NEW_JOB),
        "Admin.ListJobs": Endpoint("job.view", Touches.JOBS, written=False),
        "Admin.ShowJob": Endpoint("job.view", Touches.JOB, written=False),
        "Admin.WatchJob": Endpoint("job.view", Touches.JOB, written=False),
        "Admin.AbortJob": Endpoint("job.manage", Touches.JOB),
        "Admin.PrepareDownload": Endpoint("job.download", Touches.JOB),
        "Admin.DownloadFile": Endpoint("job.download", Touches.JOB, written=False),
        "Admin.DeleteJob": Endpoint("job.manage", Touches.JOB),
        "Admin.Operate": Endpoint("system.operate", Touches.SITES),
        "Admin.CheckStatus": Endpoint("system.view", Touches.SITE_ROWS, written=False),
        "GET /healthz": Endpoint("overseer.health", Touches.NOTHING, written=False),
        "GET /metrics": Endpoint("overseer.health", Touches.NOTHING, written=False),
        "GET /api/v1/openapi.json": Endpoint("overseer.view", Touches.NOTHING, written=False),
        "GET /api/v1/primary": Endpoint("overseer.view", Touches.NOTHING, written=False),
        "GET /api/v1/servers": Endpoint("overseer.view", Touches.NOTHING, written=False),
        "GET /api/v1/servers/{name}/explain": Endpoint("overseer.view", Touches.NOTHING, written=False),
        "GET /api/v1/system": Endpoint("overseer.view", Touches.NOTHING, written=False),
        "GET /api/v1/history": Endpoint("overseer.view", Touches.NOTHING, written=False),
        "GET /api/v1/events": Endpoint("overseer.view", Touches.NOTHING, written=False),
        "GET /api/v1/events/recent": Endpoint("overseer.view", Touches.NOTHING, written=False),
        "GET /api/v1/lease": Endpoint("lease.hold", Touches.NOTHING, written=False),
        "POST /api/v1/servers/register": Endpoint("lease.hold", Touches.NOTHING),
        "POST /api/v1/servers/beat": Endpoint("lease.hold", Touches.NOTHING, written=False),
        "POST /api/v1/lease/renew": Endpoint("lease.hold", Touches.NOTHING, written=False),
        "POST /api/v1/lease/activate": Endpoint("lease.hold", Touches.NOTHING),
        "POST /api/v1/lease/release": Endpoint("lease.hold", Touches.NOTHING),
        "POST /api/v1/promote": Endpoint("lease.promote", Touches.FEDERATION),
        "POST /api/v1/failover/pause": Endpoint("system.command", Touches.FEDERATION),
        "POST /api/v1/failover/resume": Endpoint("system.command", Touches.FEDERATION),
        "POST /api/v1/shutdown": Endpoint("system.command", Touches.FEDERATION),
        "POST /api/v1/servers/{name}/remove": Endpoint("system.command", Touches.FEDERATION),
        "GET /api/v1/revocations": Endpoint("overseer.view", Touches.NOTHING, written=False),
        "POST /api/v1/revocations": Endpoint("trust.revoke", Touches.NOTHING),
    }
)
"""Every method and route -> its permission and what it touches."""


def check_endpoint(name: str, permission: str) -> Endpoint:
    """Return what the table says of a method or route; called for each before a service starts.

    Raises:
        ValueError: it is not in :data:`ENDPOINTS`, or declares another permission there: a mistake in the program.
    """
    endpoint = ENDPOINTS.get(name)
    if endpoint is None:
        raise ValueError(f"{name} is not in the table of what calls touch")
    if endpoint.permission != permission:
        raise ValueError(f"{name} declares {permission!r}, and the table of what calls touch {endpoint.permission!r}")
    return endpoint


def subject_of(principal: Principal) -> Subject:
    """Return the caller as the policy sees it."""
    return Subject(principal.role, principal.name, principal.org)


def ask(policy: Policy, subject: Subject, permission: str, object_: Object) -> Decision:
    """Put a call before both gates. Pure.

    Raises:
        ValueError: unknown permission: a mistake in the program.
    """
    roles = PERMISSIONS[check_permission(permission)]
    if subject.role not in roles:
        who = ", ".join(sorted(roles))
        return Decision(False, f"{permission} is for {who}", f"no policy gives it to the role {subject.role}")
    right = RIGHT_OF[permission]
    if right is None:
        return Decision(True, f"{permission} is for {subject.role}", "the role alone decides")
    return decide(policy, subject, right, object_)


def admit(policy: Policy, principal: Principal, permission: str, object_: Object) -> None:
    """Let a call pass if both gates do. Call it before anything is read or changed for the caller.

    Raises:
        NotAuthorised: one does not; the message says which rule, and why.
        ValueError: unknown permission.
    """
    check_role(principal, permission)
    decision = ask(policy, subject_of(principal), permission, object_)
    if not decision.allowed:
        raise NotAuthorised(f"{principal}: {decision.rule}; {decision.why}", hint="fedhelm authz explains the policy")


def admit_job(
    policy: Policy, submitter: Principal, site: str, site_org: str | None, *, custom_code: bool, enable_byoc: bool
) -> None:
    """Let a job go to a site if the policy gives its submitter the rights there. Asked at the server and at the site.

    Args:
        policy: the asker's own.
        submitter: who signed the job, with organisation.
        site: where it is to run.
        site_org: that site's organisation; None where the asker does not know it.
        custom_code: whether the bundle brings its own code; then `byoc` is needed as well.
        enable_byoc: whether the site takes any such code; a server that does not know says True.

    Raises:
        NotAuthorised: names the site and the rule.
    """
    decision = ask_job(
        policy,
        subject_of(submitter),
        Object(site, site_org, submitter.name, submitter.org),
        custom_code=custom_code,
        enable_byoc=enable_byoc,
    )
    if decision.allowed:
        return
    if custom_code and not enable_byoc:
        raise NotAuthorised(
            f"{decision.rule} ({decision.why})", hint="a job without code of its own, or another kit for that site"
        )
    raise NotAuthorised(f"site {site}, {submitter}: {decision.rule}; {decision.why}")


def ask_job(policy: Policy, subject: Subject, object_: Object, *, custom_code: bool, enable_byoc: bool) -> Decision:
    """Say whether a job may go to a site, as :func:`admit_job` does. Pure.

    Args:
        policy: the asker's own.
        subject: who signed the job.
        object_: that job at the site.
        custom_code: whether the bundle brings its own code; then `byoc` is needed as well.
        enable_byoc: whether the site takes any such code; a server that does not know says True.

    Returns:
        The first decision that is no; else the rule of every right, and why they hold.
    """
    if custom_code and not enable_byoc:
        return Decision(
            False,
            f"site {object_.site} takes no job that brings its own code",
            "enable_byoc is not set in its kit",
        )
    found = [decide(policy, subject, Right.SUBMIT_JOB, object_)]
    if custom_code:
        found.append(decide(policy, subject, Right.BYOC, object_))
    for decision in found:
        if not decision.allowed:
            return decision
    rules, reasons = ([one.rule for one in found], dict.fromkeys(one.why for one in found))
    return Decision(True, ", ".join(rules), ", and ".join(reasons))


def read_policy(root: Path, *, missing: Policy | None = None) -> Policy:
    """Return the policy of a kit: the signed one of ``startup/``, tightened by ``local/`` where there is a file.

    Whether ``startup/`` is as it was signed is the caller's to check before. A kit of before there were policies gets
    the default.

    Args:
        root: the kit's folder.
        missing: what a kit without the signed file goes by, as overseers' kits of before are; None: there is none.

    Raises:
        KitError: the file of ``startup/`` is missing or cannot be read.
        BadInput: a mistake in one of them, with file, line and column.
    """
    policy, own = read_signed_policy(root, missing=missing), read_local_policy(root)
    return policy if own is None else policy.tightened_by(own)


def read_signed_policy(root: Path, *, missing: Policy | None = None) -> Policy:
    """Return the policy in ``startup/``; arguments and errors as of :func:`read_policy`."""
    path = root / "startup" / AUTHORIZATION_FILE
    text = _text(path)
    policy = missing
    if text is not None:
        policy = default_policy() if _is_of_before(text) else Policy.parse(text, str(path))
    if policy is None:
        raise KitError(f"{path} is missing", hint="unpack the kit again")
    return policy


def read_local_policy(root: Path) -> Policy | None:
    """Return what ``local/`` says, which tightens a policy; None if there is none. Raises as `read_policy`."""
    path = root / "local" / AUTHORIZATION_FILE
    text = _text(path)
    return None if text is None else Policy.parse(text, str(path))


def _text(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KitError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise BadInput(f"{path}:{line}:1: not UTF-8 text") from None


def _is_of_before(text: str) -> bool:
    """Tell whether this is the table of permissions that kits had before: it was for people to read, not a policy."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(body, dict) and body.keys() == {"version", "about", "permissions"} and body["version"] == 1
