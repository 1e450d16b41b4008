"""What a site offers, and what becomes of it when the primary will not have it or the disk has lost something."""

from __future__ import annotations

import asyncio

import pytest

from fedhelm.errors import BadInput, Conflict, NotAuthorised
from fedhelm.v1 import common_pb2, fleet_pb2
from fedhelm_client.courier import Courier
from fedhelm_client.journal import Journal
from fedhelm_client.outbox import ContributionId, Outbox, Saved
from tests.support.waiting import eventually

ONE = ContributionId(1, 0, 1, "evaluate", 0)


class Links:
    """Whoever leads answers with ``answer``: a receipt, or an error to raise."""

    def __init__(self, answer):
        self.answer = answer
        self.offered = []

    async def to_leader(self, what, call):
        return await call(self)

    async def contribute(self, offer, timeout):
        self.offered.append(offer)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def push_lines(self, batch, timeout):
        return fleet_pb2.LineAck(acknowledged=batch.lines[-1].number)


class Bench:
    def __init__(self, folder, answer):
        self.outbox = Outbox(folder)
        self.journal = Journal(folder / "lines.jsonl")
        self.links = Links(answer)
        self.refusals = []
        self.courier = Courier(
            "a23456723456",
            "site-1",
            outbox=self.outbox,
            journal=self.journal,
            links=self.links,
            on_change=lambda: None,
            on_refused=self.refusals.append,
        )

    def save(self, lines=0):
        self.outbox.save(Saved(ONE, None, "", 1.0, {"m": 1.0}, lines), None)

    async def stop(self):
        await self.courier.stop()
        self.journal.close()


@pytest.fixture
async def bench(tmp_path):
    made = Bench(tmp_path / "outbox", common_pb2.Receipt(seq=7, epoch=2))
    yield made
    await made.stop()


async def test_lines_that_a_power_cut_lost_do_not_hold_back_their_result_for_ever(bench):
    bench.save(lines=5)
    bench.courier.start()
    await eventually(lambda: bench.outbox.to_offer() == [])
    assert len(bench.links.offered) == 1


async def test_a_result_that_can_never_be_recorded_is_told_once(bench):
    bench.links.answer = BadInput("metrics of site-1 are too many")
    bench.save()
    bench.courier.start()
    await eventually(lambda: bench.refusals)
    assert bench.refusals == ["the evaluate result of round 1 was refused: metrics of site-1 are too many"]
    await asyncio.wait_for(bench.courier.settled(), 5)
    assert len(bench.links.offered) == 1
    assert bench.outbox.to_offer() != [], "the file stays"


async def test_a_refusal_that_an_operator_can_cure_costs_no_result(bench):
    bench.links.answer = NotAuthorised("site-1 is no member")
    bench.save()
    bench.courier.start()
    await asyncio.wait_for(bench.courier.settled(), 5)
    assert bench.refusals == []
    assert bench.outbox.to_offer() != []


async def test_a_used_up_quota_of_lines_is_met_once_and_holds_back_no_result(bench):
    pushed = []

    async def push_lines(batch, timeout):
        pushed.append([line.number for line in batch.lines])
        raise Conflict("quota reached: later lines are in the site's log only")

    bench.links.push_lines = push_lines
    bench.courier.start()
    bench.courier.add_lines([{"kind": "log", "value": "one"}])
    await eventually(lambda: pushed)
    bench.courier.add_lines([{"kind": "log", "value": "two"}])
    await bench.courier.add_result(Saved(ONE, None, "", 1.0, {"m": 1.0}, 2), None)
    await eventually(lambda: bench.outbox.to_offer() == [])
    await asyncio.wait_for(bench.courier.settled(), 5)
    assert pushed == [[1]]
