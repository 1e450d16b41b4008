"""Which role may do what. The permission of each call is declared where the call is declared, and looked up here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from fedhelm.errors import NotAuthorised
from fedhelm.security.identity import Principal

__all__ = ["PERMISSIONS", "authorise", "check_permission"]

_SITE = frozenset({"site"})
_SERVER = frozenset({"server"})
_ADMIN = frozenset({"project_admin"})
_ALL = frozenset({"overseer", "server", "site", "project_admin"})

PERMISSIONS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "site.connect": _SITE,
        "site.upload": _SITE,
        "site.fetch": _SITE,
        "site.contribute": _SITE,
        "admin.login": _ADMIN,
        "job.submit": _ADMIN,
        "job.view": _ADMIN,
        "job.manage": _ADMIN,
        "job.download": _ADMIN,
        "system.view": _ADMIN,
        "system.operate": _ADMIN,
        "overseer.health": _ALL,
        "overseer.view": _ALL,
        "lease.hold": _SERVER,
        "lease.promote": _ADMIN,
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


def authorise(principal: Principal, permission: str) -> None:
    """Let the call pass if the principal's role has the permission.

    Raises:
        NotAuthorised: it has not.
        ValueError: unknown permission.
    """
    if principal.role not in PERMISSIONS[check_permission(permission)]:
        raise NotAuthorised(f"{principal} lacks the permission {permission}")
