"""Two overseers share one PostgreSQL: either may die or hang, and so may the database, and nobody notices."""

from __future__ import annotations

import signal
import time

import pytest

from tests.support.federation import Federation
from tests.support.jobs import calls, make_job
from tests.support.postgres import postgres  # noqa: F401  a fixture
from tests.support.waiting import eventually_sync

pytestmark = pytest.mark.processes

FREEZE = 7.0
PROMISE = 5.0


@pytest.fixture(scope="module")
def standing(tmp_path_factory, postgres):  # noqa: F811
    """Two overseers, servers and sites; every test leaves all of them alive."""
    url = postgres.url(postgres.database())
    made = Federation(tmp_path_factory.mktemp("overseers"), overseers=2, lease_store=url)
    try:
        yield made.start()
    finally:
        made.close()


def held_job(federation, folder, rounds=3):
    """A job whose round 2 waits for site-2, and the folder in which its gates are."""
    job_folder, shared = make_job(folder, rounds=rounds)
    (shared / "hold-site-2-2").touch()
    job = federation.submit(job_folder)
    eventually_sync(lambda: calls(shared, "site-2") == ["train 1", "train 2"], 30, "site-2 trains in round 2")
    return job, shared


def finish(federation, job, shared, rounds=3):
    (shared / "gate-site-2-2").touch()
    assert federation.wait(job) == "FINISHED:COMPLETED", federation.tails()
    for site in federation.sites:
        assert calls(shared, site) == [f"train {number}" for number in range(1, rounds + 1)], federation.tails()


def crash_the_primary(federation):
    """Kill the primary's child; return the history's line of the epoch that follows."""
    before = federation.primary()
    federation.kill(before["name"])
    after = federation.leader(above=before["epoch"])
    assert after["epoch"] == before["epoch"] + 1
    lines = federation.console("history").data
    assert [line["epoch"] for line in lines] == list(range(1, after["epoch"] + 1)), "one grant of each epoch"
    return lines[-1]


def all_stand_by(federation):
    """Wait until every server is up: one leads, the others may take over."""

    def look():
        answer = federation.console("list_sp")
        states = sorted(row["state"] for row in answer.data) if answer.rc == 0 else None
        return states == ["ACTIVE", "STANDBY"]

    eventually_sync(look, 30, federation.tails())


def frozen_for(seconds, since):
    """Wait until ``seconds`` have passed since ``since`` (boot time)."""
    eventually_sync(lambda: boottime() >= since + seconds, seconds + 30)


def boottime():
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def test_an_overseer_may_die_and_the_other_replaces_a_dead_primary(standing, tmp_path):
    victim = "overseer2"
    all_stand_by(standing)
    job, shared = held_job(standing, tmp_path / "job")
    standing.kill(victim, "overseer")
    line = crash_the_primary(standing)
    assert line["gap_s"] < PROMISE
    finish(standing, job, shared)
    epoch = standing.primary()["epoch"]
    standing.start_one(victim)
    all_stand_by(standing)
    assert standing.primary()["epoch"] == epoch, "an overseer that comes back changes nothing"


def test_an_overseer_may_hang_while_the_primary_dies(standing, tmp_path):
    victim = "overseer"  # the one that everybody asks first
    all_stand_by(standing)
    before = standing.primary()["epoch"]
    job, shared = held_job(standing, tmp_path / "job")
    begun = boottime()
    standing.kill(victim, "overseer", signal.SIGSTOP)
    try:
        frozen_for(FREEZE, begun)
        assert standing.primary()["epoch"] == before, "an overseer that hangs is no reason to fail over"
        line = crash_the_primary(standing)
    finally:
        standing.kill(victim, "overseer", signal.SIGCONT)
    assert line["gap_s"] < PROMISE
    finish(standing, job, shared)
    all_stand_by(standing)
    assert standing.primary()["epoch"] == before + 1, "the overseer that woke up decided nothing"


def test_a_frozen_database_stops_no_training_and_fails_nobody_over(standing, postgres, tmp_path):  # noqa: F811
    all_stand_by(standing)
    before = standing.primary()
    job, shared = held_job(standing, tmp_path / "job", rounds=4)
    (shared / "hold-site-2-4").touch()
    begun = boottime()
    with postgres.frozen():
        frozen_for(4, begun)  # longer than the lease: the primary goes on without it
        (shared / "gate-site-2-2").touch()
        eventually_sync(lambda: "train 4" in calls(shared, "site-2"), 30, f"training goes on: {standing.tails()}")
        frozen_for(FREEZE, begun)
        assert {one for one in standing.processes() if one[1] == "overseer"} != set(), "they stay up"
    (shared / "gate-site-2-4").touch()
    finish(standing, job, shared, rounds=4)
    all_stand_by(standing)
    after = standing.primary()
    assert (after["name"], after["epoch"]) == (before["name"], before["epoch"]), standing.tails()
    # And the lease is kept again: a crash is answered at once.
    assert crash_the_primary(standing)["gap_s"] < PROMISE


def test_a_restarted_database_is_found_again(standing, postgres, tmp_path):  # noqa: F811
    all_stand_by(standing)
    before = standing.primary()["epoch"]
    job, shared = held_job(standing, tmp_path / "job")
    postgres.stop()
    postgres.start()
    finish(standing, job, shared)
    all_stand_by(standing)
    assert standing.primary()["epoch"] == before
    assert crash_the_primary(standing)["gap_s"] < PROMISE
