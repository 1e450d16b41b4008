"""A job that runs has a runner for as long as its server leads, whatever becomes of the process."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from fedhelm.clock import SystemClock
from fedhelm.errors import NotPrimary, StoreUnavailable
from fedhelm_server import runners
from fedhelm_server.holding import Holding
from fedhelm_server.ledger import Answer
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


class SlowLedger:
    """Appends one line at a time; the first answer is lost on its way."""

    def __init__(self, job):
        self.book = SimpleNamespace(jobs={job: SimpleNamespace(job=job, lines={})}, deleted={})
        self.said = []
        self.lost = 1
        self.busy = 0

    async def propose(self, kind, decide):
        assert kind == "metrics"
        assert not self.busy, "two at once could be decided without one another"
        self.busy += 1
        try:
            await asyncio.sleep(0)
            item = decide(self.book)
            if isinstance(item, Answer):
                return item.value
            assert item["first"] == len(self.said) + 1
            self.said += [line["value"] for line in item["lines"]]
            self.book.jobs[item["job"]].lines["server1"] = len(self.said)
            if self.lost:
                self.lost -= 1
                raise StoreUnavailable("its answer was lost")
        finally:
            self.busy -= 1


async def test_lines_of_a_runner_are_recorded_in_order_and_once(runtime, monkeypatch):
    monkeypatch.setattr(runners, "STORE_RETRY_S", 0.001)
    runtime.ledger = SlowLedger("a23456723456")
    runtime.leads = False
    process = runners.RunnerProcess.__new__(runners.RunnerProcess)
    process._runtime, process._saying, process.job = runtime, asyncio.Lock(), "a23456723456"
    frames = [{"type": "log", "first": number, "lines": [{"value": f"line {number}"}]} for number in range(1, 6)]
    await asyncio.gather(*(process._on_frame(frame, None) for frame in frames))
    assert runtime.ledger.said == [f"line {number}" for number in range(1, 6)]
