"""What a site offers, and what becomes of it when the primary will not have it or the disk has lost something."""

from __future__ import annotations

import asyncio

import pytest

from fedhelm.errors import BadInput, Conflict, NotAuthorised, RoundOver
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
        self.standing = ("server1", 1)
        self.waits = []
        self.refuse_with = None
        self._moved = asyncio.Event()

    def move(self, standing):
        self.standing = standing
        self._moved.set()

    def noticed(self):
        return not self._moved.is_set()

    async def moved_from(self, standing, timeout):
        """Wait for a test that moves the leader, or says (``False``) that the time is over."""
        self.waits.append(timeout)
        await self._moved.wait()
        self._moved.clear()
        return self.standing != standing

    async def to_leader(self, what, call):
        return await call(self)

    async def contribute(self, offer, timeout):
        self.offered.append(offer)
        if self.refuse_with is not None:
            raise self.refuse_with()
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


async def test_a_result_whose_round_was_closed_while_it_was_on_its_way_is_gone_and_no_error(bench, tmp_path):
    async def put_blob(messages):
        raise RoundOver("round 0-1 of job a23456723456 is over")

    bench.links.put_blob = put_blob
    file = tmp_path / "script.bin"
    file.write_bytes(b"tensors")
    trained = ContributionId(1, 0, 1, "train", 0)
    bench.outbox.save(Saved(trained, None, "jobs/a23456723456/0-1/sites", 1.0, {}, 0), file)
    bench.courier.start()
    await eventually(lambda: bench.outbox.to_offer() == [])
    assert (bench.links.offered, bench.refusals) == ([], [])


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


HELD = common_pb2.Receipt(held=True, epoch=1)


async def held(bench):
    bench.links.answer = HELD
    bench.save()
    bench.courier.start()
    await eventually(lambda: bench.links.waits)
    assert len(bench.links.offered) == 1
    assert [one.id for one in bench.outbox.held()] == [ONE]


async def test_a_held_result_is_offered_to_each_new_primary(bench):
    await held(bench)
    for epoch in (2, 3):
        bench.links.move(("server2", epoch))
        await eventually(lambda epoch=epoch: len(bench.links.offered) == epoch)
    bench.links.answer = common_pb2.Receipt(seq=9, epoch=4)
    bench.links.move(("server1", 4))
    await eventually(lambda: bench.outbox.held() == [])
    bench.links.move(("server2", 5))
    await eventually(bench.links.noticed)
    assert len(bench.links.offered) == 4, "it is in the log now"


async def test_a_held_result_is_offered_again_to_the_same_primary_while_its_task_is_assigned(bench):
    await held(bench)
    bench.links.move(("server1", 1))  # 5 s are over
    await eventually(lambda: len(bench.links.waits) == 2)
    assert len(bench.links.offered) == 1, "its task is not assigned: its round may be over"
    bench.courier.assigned(ONE)
    bench.links.move(("server1", 1))
    await eventually(lambda: len(bench.links.offered) == 2)
    assert bench.links.waits[0] == 5.0


async def test_a_held_result_is_offered_by_the_next_agent(bench, tmp_path):
    await held(bench)
    await bench.stop()
    again = Bench(tmp_path / "outbox", HELD)
    again.courier.start()
    await eventually(lambda: again.links.offered)
    await eventually(lambda: [one.id for one in again.outbox.held()] == [ONE])
    await again.stop()


async def test_a_job_whose_results_are_held_is_settled(bench):
    await held(bench)
    await asyncio.wait_for(bench.courier.settled(), 5)


async def test_a_held_result_whose_round_closes_while_it_is_offered_again_is_no_failure(bench):
    await held(bench)

    def close():
        bench.outbox.close([fleet_pb2.ClosedRound(step=0, round=1, kind="evaluate")])
        return NotAuthorised("the round is closed")

    bench.links.refuse_with = close
    bench.links.move(("server2", 2))
    await eventually(lambda: len(bench.links.offered) == 2)
    await eventually(lambda: len(bench.links.waits) >= 2)
    assert bench.refusals == []


async def test_a_result_that_a_restored_log_has_lost_is_offered_again_under_its_epoch(bench):
    bench.save()
    bench.courier.start()
    await eventually(lambda: [one.state for one in bench.outbox] == ["recorded"])
    await bench.courier.reopen(ONE)  # an assignment that was on its way when the receipt came
    assert [one.state for one in bench.outbox] == ["recorded"]
    bench.links.standing = ("server1", 1 << 20)
    await bench.courier.reopen(ONE)
    await eventually(lambda: len(bench.links.offered) == 2)
    await eventually(lambda: [one.state for one in bench.outbox] == ["recorded"])


async def test_a_result_that_was_too_early_for_a_restored_log_holds_back_no_new_one(bench):
    later = ContributionId(1, 0, 2, "evaluate", 0)
    bench.outbox.save(Saved(later, None, "", 1.0, {}, 0), None)
    bench.links.answer = NotAuthorised("round 2 is not open")
    bench.courier.start()
    await asyncio.wait_for(bench.courier.settled(), 5)
    await bench.courier.reopen(ONE)
    assert list(bench.outbox) == []
    bench.links.answer = common_pb2.Receipt(seq=9, epoch=2)
    await bench.courier.reopen(later)
    assert not bench.outbox.answered(later)
    await bench.courier.add_result(Saved(later, None, "", 1.0, {}, 0), None)
    await eventually(lambda: [one.state for one in bench.outbox] == ["recorded"])


async def test_lines_that_a_restored_log_has_lost_are_pushed_again(bench):
    kept = []

    async def push_lines(batch, timeout):
        if batch.lines[0].number <= len(kept) + 1:
            kept.extend(line.number for line in batch.lines if line.number > len(kept))
        return fleet_pb2.LineAck(acknowledged=len(kept))

    bench.links.push_lines = push_lines
    bench.courier.start()
    bench.courier.add_lines([{"kind": "log", "value": str(number)} for number in range(5)])
    await eventually(lambda: bench.journal.acknowledged == 5)
    del kept[2:]
    bench.courier.add_lines([{"kind": "log", "value": "6"}])
    await eventually(lambda: kept == [1, 2, 3, 4, 5, 6])
    await asyncio.wait_for(bench.courier.settled(), 5)
