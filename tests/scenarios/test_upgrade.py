"""A federation of the former version is upgraded part by part while a job runs; every part is real, the old ones too."""

from __future__ import annotations

import json
import os
import re
import tarfile
from pathlib import Path

import pytest

from tests.support.federation import Federation
from tests.support.jobs import calls, make_job
from tests.support.waiting import eventually_sync

pytestmark = [pytest.mark.processes]

FORMER = Path(__file__).parents[1] / "data" / "former" / "packages.tar.xz"
ROUNDS = 8
REFUSAL = re.compile(r"slot \d+.*version 2")


@pytest.fixture(scope="module")
def former(tmp_path_factory):
    """The environment in which commands run the former version's code."""
    folder = tmp_path_factory.mktemp("former")
    with tarfile.open(FORMER) as packages:
        packages.extractall(folder, filter="data")
    return {**os.environ, "PYTHONPATH": os.pathsep.join(str(part) for part in sorted(folder.iterdir()))}


def _states(federation):
    return {one["name"]: one["state"] for one in federation.console("list_sp").data}


def _upgrade(federation, former, name):
    """Stop a participant with its own version's script and start it with the new one's."""
    federation.env = former
    federation.stop_one(name)
    federation.env = None
    federation.start_one(name)


def _standby(federation, name):
    eventually_sync(lambda: _states(federation).get(name) == "STANDBY", 30, federation.tails())


def _version(federation):
    return max(record.v for record in federation.records())


def _promote(federation, name):
    """As soon as the overseer takes the server for a candidate: for two seconds it may see the run that was stopped."""
    before = federation.primary()["epoch"]
    eventually_sync(lambda: federation.console(f"promote_sp {name}", "--yes").rc == 0, 30, federation.tails())
    assert federation.leader(above=before)["name"] == name


class _Gates:
    """Round n of site-1 waits at a gate, so that every step of the upgrade meets the job in mid-round."""

    def __init__(self, federation, shared):
        self._federation, self._shared = federation, shared
        for number in range(2, ROUNDS + 1):
            (shared / f"hold-site-1-{number}").touch()

    def open(self, until=ROUNDS + 1):
        for one in range(2, until):
            (self._shared / f"gate-site-1-{one}").touch()

    def reach(self, number):
        self.open(number)
        eventually_sync(
            lambda: f"train {number}" in calls(self._shared, "site-1"),
            60,
            f"round {number}: {self._federation.tails()}",
        )


def _models(federation, job):
    rounds = json.loads((federation.download(job) / "summary.json").read_text())["rounds"]
    return [(entry["round"], entry["members"], entry["model_sha256"]) for entry in rounds]


def _software(federation, former, name):
    """Which version's code the processes of a participant run, by their search paths."""
    old = former["PYTHONPATH"].split(os.pathsep)[0].encode()
    environments = [Path(f"/proc/{pid}/environ").read_bytes() for kit, _, pid in federation.processes() if kit == name]
    assert environments
    return {"old" if old in one else "new" for one in environments}


@pytest.mark.timeout(300)
def test_every_part_is_upgraded_in_turn_and_the_job_does_not_notice(tmp_path, former):
    federation = Federation(tmp_path, env=former)
    try:
        federation.start()
        folder, shared = make_job(tmp_path / "upgraded", rounds=ROUNDS)
        gates = _Gates(federation, shared)
        job = federation.submit(folder)
        gates.reach(2)
        assert all(_software(federation, former, name) == {"old"} for name in [*federation.servers, *federation.sites])

        for name in federation.overseers:
            _upgrade(federation, former, name)
        eventually_sync(lambda: federation.console("get_active_sp").rc == 0, 30, federation.tails())
        gates.reach(3)

        first = federation.primary()["name"]
        second = next(name for name in federation.servers if name != first)
        _upgrade(federation, former, second)
        assert _software(federation, former, second) == {"new"}
        _standby(federation, second)
        gates.reach(4)
        _promote(federation, second)
        gates.reach(5)
        assert _version(federation) == 1, "the server of the former version has to be able to take over"

        # It does take over, from the new one; so one may still go back.
        _standby(federation, first)
        _promote(federation, first)
        gates.reach(6)
        _standby(federation, second)
        _promote(federation, second)

        _upgrade(federation, former, first)
        _standby(federation, first)
        eventually_sync(lambda: _version(federation) == 2, 30, f"version 2 of the log: {federation.tails()}")
        gates.reach(7)
        for name in federation.sites:
            _upgrade(federation, former, name)
        gates.open()
        assert federation.wait(job, 60) == "FINISHED:COMPLETED", federation.tails()
        upgraded = _models(federation, job)
        assert _software(federation, former, "site-1") == {"new"}

        unfaulted, _ = make_job(tmp_path / "quiet", rounds=ROUNDS)
        assert _models(federation, _finished(federation, unfaulted)) == upgraded
        rounds = [f"train {number}" for number in range(1, ROUNDS + 1)]
        assert calls(shared, "site-2").count("train 7") == 1, "its contribution was in the log"
        assert [one for one in calls(shared, "site-1") if one != "train 7"] == [
            one for one in rounds if one != "train 7"
        ]
        assert calls(shared, "site-1").count("train 7") == 2, "the task that was under way as the site was stopped"
    finally:
        federation.env = None
        federation.close()


def _finished(federation, folder):
    job = federation.submit(folder)
    assert federation.wait(job, 60) == "FINISHED:COMPLETED", federation.tails()
    return job


def test_the_former_version_refuses_a_log_of_the_new_one_and_names_the_slot(tmp_path, former):
    federation = Federation(tmp_path, env=former)
    federation.env = None
    try:
        federation.start()
        eventually_sync(lambda: _version(federation) == 2, 30, federation.tails())
        first = federation.primary()["name"]
        second = next(name for name in federation.servers if name != first)
        federation.stop_one(second)
        federation.env = former
        federation.script(second, "start.sh")
        eventually_sync(lambda: REFUSAL.search(federation.log(second)), 30, federation.tails())
        federation.script(second, "stop_fl.sh")
        federation.env = None
        assert federation.primary()["name"] == first
    finally:
        federation.env = None
        federation.close()
