"""``fedhelm authz``: what the policy of a kit allows, and why; nothing is asked of anybody."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedhelm.config.kit import Kit, read_kit
from fedhelm.errors import ExitStatus, UsageError
from fedhelm.output import CommandParser, Format, add_output_option, emit, format_of, guarded, table
from fedhelm.provision.authz_preview import CALL_OF, RESERVED, asked_rights, preview, understand
from fedhelm.security.authorization import DEFAULT_AUTHORIZATION, POLICY_ROLES, Policy, Right, default_policy
from fedhelm.security.gates import ENDPOINTS, read_policy
from fedhelm.security.policy import PERMISSIONS

__all__ = ["main"]

_ABOUT = """\
Show what the participant of KIT allows: by the signed startup/authorization.json, tightened by
local/authorization.json, and at a site by enable_byoc. An admin's kit has no policy; the default one is shown for it.

  fedhelm authz KIT                     every role and right, and the rule
  fedhelm authz KIT --role lead         one role
  fedhelm authz KIT may WHO DO [WHAT]   one question; exit status 0: yes, 1: no, 2: not for this participant to say
  fedhelm authz --default               the default policy, as a file

WHO is ROLE:NAME/ORGANISATION. DO is a right (manage_job), a console command (abort_job) or a method of the reference
(Admin.AbortJob). WHAT is any of: `job of NAME/ORGANISATION`, `at SITE/ORGANISATION`. Organisations may be left out;
what depends on one is denied then, unless the kit knows it. Ask a server's kit about jobs, sites and the server; a
site's about jobs and orders that come to that site; an overseer's about promote_sp, shutdown_system and the like.

  fedhelm authz prod_00/server1 may lead:bob@a.org/a abort_job job of alice@b.org/b
  fedhelm authz prod_00/site-1 may lead:bob@a.org/a submit_job
"""


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
        policy = _policy(kit)
        if args.question:
            return _answer(kit, policy, args.question, fmt)
        return _show(kit, policy, (args.role,) if args.role else POLICY_ROLES, fmt)

    return guarded(body, fmt)


def _policy(kit: Kit) -> Policy:
    """Return what the participant goes by; an overseer's kit of before has no signed file, and goes by the default."""
    if not asked_rights(kit.role):
        return default_policy()
    return read_policy(kit.root, missing=default_policy() if kit.role == "overseer" else None)


# -- the table ---------------------------------------------------------------------------------------------------------


def _show(kit: Kit, policy: Policy, roles: Sequence[str], fmt: Format) -> ExitStatus:
    rows = [_row(kit, policy, role, right) for role in roles for right in Right]
    byoc = kit.enable_byoc if kit.role == "site" else None
    files = [where for where, _ in policy.layers]
    data = {"kit": str(kit.root), "files": files, "enable_byoc": byoc, "rights": rows}

    def human() -> str:
        shown = [[row["role"], row["right"], row["rule"]] for row in rows if row["asked"] or not asked_rights(kit.role)]
        by = "\n".join(f"{'and' if place else 'by'} {where}" for place, where in enumerate(files))
        return "\n\n".join([by, table(["role", "right", "allowed"], shown), "\n".join(_notes(kit))])

    return emit(data, fmt, human)


def _notes(kit: Kit) -> Iterator[str]:
    """Say what the table does not: what else counts, and whom else one has to ask."""
    asked = asked_rights(kit.role)
    if not asked:
        yield f"{kit.name} decides nothing: this is the default policy. Servers, sites and overseers have their own."
        return
    if kit.role == "site":
        set_ = "is set" if kit.enable_byoc else "is not set"
        yield f"enable_byoc {set_} in this kit. Every job brings its script, so it needs submit_job and byoc."
    others = [right for right in Right if right not in asked and right not in RESERVED]
    if others:
        yield f"Not asked here, but at the servers: {', '.join(others)}."
    yield f"Reserved, no call asks for them: {', '.join(right for right in Right if right in RESERVED)}."


def _row(kit: Kit, policy: Policy, role: str, right: Right) -> dict[str, Any]:
    """Return one cell of the table; several files are joined by "and", the conditions of one by "or"."""
    permission = _permission(kit, right)
    layers = [[str(one) for one in conditions] or ["none"] for _, conditions in policy.conditions(role, right)]
    if any(layer == ["none"] for layer in layers):
        rule = "none"
    elif permission is not None and role not in PERMISSIONS[permission]:
        rule = f"none ({permission} is not for this role)"
    elif kit.role == "site" and right in (Right.SUBMIT_JOB, Right.BYOC) and not kit.enable_byoc:
        rule = "none (enable_byoc is not set)"
    else:
        told = [" or ".join(layer) for layer in layers if "any" not in layer]
        rule = " and ".join(dict.fromkeys(f"({one})" if " or " in one and len(told) > 1 else one for one in told))
    asked = right in asked_rights(kit.role)
    return {"role": role, "right": str(right), "rule": rule or "any", "asked": asked, "conditions": layers}


def _permission(kit: Kit, right: Right) -> str | None:
    """Return the permission of the calls that ask for a right; None where none does."""
    if right is Right.OPERATE and kit.role == "overseer":
        return "system.command"
    return None if right in RESERVED else ENDPOINTS[CALL_OF[right]].permission


# -- one question ------------------------------------------------------------------------------------------------------


def _answer(kit: Kit, policy: Policy, words: Sequence[str], fmt: Format) -> ExitStatus:
    question = understand(words)
    found = preview(kit, policy, question)
    decision = found.decision
    data = {
        "allowed": decision.allowed,
        "rule": decision.rule,
        "why": decision.why,
        "besides": found.besides,
        "subject": asdict(question.subject),
        "what": question.what,
        "call": question.call,
        "permission": None if question.call is None else ENDPOINTS[question.call].permission,
        "right": None if question.right is None else str(question.right),
        "object": asdict(found.object),
        "enable_byoc": kit.enable_byoc if kit.role == "site" else None,
        "files": [where for where, _ in policy.layers],
    }
    emit(data, fmt, f"{decision}\n{found.besides}" if found.besides else str(decision))
    return ExitStatus.OK if decision.allowed else ExitStatus.FAILED
