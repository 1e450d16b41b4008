"""One call on its way through both gates, and what the audit file says of it.

The chain of calls enters with the caller's certificate: gate one. The handler asks for what it touches: gate two. At
the end the chain asks for the audit entry. A handler that answers without having asked gate two, where the call has a
right, has a defect, and its answer is not given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, TypeVar

from fedhelm.errors import FedhelmError, NotAuthorised
from fedhelm.security.audit_lines import Entry
from fedhelm.security.audit_start import entry_of
from fedhelm.security.authorization import Object, Policy
from fedhelm.security.gates import ENDPOINTS, admit, ask, subject_of
from fedhelm.security.identity import Principal
from fedhelm.security.policy import check_role

__all__ = ["Passage"]

_Row = TypeVar("_Row")
_VIEW: Final = "job.view"
_SITE: Final = 253
_SITES: Final = 1900  # of the 2,048 characters that a line has for them


class Passage:
    """A call that passed gate one.

    Args:
        name: the method or route, a key of :data:`fedhelm.security.gates.ENDPOINTS`.
        principal: who calls, with the organisation of the certificate.
        policy: the participant's own.

    Raises:
        KeyError: no such method or route: a mistake in the program.
    """

    def __init__(self, name: str, principal: Principal, policy: Policy) -> None:
        self.name, self.principal = name, principal
        self._endpoint, self._policy = ENDPOINTS[name], policy
        self._told: dict[str, object] = {}
        self._sites: dict[str, None] = {}
        self._asked = False
        self.written = False
        """Whether the audit file has the line of this call already, or gets it yet."""
        self._answers: dict[tuple[str, Object], bool] = {}

    def enter(self) -> None:
        """Gate one: the role has the permission.

        Raises:
            NotAuthorised: it has not.
        """
        check_role(self.principal, self._endpoint.permission)

    def admit(self, object_: Object, **told: object) -> None:
        """Gate two, before anything is read or changed for the caller.

        Args:
            object_: what the call touches.
            told: what the audit file shall say besides, such as the job's id.

        Raises:
            NotAuthorised: the policy denies it; the message says which rule, and why.
        """
        self._asked = True
        self._told |= told
        if object_.site is not None:
            self._sites[object_.site] = None
        if object_.submitter is not None:
            self._told["submitter"] = object_.submitter
        admit(self._policy, self.principal, self._endpoint.permission, object_)

    def tell(self, **told: object) -> None:
        """Have the audit file say more, where gate two is not asked for it."""
        self._told |= told

    def keep(self, rows: Iterable[_Row], object_of: Callable[[_Row], Object]) -> list[_Row]:
        """Gate two for the rows of an answer: return those that the caller may see.

        Args:
            rows: what there is.
            object_of: what a row is about.
        """
        self._asked = True
        return [row for row in rows if self._allows(self._endpoint.permission, object_of(row))]

    def may_view(self, object_: Object) -> bool:
        """Tell whether the caller may know of an object at all; whether the call may touch it is asked besides."""
        return self._allows(_VIEW, object_)

    def _allows(self, permission: str, object_: Object) -> bool:
        key = (permission, object_)
        if key not in self._answers:  # many rows are about the same
            self._answers[key] = ask(self._policy, subject_of(self.principal), permission, object_).allowed
        return self._answers[key]

    @property
    def answered_when_written(self) -> bool:
        """Whether a success is not answered before its line is in the audit file."""
        return self._endpoint.answered_when_written

    def check_asked(self) -> None:
        """Called before an answer is given.

        Raises:
            FedhelmError: the call has a right, and the handler asked nobody.
        """
        if self._endpoint.right is not None and not self._asked:
            raise FedhelmError(f"{self.name} was about to answer without asking the policy")

    def entry(self, error: BaseException | None = None) -> Entry | None:
        """Return what the audit file is to say, once the call has ended; None: nothing.

        What was denied is written, and so is every other end of a call that is worth a line.
        """
        if self.written or not (self._endpoint.written or isinstance(error, NotAuthorised)):
            return None
        return entry_of(self.name, self.principal, {**self._told, "site": _named(list(self._sites))}, error)


def _named(sites: list[str]) -> str | None:
    """Return all sites of a call as one text that a line has room for; of those that have none there, the number."""
    told = [site[:_SITE] for site in sites]
    while len(", ".join(told)) > _SITES:
        told = told[: len(told) * 7 // 8]
    more = [f"and {len(sites) - len(told)} more"] if len(told) < len(sites) else []
    return ", ".join([*told, *more]) or None
