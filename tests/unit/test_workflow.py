from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhelm.learning.workflow import ClosedView, ContributionView, StepView, best_round, weighted_metrics


def train(number, **metrics):
    return ClosedView(number, "train", metrics)


def evaluated(number, **metrics):
    return ClosedView(number, "evaluate", metrics)


def test_metrics_are_weighted_by_examples():
    found = weighted_metrics(
        [ContributionView("b", 3.0, {"accuracy": 1.0}), ContributionView("a", 1.0, {"accuracy": 0.0, "loss": 2.0})]
    )
    assert found == {"accuracy": 0.75, "loss": 2.0}


def test_metrics_without_weights_are_the_plain_mean():
    assert weighted_metrics([ContributionView("a", 0.0, {"x": 1.0}), ContributionView("b", 0.0, {"x": 3.0})]) == {
        "x": 2.0
    }


def test_a_metric_that_is_not_finite_is_left_out():
    found = weighted_metrics(
        [ContributionView("a", 1.0, {"x": math.nan, "y": math.inf}), ContributionView("b", 1.0, {"x": 3.0})]
    )
    assert found == {"x": 3.0}


def test_no_contributions_have_no_metrics():
    assert weighted_metrics([]) == {}


@given(st.permutations([ContributionView(f"s{i}", 0.1 * i + 0.3, {"x": 1.0 / (i + 1)}) for i in range(6)]))
def test_metrics_do_not_depend_on_the_order_of_arrival(contributions):
    ordered = sorted(contributions, key=lambda one: one.site)
    assert weighted_metrics(contributions) == weighted_metrics(ordered)


@pytest.mark.parametrize(
    ("closed", "metric", "best"),
    [
        ((), None, None),
        ((evaluated(1, accuracy=1.0),), None, None),
        ((train(1), train(2)), None, 2),
        ((train(1, accuracy=0.9), train(2, accuracy=0.8)), None, 1),
        ((train(1, accuracy=0.9), train(2, accuracy=0.9)), None, 1),
        ((train(1, loss=0.9), train(2, loss=0.8)), None, 2),
        ((train(1, val_loss=0.7, f1=0.1), train(2, val_loss=0.8, f1=0.2)), "val_loss", 1),
        ((train(1, val_loss=0.7, f1=0.1), train(2, val_loss=0.8, f1=0.2)), "f1", 2),
        ((train(1, accuracy=0.9), train(2)), "f1", 2),
        # the evaluation of the global model outranks what came with the local ones
        (
            (train(1, accuracy=0.9), evaluated(1, accuracy=0.1), train(2, accuracy=0.1), evaluated(2, accuracy=0.2)),
            None,
            2,
        ),
    ],
)
def test_best_round(closed, metric, best):
    assert best_round(closed, metric) == best


def test_living_sites_are_sorted_members_that_did_not_fail():
    assert StepView((), None, ("c", "a", "b"), {"b": "it died"}).living == ("a", "c")
