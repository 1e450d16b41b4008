"""The ledger: what is acknowledged is in the log once, whatever the store and other writers do."""

from __future__ import annotations

import asyncio
import math
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhelm.errors import BadInput, Conflict, Corrupt, FedhelmError, Fenced, NotPrimary, StoreUnavailable
from fedhelm.persist.posix import PosixLogStore, make_layout
from fedhelm_server import decisions
from fedhelm_server.ledger import Answer, Placement
from tests.fakes.persist_memory import LOST, REPEATED, UNAVAILABLE, MemoryLogStore
from tests.fakes.server_log import (
    JOB,
    OTHER,
    Clock,
    Writer,
    closed,
    contribution,
    contribution_key,
    fold,
    found,
    items,
    line,
    new_ledger,
    opened,
    serving,
    submitted,
)
from tests.support.waiting import eventually


@pytest.fixture
def store():
    """A store whose job has an open round; written by a server1 of long ago, epoch 1."""
    store = found(MemoryLogStore())
    writer = Writer(store, incarnation="i0")
    writer.job()
    writer.append("round_open", opened())
    return store


def offer(ledger, item):
    return ledger.propose("contribution", decisions.contribute(item), key=contribution_key(item), size=1024)


def push(ledger, source, first, new):
    return ledger.propose("metrics", decisions.lines(JOB, source, first, new), key=(JOB, source))


def gate(store):
    """Hold the next create until the returned event is set; the other event tells that it has begun."""
    begun, go = threading.Event(), threading.Event()

    def hold(_):
        begun.set()
        assert go.wait(10)
        store.before_create = None

    store.before_create = hold
    return begun, go


async def test_a_fence_opens_the_ledger_and_an_item_gets_its_place(store):
    ledger = new_ledger(store)
    async with serving(ledger):
        record = await ledger.fence(2, "start")
        assert ledger.is_mine()
        placement = await offer(ledger, contribution())
    assert placement == Placement(record.seq + 1, 0, 2)
    assert items(fold(store)[1]) == [(placement.seq, 0, 2, contribution())]


async def test_a_posix_store_serves_as_well(tmp_path):
    make_layout(tmp_path)
    posix = found(PosixLogStore(tmp_path))
    Writer(posix, incarnation="i0").job()
    ledger = new_ledger(posix)
    async with serving(ledger):
        await ledger.fence(2, "start")
        await ledger.propose("round_open", decisions.round_open(opened()))
        placements = await asyncio.gather(*(offer(ledger, contribution(site)) for site in ("site-1", "site-2")))
    book, records = fold(posix)
    assert {(p.seq, p.index) for p in placements} == {(seq, index) for seq, index, _, _ in items(records)}
    assert book.jobs == ledger.book.jobs


async def test_before_its_fence_and_after_close_a_ledger_takes_nothing(store):
    ledger = new_ledger(store)
    async with serving(ledger):
        with pytest.raises(NotPrimary, match="does not lead"):
            await offer(ledger, contribution())
        await ledger.fence(2, "start")
        ledger.close("over")
        before = dict(store.contents)
        with pytest.raises(NotPrimary, match="over"):
            await offer(ledger, contribution())
        assert store.contents == before
        ledger.reopen()
        assert isinstance(await offer(ledger, contribution()), Placement)


async def test_a_fence_below_or_at_the_logs_epoch_is_refused(store):
    ledger = new_ledger(store)
    with pytest.raises(Conflict, match="epoch 1"):
        await ledger.fence(1, "start")
    assert ledger.epoch is None
    assert fold(store)[0].fence.incarnation == "i0"


async def test_a_fence_whose_answer_was_lost_is_found_again(store):
    ledger = new_ledger(store)
    await ledger.read_on()
    store.faults.append(LOST)
    with pytest.raises(StoreUnavailable):
        await ledger.fence(2, "start")
    record = await ledger.fence(2, "start")
    assert [one.epoch for one in fold(store)[1] if one.kind == "fence"] == [1, 2]
    assert record.seq == fold(store)[0].fence.seq
    assert ledger.closed_reason is None


async def test_a_fence_that_loses_its_slot_is_decided_again(store):
    rival = Writer(store, "server2", "j1", epoch=1, fence=False)
    ledger = new_ledger(store)

    def first(seq):
        store.before_create = None
        rival.epoch = 3
        rival.append("fence", {"cause": "rival"})

    store.before_create = first
    with pytest.raises(Conflict, match="epoch 3"):
        await ledger.fence(2, "start")
    assert fold(store)[0].fence.name == "server2"


# -- group commit -------------------------------------------------------------------------------------------------------


async def test_items_that_arrive_during_an_append_share_the_next_slot(store):
    ledger = new_ledger(store)
    async with serving(ledger):
        await ledger.fence(2, "start")
        begun, go = gate(store)
        first = asyncio.ensure_future(push(ledger, "site-1", 1, [line(1.0)]))
        await asyncio.to_thread(begun.wait, 10)
        assert ledger.append_age == 0
        rest = [asyncio.ensure_future(one) for one in (offer(ledger, contribution(f"site-{n}")) for n in (1, 2))]
        await asyncio.sleep(0)
        go.set()
        head, *tail = await asyncio.gather(first, *rest)
    assert ledger.append_age is None
    assert [(one.seq - head.seq, one.index) for one in tail] == [(1, 0), (1, 1)]


async def test_the_age_of_an_append_grows_while_the_store_is_silent(store):
    clock = Clock()
    ledger = new_ledger(store, clock=clock)
    async with serving(ledger):
        await ledger.fence(2, "start")
        begun, go = gate(store)
        waiting = asyncio.ensure_future(offer(ledger, contribution()))
        await asyncio.to_thread(begun.wait, 10)
        clock.now += 7
        assert ledger.append_age == 7
        go.set()
        await waiting


async def held_batch(ledger, store, *proposals):
    """Queue proposals while an append is held, so that they meet in one batch; return their outcomes."""
    begun, go = gate(store)
    first = asyncio.ensure_future(push(ledger, "site-2", 1, [line(0.0, "log")]))
    await asyncio.to_thread(begun.wait, 10)
    tasks = [asyncio.ensure_future(one) for one in proposals]
    await asyncio.sleep(0)
    go.set()
    await first
    return await asyncio.gather(*tasks, return_exceptions=True)


async def test_one_id_twice_in_a_batch_is_one_item_with_one_receipt(store):
    ledger = new_ledger(store)
    async with serving(ledger):
        await ledger.fence(2, "start")
        one, two = await held_batch(ledger, store, offer(ledger, contribution()), offer(ledger, contribution()))
    assert (one.seq, one.index) == (two.placed.seq, two.placed.index)
    assert len(items(fold(store)[1])) == 1


async def test_lines_of_one_source_are_never_numbered_twice_in_a_batch(store):
    ledger = new_ledger(store)

    def say(text, first):
        decide = decisions.own_lines(JOB, "server1", first, [line(text, "log")])
        return ledger.propose("metrics", decide, key=(JOB, "server1"))

    async with serving(ledger):
        await ledger.fence(2, "start")
        outcomes = await held_batch(ledger, store, say("one", 1), say("two", 2), say("three", 3))
    assert all(isinstance(one, Placement) for one in outcomes), outcomes
    book, records = fold(store)
    assert book.jobs[JOB].lines["server1"] == 3
    said = [item["lines"][0]["value"] for *_, item in items(records, "metrics") if item["source"] == "server1"]
    assert said == ["one", "two", "three"]


async def test_a_decision_that_raises_is_its_proposers_alone(store):
    ledger = new_ledger(store)

    def broken(_):
        raise ZeroDivisionError("a bug")

    def stopped(_):
        raise StopIteration

    async with serving(ledger):
        await ledger.fence(2, "start")
        bad, worse, stranger, good = await held_batch(
            ledger,
            store,
            ledger.propose("contribution", broken),
            ledger.propose("contribution", stopped, key=1),
            offer(ledger, contribution("site-9")),
            offer(ledger, contribution()),
        )
    assert isinstance(bad, ZeroDivisionError)
    assert isinstance(worse, Exception)
    assert isinstance(stranger, FedhelmError)
    assert isinstance(good, Placement)


@pytest.mark.parametrize(
    "poison",
    [math.nan, math.inf, "\ud800", {"deep": None}, b"bytes", object()],
    ids=["nan", "infinite", "half a character", "deep", "bytes", "object"],
)
async def test_an_item_that_is_no_json_does_not_poison_its_batch(store, poison):
    if isinstance(poison, dict):
        for _ in range(100):
            poison = {"deep": poison}
    ledger = new_ledger(store)
    async with serving(ledger):
        await ledger.fence(2, "start")
        before, bad, after = await held_batch(
            ledger,
            store,
            push(ledger, "site-1", 1, [line(1.0)]),
            ledger.propose("metrics", decisions.own_lines(JOB, "server1", 1, [line(poison)]), key=(JOB, "server1")),
            ledger.propose("metrics", decisions.own_lines(JOB, "server2", 1, [line(2.0)]), key=(JOB, "server2")),
        )
    assert isinstance(bad, BadInput)
    assert isinstance(before, Placement)
    assert isinstance(after, Placement)
    assert fold(store)[0].jobs[JOB].lines == {"site-1": 1, "site-2": 1, "server2": 1}


async def test_items_larger_than_they_said_go_into_several_slots(store):
    ledger = new_ledger(store)

    def large(source):
        return ledger.propose(
            "metrics", decisions.own_lines(JOB, source, 1, [line("x" * 1_500_000, "log")]), key=source, size=1
        )

    async with serving(ledger):
        await ledger.fence(2, "start")
        outcomes = await held_batch(ledger, store, *(large(f"s-{n}") for n in range(5)))
    assert all(isinstance(one, Placement) for one in outcomes), outcomes
    assert len({one.seq for one in outcomes}) > 1
    assert set(fold(store)[0].jobs[JOB].lines.values()) == {1}
    # in the order of arrival
    assert [(one.seq, one.index) for one in outcomes] == sorted((one.seq, one.index) for one in outcomes)


async def test_an_item_too_large_for_any_record_is_refused_alone(store):
    ledger = new_ledger(store)
    huge = [line("x" * 5_000_000, "log")]
    async with serving(ledger):
        await ledger.fence(2, "start")
        good, bad = await held_batch(
            ledger, store, push(ledger, "site-1", 1, [line(1.0)]), push(ledger, "site-2", 2, huge)
        )
    assert isinstance(good, Placement)
    assert isinstance(bad, BadInput)


# -- the store fails ----------------------------------------------------------------------------------------------------


async def test_an_append_that_landed_unheard_gives_the_same_receipt_on_the_next_try(store):
    ledger = new_ledger(store)
    async with serving(ledger):
        await ledger.fence(2, "start")
        store.faults.append(LOST)
        with pytest.raises(StoreUnavailable):
            await offer(ledger, contribution())
        assert ledger.store_ok is False
        again = await offer(ledger, contribution())
        other = await offer(ledger, contribution("site-2"))
    assert ledger.store_ok is True
    written = items(fold(store)[1])
    assert [item["site"] for *_, item in written] == ["site-1", "site-2"]
    at = (again.seq, again.index) if isinstance(again, Placement) else (again.placed.seq, again.placed.index)
    assert at == written[0][:2]
    assert other.seq == written[1][0]


async def test_an_append_that_landed_unheard_is_found_when_another_item_comes_next(store):
    ledger = new_ledger(store)
    async with serving(ledger):
        await ledger.fence(2, "start")
        store.faults.append(LOST)
        with pytest.raises(StoreUnavailable):
            await offer(ledger, contribution("site-1"))
        await offer(ledger, contribution("site-2"))
        again = await offer(ledger, contribution("site-1"))
    assert again.placed.seq < ledger.book.seq
    assert len(items(fold(store)[1])) == 2


@pytest.mark.parametrize("fault", [UNAVAILABLE, LOST, REPEATED])
async def test_every_fault_leaves_each_item_once(store, fault):
    ledger = new_ledger(store)
    async with serving(ledger):
        await ledger.fence(2, "start")
        store.faults.extend([fault, None, fault])
        for site in ("site-1", "site-2"):
            for _ in range(3):
                try:
                    await offer(ledger, contribution(site))
                except StoreUnavailable:
                    continue
    assert [item["site"] for *_, item in items(fold(store)[1])] == ["site-1", "site-2"]


async def test_a_store_that_is_away_fails_a_proposal_and_not_the_ledger(store):
    ledger = new_ledger(store)
    async with serving(ledger):
        await ledger.fence(2, "start")
        store.down = True
        with pytest.raises(StoreUnavailable):
            await offer(ledger, contribution())
        assert ledger.store_ok is False
        store.down = False
        assert isinstance(await offer(ledger, contribution()), Placement)
    assert ledger.store_ok is True


# -- other writers ------------------------------------------------------------------------------------------------------


async def test_a_fence_in_the_middle_of_a_batch_leaves_nothing_of_it(store):
    ledger = new_ledger(store)
    async with serving(ledger):
        await ledger.fence(2, "start")

        def foreign(_):
            store.before_create = None
            Writer(store, "server2", "j1", epoch=3)

        store.before_create = foreign
        tries = [offer(ledger, contribution(site)) for site in ("site-1", "site-2")]
        outcomes = await asyncio.gather(*tries, return_exceptions=True)
        assert all(isinstance(one, NotPrimary | Fenced) for one in outcomes), outcomes
        with pytest.raises(NotPrimary, match="server2"):
            await offer(ledger, contribution())
    assert items(fold(store)[1]) == []
    assert not ledger.is_mine()


async def test_a_fence_of_the_same_name_in_another_life_is_foreign(store):
    ledger = new_ledger(store)
    async with serving(ledger):
        await ledger.fence(2, "start")
        Writer(store, "server1", "i2", epoch=3)
        with pytest.raises((NotPrimary, Fenced)):
            await offer(ledger, contribution())
    assert items(fold(store)[1]) == []


async def test_the_new_primary_answers_with_the_old_ones_receipt(store):
    old, new = new_ledger(store), new_ledger(store, "server2", "j1")
    async with serving(old, new):
        await old.fence(2, "start")
        placement = await offer(old, contribution())
        await new.fence(3, "failover")
        same = await offer(new, contribution())
        other = await offer(new, contribution(digest="cd" * 32))
    assert (same.placed.seq, same.placed.index, same.placed.epoch) == (placement.seq, placement.index, 2)
    assert (same.superseded, other.superseded) == (False, True)


async def test_closing_during_an_append_acknowledges_what_lands_and_fails_what_waits(store):
    ledger = new_ledger(store)
    async with serving(ledger):
        await ledger.fence(2, "start")
        begun, go = gate(store)
        flying = asyncio.ensure_future(offer(ledger, contribution("site-1")))
        await asyncio.to_thread(begun.wait, 10)
        waiting = asyncio.ensure_future(offer(ledger, contribution("site-2")))
        await asyncio.sleep(0)
        ledger.close("over")
        drained = asyncio.ensure_future(ledger.drained())
        with pytest.raises(NotPrimary):
            await waiting
        await asyncio.sleep(0)
        assert not drained.done()
        go.set()
        placement = await flying
        await asyncio.wait_for(drained, 10)
    assert [one[:2] for one in items(fold(store)[1])] == [(placement.seq, 0)]


async def test_a_drain_without_appends_is_over_at_once(store):
    ledger = new_ledger(store)
    async with serving(ledger):
        await ledger.fence(2, "start")
        await offer(ledger, contribution())
        ledger.close("over")
        await asyncio.wait_for(ledger.drained(), 10)


# -- callers that go away -----------------------------------------------------------------------------------------------


async def test_a_cancelled_caller_harms_nobody_before_and_during_its_append(store):
    ledger = new_ledger(store)
    async with serving(ledger):
        await ledger.fence(2, "start")
        begun, go = gate(store)
        flying = asyncio.ensure_future(offer(ledger, contribution("site-1")))
        await asyncio.to_thread(begun.wait, 10)
        queued = asyncio.ensure_future(push(ledger, "site-1", 1, [line(1.0)]))
        other = asyncio.ensure_future(push(ledger, "site-2", 1, [line(2.0)]))
        await asyncio.sleep(0)
        flying.cancel()
        queued.cancel()
        await asyncio.sleep(0)
        go.set()
        assert isinstance(await other, Placement)
        again = await offer(ledger, contribution("site-1"))
    assert again.placed is not None  # the append in flight landed
    book, records = fold(store)
    assert len(items(records)) == 1
    assert book.jobs[JOB].lines == {"site-2": 1}  # what was not yet on its way was left out


async def test_a_reader_cancelled_in_the_middle_loses_no_record(store):
    ledger = new_ledger(store)
    await ledger.read_on()
    Writer(store, "server2", "j1", epoch=2)
    begun, go = threading.Event(), threading.Event()
    read = store.read

    def slow(seq):
        if not begun.is_set():
            begun.set()
            assert go.wait(10)
        return read(seq)

    store.read = slow
    reader = asyncio.ensure_future(ledger.read_on())
    await asyncio.to_thread(begun.wait, 10)
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)
    go.set()
    Writer(store, "server2", "j1", epoch=2, fence=False).append("job_submitted", submitted(OTHER, "request2"))
    await ledger.read_on()
    assert ledger.book.seq == fold(store)[0].seq
    assert set(ledger.book.jobs) == {JOB, OTHER}
    assert [one.seq for one in ledger.seen] == list(range(ledger.book.seq + 1))


async def test_a_log_that_cannot_be_folded_stops_the_ledger_for_good(store):
    ledger = new_ledger(store)
    async with serving(ledger):
        await ledger.fence(2, "start")
        rogue = Writer(store, epoch=2, fence=False)
        rogue.contribute(contribution())
        rogue.contribute(contribution())  # the same id once more: no correct writer does that
        before = len(store.contents)
        with pytest.raises((Corrupt, NotPrimary)):
            await offer(ledger, contribution("site-2"))
        for _ in range(2):
            with pytest.raises(Corrupt, match="recorded twice"):
                await ledger.read_on()
        with pytest.raises((Corrupt, NotPrimary)):
            await offer(ledger, contribution("site-2"))
        with pytest.raises(Corrupt):
            await ledger.fence(3, "again")
    assert len(store.contents) == before


async def test_an_answer_needs_no_append(store):
    ledger = new_ledger(store)
    async with serving(ledger):
        await ledger.fence(2, "start")
        before = len(store.contents)
        assert await ledger.propose("job_state", lambda book: Answer(len(book.jobs))) == 1
    assert len(store.contents) == before


async def test_breathing_space_lets_a_rival_in_between(store):
    ledger = new_ledger(store)
    async with serving(ledger):
        await ledger.fence(2, "start")
        ledger.breathing_space = 60.0
        await offer(ledger, contribution("site-1"))
        starved = asyncio.ensure_future(offer(ledger, contribution("site-2")))
        Writer(store, "server2", "j1", epoch=3)
        await ledger.read_on()
        with pytest.raises(NotPrimary):
            await asyncio.wait_for(starved, 10)


# -- everything at once -------------------------------------------------------------------------------------------------

# Who acts: the newest primary, the one before it (a zombie that believes), or the third.
WHO = st.sampled_from([0, 0, 0, 0, 1, 2])
SITE = st.sampled_from(["site-1", "site-2"])
KINDS = {
    "offer": (st.tuples(WHO, SITE, st.sampled_from("aaab")), 6),
    "next round": (st.tuples(WHO), 4),
    "settle": (st.tuples(), 5),
    "lines": (st.tuples(WHO, SITE, st.integers(1, 4)), 2),
    "breathe": (st.tuples(), 1),
    "grant": (st.tuples(st.integers(0, 2)), 1),
    "tail": (st.tuples(WHO), 1),
    "fault": (st.tuples(st.sampled_from([UNAVAILABLE, LOST, REPEATED])), 1),
}
WEIGHED = st.sampled_from([name for name, (_, weight) in KINDS.items() for _ in range(weight)])
STEPS = st.lists(WEIGHED.flatmap(lambda name: st.tuples(st.just(name), KINDS[name][0])), min_size=20, max_size=60)


class Members:
    """Three servers over one log, driven step by step; remembers what was acknowledged."""

    def __init__(self, store):
        self.store = store
        self.ledgers = [new_ledger(store, f"server{n}", f"i{n}") for n in range(3)]  # newest primary first
        self.lives = 0
        self.highest = 1
        self.receipts = []
        self.acknowledged = {}
        self.running = set()
        self.retired = []

    async def step(self, step):
        name, arguments = step
        await getattr(self, name.replace(" ", "_"))(*arguments)

    async def grant(self, n):
        """A child leads once; its next life is a new ledger. The old one is not told: it is a zombie that goes on."""
        ledger = self.ledgers.pop(n)
        if ledger.epoch is not None:
            self.lives += 1
            self.retired.append(ledger)
            ledger = new_ledger(self.store, ledger._me.name, f"life-{self.lives}")
        self.ledgers.insert(0, ledger)
        self._spawn(ledger.run())
        self.highest += 1
        try:
            await ledger.fence(self.highest, "grant")
        except FedhelmError:
            return

    def _spawn(self, coroutine):
        self.running.add(asyncio.ensure_future(coroutine))

    def _ready(self, n):
        return self.ledgers[n].epoch is not None

    async def offer(self, n, site, digest):
        if self._ready(n):
            number = self.ledgers[n].book.jobs[JOB].open
            number = number.round if number else 1
            self._spawn(self._offer(self.ledgers[n], contribution(site, number, digest * 64)))

    async def _offer(self, ledger, item):
        try:
            answer = await offer(ledger, item)
        except FedhelmError:
            return
        if isinstance(answer, Placement):
            self.receipts.append((contribution_key(item), (answer.seq, answer.index, answer.epoch), item["blob"]))
        elif answer.placed is not None:
            placed = answer.placed
            blob = None if answer.superseded else item["blob"]
            self.receipts.append((contribution_key(item), (placed.seq, placed.index, placed.epoch), blob))

    async def lines(self, n, site, count):
        if self._ready(n):
            self._spawn(self._lines(self.ledgers[n], site, count))

    async def _lines(self, ledger, site, count):
        first = self.acknowledged.get(site, 0) + 1
        new = [line(float(first + i)) for i in range(count)]
        try:
            answer = await push(ledger, site, first, new)
        except FedhelmError:
            return
        last = first + count - 1 if isinstance(answer, Placement) else answer
        self.acknowledged[site] = max(self.acknowledged.get(site, 0), last)

    async def next_round(self, n):
        if self._ready(n):
            self._spawn(self._next_round(self.ledgers[n]))

    async def _next_round(self, ledger):
        job = ledger.book.jobs[JOB]
        try:
            if job.open is None:
                number = max((entry["round"] for entry in job.closed), default=0) + 1
                await ledger.propose("round_open", decisions.round_open(opened(number)))
            elif job.open.contributions:
                body = closed(job.open.round, tuple(job.open.contributions))
                await ledger.propose("round_close", decisions.round_close(body))
        except FedhelmError:
            return

    async def tail(self, n):
        try:
            await self.ledgers[n].read_on()
        except StoreUnavailable:
            return

    async def fault(self, kind):
        self.store.faults.append(kind)

    async def settle(self):
        """Let every append that is on its way arrive."""
        await asyncio.sleep(0)
        for ledger in self.ledgers:
            await ledger.drained()

    async def breathe(self):
        for _ in range(5):
            await asyncio.sleep(0)

    async def end(self):
        self.store.faults.clear()
        quiet = [task for task in self.running if task.get_coro().__name__ != "run"]
        await asyncio.wait_for(asyncio.gather(*quiet), 20)
        for task in self.running - set(quiet):
            task.cancel()
        await asyncio.gather(*self.running, return_exceptions=True)


@given(STEPS)
@settings(max_examples=150, deadline=None)
def test_whatever_happens_the_log_keeps_what_was_acknowledged(steps):
    async def play():
        store = found(MemoryLogStore())
        writer = Writer(store, "server9", "i0")
        writer.job()
        writer.append("round_open", opened())
        members = Members(store)
        await members.grant(0)
        for step in steps:
            await members.step(step)
        await members.end()
        for ledger in members.ledgers + members.retired:
            ledger._thread.shutdown()
        return store, members

    store, members = asyncio.run(play())
    book, records = fold(store)  # the fold itself checks I1, I3, I4, I8, I9
    epochs = [record.epoch for record in records]
    assert epochs == sorted(epochs)  # I1
    fences = [record for record in records if record.kind == "fence"]
    assert len({fence.epoch for fence in fences}) == len(fences)  # I9
    writers = {(record.epoch, record.by) for record in records if record.kind != "genesis"}
    assert len({epoch for epoch, _ in writers}) == len(writers)  # I1: one writer per epoch
    placed = items(records)
    keys = [contribution_key(item) for *_, item in placed]
    assert len(set(keys)) == len(keys)  # I3
    where = {(seq, index, epoch): item for seq, index, epoch, item in placed}
    for key, at, blob in members.receipts:  # I2
        assert contribution_key(where[at]) == key
        if blob is not None:
            assert where[at]["blob"] == blob
    for site, number in members.acknowledged.items():
        assert book.jobs[JOB].lines.get(site, 0) >= number
    for entry in book.jobs[JOB].closed:  # I4
        before = {
            item["site"]
            for seq, _, _, item in placed
            if item["round"] == entry["round"] and item["kind"] == entry["kind"] and seq < entry["seq"]
        }
        assert set(entry["members"]) == before
    # A server that reads the log has the book of the one that wrote it.
    for ledger in members.ledgers:
        if ledger.book.seq == book.seq:
            assert ledger.book.jobs == book.jobs


async def test_two_ledgers_racing_for_every_slot_lose_and_double_nothing(store):
    # A zombie that still believes, and its successor, offer the same results at the same time.
    old, new = new_ledger(store), new_ledger(store, "server2", "j1")
    async with serving(old, new):
        await old.fence(2, "start")
        tries = [asyncio.ensure_future(offer(old, contribution(f"site-{n}"))) for n in (1, 2)]
        promoted = asyncio.ensure_future(new.fence(3, "failover"))
        outcomes = await asyncio.gather(*tries, return_exceptions=True)
        await promoted
        final = [await offer(new, contribution(f"site-{n}")) for n in (1, 2)]
    written = {item["site"]: (seq, index) for seq, index, _, item in items(fold(store)[1])}
    assert len(written) == len(items(fold(store)[1])) == 2
    for outcome in outcomes:
        assert isinstance(outcome, Placement | NotPrimary | Fenced), outcome
    for site, answer in zip(("site-1", "site-2"), final, strict=True):
        place = answer if isinstance(answer, Placement) else answer.placed
        assert (place.seq, place.index) == written[site]


async def test_the_queue_is_served_in_order_of_arrival(store):
    ledger = new_ledger(store)
    async with serving(ledger):
        await ledger.fence(2, "start")
        order = []

        def note(name):
            return ledger.propose("job_state", lambda _: order.append(name) or Answer(None))

        await asyncio.gather(*(note(n) for n in range(20)))
        assert order == list(range(20))
        await eventually(ledger._idle.is_set)
