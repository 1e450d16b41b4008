"""What a participant would say to a call: the question ``may WHO DO WHAT``, and the answer of the one who is asked it.

Servers decide about jobs, about calls to sites and about themselves; sites again about jobs and orders that come to
them; overseers about what is the federation's as a whole. A kit answers for its own participant alone.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from fedhelm.config.kit import Kit
from fedhelm.errors import UsageError
from fedhelm.security.authorization import POLICY_ROLES, Decision, Object, Policy, Right, Subject
from fedhelm.security.gates import ENDPOINTS, Touches, ask, ask_job
from fedhelm.security.policy import PERMISSIONS

__all__ = ["CALL_OF", "COMMANDS", "RESERVED", "Preview", "Question", "asked_rights", "preview", "understand"]

COMMANDS: Mapping[str, str] = MappingProxyType(
    {
        "submit_job": "Admin.SubmitJob",
        "submit": "Admin.SubmitJob",
        "list_jobs": "Admin.ListJobs",
        "show_job": "Admin.ShowJob",
        "show": "Admin.ShowJob",
        "wait": "Admin.WatchJob",
        "abort_job": "Admin.AbortJob",
        "abort": "Admin.AbortJob",
        "delete_job": "Admin.DeleteJob",
        "delete": "Admin.DeleteJob",
        "download_job": "Admin.PrepareDownload",
        "download": "Admin.PrepareDownload",
        "check_status": "Admin.CheckStatus",
        "shutdown": "Admin.Operate",
        "restart": "Admin.Operate",
        "promote_sp": "POST /api/v1/promote",
        "pause_failover": "POST /api/v1/failover/pause",
        "resume_failover": "POST /api/v1/failover/resume",
        "shutdown_system": "POST /api/v1/shutdown",
        "remove_sp": "POST /api/v1/servers/{name}/remove",
        "revoke_certificates": "POST /api/v1/revocations",
    }
)
"""Console command, and a word for it -> the method or route that it calls."""

RESERVED: Final = frozenset({Right.CLONE_JOB, Right.SHELL})
"""Rights that no call asks for in this version. A policy may name them, for one that does."""

_COMMAND: Final = "POST /api/v1/shutdown"
CALL_OF: Final[Mapping[Right, str]] = MappingProxyType(
    {
        Right.SUBMIT_JOB: "Admin.SubmitJob",
        Right.BYOC: "Admin.SubmitJob",
        Right.MANAGE_JOB: "Admin.AbortJob",
        Right.DOWNLOAD_JOB: "Admin.PrepareDownload",
        Right.VIEW: "Admin.ShowJob",
        Right.OPERATE: "Admin.Operate",
    }
)
"""Right -> one of the calls that ask for it."""

_ALSO_SITES: Final = ("Admin.SubmitJob", "Admin.Operate")  # what a site is asked about again, when it comes there


@dataclasses.dataclass(frozen=True)
class Question:
    """``may WHO DO WHAT``, understood.

    Attributes:
        subject: who.
        what: the word that was said for what they do.
        call: the method or route that it stands for; None of a right that no call asks for.
        right: the right that it stands for, or that the call asks for; None where the role alone decides.
        object: whose job at which site, as far as it was said; what of it is looked at is the call's matter.
    """

    subject: Subject
    what: str
    call: str | None
    right: Right | None
    object: Object


@dataclasses.dataclass(frozen=True)
class Preview:
    """The answer, what the policy was asked about for it, and who has a word in it besides."""

    decision: Decision
    object: Object
    besides: str | None = None


def asked_rights(role: str) -> tuple[Right, ...]:
    """Return the rights that a participant of this role asks its policy for; none: it has no policy."""
    if role == "server":
        return tuple(right for right in Right if right not in RESERVED)
    return {"site": (Right.SUBMIT_JOB, Right.OPERATE, Right.BYOC), "overseer": (Right.OPERATE,)}.get(role, ())


# -- the question ------------------------------------------------------------------------------------------------------


def understand(words: Sequence[str]) -> Question:
    """Read ``may WHO DO [job] [of PERSON] [at SITE]``.

    Raises:
        UsageError: it is something else; names the word.
    """
    if words[0] != "may" or len(words) < 3:
        raise UsageError(
            f"not a question: {' '.join(words)[:80]}", hint="may ROLE:NAME/ORG DO [job of NAME/ORG] [at SITE/ORG]"
        )
    role, colon, person = words[1].partition(":")
    if not colon or role not in POLICY_ROLES:
        raise UsageError(f"{words[1]:.80}: ROLE:NAME/ORGANISATION is needed", hint=f"roles: {', '.join(POLICY_ROLES)}")
    call, right = _deed(words[2])
    told = _places(words[3:])
    submitter, submitter_org = _split(told["of"]) if "of" in told else (None, None)
    site, site_org = _split(told["at"]) if "at" in told else (None, None)
    if right is Right.VIEW and call == CALL_OF[right] and words[2] == right and site is not None and submitter is None:
        call = "Admin.CheckStatus"  # to view a site
    object_ = Object(site, site_org or None, submitter, submitter_org or None)
    return Question(Subject(role, *_split(person)), words[2], call, right, object_)


def _places(words: Sequence[str]) -> dict[str, str]:
    told: dict[str, str] = {}
    rest = [word for word in words if word != "job"]
    while rest:
        if rest[0] not in ("of", "at") or len(rest) < 2 or rest[0] in told:
            raise UsageError(f"{' '.join(rest)[:80]}: not understood", hint="[job of NAME/ORG] [at SITE/ORG]")
        told[rest[0]] = rest[1]
        rest = rest[2:]
    return told


def _split(text: str) -> tuple[str, str]:
    name, _, org = text.partition("/")
    if not name:
        raise UsageError(f"{text:.80}: a name is missing", hint="NAME/ORGANISATION")
    return name, org


def _deed(word: str) -> tuple[str | None, Right | None]:
    """Return call and right that a word stands for: a right, a console command, a method or route."""
    if word in COMMANDS or word in ENDPOINTS:  # first: submit_job is both, and a call is more than a right
        call = COMMANDS.get(word, word)
        return call, ENDPOINTS[call].right
    if word in {str(one) for one in Right}:
        return CALL_OF.get(Right(word)), Right(word)
    known = [*map(str, Right), *COMMANDS, *ENDPOINTS]
    near = difflib.get_close_matches(word, known, n=2)
    raise UsageError(
        f"{word:.80} is no right, command or method",
        hint=f"did you mean {' or '.join(near)}?" if near else ", ".join(Right),
    )


# -- the answer --------------------------------------------------------------------------------------------------------


def preview(kit: Kit, policy: Policy, question: Question) -> Preview:
    """Say what the participant of this kit would decide; nobody is asked.

    Args:
        kit: whose.
        policy: its policy.
        question: about whom and what.

    Raises:
        UsageError: it is somebody else who decides; says who.
    """
    if question.call is None:
        told = f"{question.right} is reserved", "no call of this version asks for it"
        return Preview(Decision(False, *told), question.object)
    call = question.call
    if kit.role == "overseer" and question.what == Right.OPERATE and question.object.site is None:
        call = _COMMAND  # all that an overseer can be commanded asks for this right
    endpoint, subject = ENDPOINTS[call], question.subject
    if endpoint.right is None or subject.role not in PERMISSIONS[endpoint.permission]:  # the same everywhere
        return Preview(ask(policy, subject, endpoint.permission, question.object), question.object)
    _check_decides(kit, question, call)
    if call == "Admin.SubmitJob":
        return _job(kit, policy, question)
    object_ = _touched(kit, endpoint.touches, question)
    decision = ask(policy, subject, endpoint.permission, object_)
    to_site = decision.allowed and call == "Admin.Operate" and object_.site is not None
    besides = _besides(kit, "its own policy") if to_site else None
    if decision.allowed and call == _COMMAND and question.what != Right.OPERATE:
        besides = "a server tells the sites before that, and each decides for itself, by its own policy: ask its kit"
    return Preview(decision, object_, besides)


def _check_decides(kit: Kit, question: Question, call: str) -> None:
    decides, sites_too = ("overseer" if " /" in call else "server"), call in _ALSO_SITES
    if kit.role != decides and not (sites_too and kit.role == "site"):
        also = ", and a site about what comes to it" if sites_too else ""
        a = {"overseer": "an overseer", "server": "a server", "site": "a site"}
        raise UsageError(
            f"{question.what}: that is for {a[decides]} to decide{also}; {kit.name} is {a.get(kit.role, 'an admin')}",
            hint=f"fedhelm authz with the kit of {a[decides]}",
        )
    if kit.role == "site" and question.object.site not in (None, kit.name):
        raise UsageError(
            f"{kit.name} decides for itself, not for {question.object.site:.80}", hint="ask that site's kit"
        )


def _site(kit: Kit, question: Question) -> tuple[str | None, str | None]:
    """Return the site that is meant and its organisation, which a site knows of itself and a server from its kit."""
    site, org = question.object.site, question.object.site_org
    if kit.role == "site":
        return kit.name, kit.org
    return site, org or (kit.site_orgs.get(site) if site is not None else None)


def _touched(kit: Kit, touches: Touches, question: Question) -> Object:
    """Return what the policy is asked about: a call about a job is not asked about a site, nor the other way round."""
    if touches in (Touches.JOB, Touches.JOBS):
        return Object(submitter=question.object.submitter, submitter_org=question.object.submitter_org)
    if touches in (Touches.SITES, Touches.SITE_ROWS):
        return Object(*_site(kit, question))
    if touches is Touches.NEW_JOB:
        return Object(submitter=question.subject.name, submitter_org=question.subject.org or None)
    return Object()


def _job(kit: Kit, policy: Policy, question: Question) -> Preview:
    """Preview a job: every one brings its script, so the right to bring code is asked for as well."""
    subject = question.subject
    own = _touched(kit, Touches.NEW_JOB, question)
    if kit.role == "server":
        first = ask(policy, subject, "job.submit", own)
        if not first.allowed:
            return Preview(first, own)
    site, org = _site(kit, question)
    if kit.role == "server" and site is not None:
        org = org or subject.org or None  # not known to a server: it takes the most favourable, the site knows its own
    object_ = dataclasses.replace(own, site=site, site_org=org)
    takes_code = kit.enable_byoc if kit.role == "site" else True  # what a server cannot know from its kit
    decision = ask_job(policy, subject, object_, custom_code=True, enable_byoc=takes_code)
    besides = _besides(kit, "its own policy and enable_byoc") if decision.allowed else None
    return Preview(decision, object_, besides)


def _besides(kit: Kit, by_what: str) -> str:
    if kit.role == "site":
        return "a server decides before, by its own policy"
    return f"each site decides for itself after that, by {by_what}: ask its kit"
