"""Whatever is stopped, hung or killed: `poc stop` leaves nothing, and a job comes to its end with nothing done twice."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.support.jobs import calls, make_job
from tests.support.waiting import eventually_sync

pytestmark = [pytest.mark.processes, pytest.mark.xdist_group("stop")]

ALL_ROUNDS = ["train 1", "train 2", "train 3"]
CUT = ["train 1", "train 2", "train 2", "train 3"]

# Where each kind of process is found: below the primary, below the site that still trains, or alone.
PLACES = {
    "supervisor": "primary",
    "child": "primary",
    "runner": "primary",
    "agent": "site-2",
    "nanny": "site-2",
    "job": "site-2",
    "overseer": "overseer",
}


def _held_at_round_2(federation, folder, sites=("site-2",)):
    """site-1 has given its answer to round 2, site-2 is still at it."""
    job_folder, shared = make_job(folder)
    for site in sites:
        (shared / f"hold-{site}-2").touch()
    job = federation.submit(job_folder)
    for site in sites:
        eventually_sync(lambda site=site: calls(shared, site) == ALL_ROUNDS[:2], 40, federation.tails())
    others = [site for site in federation.sites if site not in sites]
    for site in others:
        eventually_sync(lambda site=site: {"name": site, "status": "DONE"} in federation.show(job)["sites"], 20)
    return job, shared


def _open_gates(shared):
    for held in shared.glob("hold-*"):
        (shared / held.name.replace("hold", "gate")).touch()


def _place(federation, kind):
    return federation.primary()["name"] if PLACES[kind] == "primary" else PLACES[kind]


def _gone(pids):
    eventually_sync(lambda: not any(_alive(pid) for pid in pids), 15, f"{pids} are gone")


def _alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def test_stop_ends_what_hangs(standing, tmp_path):
    """One stopped process of each kind, all at the same time, in the middle of a job."""
    leader = standing.primary()["name"]
    job, shared = _held_at_round_2(standing, tmp_path / "hangs", ("site-1", "site-2"))
    everything = [pid for _, _, pid in standing.processes()]
    frozen = [
        *standing.kill(leader, "child", signal.SIGSTOP),
        *standing.kill("site-1", "agent", signal.SIGSTOP),
        *standing.kill("site-2", "nanny", signal.SIGSTOP),
        *standing.kill("site-2", "job", signal.SIGSTOP),
        *standing.kill(next(name for name in standing.servers if name != leader), "supervisor", signal.SIGSTOP),
    ]
    answer = standing.poc("stop")
    assert answer.rc == 0, answer.out
    assert not any(_alive(pid) for pid in everything), (frozen, standing.processes())
    assert standing.processes() == []
    standing.start()
    _open_gates(shared)
    assert standing.wait(job) == "FINISHED:COMPLETED", standing.tails()
    for site in standing.sites:
        assert calls(shared, site) == CUT


def test_stop_ends_frozen_overseer_and_whole_server(standing):
    leader = standing.primary()["name"]
    standing.kill("overseer", "overseer", signal.SIGSTOP)
    standing.kill(leader, "supervisor", signal.SIGSTOP)
    standing.kill(leader, "child", signal.SIGSTOP)
    assert standing.poc("stop").rc == 0
    assert standing.processes() == []
    standing.start()


def test_stop_reaches_what_its_parent_left_behind(standing, tmp_path):
    """A supervisor and an agent are killed and not started again: nothing of theirs runs on."""
    leader = standing.primary()["name"]
    job, shared = _held_at_round_2(standing, tmp_path / "orphans")
    below = standing.pids(leader, "child") + standing.pids(leader, "runner")
    below += standing.pids("site-2", "nanny") + standing.pids("site-2", "job")
    assert len(below) == 4
    standing.kill(leader, "supervisor")
    standing.kill("site-2", "agent")
    _gone(below)
    standing.stop()
    standing.start()
    _open_gates(shared)
    assert standing.wait(job) == "FINISHED:COMPLETED", standing.tails()
    assert calls(shared, "site-1") == ALL_ROUNDS
    assert calls(shared, "site-2") == CUT


def test_stop_while_starting(standing):
    standing.stop()
    starting = standing.begin("poc", "start", "-w", str(standing.root))
    try:
        eventually_sync(standing.processes, 20)
        standing.stop()
    finally:
        starting.wait(70)
        starting.stdout.close()
        starting.stderr.close()
    standing.stop()
    standing.start()


@pytest.mark.parametrize("kind", PLACES)
def test_any_process_killed_in_mid_round(standing, tmp_path, kind):
    job, shared = _held_at_round_2(standing, tmp_path / kind)
    place = _place(standing, kind)
    before = standing.primary()["epoch"]
    dead = standing.kill(place, kind)
    _gone(dead)
    if kind in ("supervisor", "agent", "overseer"):
        if kind == "supervisor":
            standing.leader(above=before)  # the standby takes over, with nobody's help
        assert standing.poc("start").rc == 0, standing.tails()
    elif kind == "child":
        standing.leader(above=before)
    _open_gates(shared)
    ended = standing.wait(job)
    if kind in ("nanny", "job"):  # the site says so, and without min_responses that is the job's end
        assert ended == "FINISHED:FAILED"
        assert "site-2" in standing.show(job)["reason"]
    else:
        assert ended == "FINISHED:COMPLETED", standing.tails()
        assert calls(shared, "site-2") == (CUT if kind == "agent" else ALL_ROUNDS)
    assert calls(shared, "site-1")[:2] == ALL_ROUNDS[:2]
    if kind in ("runner", "agent", "nanny", "job", "overseer"):
        assert standing.primary()["epoch"] == before
    for site in standing.sites:
        eventually_sync(
            lambda site=site: not standing.pids(site, "job") + standing.pids(site, "nanny"), 15, "the job is over"
        )
    standing.check_log()
    assert standing.poc("start").rc == 0
    eventually_sync(
        lambda: sorted(row["state"] for row in standing.console("list_sp").data) == ["ACTIVE", "STANDBY"], 20
    )


def test_a_runner_killed_at_every_round_repeats_none(standing, tmp_path):
    folder, shared = make_job(tmp_path / "often", rounds=4)
    for number in (1, 2, 3, 4):
        (shared / f"hold-site-2-{number}").touch()
    job = standing.submit(folder)
    leader = standing.primary()["name"]
    for number in (1, 2, 3, 4):
        eventually_sync(lambda number=number: len(calls(shared, "site-2")) == number, 30, standing.tails())
        _gone(standing.kill(leader, "runner"))
        (shared / f"gate-site-2-{number}").touch()
    assert standing.wait(job) == "FINISHED:COMPLETED", standing.tails()
    for site in standing.sites:
        assert calls(shared, site) == [*ALL_ROUNDS, "train 4"]


def test_a_frozen_primary_is_replaced_and_does_not_come_back_as_one(standing, tmp_path):
    before = standing.primary()
    job, shared = _held_at_round_2(standing, tmp_path / "frozen")
    frozen = [
        *standing.kill(before["name"], "supervisor", signal.SIGSTOP),
        *standing.kill(before["name"], "child", signal.SIGSTOP),
    ]
    standing.leader(above=before["epoch"])
    _open_gates(shared)
    assert standing.wait(job) == "FINISHED:COMPLETED", standing.tails()
    for pid in frozen:
        os.kill(pid, signal.SIGCONT)

    def states():
        return {row["name"]: row["state"] for row in standing.console("list_sp").data}

    eventually_sync(lambda: states()[before["name"]] == "STANDBY", 20, standing.tails())
    for site in standing.sites:
        assert calls(shared, site) == ALL_ROUNDS
    standing.check_log()
