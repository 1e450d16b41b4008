"""A call on its way: gate one, gate two, audit. A handler that asks nobody does not answer."""

from __future__ import annotations

import pytest

from fedhelm.errors import FedhelmError, JobNotFound, NotAuthorised
from fedhelm.security.audit_lines import START, Outcome, encode
from fedhelm.security.authorization import Object, default_policy
from fedhelm.security.gates import ENDPOINTS
from fedhelm.security.identity import Principal
from fedhelm.security.passage import Passage

BOB = Principal("poc", "lead", "bob@a.org", "a", "5f")
OWN, FOREIGN = Object(None, None, "bob@a.org", "a"), Object(None, None, "alice@b.org", "b")


def passage(name, principal=BOB):
    return Passage(name, principal, default_policy())


def test_what_is_allowed_passes_and_is_written():
    call = passage("Admin.AbortJob")
    call.enter()
    call.admit(OWN, job="k7m3tq4w2zpx")
    call.check_asked()
    entry = call.entry()
    assert (entry.action, entry.outcome, entry.by) == ("Admin.AbortJob", Outcome.ALLOWED, BOB)
    assert entry.object == {"job": "k7m3tq4w2zpx", "submitter": "bob@a.org"}


def test_what_the_policy_denies_is_written_with_its_rule():
    call = passage("Admin.AbortJob")
    call.enter()
    with pytest.raises(NotAuthorised, match="manage_job needs n:submitter") as refusal:
        call.admit(FOREIGN, job="k7m3tq4w2zpx")
    entry = call.entry(refusal.value)
    assert (entry.outcome, entry.object["submitter"]) == (Outcome.DENIED, "alice@b.org")
    assert "bob@a.org did not submit it" in entry.why


def test_what_the_role_may_not_call_is_written():
    call = passage("POST /api/v1/promote")
    with pytest.raises(NotAuthorised, match=r"lacks the permission lease\.promote") as refusal:
        call.enter()
    assert call.entry(refusal.value).outcome is Outcome.DENIED


def test_a_handler_that_asks_nobody_does_not_answer():
    for name, endpoint in ENDPOINTS.items():
        call = passage(name)
        if endpoint.right is None:
            call.check_asked()
        else:
            with pytest.raises(FedhelmError, match="without asking the policy"):
                call.check_asked()


def test_rows_are_asked_one_by_one_and_a_look_is_not_written():
    call = passage("Admin.ListJobs")
    assert call.keep([OWN, FOREIGN, Object(None, None, "c@a.org", "a")], lambda one: one) == [
        OWN,
        Object(None, None, "c@a.org", "a"),
    ]
    call.check_asked()
    assert call.entry() is None
    assert call.entry(JobNotFound("no such job")) is None
    assert call.entry(NotAuthorised("no")).outcome is Outcome.DENIED


def test_a_list_without_rows_was_asked_too():
    call = passage("Admin.ListJobs")
    assert call.keep([], lambda one: one) == []
    call.check_asked()


def test_what_has_no_right_is_for_the_handler():
    call = passage("Fleet.Connect", Principal("poc", "site", "site-1", "a"))
    call.enter()
    call.admit(Object("site-1", "a"))
    assert call.keep([FOREIGN], lambda one: one) == [FOREIGN]
    assert call.entry().object == {"site": "site-1"}
    assert call.entry(JobNotFound("gone")).outcome is Outcome.FAILED


def test_only_calls_that_are_known_pass():
    with pytest.raises(KeyError):
        passage("Admin.Nothing")


@pytest.mark.parametrize("number", [2, 40, 1000])
def test_every_site_of_a_call_is_named_as_far_as_a_line_has_room(number):
    call = passage("Admin.Operate", Principal("poc", "project_admin", "alice@a.org", "a", "5f"))
    names = [f"site-{one}" for one in range(number)]
    for name in names:
        call.admit(Object(name, "a"), action="shutdown", target="@ALL")
    line = encode(call.entry(), 1, START[1], "2026-01-01T00:00:00.000Z")
    told = line.body["object"]["site"].split(", ")
    if number < 200:
        assert told == names
    else:
        assert told[:-1] == names[: len(told) - 1]
        assert told[-1] == f"and {number - len(told) + 1} more"
        assert len(told) > 100
