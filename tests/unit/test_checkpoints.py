"""Checkpoints of a primary: when, and that no line, round or blob is lost or doubled by them, whoever dies when."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import pytest

from fedhelm.errors import Corrupt, NotPrimary, StoreUnavailable
from fedhelm.persist.log import Log
from fedhelm_server import checkpoints, decisions
from fedhelm_server.checkpoints import EVERY, EVERY_AT_MOST, FEW, Checkpoints, Pace, due, paced
from fedhelm_server.collector import collectable
from fedhelm_server.job_book import Segment
from fedhelm_server.ledger import Placement
from fedhelm_server.segments import RUN, line_items, read_segments
from tests.fakes.persist_memory import MemoryBlobStore, MemoryLogStore
from tests.fakes.server_log import (
    JOB,
    Clock,
    Writer,
    contribution,
    contribution_key,
    fold,
    found,
    line,
    new_ledger,
    opened,
    serving,
)
from tests.support.waiting import eventually


@pytest.mark.parametrize(
    ("uncovered", "age", "every", "expected"),
    [
        (EVERY - 1, 0, EVERY, False),
        (EVERY, 0, EVERY, True),
        (FEW, 14.9, EVERY, False),
        (FEW, 15, EVERY, True),
        (FEW - 1, 1e6, EVERY, False),
        (EVERY, 0, 2 * EVERY, False),
        (FEW, 15, 2 * EVERY, False),
        (FEW, 30, 2 * EVERY, True),
    ],
)
def test_a_checkpoint_is_due_by_slots_or_by_age(uncovered, age, every, expected):
    assert due(Pace(every), uncovered, age) is expected


def test_checkpoints_that_take_long_become_rarer_up_to_a_limit_and_frequent_again():
    pace = Pace()
    for _ in range(10):
        pace = paced(pace, 2.0)
    assert pace.every == EVERY_AT_MOST
    assert paced(pace, 0.5) == pace
    for _ in range(10):
        pace = paced(pace, 0.1)
    assert pace == Pace()


class Server:
    """A primary as far as checkpoints see it."""

    def __init__(self, slots, blobs, run, name="server1", incarnation="i1", clock=None):
        self.clock = clock or Clock()
        self.ledger = new_ledger(slots, name, incarnation, self.clock, blobs)
        self.store = SimpleNamespace(log=self.ledger._log, blobs=blobs)
        self.kit = SimpleNamespace(run=run)
        self.leads = True
        self.on_lead = []
        self.checkpoints = Checkpoints(self)

    @property
    def book(self):
        return self.ledger.book

    async def push(self, source="site-1", count=2):
        first = self.book.jobs[JOB].lines.get(source, 0) + 1
        new = [line(float(number)) for number in range(first, first + count)]
        decide = decisions.lines(JOB, source, first, new)
        return await self.ledger.propose("metrics", decide, key=(JOB, source))

    async def offer(self, site="site-1", number=1):
        item = contribution(site, number)
        return await self.ledger.propose("contribution", decisions.contribute(item), key=contribution_key(item))


@pytest.fixture
def slots():
    slots = found(MemoryLogStore())
    writer = Writer(slots, incarnation="i0")
    writer.job(rounds=9)
    writer.append("round_open", opened(rounds=9))
    return slots


@pytest.fixture
def blobs():
    return MemoryBlobStore(chunk_size=1 << 20)


@pytest.fixture
def primary(slots, blobs, tmp_path):
    return Server(slots, blobs, tmp_path)


def lines_in(slots, blobs):
    """(source, number, value) of every line that a newcomer finds, in its order."""
    log = Log(slots, blobs)
    book, records = fold(log)
    job = book.jobs[JOB]
    items = list(read_segments(blobs, job.segments))
    for record in records:
        if record.kind == "metrics" and record.seq > book.covered:
            items += line_items(record, JOB)
    assert [item["seq"] for item in items] == sorted(item["seq"] for item in items)
    return [
        (item["source"], item["first"] + at, one["value"]) for item in items for at, one in enumerate(item["lines"])
    ]


def expected(**counts):
    return {(source.replace("_", "-"), n, float(n)) for source, count in counts.items() for n in range(1, count + 1)}


def check_lines(slots, blobs, **counts):
    found_lines = lines_in(slots, blobs)
    assert len(found_lines) == len(set(found_lines))
    assert set(found_lines) == expected(**counts)


async def test_lines_survive_checkpoints_compaction_and_a_failover_once_each(slots, blobs, primary, tmp_path):
    lagging = Server(slots, blobs, tmp_path, "server2", "j1")
    await lagging.ledger.read_on()
    async with serving(primary.ledger, lagging.ledger):
        await primary.ledger.fence(2, "start")
        for _ in range(4):
            for _ in range(3):
                await primary.push()
            await primary.push("site-2", 1)
            assert await primary.checkpoints.write()
            check_lines(slots, blobs, site_1=primary.book.jobs[JOB].lines["site-1"],
                        site_2=primary.book.jobs[JOB].lines["site-2"])  # fmt: skip
        assert min(slot for slot in slots.contents if slot) > 10, "slots are gone"
        await primary.push()
        lagging.leads = True
        await lagging.ledger.fence(3, "failover")
        assert lagging.book.to_state() == fold(Log(slots, blobs))[0].to_state()
        await lagging.push()
        assert await lagging.checkpoints.write()
        with pytest.raises(NotPrimary, match="server2 has epoch 3"):
            await primary.push()
    check_lines(slots, blobs, site_1=28, site_2=4)
    assert len(lagging.book.checkpoints) == 2


async def test_a_primary_asleep_while_its_slots_were_compacted_away_gets_no_acknowledgement(
    slots, blobs, primary, tmp_path
):
    other = Server(slots, blobs, tmp_path, "server2", "j1")
    async with serving(primary.ledger, other.ledger):
        await primary.ledger.fence(2, "start")
        asleep = primary.book.seq
        await other.ledger.fence(3, "failover")
        for _ in range(2):
            await other.push()
            assert await other.checkpoints.write()
        assert asleep + 1 not in slots.contents
        with pytest.raises(NotPrimary, match="server2"):
            await primary.offer()
    assert asleep + 1 not in slots.contents
    assert not fold(Log(slots, blobs))[0].jobs[JOB].placed


async def test_a_fence_that_lands_below_the_mark_is_put_again_at_the_end(slots, blobs, primary, tmp_path):
    sleeper = Server(slots, blobs, tmp_path, "server2", "j1")
    async with serving(primary.ledger, sleeper.ledger):
        await primary.ledger.fence(2, "start")
        await sleeper.ledger.read_on()
        target = sleeper.book.seq + 1
        for _ in range(2):
            await primary.push()
            assert await primary.checkpoints.write()
        assert target not in slots.contents
        # It promotes with what it had read: its next slot is free again, because it was deleted.
        sleeper.ledger._read_on = once_nothing(sleeper.ledger)
        record = await sleeper.ledger.fence(3, "failover")
    assert record.seq == max(slots.contents)
    assert target not in slots.contents
    assert fold(Log(slots, blobs))[0].fence.name == "server2"


def once_nothing(ledger):
    """The first look at the log finds nothing: it was made before the others wrote."""
    real, looks = ledger._read_on, []

    async def read_on():
        looks.append(1)
        return [] if len(looks) == 1 else await real()

    return read_on


async def test_appends_go_on_while_a_checkpoint_is_written(slots, blobs, primary):
    begun, go = threading.Event(), threading.Event()
    put = blobs.put_manifest

    def slow(owner, manifest):
        if owner.startswith("checkpoints/"):
            begun.set()
            assert go.wait(10)
        return put(owner, manifest)

    blobs.put_manifest = slow
    async with serving(primary.ledger):
        await primary.ledger.fence(2, "start")
        await primary.push()
        covered = primary.book.seq
        writing = asyncio.ensure_future(primary.checkpoints.write())
        await asyncio.to_thread(begun.wait, 10)
        assert isinstance(await primary.offer(), Placement)
        await primary.push()
        go.set()
        assert await writing
        assert primary.book.covered == covered
        assert primary.book.jobs[JOB].line_slots == [covered + 2]
    check_lines(slots, blobs, site_1=4)


async def test_what_a_dead_primary_left_of_a_checkpoint_is_collected_by_the_next(slots, blobs, primary, tmp_path):
    async with serving(primary.ledger):
        await primary.ledger.fence(2, "start")
        await primary.push()
        put = blobs.put_manifest

        def refuse(owner, manifest):
            if owner.startswith("checkpoints/"):
                raise StoreUnavailable("full")
            return put(owner, manifest)

        blobs.put_manifest = refuse
        with pytest.raises(StoreUnavailable):
            await primary.checkpoints.write()
        blobs.put_manifest = put
    (left,) = blobs.owners(f"jobs/{JOB}/lines")
    heir = Server(slots, blobs, tmp_path, "server2", "j1")
    async with serving(heir.ledger):
        await heir.ledger.fence(3, "failover")
        await heir.push()
        assert await heir.checkpoints.write()
        assert left not in blobs.owners(f"jobs/{JOB}/lines")
        # Another one came first: this one is refused, and changes nothing.
        answer = await heir.ledger.propose(
            "checkpoint", decisions.checkpoint({"covered": 3, "blob": {}, "segments": {}})
        )
        assert answer is False
    check_lines(slots, blobs, site_1=4)


async def test_small_segments_become_one(slots, blobs, primary):
    async with serving(primary.ledger):
        await primary.ledger.fence(2, "start")
        for _ in range(RUN + 2):
            await primary.push(count=1)
            assert await primary.checkpoints.write()
        assert len(primary.book.jobs[JOB].segments) == 2
        assert len(blobs.owners(f"jobs/{JOB}/lines")) == 2
    check_lines(slots, blobs, site_1=RUN + 2)


async def test_only_who_leads_writes_and_only_in_a_log_that_has_checkpoints(slots, blobs, primary, monkeypatch):
    monkeypatch.setattr(checkpoints, "EVERY", 1)
    primary.checkpoints._pace = Pace(1)
    async with serving(primary.ledger):
        await primary.ledger.read_on()
        await primary.checkpoints.look()
        assert primary.book.covered == -1
        await primary.ledger.fence(2, "start")
        primary.leads = False
        await primary.checkpoints.look()
        primary.leads, version = True, primary.book.log_version
        primary.book.log_version = 1
        await primary.checkpoints.look()
        assert primary.book.covered == -1
        primary.book.log_version = version
        await primary.checkpoints.look()
        assert primary.book.covered > 0


async def test_a_checkpoint_that_fails_is_tried_again_later_and_ends_nobody(slots, blobs, primary):
    primary.checkpoints._pace = Pace(1)
    async with serving(primary.ledger):
        await primary.ledger.fence(2, "start")
        blobs.down = True
        await primary.checkpoints.look()
        blobs.down = False
        await primary.checkpoints.look()
        assert primary.book.covered == -1
        primary.clock.now += checkpoints.RETRY_S
        await primary.checkpoints.look()
        assert primary.book.covered > 0


async def test_a_new_primary_does_what_the_last_one_left(slots, blobs, primary, tmp_path):
    async with serving(primary.ledger):
        await primary.ledger.fence(2, "start")
        primary.checkpoints._clean = nothing
        for _ in range(2):
            await primary.push()
            assert await primary.checkpoints.write()
    assert 1 in slots.contents
    heir = Server(slots, blobs, tmp_path, "server2", "j1")
    async with serving(heir.ledger):
        await heir.ledger.fence(3, "failover")
        for listener in heir.on_lead:
            listener()
        await eventually(lambda: 1 not in slots.contents)


async def nothing():
    pass


def test_a_damaged_segment_says_so():
    blobs = MemoryBlobStore()
    digest = "ab" * 32
    blob = {"owner": f"jobs/{JOB}/lines/0000000000000005", "digest": digest, "size": 3}
    with pytest.raises(Corrupt):
        list(read_segments(blobs, [Segment(5, blob)]))
    assert list(read_segments(blobs, [Segment(5, blob)], after=5)) == []


def test_nothing_of_a_stranger_is_collected(slots):
    book, _ = fold(slots)
    assert collectable(book, ["jobs/zzzzzzzzzzzz/bundle", "checkpoints/0000000000000003", "jobs/x"]) == []
