"""The roles of a server's child as a pure transition table (docs/ha.md, sections 1, 3 and 4).

::

    STANDBY --grant--> PROMOTING --fenced_in--> ACTIVE --drain--> DRAINING --resume--> ACTIVE
       ^---refused--------'                      | ^                  (handed off: the child exits)
                                       unleased  | |  leased
                                                 v |
                                               UNLEASED <--store_back-- READONLY <--store_lost-- any writer

    a foreign fence of an equal or higher epoch: FENCED, for good

A child writes at most once in its life: nothing leads back to STANDBY from a role that wrote, and PROMOTING is
reached from STANDBY alone. A child that lost its place exits, and its supervisor starts another as a standby.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

__all__ = ["TRANSITIONS", "WRITERS", "IllegalTransitionError", "Role", "RoleEvent", "transition"]


class Role(enum.StrEnum):
    """What a child is; its value is what `list_sp` shows and what a beat carries."""

    STANDBY = "STANDBY"
    PROMOTING = "PROMOTING"
    ACTIVE = "ACTIVE"
    DRAINING = "DRAINING"
    FENCED = "FENCED"
    UNLEASED = "UNLEASED"
    READONLY = "READONLY"


class RoleEvent(enum.StrEnum):
    """What may happen to a child's role."""

    GRANT = "grant"  # the supervisor passed on an epoch
    FENCED_IN = "fenced_in"  # its own fence is the last one in the log, and the service is open
    REFUSED = "refused"  # it could not promote itself, and wrote no fence
    FOREIGN_FENCE = "foreign_fence"  # another's fence; of an epoch equal or higher, where this child has one
    DRAIN = "drain"
    RESUME = "resume"
    UNLEASED = "unleased"  # the deadline passed and no overseer answers
    LEASED = "leased"  # a renewal succeeded
    STORE_LOST = "store_lost"  # an append is in flight for longer than T/2, or the store refuses
    STORE_BACK = "store_back"


class IllegalTransitionError(ValueError):
    """The event cannot happen in this role: a defect in the caller, never a race."""


_R, _E = Role, RoleEvent

#: The roles in which a child may append to the log.
WRITERS: Final = frozenset({_R.ACTIVE, _R.DRAINING, _R.UNLEASED})

# What is not named stays as it is: frames of the supervisor cross those of the child, so that a `lease` may reach a
# standby and a `resume` a fenced one. Events that no race explains are in _IMPOSSIBLE.
TRANSITIONS: Final[Mapping[tuple[Role, RoleEvent], Role]] = MappingProxyType(
    {
        (_R.STANDBY, _E.GRANT): _R.PROMOTING,
        (_R.PROMOTING, _E.GRANT): _R.PROMOTING,  # the same epoch told again, or a repaired one
        (_R.PROMOTING, _E.FENCED_IN): _R.ACTIVE,
        (_R.PROMOTING, _E.REFUSED): _R.STANDBY,
        (_R.PROMOTING, _E.FOREIGN_FENCE): _R.FENCED,
        (_R.ACTIVE, _E.FOREIGN_FENCE): _R.FENCED,
        (_R.ACTIVE, _E.DRAIN): _R.DRAINING,
        (_R.ACTIVE, _E.UNLEASED): _R.UNLEASED,
        (_R.ACTIVE, _E.STORE_LOST): _R.READONLY,
        (_R.DRAINING, _E.FOREIGN_FENCE): _R.FENCED,
        (_R.DRAINING, _E.RESUME): _R.ACTIVE,
        (_R.DRAINING, _E.UNLEASED): _R.UNLEASED,  # a handoff without a higher fence is void: go on
        (_R.DRAINING, _E.STORE_LOST): _R.READONLY,
        (_R.UNLEASED, _E.FOREIGN_FENCE): _R.FENCED,
        (_R.UNLEASED, _E.LEASED): _R.ACTIVE,
        (_R.UNLEASED, _E.STORE_LOST): _R.READONLY,
        (_R.READONLY, _E.FOREIGN_FENCE): _R.FENCED,
        # The lease may have run out meanwhile: assume so, the next renewal (within R) says otherwise.
        (_R.READONLY, _E.STORE_BACK): _R.UNLEASED,
    }
)

_IMPOSSIBLE: Final = frozenset(
    {(role, _E.FENCED_IN) for role in Role if role is not _R.PROMOTING}
    | {(role, _E.GRANT) for role in Role if role not in {_R.STANDBY, _R.PROMOTING}}
    | {(role, _E.REFUSED) for role in WRITERS | {_R.READONLY}}
)


def transition(role: Role, event: RoleEvent) -> Role:
    """Return the role after ``event``; the same role when the event means nothing to it.

    Raises:
        IllegalTransitionError: a child would write for a second time (a grant to one that was active), or a fence
            of its own without a grant.
    """
    if (role, event) in _IMPOSSIBLE:
        raise IllegalTransitionError(f"{event} cannot happen to a child that is {role}")
    return TRANSITIONS.get((role, event), role)
