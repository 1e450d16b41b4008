"""Both gates together, the table of what each call touches, and the policy of a kit."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast

import pytest

from docs.pages.overseer_api import _routes
from fedhelm.config.kit import Kit
from fedhelm.config.timing import PROFILES
from fedhelm.errors import BadInput, KitError, NotAuthorised
from fedhelm.security.authorization import DEFAULT_AUTHORIZATION, Object, Policy, Right, Subject, default_policy
from fedhelm.security.gates import (
    ENDPOINTS,
    RIGHT_OF,
    Touches,
    admit,
    admit_job,
    ask,
    check_endpoint,
    read_policy,
    subject_of,
)
from fedhelm.security.identity import Principal
from fedhelm.security.policy import PERMISSIONS
from fedhelm.v1 import admin_pb2, common_pb2, fleet_pb2
from fedhelm_overseer.app import Allowed, create_app


def declared_methods():
    for module in (fleet_pb2, admin_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                yield f"{service.name}.{method.name}", str(method.GetOptions().Extensions[common_pb2.permission])


def declared_routes():
    kit = Kit(Path("/"), "poc", "", "overseer", "overseer", "", (), (), (), PROFILES["default"])
    for route in _routes(create_app(kit, cast("Any", None), cast("Any", None)).routes):
        needs = [need.call.permission for need in route.dependant.dependencies if isinstance(need.call, Allowed)]
        path = route.path if route.path in ("/healthz", "/metrics") or "/api/" in route.path else f"/api/v1{route.path}"
        for verb in route.methods or ():
            yield f"{verb} {path}", needs[0]


def test_every_method_and_route_is_in_the_table_with_its_permission():
    declared = {**dict(declared_methods()), **dict(declared_routes())}
    assert len(declared) >= 45
    assert set(declared) == set(ENDPOINTS)
    wrong = {
        name: (permission, ENDPOINTS[name].permission)
        for name, permission in declared.items()
        if permission != ENDPOINTS[name].permission
    }
    assert not wrong


def test_a_call_that_the_table_does_not_have_keeps_a_service_from_starting():
    assert check_endpoint("Admin.AbortJob", "job.manage").touches is Touches.JOB
    with pytest.raises(ValueError, match=r"Admin\.Nothing is not in the table"):
        check_endpoint("Admin.Nothing", "job.manage")
    with pytest.raises(ValueError, match=r"Admin\.AbortJob declares 'job\.view', and the table .* 'job\.manage'"):
        check_endpoint("Admin.AbortJob", "job.view")


def test_every_permission_has_a_right_or_says_that_it_has_none():
    assert set(RIGHT_OF) == set(PERMISSIONS)
    for name, endpoint in ENDPOINTS.items():
        assert (endpoint.right is None) == (endpoint.touches is Touches.NOTHING), name
    assert ENDPOINTS["Admin.AbortJob"].right is Right.MANAGE_JOB


OWN = {
    Touches.NOTHING: Object(),
    Touches.NEW_JOB: Object(None, None, "me@a.org", "a"),
    Touches.JOB: Object(None, None, "me@a.org", "a"),
    Touches.JOBS: Object(None, None, "me@a.org", "a"),
    Touches.SITES: Object("site-1", "a"),
    Touches.SITE_ROWS: Object("site-1", "a"),
    Touches.FEDERATION: Object(),
}
FOREIGN = {
    **OWN,
    Touches.JOB: Object(None, None, "you@b.org", "b"),
    Touches.JOBS: Object(None, None, "you@b.org", "b"),
    Touches.SITES: Object("site-2", "b"),
    Touches.SITE_ROWS: Object("site-2", "b"),
}

# By hand: which calls an admin may make on what is their own (or nobody's).
LOOK = {
    "Admin.Challenge", "Admin.Login", "Admin.ListJobs", "Admin.ShowJob", "Admin.WatchJob", "Admin.CheckStatus",
    "GET /healthz", "GET /metrics", "GET /api/v1/openapi.json", "GET /api/v1/primary", "GET /api/v1/servers",
    "GET /api/v1/servers/{name}/explain", "GET /api/v1/system", "GET /api/v1/history", "GET /api/v1/events",
    "GET /api/v1/events/recent", "GET /api/v1/revocations",
}  # fmt: skip
MANAGE = {"Admin.AbortJob", "Admin.DeleteJob", "Admin.PrepareDownload", "Admin.DownloadFile"}
SUBMIT = {"Admin.MissingChunks", "Admin.PutBlob", "Admin.SubmitJob"}
COMMAND = {
    "POST /api/v1/promote", "POST /api/v1/failover/pause", "POST /api/v1/failover/resume", "POST /api/v1/shutdown",
    "POST /api/v1/servers/{name}/remove",
}  # fmt: skip
REVOKE = {"POST /api/v1/revocations"}
ON_OWN = {
    "project_admin": LOOK | MANAGE | SUBMIT | COMMAND | REVOKE | {"Admin.Operate"},
    "org_admin": LOOK | MANAGE | REVOKE | {"Admin.Operate"},
    "lead": LOOK | MANAGE | SUBMIT,
    "member": LOOK,
}
TOUCHING = {"Admin.ListJobs", "Admin.ShowJob", "Admin.WatchJob", "Admin.CheckStatus", "Admin.Operate"} | MANAGE


@pytest.mark.parametrize("role", ON_OWN)
def test_each_call_on_what_is_ones_own_and_on_what_is_anothers(role):
    me = Subject(role, "me@a.org", "a")
    allowed = {
        (whose, name)
        for whose, objects in (("own", OWN), ("foreign", FOREIGN))
        for name, endpoint in ENDPOINTS.items()
        if ask(default_policy(), me, endpoint.permission, objects[endpoint.touches]).allowed
    }
    own, foreign = ({name for whose, name in allowed if whose == which} for which in ("own", "foreign"))
    assert own == ON_OWN[role]
    assert foreign == (ON_OWN[role] if role == "project_admin" else ON_OWN[role] - TOUCHING)


def test_a_refusal_names_the_gate():
    bob = Principal("poc", "lead", "bob@a.org", "a")
    alices = Object(None, None, "alice@b.org", "b")
    with pytest.raises(
        NotAuthorised, match=r"lead bob@a\.org: manage_job needs n:submitter; bob@a\.org did not submit it"
    ):
        admit(default_policy(), bob, "job.manage", alices)
    admit(default_policy(), bob, "job.manage", Object(None, None, "bob@a.org", "a"))
    with pytest.raises(NotAuthorised, match=r"lacks the permission lease\.promote"):
        admit(default_policy(), bob, "lease.promote", Object())
    answer = ask(default_policy(), subject_of(bob), "lease.promote", Object())
    assert str(answer) == "no: lease.promote is for project_admin; no policy gives it to the role lead"
    with pytest.raises(ValueError, match="unknown permission"):
        ask(default_policy(), subject_of(bob), "lease.give", Object())


def policy_of(**lead):
    return Policy.parse(json.dumps({"format_version": "1.0", "permissions": {"lead": lead}}), "local")


@pytest.mark.parametrize(
    ("policy", "custom_code", "enable_byoc", "refusal"),
    [
        (default_policy(), False, False, None),
        (default_policy(), True, True, None),
        (default_policy(), True, False, "site site-2 takes no job that brings its own code"),
        (policy_of(submit_job="any"), False, True, None),
        (policy_of(submit_job="any"), True, True, "site site-2, lead bob@a.org: byoc is not named for lead"),
        (
            policy_of(submit_job="any", byoc="o:site"),
            True,
            True,
            "byoc needs o:site; bob@a.org is of a, site-2 is of b",
        ),
        (policy_of(byoc="any"), True, True, "site site-2, lead bob@a.org: submit_job is not named for lead"),
    ],
)
def test_a_job_goes_to_a_site_that_takes_it(policy, custom_code, enable_byoc, refusal):
    bob = Principal("poc", "lead", "bob@a.org", "a")

    def go():
        admit_job(policy, bob, "site-2", "b", custom_code=custom_code, enable_byoc=enable_byoc)

    if refusal is None:
        go()
    else:
        with pytest.raises(NotAuthorised, match=re.escape(refusal)):
            go()


@pytest.fixture
def kit(tmp_path):
    for folder in ("startup", "local"):
        (tmp_path / folder).mkdir()
    (tmp_path / "startup" / "authorization.json").write_text(DEFAULT_AUTHORIZATION)
    return tmp_path


def test_a_kits_own_policy_tightens_the_signed_one(kit):
    lead = Subject("lead", "bob@a.org", "a")
    byoc = Object("site-2", "b", "bob@a.org", "a")
    assert ask(read_policy(kit), lead, "job.submit", byoc).allowed
    (kit / "local" / "authorization.json").write_text(
        '# ours\n{"format_version": "1.0", "permissions": {"lead": {"submit_job": "o:site"}, "member": "any"}}'
    )
    assert not ask(read_policy(kit), lead, "job.submit", byoc).allowed
    assert not ask(read_policy(kit), Subject("member", "m@a.org", "a"), "job.manage", Object()).allowed


def test_a_mistake_in_either_file_is_named_with_its_place(kit):
    local = kit / "local" / "authorization.json"
    local.write_text('{"format_version": "1.0",\n "permissions": {"boss": "any"}}')
    with pytest.raises(BadInput, match=rf"{local}:2:18: permissions\.boss: unknown role"):
        read_policy(kit)
    local.write_bytes(b"{\n\xff}")
    with pytest.raises(BadInput, match=rf"{local}:2:1: not UTF-8"):
        read_policy(kit)
    (kit / "startup" / "authorization.json").unlink()
    with pytest.raises(KitError, match=r"startup/authorization\.json is missing"):
        read_policy(kit)


def test_an_overseers_kit_of_before_goes_by_the_default_which_local_tightens(kit):
    (kit / "startup" / "authorization.json").unlink()
    assert read_policy(kit, missing=default_policy()) == default_policy()
    root = Subject("project_admin", "r@a.org", "a")
    assert ask(read_policy(kit, missing=default_policy()), root, "lease.promote", Object()).allowed
    (kit / "local" / "authorization.json").write_text(
        '{"format_version": "1.0", "permissions": {"project_admin": {"operate": "none"}}}'
    )
    assert not ask(read_policy(kit, missing=default_policy()), root, "lease.promote", Object()).allowed


def test_a_kit_of_before_there_were_policies_has_the_default(kit):
    body = {"version": 1, "about": "...", "permissions": {"job.submit": ["project_admin"]}}
    (kit / "startup" / "authorization.json").write_text(json.dumps(body))
    assert read_policy(kit) == default_policy()
