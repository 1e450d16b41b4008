"""``fedhelm authz``: what the policy of a kit allows, and why; nothing is asked of anybody."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from fedhelm.config.kit import Kit, read_kit
from fedhelm.errors import ExitStatus, UsageError
from fedhelm.output import CommandParser, Format, add_output_option, emit, format_of, guarded, table
from fedhelm.security.authorization import (
    DEFAULT_AUTHORIZATION,
    POLICY_ROLES,
    Decision,
    Object,
    Policy,
    Right,
    Subject,
    decide,
    default_policy,
)
from fedhelm.security.gates import ENDPOINTS, ask, read_policy
from fedhelm.security.policy import PERMISSIONS

__all__ = ["main"]

_ABOUT = """\
Show what the policy of KIT allows: the signed startup/authorization.json, tightened by local/authorization.json. An
admin's and an overseer's kit have no policy; for them the default one is shown.

  fedhelm authz KIT                     every role and right, and the rule
  fedhelm authz KIT --role lead         one role
  fedhelm authz KIT may WHO DO [WHAT]   one question; exit status 0: yes, 1: no
  fedhelm authz --default               the default policy, as a file

WHO is ROLE:NAME/ORGANISATION. DO is a right (manage_job), a console command (abort_job) or a method of the reference
(Admin.AbortJob). WHAT is any of: `job of NAME/ORGANISATION`, `at SITE/ORGANISATION`. Organisations may be left out;
what depends on one is denied then. A site's kit is asked about that site, where no other is named.

  fedhelm authz prod_00/site-1 may lead:bob@a.org/a abort_job job of alice@b.org/b at site-1/b
"""

# Console command, and a word for it -> the method or route that it calls.
_COMMANDS: Mapping[str, str] = MappingProxyType(
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
    }
)

# A right that no call stands for is asked of the policy alone.
_PERMISSION: Final[Mapping[Right, str]] = MappingProxyType(
    {
        Right.SUBMIT_JOB: "job.submit",
        Right.MANAGE_JOB: "job.manage",
        Right.DOWNLOAD_JOB: "job.download",
        Right.VIEW: "job.view",
        Right.OPERATE: "system.operate",
    }
)


@dataclass(frozen=True)
class _Question:
    """``may WHO DO WHAT``, understood. Without a permission the policy alone is asked."""

    subject: Subject
    what: str
    permission: str | None
    right: Right | None
    object: Object


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="fedhelm authz",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("kit", type=Path, nargs="?", metavar="KIT", help="a participant's folder, with startup/")
    parser.add_argument("question", nargs="*", metavar="may WHO DO [WHAT]", help="one question, as above")
    parser.add_argument("--role", choices=POLICY_ROLES, help="show this role alone")
    parser.add_argument("--default", action="store_true", help="print the default policy as a file with comments")
    add_output_option(parser)
    return parser


def main(argv: list[str]) -> int:
    """Run ``fedhelm authz ARGV``; return its exit status."""
    fmt = format_of(argv)

    def body() -> int:
        args = _parser().parse_args(argv)
        if args.default:
            return emit({"authorization": DEFAULT_AUTHORIZATION}, fmt, DEFAULT_AUTHORIZATION)
        if args.kit is None:
            raise UsageError("no kit was named", hint="fedhelm authz -h")
        kit = read_kit(args.kit)
        policy = read_policy(kit.root) if kit.role in ("server", "site") else default_policy()
        if args.question:
            return _answer(kit, policy, args.question, fmt)
        return _show(kit, policy, (args.role,) if args.role else POLICY_ROLES, fmt)

    return guarded(body, fmt)


# -- the table ---------------------------------------------------------------------------------------------------------


def _show(kit: Kit, policy: Policy, roles: Sequence[str], fmt: Format) -> ExitStatus:
    rows = [_row(policy, role, right) for role in roles for right in Right]
    data = {"kit": str(kit.root), "files": [where for where, _ in policy.layers], "rights": rows}

    def human() -> str:
        shown = [[row["role"], row["right"], row["rule"]] for row in rows]
        files = "\n".join(f"{'and' if place else 'by'} {where}" for place, where in enumerate(data["files"]))
        return f"{files}\n\n{table(['role', 'right', 'allowed'], shown)}"

    return emit(data, fmt, human)


def _row(policy: Policy, role: str, right: Right) -> dict[str, Any]:
    """Return one cell of the table; several files are joined by "and", the conditions of one by "or"."""
    permission = _PERMISSION.get(right)
    layers = [[str(one) for one in conditions] or ["none"] for _, conditions in policy.conditions(role, right)]
    if any(layer == ["none"] for layer in layers):
        rule = "none"
    elif permission is not None and role not in PERMISSIONS[permission]:
        rule = f"none ({permission} is not for this role)"
    else:
        told = [" or ".join(layer) for layer in layers if "any" not in layer]
        rule = " and ".join(dict.fromkeys(f"({one})" if " or " in one and len(told) > 1 else one for one in told))
    return {"role": role, "right": str(right), "rule": rule or "any", "conditions": layers}


# -- one question ------------------------------------------------------------------------------------------------------


def _answer(kit: Kit, policy: Policy, words: Sequence[str], fmt: Format) -> ExitStatus:
    question = _understand(kit, words)
    if question.permission is not None:
        decision = ask(policy, question.subject, question.permission, question.object)
    else:
        assert question.right is not None
        decision = decide(policy, question.subject, question.right, question.object)
    data = {
        "allowed": decision.allowed,
        "rule": decision.rule,
        "why": decision.why,
        "subject": asdict(question.subject),
        "what": question.what,
        "permission": question.permission,
        "right": None if question.right is None else str(question.right),
        "object": asdict(question.object),
        "files": [where for where, _ in policy.layers],
    }
    emit(data, fmt, str(decision))
    return _status(decision)


def _status(decision: Decision) -> ExitStatus:
    return ExitStatus.OK if decision.allowed else ExitStatus.FAILED


def _understand(kit: Kit, words: Sequence[str]) -> _Question:
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
    name, org = _split(person)
    permission, right = _deed(words[2])
    told = _places(words[3:])
    submitter, submitter_org = _split(told["of"]) if "of" in told else (None, None)
    site, site_org = _split(told["at"]) if "at" in told else (None, None)
    if site is None and kit.role == "site":
        site, site_org = kit.name, kit.org
    elif site == kit.name and not site_org:
        site_org = kit.org
    object_ = Object(site, site_org, submitter, submitter_org)
    if permission == "job.submit" and submitter is None:  # a new job is its submitter's
        object_ = Object(site, site_org, name, org)
    return _Question(Subject(role, name, org), words[2], permission, right, object_)


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
    """Return permission and right that a word stands for: a right, a console command, a method."""
    if word in {str(one) for one in Right}:
        right = Right(word)
        return _PERMISSION.get(right), right
    endpoint = ENDPOINTS.get(_COMMANDS.get(word, word))
    if endpoint is None:
        known = [*map(str, Right), *_COMMANDS, *ENDPOINTS]
        near = difflib.get_close_matches(word, known, n=2)
        rights = ", ".join(Right)
        raise UsageError(
            f"{word:.80} is no right, command or method", hint=f"did you mean {' or '.join(near)}?" if near else rights
        )
    return endpoint.permission, endpoint.right
