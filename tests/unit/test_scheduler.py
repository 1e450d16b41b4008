"""Which waiting jobs start, and what the others are told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhelm_server.job_book import JobState
from fedhelm_server.scheduler import deployed_sites, schedule
from tests.fakes.server_log import config, submitted

SITES = ("site-1", "site-2", "site-3")


def job(name="a", sites=("@ALL",), **extra):
    body = submitted(name)
    chosen = {**config(), "deploy": {"app": list(sites)}, **extra}
    names = ("job", "name", "submitter", "request_id", "bundle")
    return JobState(**{key: body[key] for key in names}, config=chosen, submit_time=body["time"], seq=1)


def plan(jobs, connected):
    return schedule(jobs, frozenset(connected), SITES)


def test_a_job_for_all_waits_for_all_and_says_for_whom():
    found = plan([job()], ("site-2",))
    assert found.dispatch == ()
    assert found.waits == {"a": "waits for 2 more of site-1, site-3 to connect"}
    assert plan([job()], SITES).dispatch == (("a", SITES),)
    assert plan([job()], SITES).waits == {}


def test_a_job_takes_every_deployed_site_that_is_here_once_there_are_enough():
    wanted = job(min_sites=2)
    assert plan([wanted], ("site-3",)).waits == {"a": "waits for 1 more of site-1, site-2 to connect"}
    assert plan([wanted], ("site-3", "site-1")).dispatch == (("a", ("site-1", "site-3")),)
    assert plan([wanted], SITES).dispatch == (("a", SITES),)


def test_mandatory_sites_are_waited_for_by_name():
    wanted = job(min_sites=1, mandatory_sites=["site-2", "site-3"])
    assert plan([wanted], ("site-1", "site-3")).waits == {"a": "waits for mandatory site-2 to connect"}
    assert plan([wanted], ("site-2", "site-3")).dispatch == (("a", ("site-2", "site-3")),)


def test_only_the_sites_it_is_deployed_to_count():
    wanted = job(sites=("site-3", "site-1"))
    assert plan([wanted], ("site-1", "site-2")).dispatch == ()
    assert plan([wanted], SITES).dispatch == (("a", ("site-1", "site-3")),)


def test_a_waiting_job_does_not_hold_up_the_one_behind_it():
    found = plan([job("a"), job("b", ("site-1",)), job("c", ("site-1",))], ("site-1",))
    assert found.dispatch == (("b", ("site-1",)), ("c", ("site-1",)))
    assert set(found.waits) == {"a"}


def test_all_stands_for_the_projects_sites():
    assert deployed_sites({"deploy": {"app": ["@ALL"]}}, {"b", "a"}) == ("a", "b")
    assert deployed_sites({"deploy": {"app": ["c", "a"]}}, {"b", "a"}) == ("a", "c")


def test_a_site_that_the_project_does_not_have_is_waited_for_and_named():
    assert plan([job(sites=("elsewhere",))], SITES).waits == {"a": "waits for 1 more of elsewhere to connect"}


@given(
    st.lists(
        st.builds(
            lambda sites, least, must: (sites, least, must),
            st.lists(st.sampled_from(SITES), min_size=1, unique=True),
            st.none() | st.integers(1, 3),
            st.lists(st.sampled_from(SITES), unique=True),
        ),
        max_size=4,
    ),
    st.sets(st.sampled_from(SITES)),
)
def test_every_job_is_either_dispatched_or_told_why_not(wanted, connected):
    jobs = [
        job(f"job-{n}", sites, min_sites=least, mandatory_sites=must) for n, (sites, least, must) in enumerate(wanted)
    ]
    found = plan(jobs, connected)
    started = dict(found.dispatch)
    assert set(started) | set(found.waits) == {one.job for one in jobs}
    assert not set(started) & set(found.waits)
    assert list(started) == [one.job for one in jobs if one.job in started]
    for one in jobs:
        if one.job in started:
            sites = started[one.job]
            assert set(sites) == set(one.config["deploy"]["app"]) & connected
            assert len(sites) >= (one.config["min_sites"] or len(one.config["deploy"]["app"]))
            assert set(one.config["mandatory_sites"]) <= connected


@pytest.mark.parametrize("nothing", [[], None])
def test_an_empty_list_of_mandatory_sites_is_none(nothing):
    assert plan([job(mandatory_sites=nothing)], SITES).waits == {}


def test_an_ephemeral_job_takes_only_sites_that_keep_their_results():
    versions = {"site-1": 2, "site-2": 1, "site-3": 2}

    def planned(**extra):
        return schedule([job(**extra)], frozenset(SITES), SITES, versions)

    assert planned().dispatch == (("a", SITES),)
    assert planned(durability="ephemeral").waits == {
        "a": "waits for 1 more of site-2 to connect; site-2 must be upgraded first: an ephemeral job needs wire version 2"
    }
    assert planned(durability="ephemeral", min_sites=2).dispatch == (("a", ("site-1", "site-3")),)
    waits = planned(durability="ephemeral", min_sites=1, mandatory_sites=["site-2"]).waits["a"]
    assert waits.startswith("waits for mandatory site-2")
    assert "must be upgraded" in waits
