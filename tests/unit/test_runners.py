"""A job that runs has a runner for as long as its server leads, whatever becomes of the process."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fedhelm.clock import SystemClock
from fedhelm.errors import NotPrimary
from fedhelm_server import runners
from fedhelm_server.holding import Holding
from fedhelm_server.runners import MAX_CRASHES, Runners
from tests.support.waiting import eventually


class Ledger:
    async def propose(self, kind, decide):
        raise NotPrimary("hands over")


@pytest.fixture
def runtime(tmp_path):
    job = SimpleNamespace(job="a23456723456", status="RUNNING", closed=[])
    book = SimpleNamespace(jobs={job.job: job}, running=lambda: [job])
    kit = SimpleNamespace(name="server1", run=tmp_path, root=tmp_path)
    return SimpleNamespace(book=book, kit=kit, leads=True, ledger=Ledger(), clock=SystemClock(), holding=Holding())


async def test_a_runner_that_cannot_be_started_is_started_later(runtime, monkeypatch):
    tries = []

    async def run_once(self):
        tries.append(self.job)
        if len(tries) < MAX_CRASHES + 2:
            raise OSError(28, "No space left on device")
        runtime.leads = False
        return ""

    monkeypatch.setattr(runners, "START_RETRY_S", 0.001)
    monkeypatch.setattr(runners.RunnerProcess, "_run_once", run_once)
    kept = Runners(runtime)
    kept.reconcile(set())
    await eventually(lambda: len(tries) == MAX_CRASHES + 2)
    await kept.stop()


async def test_a_runner_given_up_while_nothing_could_be_recorded_is_started_again(runtime, monkeypatch):
    tries = []

    async def run_once(self):
        tries.append(self.job)
        return "boom"

    monkeypatch.setattr(runners.RunnerProcess, "_run_once", run_once)
    kept = Runners(runtime)
    kept.reconcile(set())
    await eventually(lambda: len(tries) == MAX_CRASHES and kept._runners["a23456723456"].ended)
    kept.reconcile(set())
    await eventually(lambda: len(tries) == 2 * MAX_CRASHES)
    await kept.stop()
