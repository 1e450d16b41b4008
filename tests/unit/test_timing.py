from __future__ import annotations

import dataclasses

import pytest

from fedhelm.config.timing import PROFILES, RHO, Timing
from fedhelm.errors import BadInput

DEFAULT = PROFILES["default"]


@pytest.mark.parametrize("name", ["fast", "default", "wan"])
def test_every_profile_keeps_its_promise(name):
    timing = PROFILES[name]
    timing.check()
    timing.check(stop_when_unleased=True)
    assert timing.name == name
    assert timing.failover <= timing.promise


def test_the_default_is_what_the_protocol_says():
    assert dataclasses.astuple(DEFAULT) == ("default", 3.0, 0.5, 0.5, 0.5, 0.4, 0.25, 0.3, 0.25, 5.0)
    assert DEFAULT.holder_lease == pytest.approx(3.0 * (1 - RHO) - 0.5)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"request": 1.5}, r"\(a\) R \+ 2Q"),
        ({"commit_alarm": 0.6}, r"\(b\) C <= M"),
        ({"observe": 0.3}, r"\(c\) P <= R/2"),
        ({"renew": 0.7, "request": 0.1}, r"\(d\) 4R \+ M <= T"),
        ({"promise": 4.8}, r"\(e\) T \+ 3P"),
        ({"retry": 1.0}, r"\(e\) T \+ 3P"),
        ({"lease": 0}, "lease is 0"),
        ({"margin": float("nan")}, "margin is nan"),
        ({"promise": float("inf")}, "promise is inf"),
    ],
)
def test_times_that_break_a_rule_are_refused_and_the_rule_is_named(change, rule):
    with pytest.raises(BadInput, match=rule):
        dataclasses.replace(DEFAULT, **change).check()


def test_the_largest_alarm_counts_when_it_is_longer_than_the_promotion():
    assert dataclasses.replace(DEFAULT, commit_alarm=0.5).failover == pytest.approx(DEFAULT.failover + 0.1)


def test_json_there_and_back():
    assert Timing.from_json(DEFAULT.to_json()) == DEFAULT


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {"name": "x"},
        {**DEFAULT.to_json(), "extra": 1},
        {**DEFAULT.to_json(), "lease": "3"},
        {**DEFAULT.to_json(), "lease": True},
        {**DEFAULT.to_json(), "lease": 1.0},
    ],
)
def test_json_that_is_no_timing_is_refused(data):
    with pytest.raises(BadInput, match="timing"):
        Timing.from_json(data)


@pytest.mark.parametrize("value", [10**400, -(10**400), 1e300, float("inf"), float("nan")])
def test_a_number_beyond_any_time_is_refused(value):
    with pytest.raises(BadInput, match="lease is no number of seconds"):
        Timing.from_json({**PROFILES["fast"].to_json(), "lease": value})
