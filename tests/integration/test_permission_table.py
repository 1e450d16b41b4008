"""Every method and route, called by every role for its own and for another organisation's objects, at real processes.

The table is written by hand from what the project promises (docs/decisions/0015): `project_admin` may do anything; every
other role is denied what belongs to another organisation; `org_admin` manages its organisation's jobs and operates its
sites, `lead` submits and manages its own jobs, `member` looks. Nothing of the program's own tables is imported here.
What is denied has no effect; a method or route that the table does not have fails.
"""

from __future__ import annotations

import pytest

from fedhelm.ids import new_request_id
from fedhelm.security.audit_lines import Report, read_lines
from fedhelm.v1 import admin_pb2 as admin
from tests.support.every_call import COLLEAGUE, ROOT, STRANGER, Calls, Case
from tests.support.organisations import METHODS, Organisations
from tests.support.waiting import eventually_sync

pytestmark = [pytest.mark.processes, pytest.mark.xdist_group("ports")]

CALLERS = {
    "overseer": "overseer",
    "server": "server1",
    "site": "site-a",
    "project_admin": ROOT,
    "org_admin": "anna@alpha.org",
    "lead": "lea@alpha.org",
    "member": "mo@alpha.org",
}
SUBMITTERS = {"project_admin", "lead"}
"""Who has jobs of their own: there is no `mine` for others."""

ADMINS = "project_admin org_admin lead member"
EVERYBODY = f"overseer server site {ADMINS}"
NOBODY = ""

WIRE = {
    "Fleet.Connect": {"self": "site"},
    "Fleet.MissingChunks": {"ours": "site", "theirs": NOBODY},
    "Fleet.PutBlob": {"ours": "site", "theirs": NOBODY},
    "Fleet.GetManifest": {"ours": "site", "theirs": NOBODY},
    "Fleet.GetBlob": {"ours": "site", "theirs": NOBODY},
    "Fleet.Contribute": {"ours": "site", "theirs": NOBODY, "for another": NOBODY},
    "Fleet.PushLines": {"ours": "site", "theirs": NOBODY},
    "Fleet.ReportFailure": {"ours": "site", "theirs": NOBODY},
    "Admin.Challenge": {"self": ADMINS},
    "Admin.Login": {"self": ADMINS, "theirs": NOBODY},
    # What was submitted belongs to its submitter: nobody else writes to it, whatever their role.
    "Admin.MissingChunks": {"new": "project_admin lead", "ours": NOBODY, "theirs": NOBODY},
    "Admin.PutBlob": {"new": "project_admin lead", "ours": NOBODY, "theirs": NOBODY},
    "Admin.SubmitJob": {"new": "project_admin lead", "ours": NOBODY, "theirs": NOBODY},
    "Admin.ListJobs": {"self": ADMINS},
    "Admin.ShowJob": {"mine": "project_admin lead", "ours": ADMINS, "theirs": "project_admin"},
    "Admin.WatchJob": {"mine": "project_admin lead", "ours": ADMINS, "theirs": "project_admin"},
    "Admin.AbortJob": {"mine": "project_admin lead", "ours": "project_admin org_admin", "theirs": "project_admin"},
    "Admin.DeleteJob": {"mine": "project_admin lead", "ours": "project_admin org_admin", "theirs": "project_admin"},
    "Admin.PrepareDownload": {
        "mine": "project_admin lead",
        "ours": "project_admin org_admin",
        "theirs": "project_admin",
    },
    "Admin.DownloadFile": {"mine": "project_admin lead", "ours": "project_admin org_admin", "theirs": "project_admin"},
    "Admin.Operate": {
        "ours": "project_admin org_admin",
        "absent": "project_admin org_admin",  # of the caller's organisation, and never connected
        "theirs": "project_admin",
        "both": "project_admin",
        "everything": "project_admin",
        "server": "project_admin",
    },
    "Admin.CheckStatus": {"self": ADMINS},
}
"""Method -> about whose -> the roles that may."""

UNSEEN = {
    "Admin.ShowJob": "org_admin lead member",
    "Admin.WatchJob": "org_admin lead member",
    "Admin.AbortJob": "org_admin lead",
    "Admin.DeleteJob": "org_admin lead",
    "Admin.PrepareDownload": "org_admin lead",
    "Admin.DownloadFile": "org_admin lead",
}
"""Method -> the roles that are told of another organisation's job, by its whole id, that there is none. Roles that may
never call the method are told that."""

FRESH = {"Admin.AbortJob", "Admin.DeleteJob"}
"""Calls that use up what they are about."""

OVERSEER = {
    "GET /healthz": EVERYBODY,
    "GET /metrics": EVERYBODY,
    "GET /api/v1/openapi.json": EVERYBODY,
    "GET /api/v1/primary": EVERYBODY,
    "GET /api/v1/servers": EVERYBODY,
    "GET /api/v1/servers/{name}/explain": EVERYBODY,
    "GET /api/v1/system": EVERYBODY,
    "GET /api/v1/history": EVERYBODY,
    "GET /api/v1/events": EVERYBODY,
    "GET /api/v1/events/recent": EVERYBODY,
    "GET /api/v1/lease": "server",
    "POST /api/v1/servers/register": "server",
    "POST /api/v1/servers/beat": "server",
    "POST /api/v1/lease/renew": "server",
    "POST /api/v1/lease/activate": "server",
    "POST /api/v1/lease/release": "server",
    # Servers and lease are no organisation's own: who is of one organisation has no say in them.
    "POST /api/v1/promote": "project_admin",
    "POST /api/v1/failover/pause": "project_admin",
    "POST /api/v1/failover/resume": "project_admin",
    "POST /api/v1/shutdown": "project_admin",
    "POST /api/v1/servers/{name}/remove": "project_admin",
    # The list is signed by the root. A server gives it back to an overseer that lost its disk.
    "GET /api/v1/revocations": EVERYBODY,
    "POST /api/v1/revocations": "project_admin org_admin server",
}
"""Route -> the roles that may. What a server may say is about itself alone: see below."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = Organisations(tmp_path_factory.mktemp("organisations"))
    try:
        yield made.start()
    finally:
        made.close()


@pytest.fixture(scope="module")
def calls(world):
    return Calls(world)


def cells(method):
    """Every role and object of one method: (role, case, whether it may)."""
    for about, allowed in WIRE[method].items():
        for role, caller in CALLERS.items():
            if about != "mine" or role in SUBMITTERS:
                # Another stream of a site ends its first one: a site that has none is to ask for one.
                who = "site-d" if (method, role) == ("Fleet.Connect", "site") else caller
                yield role, Case(who, about, method in FRESH and role in allowed.split()), role in allowed.split()


# -- the wire ---------------------------------------------------------------------------------------------------------


def test_every_method_is_in_the_table():
    assert set(WIRE) == set(METHODS)


@pytest.mark.parametrize("method", WIRE)
def test_what_is_denied_is_refused_and_has_no_effect(world, calls, method):
    prepared = [(role, case, calls(method, case)) for role, case, may in cells(method) if not may]
    before, quick = world.state(), world.quick_state()
    got_through, changed = {}, []
    for role, case, messages in prepared:
        told = world.call(case.caller, method, messages)
        if told.code not in refusals(method, role, case):
            got_through[role, case.about] = told.code
        if new := world.new_since(quick):
            changed.append((role, case.about, new))
            quick = world.quick_state()
    assert (got_through, changed) == ({}, [])
    assert world.new_since(before) == {}


def refusals(method, role, case):
    """The codes of a refusal. A login with somebody else's nonce proves nothing: that is what it is told."""
    if (method, case.about) == ("Admin.Login", "theirs"):
        return {"BAD_CERTIFICATE", "NOT_AUTHORISED"}
    if case.about == "theirs" and role in UNSEEN.get(method, "").split():
        return {"JOB_NOT_FOUND"}
    return {"NOT_AUTHORISED"}


@pytest.mark.parametrize("method", WIRE)
def test_what_is_allowed_is_done(world, calls, method):
    # A server that restarts is another one for what follows: that is the last test.
    allowed = [(role, case) for role, case, may in cells(method) if may and case.about != "server"]
    told = {(role, case.about): world.call(case.caller, method, calls(method, case)).code for role, case in allowed}
    assert told == dict.fromkeys(told, "OK")


def test_a_standby_refuses_the_same_roles_and_does_nothing_for_the_others(world, calls):
    prepared = [(method, role, case, calls(method, case)) for method in WIRE for role, case, _ in cells(method)]
    before = world.state()
    for method, role, case, messages in prepared:
        told = world.call(case.caller, method, messages, world.standby).code
        if not any(role in allowed.split() for allowed in WIRE[method].values()):
            assert told == "NOT_AUTHORISED", (method, role, case.about)
        else:
            assert told == ("OK" if method == "Fleet.Connect" else "NOT_PRIMARY"), (method, role, case.about)
    assert world.new_since(before) == {}


# -- rows of answers --------------------------------------------------------------------------------------------------


def test_lists_have_what_the_caller_may_look_at_and_nothing_else(world, calls):
    ours, theirs = world.submit(COLLEAGUE), world.submit(STRANGER)
    seen = {role: jobs_listed(world, caller) for role, caller in CALLERS.items() if role in ADMINS.split()}
    for role, jobs in seen.items():
        assert ours in jobs, role
        assert (theirs in jobs) == (role == "project_admin"), role
        submitters = {row.submitter.partition("@")[2] for row in jobs.values()}
        assert submitters == ({"alpha.org", "beta.org"} if role == "project_admin" else {"alpha.org"}), role
    assert set(jobs_listed(world, STRANGER)) >= {theirs}
    assert not set(jobs_listed(world, STRANGER)) & set(seen["org_admin"])


def jobs_listed(world, caller):
    answer = world.call(caller, "Admin.ListJobs", [b""])
    return {row.job: row for row in admin.ListJobsReply.FromString(answer.data[0]).jobs}


def test_the_status_has_the_sites_that_the_caller_may_look_at_and_nothing_else(world):
    for role in ADMINS.split():
        answer = world.call(CALLERS[role], "Admin.CheckStatus", [b""])
        sites = {row.name for row in admin.StatusReply.FromString(answer.data[0]).sites}
        ours = {"site-a", "site-c", "site-d"}
        assert sites == (ours | {"site-b"} if role == "project_admin" else ours), role


def test_the_beginning_of_a_foreign_jobs_id_tells_nothing_of_it(world):
    """It is as if there were none: neither an error nor a hint says whose it is, or that it is there."""
    theirs = world.submit(STRANGER)
    for role in ("org_admin", "lead", "member"):
        for method in ("Admin.ShowJob", "Admin.WatchJob", "Admin.PrepareDownload"):
            if method == "Admin.PrepareDownload" and role == "member":
                continue  # may download nothing at all
            asked = admin.JobRequest(job=theirs[:-1]).SerializeToString()
            assert world.call(CALLERS[role], method, [asked]).code == "JOB_NOT_FOUND", (role, method)
    assert world.call(ROOT, "Admin.ShowJob", [asked]).code == "OK"


# -- the overseer -----------------------------------------------------------------------------------------------------


def request_to(world, route):
    """A request that would do something: method, path, body."""
    method, path = route.split()
    epoch = world.ask(ROOT, "GET", "/api/v1/primary").data["epoch"]
    holds = {"epoch": epoch, "incarnation": "another", "log_epoch": epoch, "log_seq": 0}
    member = {"incarnation": "another", "log_epoch": epoch, "log_seq": 0, "role": "STANDBY", "ready": True}
    bodies = {
        "/servers/register": member | {"cluster": world.kits["server1"].cluster},
        "/servers/beat": member,
        "/lease/renew": holds | {"role": "ACTIVE"},
        "/lease/activate": holds,
        "/lease/release": holds | {"reason": "because"},
        "/promote": {"target": world.standby, "request_id": new_request_id()},
        "/revocations": {"format": 1},
    }
    body = bodies.get(path.removeprefix("/api/v1"), {"request_id": new_request_id(), "reason": "because"})
    return method, path.replace("{name}", world.standby), None if method == "GET" else body


def test_every_route_is_in_the_table(world):
    described = world.ask(ROOT, "GET", "/api/v1/openapi.json").data["paths"]
    routes = {f"{verb.upper()} {path}" for path, verbs in described.items() for verb in verbs}
    assert set(OVERSEER) == routes | {"GET /api/v1/openapi.json"}


@pytest.mark.parametrize("route", OVERSEER)
def test_who_may_not_is_refused_at_the_overseer_without_effect(world, route):
    denied = [role for role in CALLERS if role not in OVERSEER[route].split()]
    before, quick = world.state(), world.quick_state()
    told, changed = {}, []
    for role in denied:
        told[role] = world.ask(CALLERS[role], *request_to(world, route)).code
        if new := world.new_since(quick):
            changed.append((role, new))
            quick = world.quick_state()
    assert told == dict.fromkeys(denied, "NOT_AUTHORISED")
    assert changed == []
    assert world.new_since(before) == {}


SAID = {
    # A stranger among incarnations gets through the gates, and holds nothing.
    "POST /api/v1/servers/beat": {"NOT_FOUND"},
    "POST /api/v1/lease/activate": {"REFUSED"},
    "POST /api/v1/lease/release": {"REFUSED"},
    "POST /api/v1/revocations": {"BAD_INPUT"},
    "POST /api/v1/servers/{name}/remove": {"REFUSED"},  # it lives
}
USING_UP = {"POST /api/v1/promote", "POST /api/v1/shutdown"}


@pytest.mark.parametrize("route", sorted(set(OVERSEER) - USING_UP))
def test_who_may_is_heard_at_the_overseer(world, route):
    allowed = OVERSEER[route].split()
    told = {role: world.ask(CALLERS[role], *request_to(world, route)).code for role in allowed}
    assert {role: code for role, code in told.items() if code not in SAID.get(route, {"OK"})} == {}


def test_a_server_speaks_for_itself_alone(world):
    """With the incarnation of the one that leads: neither its lease nor its place among the servers moves."""
    before = world.state()
    lease = world.ask(world.standby, "GET", "/api/v1/lease").data
    assert lease["holder"] == world.primary
    stolen = {"incarnation": lease["incarnation"]}
    for route in ("renew", "activate", "release"):
        method, path, body = request_to(world, f"POST /api/v1/lease/{route}")
        answer = world.ask(world.standby, method, path, body | stolen)
        assert answer.code == "REFUSED" or answer.data["held"] is False, (route, answer)
    for route in ("beat", "register"):
        method, path, body = request_to(world, f"POST /api/v1/servers/{route}")
        answer = world.ask(world.standby, method, path, body | stolen)
        assert answer.code == "NOT_FOUND" or answer.data["accepted"] is False, (route, answer)
    assert world.new_since(before) == {}


# -- afterwards -------------------------------------------------------------------------------------------------------


def test_every_refusal_is_in_the_audit_file(world):
    """Of the server and of the overseer, by action and caller; and the chain of lines is whole."""
    denied = {
        world.primary: {
            (method, case.caller)
            for method in WIRE
            for role, case, may in cells(method)
            if not may and "BAD_CERTIFICATE" not in refusals(method, role, case)
        },
        "overseer": {
            (route, CALLERS[role]) for route, allowed in OVERSEER.items() for role in set(CALLERS) - {*allowed.split()}
        },
    }
    for name, asked in denied.items():
        assert asked
        eventually_sync(lambda name=name, asked=asked: asked <= written(world, name), 20, f"{name} writes them all")


def written(world, name):
    report = Report()
    with (world.kits[name].root / "audit.jsonl").open("rb") as file:
        bodies = [line.body for line in read_lines(file, report)]
    assert report.sound, report
    return {(one["action"], one["by"]["name"]) for one in bodies if one["outcome"] == "denied" and one["by"]}


# -- what ends the world: last ----------------------------------------------------------------------------------------


def test_a_project_admin_restarts_a_server_and_shuts_all_down(world, calls):
    told = world.call(ROOT, "Admin.Operate", calls("Admin.Operate", Case(ROOT, "server")))
    assert told.code == "OK"
    told = world.ask(ROOT, *request_to(world, "POST /api/v1/shutdown"))
    assert told.code == "OK"
    assert told.data["shutdown"] is not None
    eventually_sync(lambda: {name for name, _, _ in world.processes()} == {"overseer"}, 60, world.tails())
