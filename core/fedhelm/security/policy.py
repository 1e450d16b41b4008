"""Which role may call what: the first gate. The permission of each call is declared where the call is declared.

A role that is not here for a permission cannot make the call at all, whatever a policy file says. What a call touches
is the matter of the second gate, :mod:`fedhelm.security.gates`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from fedhelm.errors import NotAuthorised
from fedhelm.security.identity import Principal

__all__ = ["PERMISSIONS", "check_permission", "check_role"]

_SITE = frozenset({"site"})
_SERVER = frozenset({"server"})
_PROJECT = frozenset({"project_admin"})
_OPERATORS = _PROJECT | {"org_admin"}
_SUBMITTERS = _PROJECT | {"lead"}
_OWNERS = _OPERATORS | _SUBMITTERS
_ADMINS = _OWNERS | {"member"}
_ALL = _ADMINS | _SITE | _SERVER | {"overseer"}

PERMISSIONS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "site.connect": _SITE,
        "site.upload": _SITE,
        "site.fetch": _SITE,
        "site.contribute": _SITE,
        "admin.login": _ADMINS,
        "job.submit": _SUBMITTERS,
        "job.view": _ADMINS,
        "job.manage": _OWNERS,
        "job.download": _OWNERS,
        "system.view": _ADMINS,
        "system.operate": _OPERATORS,
        "system.command": _PROJECT,
        "overseer.health": _ALL,
        "overseer.view": _ALL,
        "lease.hold": _SERVER,
        "lease.promote": _PROJECT,
        "trust.revoke": _OPERATORS | _SERVER,  # a server gives an overseer the list back that this one lost
    }
)
"""Permission -> the roles that have it."""


def check_permission(permission: str) -> str:
    """Return ``permission`` if it is declared; called for every handler before a service starts.

    Raises:
        ValueError: it is not in :data:`PERMISSIONS`: a mistake in the program.
    """
    if permission not in PERMISSIONS:
        raise ValueError(f"unknown permission {permission!r}")
    return permission


def check_role(principal: Principal, permission: str) -> None:
    """Let the call pass if the principal's role has the permission; the second gate follows.

    Raises:
        NotAuthorised: it has not.
        ValueError: unknown permission.
    """
    if principal.role not in PERMISSIONS[check_permission(permission)]:
        raise NotAuthorised(f"{principal} lacks the permission {permission}")
