from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhelm.errors import BadInput
from fedhelm.learning.fedavg import FedAvg
from fedhelm.learning.workflow import (
    ClosedView,
    CloseRound,
    ContributionView,
    Fail,
    Finish,
    OpenRound,
    RoundView,
    StepView,
    Wait,
)

SITES = ("site-1", "site-2", "site-3")


def step(answered=(), *, closed=(), failed=None, opened_for_s=0.0, number=1, kind="train", members=SITES):
    contributions = {site: ContributionView(site, 1.0, {}) for site in answered}
    return StepView(closed, RoundView(0, number, kind, members, contributions, opened_for_s), SITES, failed or {})


def between(*closed, failed=None):
    return StepView(closed, None, SITES, failed or {})


def trained(number):
    return ClosedView(number, "train", {})


def judged(number):
    return ClosedView(number, "evaluate", {})


def test_rounds_follow_one_another_and_end():
    workflow = FedAvg(2)
    assert workflow.decide(between()) == OpenRound(1, 2, "train", None)
    assert workflow.decide(between(trained(1))) == OpenRound(2, 2, "train", None)
    assert workflow.decide(between(trained(1), trained(2))) == Finish()


def test_evaluation_follows_every_training_round():
    workflow = FedAvg(2, evaluate=True, deadline_s=9.0, min_responses=1)
    assert workflow.decide(between()) == OpenRound(1, 2, "train", 9.0)
    assert workflow.decide(between(trained(1))) == OpenRound(1, 2, "evaluate", 9.0)
    assert workflow.decide(between(trained(1), judged(1))) == OpenRound(2, 2, "train", 9.0)
    assert workflow.decide(between(trained(1), judged(1), trained(2))) == OpenRound(2, 2, "evaluate", 9.0)
    assert workflow.decide(between(trained(1), judged(1), trained(2), judged(2))) == Finish()


def test_a_round_waits_for_all_members_for_ever():
    workflow = FedAvg(1)
    assert workflow.decide(step(["site-3"], opened_for_s=1e9)) == Wait(("site-1", "site-2"), None)
    assert workflow.decide(step(["site-3", "site-1", "site-2"])) == CloseRound(SITES)


def test_enough_responses_close_a_round_at_once_without_a_deadline():
    workflow = FedAvg(1, min_responses=2)
    assert workflow.decide(step(["site-3"])) == Wait(("site-1", "site-2"), None)
    assert workflow.decide(step(["site-3", "site-1"])) == CloseRound(("site-1", "site-3"))


def test_a_deadline_gives_the_slow_ones_their_time():
    workflow = FedAvg(1, min_responses=2, deadline_s=30.0)
    assert workflow.decide(step(["site-1", "site-2"], opened_for_s=10.0)) == Wait(("site-3",), 20.0)
    assert workflow.decide(step(["site-1", "site-2"], opened_for_s=30.0)) == CloseRound(("site-1", "site-2"))
    assert workflow.decide(step(SITES, opened_for_s=10.0)) == CloseRound(SITES)


def test_a_deadline_with_too_few_answers_waits_on_and_says_for_whom():
    workflow = FedAvg(1, min_responses=2, deadline_s=30.0)
    assert workflow.decide(step(["site-1"], opened_for_s=31.0)) == Wait(("site-2", "site-3"), None)
    assert workflow.decide(step(["site-1", "site-3"], opened_for_s=99.0)) == CloseRound(("site-1", "site-3"))


def test_nobody_waits_for_a_dead_site_until_the_deadline():
    workflow = FedAvg(1, min_responses=2, deadline_s=30.0)
    assert workflow.decide(step(["site-1", "site-2"], failed={"site-3": "killed"})) == CloseRound(("site-1", "site-2"))


def test_a_failed_site_ends_a_job_that_needs_all():
    action = FedAvg(5).decide(step(["site-1"], failed={"site-2": "ZeroDivisionError: x"}, number=3))
    assert isinstance(action, Fail)
    assert "site-2 failed: ZeroDivisionError: x in round 3 of 5" in action.reason
    assert "site-2" in FedAvg(5).decide(between(trained(1), failed={"site-2": "gone"})).reason


def test_a_failed_site_is_left_behind_where_enough_remain():
    workflow = FedAvg(5, min_responses=2)
    assert workflow.decide(step(["site-1"], failed={"site-2": "gone"})) == Wait(("site-3",), None)
    assert workflow.decide(between(trained(1), failed={"site-2": "gone"})) == OpenRound(2, 5, "train", None)
    action = workflow.decide(step(["site-1"], failed={"site-2": "gone", "site-3": "bad disk"}))
    assert isinstance(action, Fail)
    assert "site-3 failed: bad disk" in action.reason
    assert "2 needed" in action.reason


def test_a_failure_after_the_last_answer_is_of_no_consequence():
    assert FedAvg(1).decide(step(SITES, failed={"site-1": "crashed while it cleaned up"})) == CloseRound(SITES)
    assert FedAvg(1).decide(between(trained(1), failed={"site-1": "crashed"})) == Finish()


def test_a_stranger_s_contribution_counts_for_nothing():
    assert FedAvg(1).decide(step(["site-9", "site-1"], members=("site-1", "site-2"))) == Wait(("site-2",), None)


@pytest.mark.parametrize(
    "arguments", [{"rounds": 0}, {"rounds": 1, "min_responses": 0}, {"rounds": 1, "deadline_s": 0.0}]
)
def test_senseless_numbers_are_refused(arguments):
    with pytest.raises(BadInput):
        FedAvg(**arguments)


@given(
    st.integers(1, 4),
    st.none() | st.integers(1, 3),
    st.none() | st.floats(0.5, 50),
    st.booleans(),
    st.data(),
)
def test_every_run_ends(rounds, min_responses, deadline, evaluate, data):
    """Whatever answers and fails in whatever order, the step finishes or fails after finitely many actions."""
    workflow = FedAvg(rounds, min_responses, deadline, evaluate)
    closed, failed, open_round, elapsed = [], {}, None, 0.0
    for _ in range(200):
        view = StepView(tuple(closed), open_round, SITES, dict(failed))
        action = workflow.decide(view)
        assert workflow.decide(view) == action
        match action:
            case Finish():
                assert [one.round for one in closed if one.kind == "train"] == list(range(1, rounds + 1))
                assert [one.round for one in closed if one.kind == "evaluate"] == (
                    list(range(1, rounds + 1)) if evaluate else []
                )
                return
            case Fail():
                assert failed
                return
            case OpenRound():
                elapsed = 0.0
                open_round = RoundView(0, action.round, action.kind, view.living, {}, 0.0)
            case CloseRound(sites):
                assert len(sites) >= (min_responses or len(open_round.members))
                assert list(sites) == sorted(open_round.contributions)
                closed.append(ClosedView(open_round.round, open_round.kind, {}))
                open_round = None
            case Wait(for_sites, wake):
                assert for_sites
                assert wake is None or wake > 0
                site = data.draw(st.sampled_from(for_sites))
                if data.draw(st.integers(0, 4)) == 0:
                    failed[site] = "died"
                    contributions = open_round.contributions
                else:
                    contributions = {**open_round.contributions, site: ContributionView(site, 1.0, {})}
                elapsed += data.draw(st.floats(0, 20))
                open_round = RoundView(0, open_round.round, open_round.kind, open_round.members, contributions, elapsed)
    raise AssertionError("the step did not end")
