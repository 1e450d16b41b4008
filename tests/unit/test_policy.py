from __future__ import annotations

import pytest

from fedhelm.config.kit import ROLES
from fedhelm.errors import NotAuthorised
from fedhelm.security.identity import Principal
from fedhelm.security.policy import PERMISSIONS, check_permission, check_role

MEMBER = {"admin.login", "job.view", "system.view"}
ALLOWED = {
    "site": {"site.connect", "site.upload", "site.fetch", "site.contribute"},
    "project_admin": {
        "admin.login",
        "job.submit",
        "job.view",
        "job.manage",
        "job.download",
        "system.view",
        "system.operate",
        "system.command",
        "lease.promote",
        "trust.revoke",
    },
    "org_admin": MEMBER | {"job.manage", "job.download", "system.operate", "trust.revoke"},
    "lead": MEMBER | {"job.submit", "job.manage", "job.download"},
    "member": MEMBER,
    "server": {"lease.hold", "trust.revoke"},
    "overseer": set(),
}
EVERYBODY = {"overseer.health", "overseer.view"}


@pytest.mark.parametrize("role", sorted({*ROLES, *ALLOWED}))
@pytest.mark.parametrize("permission", sorted(PERMISSIONS))
def test_each_role_may_do_exactly_what_the_table_says(role, permission):
    principal = Principal("poc", role, "somebody")
    if permission in ALLOWED[role] | EVERYBODY:
        check_role(principal, permission)
    else:
        with pytest.raises(NotAuthorised, match=f"{role} somebody lacks the permission {permission}"):
            check_role(principal, permission)


def test_a_permission_that_nobody_declared_is_a_mistake_in_the_program():
    with pytest.raises(ValueError, match=r"job\.delete"):
        check_permission("job.delete")
    with pytest.raises(ValueError, match=r"job\.delete"):
        check_role(Principal("poc", "project_admin", "a@b"), "job.delete")
    assert check_permission("job.view") == "job.view"


def test_a_role_that_does_not_exist_may_do_nothing():
    for permission in PERMISSIONS:
        with pytest.raises(NotAuthorised):
            check_role(Principal("poc", "guest", "a@b"), permission)
