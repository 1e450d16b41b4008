"""The child's role, driven by its supervisor's frames and by the log; the clock is the test's."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import threading
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fedhelm.config.timing import PROFILES
from fedhelm.errors import NotPrimary, StoreUnavailable, WrongStore
from fedhelm.persist.log import Log
from fedhelm.persist.store import Store, init_store
from fedhelm.tasks import cancel, spawn
from fedhelm_server import decisions
from fedhelm_server.cli import _check_store
from fedhelm_server.ledger import Placement
from fedhelm_server.local_settings import LocalSettings
from fedhelm_server.role import Role
from fedhelm_server.runtime import Runtime
from tests.fakes.persist_memory import LOST, MemoryBlobStore, MemoryLogStore
from tests.fakes.server_kit import server_kit
from tests.fakes.server_log import Clock, Writer, contribution, contribution_key, fold, found, items, opened
from tests.support.waiting import eventually


class Link:
    """The supervisor's end: frames go in by `say`, what the child says is in `heard`."""

    def __init__(self):
        self.heard = []
        self.beats = []
        self._frames = asyncio.Queue()

    def say(self, kind, /, **fields):
        self._frames.put_nowait({"type": kind, **fields})

    def hang_up(self):
        self._frames.put_nowait(None)

    async def receive(self):
        return await self._frames.get()

    async def send(self, kind, /, **fields):
        self.heard.append({"type": kind, **fields})

    def post(self, kind, /, **fields):
        (self.beats if kind == "beat" else self.heard).append({"type": kind, **fields})

    def types(self):
        return [frame["type"] for frame in self.heard]


class Bench:
    def __init__(self, tmp_path):
        self.slots = found(MemoryLogStore())
        writer = Writer(self.slots, "server9", "i0")
        writer.job()
        writer.append("round_open", opened())
        self.root = tmp_path / "store"
        init_store(self.root, "c" * 32, "poc")  # for the probe of writes alone
        store = Store(self.root, "c" * 32, "poc", Log(self.slots), MemoryBlobStore())
        self.clock, self.link = Clock(), Link()
        self.runtime = Runtime(server_kit(tmp_path, "fast"), "i1", store, self.clock, self.link)
        self.changes = []
        self.runtime.on_change.append(self.changes.append)

    @property
    def role(self):
        return self.runtime.role

    async def reaches(self, role):
        await eventually(lambda: self.role is role, what=f"{role}; it is {self.role}")

    async def lead(self, epoch=2):
        self.link.say("grant", epoch=epoch, deadline=self.clock.now + 10, cause="start", log_seq=5)
        await self.reaches(Role.ACTIVE)

    def offer(self, site="site-1"):
        item = contribution(site)
        return self.runtime.ledger.propose("contribution", decisions.contribute(item), key=contribution_key(item))


@asynccontextmanager
async def bench_in(tmp_path):
    bench = Bench(tmp_path)
    runtime = bench.runtime
    loops = [runtime.serve_link(), runtime.ledger.run(), runtime.follow_log(), runtime.watch_store(), runtime.beat()]
    tasks = [spawn(loop, "loop") for loop in loops]
    try:
        yield bench
    finally:
        bench.slots.before_create = None
        await cancel(*tasks)
        await asyncio.to_thread(runtime.ledger._thread.shutdown)


async def test_a_grant_makes_a_standby_the_primary_after_its_fence(tmp_path):
    async with bench_in(tmp_path) as bench:
        with pytest.raises(NotPrimary, match="server9 has epoch 1"):
            await eventually(lambda: bench.runtime.ready) and await bench.runtime.check_leads()
        await bench.lead()
        await bench.runtime.check_leads()
        await eventually(lambda: "active" in bench.link.types())
        assert bench.link.heard[-1] == {"type": "active", "epoch": 2, "log_seq": bench.runtime.book.seq, "jobs": 1}
        assert isinstance(await bench.offer(), Placement)
    assert fold(bench.slots)[0].fence.name == "server1"


async def test_a_store_that_went_backwards_and_an_old_epoch_are_refused(tmp_path):
    async with bench_in(tmp_path) as bench:
        bench.link.say("grant", epoch=2, deadline=1e9, cause="start", log_seq=999)
        await eventually(lambda: "refused" in bench.link.types())
        assert "backwards" in bench.link.heard[0]["reason"]
        bench.link.say("grant", epoch=1, deadline=1e9, cause="start", log_seq=5)
        await eventually(lambda: bench.link.types() == ["refused", "refused"])
        assert bench.role is Role.STANDBY
        await bench.lead(2)
    assert [record.epoch for record in fold(bench.slots)[1] if record.kind == "fence"] == [1, 2]


async def test_a_fence_whose_answer_was_lost_is_used_when_the_grant_comes_again(tmp_path):
    async with bench_in(tmp_path) as bench:
        await eventually(lambda: bench.runtime.ready)
        bench.slots.faults.append(LOST)
        bench.link.say("grant", epoch=2, deadline=1e9, cause="start", log_seq=5)
        await eventually(lambda: bench.link.types() == ["refused"])
        await bench.lead(2)
        assert isinstance(await bench.offer(), Placement)
    assert [record.epoch for record in fold(bench.slots)[1] if record.kind == "fence"] == [1, 2]


async def test_a_foreign_fence_ends_a_primary_for_good(tmp_path):
    async with bench_in(tmp_path) as bench:
        await bench.lead()
        Writer(bench.slots, "server2", "j1", epoch=3)
        await bench.reaches(Role.FENCED)
        assert bench.runtime.stopping.is_set()
        assert bench.link.heard[-1] == {"type": "fenced", "epoch": 3}
        for wrong in (bench.offer(), bench.runtime.check_leads()):
            with pytest.raises(NotPrimary, match="server2"):
                await wrong
        bench.link.say("lease", deadline=1e9)
        bench.link.say("resume", deadline=1e9)
        await eventually(bench.link._frames.empty)
        assert bench.role is Role.FENCED
        with pytest.raises(NotPrimary):
            await bench.offer()


async def test_a_primary_whose_store_is_lost_takes_nothing_and_serves_again_when_it_is_back(tmp_path):
    async with bench_in(tmp_path) as bench:
        await bench.lead()
        away = bench.root.with_name("away")
        bench.root.rename(away)
        bench.slots.down = True
        with pytest.raises(StoreUnavailable):
            await bench.offer()
        await bench.reaches(Role.READONLY)
        assert bench.runtime.leads  # nobody else does, and its lease is good: reads are served
        await bench.runtime.check_leads()
        with pytest.raises(StoreUnavailable):
            await bench.offer()
        bench.changes.clear()
        away.rename(bench.root)
        bench.slots.down = False
        await eventually(lambda: bench.role is not Role.READONLY)
        assert any(bench.changes), "those who wait for the store were not told"
        assert isinstance(await bench.offer(), Placement)
        bench.link.say("lease", deadline=1e9)
        await bench.reaches(Role.ACTIVE)
        assert bench.runtime.ledger.breathing_space == 0
    assert len(items(fold(bench.slots)[1])) == 1


async def test_without_a_lease_a_primary_answers_only_after_a_look_at_the_log(tmp_path):
    async with bench_in(tmp_path) as bench:
        await bench.lead()
        bench.clock.now += 100
        await bench.reaches(Role.UNLEASED)
        assert bench.runtime.ledger.breathing_space > 0
        await bench.runtime.check_leads()  # the log is there, and says nothing new
        assert isinstance(await bench.offer(), Placement)
        bench.slots.down = True
        bench.clock.now += 100
        with pytest.raises(NotPrimary, match="another may lead"):
            await bench.runtime.check_leads()
        bench.slots.down = False
        await bench.runtime.check_leads()
        bench.clock.now += 100
        Writer(bench.slots, "server2", "j1", epoch=3)
        with pytest.raises(NotPrimary, match="server2"):
            await bench.runtime.check_leads()


async def test_a_drain_hands_over_and_takes_nothing_more(tmp_path):
    async with bench_in(tmp_path) as bench:
        await bench.lead()
        bench.link.say("drain", to="server2", request_id="r1")
        await eventually(lambda: "drained" in bench.link.types())
        assert bench.link.heard[-1]["log_seq"] == bench.runtime.book.seq
        with pytest.raises(NotPrimary, match="hands over to server2"):
            await bench.offer()
    book, records = fold(bench.slots)
    assert book.handoff == {"to": "server2", "request_id": "r1"}
    assert records[-1].kind == "handoff"


@pytest.mark.parametrize("frame", ["resume", "unleased"])
async def test_a_drain_that_was_called_off_lets_the_primary_go_on(tmp_path, frame):
    async with bench_in(tmp_path) as bench:
        await bench.lead()
        bench.link.say("drain", to="server2", request_id="r1")
        await eventually(lambda: "drained" in bench.link.types())
        bench.link.say(frame, deadline=1e9, since=0)
        await eventually(lambda: bench.role is not Role.DRAINING)
        assert isinstance(await asyncio.wait_for(bench.offer(), 10), Placement)


@pytest.mark.parametrize("frame", ["resume", "unleased"])
async def test_a_drain_called_off_while_its_record_is_on_its_way_is_void_too(tmp_path, frame):
    async with bench_in(tmp_path) as bench:
        await bench.lead()
        begun, go = threading.Event(), threading.Event()

        def hold(_):
            bench.slots.before_create = None
            begun.set()
            assert go.wait(10)

        bench.slots.before_create = hold
        bench.link.say("drain", to="server2", request_id="r1")
        await asyncio.to_thread(begun.wait, 10)
        bench.link.say(frame, deadline=1e9, since=0)
        await eventually(lambda: bench.role is not Role.DRAINING)
        go.set()
        assert isinstance(await asyncio.wait_for(bench.offer(), 10), Placement)
        assert isinstance(await asyncio.wait_for(bench.offer("site-2"), 10), Placement)


async def test_a_drain_whose_record_cannot_be_written_is_over(tmp_path):
    async with bench_in(tmp_path) as bench:
        await bench.lead()
        bench.slots.faults.append("unavailable")
        bench.link.say("drain", to="server2", request_id="r1")
        await eventually(lambda: bench.role is not Role.DRAINING and not bench.slots.faults)
        assert isinstance(await asyncio.wait_for(bench.offer(), 10), Placement)
        assert "drained" not in bench.link.types()


@pytest.mark.parametrize("end", ["stop", "hang up"])
async def test_the_supervisors_stop_and_its_end_stop_the_child(tmp_path, end):
    async with bench_in(tmp_path) as bench:
        bench.link.say("from the future")
        bench.link.hang_up() if end == "hang up" else bench.link.say("stop")
        await asyncio.wait_for(bench.runtime.stopping.wait(), 10)


# --- a store that hangs or is full, and what follows from a lease that is over


def beats(bench):
    return bench.link.beats[-1]


async def test_an_append_that_hangs_alarms_then_makes_it_readonly_and_it_recovers(tmp_path, caplog):
    async with bench_in(tmp_path) as bench:
        await bench.lead()
        begun, go = threading.Event(), threading.Event()

        def hold(_):
            bench.slots.before_create = None
            begun.set()
            assert go.wait(10)

        bench.slots.before_create = hold
        offer = asyncio.ensure_future(bench.offer())
        await asyncio.to_thread(begun.wait, 10)
        bench.clock.now += 0.3  # past C, not past T/2
        await eventually(lambda: "an append to the store takes longer than 0.25 s" in caplog.text)
        assert bench.role is Role.ACTIVE
        bench.clock.now += 0.6
        await bench.reaches(Role.READONLY)
        await eventually(lambda: beats(bench)["store_ok"] is False)
        assert beats(bench)["append_age"] == pytest.approx(0.9)
        assert "writing to the store takes longer than 0.75 s" in beats(bench)["reason"]
        go.set()
        assert isinstance(await asyncio.wait_for(offer, 10), Placement)
        await eventually(lambda: bench.role is not Role.READONLY)
        await eventually(lambda: beats(bench)["store_ok"])
    assert caplog.text.count("takes longer than 0.25 s") == 1


async def test_a_standby_tries_the_store_every_five_seconds_and_says_that_it_could_not_write(tmp_path):
    async with bench_in(tmp_path) as bench:
        await eventually(lambda: bench.runtime.ready and bench.link.beats and beats(bench)["store_ok"])
        away = bench.root.rename(bench.root.with_name("away"))
        bench.clock.now += 5
        await eventually(lambda: beats(bench)["store_ok"] is False)
        assert beats(bench)["reason"].startswith("the store takes no writes")
        away.rename(bench.root)
        await eventually(lambda: beats(bench)["store_ok"])
        assert beats(bench)["reason"] is None


def overwrite(source, target):
    Path(source).replace(target)


async def test_a_store_in_which_names_can_be_created_twice_is_no_candidates(tmp_path, monkeypatch):
    link = os.link
    monkeypatch.setattr(os, "link", overwrite)
    async with bench_in(tmp_path) as bench:
        await eventually(lambda: bench.link.beats and "created twice" in (beats(bench)["reason"] or ""))
        assert (beats(bench)["ready"], beats(bench)["store_ok"]) == (False, False)
        bench.link.say("grant", epoch=2, deadline=1e9, cause="start", log_seq=5)
        await eventually(lambda: "refused" in bench.link.types())
        assert "created twice" in bench.link.heard[-1]["reason"]
        monkeypatch.setattr(os, "link", link)  # the right one is mounted
        await eventually(lambda: beats(bench)["ready"] and beats(bench)["store_ok"])
        await bench.lead()


def test_a_server_does_not_start_on_such_a_store(tmp_path, monkeypatch):
    kit = dataclasses.replace(server_kit(tmp_path, "fast"), store=tmp_path / "store")
    init_store(kit.store, kit.cluster, kit.project)
    _check_store(kit)
    monkeypatch.setattr(os, "link", overwrite)
    with pytest.raises(WrongStore, match=f"{kit.store} lets a name be created twice"):
        _check_store(kit)


async def test_a_primary_whose_store_stops_being_exclusive_appends_nothing_more(tmp_path, monkeypatch):
    async with bench_in(tmp_path) as bench:
        await eventually(lambda: bench.runtime.ready)
        await bench.lead()
        assert isinstance(await bench.offer(), Placement)
        before = bench.slots.highest()
        monkeypatch.setattr(os, "link", overwrite)
        bench.clock.now += 5
        await bench.reaches(Role.READONLY)
        with pytest.raises(NotPrimary, match="created twice"):
            await bench.offer("site-2")
        bench.runtime.ledger.on_append(0.1)  # an append that had begun before ends well: it shows nothing
        told = len(bench.link.beats)
        await eventually(lambda: len(bench.link.beats) > told + 2)
        assert (bench.role, beats(bench)["store_ok"], bench.slots.highest()) == (Role.READONLY, False, before)


async def test_the_pause_without_a_lease_follows_the_median_append_whatever_the_role(tmp_path):
    async with bench_in(tmp_path) as bench:
        await bench.lead()
        bench.runtime._appended(0.2)
        assert bench.runtime.ledger.breathing_space == 0
        bench.clock.now += 100
        bench.runtime._appended(0.2)  # past the deadline, and no beat has noticed it yet
        assert bench.runtime.ledger.breathing_space == pytest.approx(0.8)
        bench.link.say("lease", deadline=1e9)
        await bench.reaches(Role.ACTIVE)
        await eventually(lambda: bench.runtime.ledger.breathing_space == 0)


async def test_policy_stop_ends_the_child_half_a_margin_after_the_deadline(tmp_path):
    async with bench_in(tmp_path) as bench:
        bench.runtime._settings = LocalSettings("stop")
        await bench.lead()
        bench.clock.now = bench.runtime.deadline + 0.1
        await bench.reaches(Role.UNLEASED)
        assert not bench.runtime.stopping.is_set()
        bench.clock.now = bench.runtime.deadline + 0.16  # M is 0.3
        await asyncio.wait_for(bench.runtime.stopping.wait(), 10)
        with pytest.raises(NotPrimary, match="no lease"):
            await bench.offer()


async def test_a_log_version_that_all_servers_read_is_written_by_the_primary_alone(tmp_path):
    async with bench_in(tmp_path) as bench:
        bench.runtime.book.log_version = 1
        bench.link.say("log_version", version=2)
        await eventually(bench.link._frames.empty)
        await eventually(lambda: bench.runtime.ready)
        await bench.runtime._raise_log_version()
        assert "config" not in [record.kind for record in fold(bench.slots)[1]]
        await bench.lead()
        bench.runtime.book.log_version = 1
        await eventually(lambda: "config" in [record.kind for record in fold(bench.slots)[1]])
        assert bench.runtime.book.log_version == 2


async def test_a_restart_is_asked_of_the_supervisor(tmp_path):
    async with bench_in(tmp_path) as bench:
        bench.runtime.ask_restart("admin asked for a restart")
        assert bench.link.heard == [{"type": "restart", "reason": "admin asked for a restart"}]
        assert not bench.runtime.stopping.is_set()


async def test_a_stop_lets_the_append_on_its_way_end_and_takes_no_more(tmp_path):
    async with bench_in(tmp_path) as bench:
        await bench.lead()
        begun, go = threading.Event(), threading.Event()

        def hold(_):
            bench.slots.before_create = None
            begun.set()
            assert go.wait(10)

        bench.slots.before_create = hold
        offer = asyncio.ensure_future(bench.offer())
        await asyncio.to_thread(begun.wait, 10)
        bench.link.say("stop")
        await eventually(lambda: bench.runtime.ledger.closed_reason is not None)
        go.set()
        assert isinstance(await asyncio.wait_for(offer, 10), Placement)
        with pytest.raises(NotPrimary, match="stops"):
            await bench.offer("site-2")
        await asyncio.wait_for(bench.runtime.stopping.wait(), 10)


async def test_a_defect_in_the_promotion_ends_the_child(tmp_path):
    async with bench_in(tmp_path) as bench:
        await eventually(lambda: bench.runtime.ready)
        bench.link.say("grant", epoch=2, deadline=1e9, cause="start", log_seq="a number")
        await asyncio.wait_for(bench.runtime.stopping.wait(), 10)


async def test_a_site_that_a_new_kit_names_is_known_at_once_and_the_times_stay(tmp_path):
    async with bench_in(tmp_path) as bench:
        runtime, looked = bench.runtime, []
        runtime.on_change.append(looked.append)
        kit, timing = runtime.kit, runtime.kit.timing
        new = dataclasses.replace(
            kit, sites=(*kit.sites, "site-9"), site_orgs={"site-9": "c"}, timing=PROFILES["wan"], name="other"
        )
        runtime.take_kit(new)
        assert (runtime.kit.sites[-1], runtime.org_of("site-9")) == ("site-9", "c")
        assert (runtime.kit.timing, runtime.kit.name) == (timing, kit.name)
        assert looked, "jobs that wait for it are looked at"
