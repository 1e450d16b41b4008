"""Who may do what to whose job at whose site: the policy, its language, and the one function that decides.

The file is JSON with comments (``#`` and ``//``), in the form that users of FLARE know::

    {"format_version": "1.0", "permissions": {ROLE: CONDITION or {RIGHT: CONDITION or [CONDITION, ...]}}}

A role or right that is not named is denied. A list holds if one of its conditions does.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import functools
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any, Final, Self

from fedhelm.config.json_source import load_commented
from fedhelm.config.yaml_source import Document, Key
from fedhelm.errors import BadInput
from fedhelm.ids import check_admin_name

__all__ = [
    "CONDITIONS",
    "DEFAULT_AUTHORIZATION",
    "POLICY_ROLES",
    "Condition",
    "Decision",
    "Object",
    "Policy",
    "Right",
    "Subject",
    "decide",
    "default_policy",
]

POLICY_ROLES: Final = ("project_admin", "org_admin", "lead", "member")
"""The roles that a policy speaks of. What servers, sites and overseers may do to one another is no matter of policy."""

CONDITIONS: Final = ("any", "none", "o:site", "o:submitter", "n:submitter", "o:ORGANISATION", "n:NAME")
"""The conditions, as a message lists them."""

_FORMAT: Final = "1.0"


class Right(enum.StrEnum):
    """What a policy gives or denies. ``clone_job`` and ``shell`` are reserved: no call asks for them."""

    SUBMIT_JOB = "submit_job"
    CLONE_JOB = "clone_job"
    MANAGE_JOB = "manage_job"
    DOWNLOAD_JOB = "download_job"
    VIEW = "view"
    OPERATE = "operate"
    SHELL = "shell"
    BYOC = "byoc"


@dataclasses.dataclass(frozen=True)
class Subject:
    """Who asks. All of it comes from a verified certificate; ``org`` is empty where it is not known."""

    role: str
    name: str
    org: str = ""


@dataclasses.dataclass(frozen=True)
class Object:
    """What is touched: a job (``submitter`` and organisation), a site (name and organisation), a job at a site.

    None of them: the federation as a whole, which is no organisation's own.
    """

    site: str | None = None
    site_org: str | None = None
    submitter: str | None = None
    submitter_org: str | None = None


@dataclasses.dataclass(frozen=True)
class Decision:
    """The answer: ``rule`` is the line of the policy that gave it, ``why`` says in words why it holds or does not."""

    allowed: bool
    rule: str
    why: str

    def __str__(self) -> str:
        """Return ``yes: ...`` or ``no: ...``."""
        return f"{'yes' if self.allowed else 'no'}: {self.rule}; {self.why}"


@dataclasses.dataclass(frozen=True)
class Condition:
    """One condition: ``kind`` is one of :data:`CONDITIONS`; ``name`` is given where its kind ends in capitals."""

    kind: str
    name: str = ""

    def __str__(self) -> str:
        """Return it as the file says it."""
        return f"{self.kind.partition(':')[0]}:{self.name}" if self.name else self.kind

    def look(self, subject: Subject, object_: Object) -> tuple[bool, str]:
        """Tell whether it holds, and why."""
        return _LOOK[self.kind](self, subject, object_)


def _own_org(subject: Subject, org: str | None, whose: str) -> tuple[bool, str]:
    if not subject.org:
        return False, f"the organisation of {subject.name} is not known"
    if not org:
        return False, f"the organisation of {whose} is not known"
    holds = subject.org == org
    return holds, f"{subject.name} is of {subject.org}, {whose} {'too' if holds else f'is of {org}'}"


def _of_site(_: Condition, subject: Subject, object_: Object) -> tuple[bool, str]:
    if object_.site is None:
        return False, "it is not about one site"
    return _own_org(subject, object_.site_org, object_.site)


def _of_submitter(_: Condition, subject: Subject, object_: Object) -> tuple[bool, str]:
    if object_.submitter is None:
        return False, "it is not about one job"
    return _own_org(subject, object_.submitter_org, object_.submitter)


def _is_submitter(_: Condition, subject: Subject, object_: Object) -> tuple[bool, str]:
    if object_.submitter is None:
        return False, "it is not about one job"
    holds = subject.name == object_.submitter
    return holds, f"{subject.name} submitted it" if holds else f"{subject.name} did not submit it"


def _named_org(condition: Condition, subject: Subject, _: Object) -> tuple[bool, str]:
    holds = subject.org == condition.name
    return holds, f"{subject.name} is {'' if holds else 'not '}of {condition.name}"


def _named(condition: Condition, subject: Subject, _: Object) -> tuple[bool, str]:
    holds = subject.name == condition.name
    return holds, f"it is {condition.name} who asks" if holds else f"{subject.name} is not {condition.name}"


_LOOK: Mapping[str, Callable[[Condition, Subject, Object], tuple[bool, str]]] = MappingProxyType(
    {
        "any": lambda _c, _s, _o: (True, "whoever asks, and whosever it is"),
        "none": lambda _c, _s, _o: (False, "nobody of this role may"),
        "o:site": _of_site,
        "o:submitter": _of_submitter,
        "n:submitter": _is_submitter,
        "o:ORGANISATION": _named_org,
        "n:NAME": _named,
    }
)

_Rules = Mapping[str, Mapping[Right, tuple[Condition, ...]]]


@dataclasses.dataclass(frozen=True)
class Policy:
    """One or more files that must all allow. A policy without a file allows nothing.

    Attributes:
        layers: of each file, how messages call it, and role -> right -> conditions, one of which must hold.
    """

    layers: tuple[tuple[str, _Rules], ...] = ()

    @classmethod
    def parse(cls, text: str, where: str) -> Self:
        """Read a policy file.

        Args:
            text: its content.
            where: how messages call it; its path.

        Raises:
            BadInput: ``file:line:col: key: what is wrong``, the first mistake.
        """
        document = load_commented(text, where)
        top = _object(document, (), ("format_version", "permissions"))
        for key in ("format_version", "permissions"):
            if key not in top:
                raise BadInput(f"{document.where()}: {key}: missing")
        if top["format_version"] != _FORMAT:
            raise _wrong(document, ("format_version",), f'this program reads "{_FORMAT}"')
        roles = _object(document, ("permissions",), POLICY_ROLES, "role")
        return cls(((where, MappingProxyType({role: _rights(document, role) for role in roles})),))

    def tightened_by(self, local: Policy) -> Policy:
        """Return the policy that allows what both allow."""
        return Policy((*self.layers, *local.layers)) if local.layers else Policy()

    def conditions(self, role: str, right: Right) -> tuple[tuple[str, tuple[Condition, ...]], ...]:
        """Return, file by file, the conditions of which one must hold; none at all: denied."""
        return tuple((where, rules.get(role, {}).get(right, ())) for where, rules in self.layers)


def decide(policy: Policy, subject: Subject, right: Right, object_: Object) -> Decision:
    """Say whether ``subject`` may do what ``right`` names to ``object_``. Pure; raises nothing.

    Every file of the policy must allow it. The first that does not gives the reason.
    """
    answer = Decision(False, "no policy", "there is no policy file, so nothing is allowed")
    for place, (where, conditions) in enumerate(policy.conditions(subject.role, right)):
        found = _look(subject, right, object_, conditions)
        if not found.allowed:
            return found if place == 0 else dataclasses.replace(found, rule=f"{found.rule} ({_short(where)})")
        answer = found if place == 0 else answer
    return answer


def _short(where: str) -> str:
    """Return the end of a file's path: whoever is denied something is not told where a participant keeps its files."""
    return "/".join(where.split("/")[-2:])


def _look(subject: Subject, right: Right, object_: Object, conditions: tuple[Condition, ...]) -> Decision:
    if not conditions:
        return Decision(False, f"{right} is not named for {subject.role}", "what is not named is denied")
    looks = [(one, *one.look(subject, object_)) for one in conditions]
    for one, holds, why in looks:
        if holds:
            return Decision(True, f"{right} with {one}", why)
    needs = " or ".join(str(one) for one in conditions)
    if needs == "none":
        return Decision(False, f"{right} is none for {subject.role}", looks[0][2])
    return Decision(False, f"{right} needs {needs}", ", and ".join(dict.fromkeys(why for _, _, why in looks)))


def _wrong(document: Document, key: Key, what: str) -> BadInput:
    return document.error(key, what)


def _at(document: Document, key: Key) -> Any:
    value = document.value
    for part in key:
        value = value[part]
    return value


def _object(document: Document, key: Key, known: Collection[str], what: str = "key") -> dict[str, Any]:
    value = _at(document, key)
    if not isinstance(value, dict):
        raise BadInput(f"{document.where(key)}: {'.'.join(map(str, key)) or 'file'}: an object {{...}} is needed")
    for name in value:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            meant = f" (did you mean {near[0]}?)" if near else ""
            raise _wrong(document, (*key, name), f"unknown {what}{meant}; there is {', '.join(known)}")
    return value


def _rights(document: Document, role: str) -> Mapping[Right, tuple[Condition, ...]]:
    key: Key = ("permissions", role)
    if not isinstance(_at(document, key), dict):  # one condition, or a list, for every right
        conditions = _conditions(document, key)
        return MappingProxyType(dict.fromkeys(Right, conditions))
    names = _object(document, key, [str(one) for one in Right], "right")
    return MappingProxyType({Right(name): _conditions(document, (*key, name)) for name in names})


def _conditions(document: Document, key: Key) -> tuple[Condition, ...]:
    value = _at(document, key)
    if isinstance(value, list):
        if not value:
            raise _wrong(document, key, 'an empty list; say "none"')
        return tuple(_condition(document, (*key, place)) for place in range(len(value)))
    return (_condition(document, key),)


def _condition(document: Document, key: Key) -> Condition:
    value = _at(document, key)
    if isinstance(value, str):
        if value in CONDITIONS[:5]:
            return Condition(value)
        kind, _, name = value.partition(":")
        if kind == "o" and 0 < len(name) <= 64 and name.isprintable():
            return Condition("o:ORGANISATION", name)
        if kind == "n" and _is_admin_name(name):
            return Condition("n:NAME", name)
    raise _wrong(document, key, f"unknown condition {value!r:.60}; there is {', '.join(CONDITIONS)}")


def _is_admin_name(name: str) -> bool:
    try:
        check_admin_name(name)
    except BadInput:
        return False
    return True


DEFAULT_AUTHORIZATION: Final = """\
{
  // Who may do what, to whose job, at whose site. This file is signed: change it in the project file, not here.
  // A participant's own policy is local/authorization.json, in this same form. It may only tighten: what is allowed
  // is what both files allow. `fedhelm authz KIT` shows what the two give together.
  //
  // The role and the organisation of whoever asks come from the certificate. What is not named is denied.
  //
  // Conditions; of a list, one must hold:
  //   any            always
  //   none           never
  //   o:site         the caller is of the site's organisation
  //   o:submitter    the caller is of the organisation of the job's submitter
  //   n:submitter    the caller submitted the job
  //   o:NAME         the caller is of the organisation NAME
  //   n:NAME         the caller is NAME, for instance n:bob@example.org
  //
  // What neither belongs to a site nor to a job (the servers, the lease) only a role with "any" may operate.
  // clone_job and shell are reserved: no call of this version asks for them.
  "format_version": "1.0",
  "permissions": {
    "project_admin": "any",

    // The administrator of one organisation: its jobs, whoever submitted them, and its sites.
    "org_admin": {
      "submit_job": "none",
      "clone_job": "none",
      "manage_job": "o:submitter",                // abort, delete
      "download_job": "o:submitter",
      "view": ["o:submitter", "o:site"],
      "operate": "o:site",                        // restart, shut down
      "shell": "o:site",
      "byoc": "none"
    },

    // A researcher: submits, and manages what is their own.
    "lead": {
      "submit_job": "any",                        // at every site; a site may say otherwise in its local/
      "clone_job": "n:submitter",
      "manage_job": "n:submitter",
      "download_job": "n:submitter",
      "view": ["o:submitter", "o:site"],
      "operate": "none",
      "shell": "none",
      "byoc": "any"                               // code of their own, at sites that have enable_byoc as well
    },

    // Looks at what belongs to their organisation.
    "member": {
      "submit_job": "none",
      "clone_job": "none",
      "manage_job": "none",
      "download_job": "none",
      "view": ["o:submitter", "o:site"],
      "operate": "none",
      "shell": "none",
      "byoc": "none"
    }
  }
}
"""
"""The policy of a project that says nothing else: the content of ``startup/authorization.json``."""


@functools.cache
def default_policy() -> Policy:
    """Return what :data:`DEFAULT_AUTHORIZATION` says."""
    return Policy.parse(DEFAULT_AUTHORIZATION, "the default policy")
