"""What sites and admins ask of a primary: a real runtime, ledger and book over a store in memory; no processes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest

from fedhelm.errors import (
    BadInput,
    BadSignature,
    Conflict,
    Corrupt,
    JobNotFound,
    NotAuthorised,
    NotFound,
    NotPrimary,
    ProtocolError,
    Refused,
    RoundOver,
    StoreUnavailable,
)
from fedhelm.persist.base import Usage
from fedhelm.persist.blobs import Manifest, blake3_hex
from fedhelm.persist.log import Log
from fedhelm.persist.store import Store
from fedhelm.security.identity import Principal
from fedhelm.tasks import cancel, spawn
from fedhelm.v1 import admin_pb2 as admin
from fedhelm.v1 import common_pb2 as common
from fedhelm.v1 import fleet_pb2 as fleet
from fedhelm_server import decisions, fleet_service
from fedhelm_server.admin_service import RESTART_DELAY_S, AdminService
from fedhelm_server.checkpoints import Checkpoints
from fedhelm_server.disk_budget import GIB
from fedhelm_server.fleet_service import MAX_RESULTS, MAX_UPLOADS, FleetService
from fedhelm_server.job_control import JobControl
from fedhelm_server.places import bundle_owner, model_owner, sites_owner
from fedhelm_server.role import Role
from fedhelm_server.runtime import Runtime
from fedhelm_server.streams import SiteStream
from tests.fakes.persist_memory import MemoryBlobStore, MemoryLogStore
from tests.fakes.server_kit import server_kit
from tests.fakes.server_log import (
    JOB,
    OTHER,
    Clock,
    Writer,
    blob,
    closed,
    cover,
    done,
    fold,
    found,
    opened,
    state,
    submitted,
)
from tests.fakes.wire_service import SERVER_STOPPED
from tests.support.calls import called
from tests.support.waiting import eventually

REQUEST = "request99"


class Link:
    def __init__(self):
        self.heard = []

    def post(self, kind, /, **fields):
        self.heard.append(kind)


class Primary:
    """Leads; its runners are a list of what they were handed."""

    def __init__(self, tmp_path, durability="durable"):
        self.slots, self.blobs, self.link = found(MemoryLogStore()), MemoryBlobStore(), Link()
        writer = Writer(self.slots, "server9", "i0")
        item = submitted(rounds=3)
        writer.append("job_submitted", {**item, "config": {**item["config"], "durability": durability}})
        writer.append("job_state", state())
        writer.append("job_state", state("RUNNING", ()))
        writer.append("round_open", opened(rounds=3))
        store = Store(tmp_path, "c" * 32, "poc", Log(self.slots, self.blobs), self.blobs)
        kit = dataclasses.replace(server_kit(tmp_path, "fast"), sites=("site-1", "site-2"))
        self.runtime = Runtime(kit, "i1", store, Clock(), self.link)
        self.control = JobControl(self.runtime)
        self.handed = []
        self.control.runners = SimpleNamespace(reconcile=lambda _: None, hand=self.handed.append)
        self.fleet = FleetService(self.runtime)
        self.admin = AdminService(self.runtime, self.control)
        self.checkpoints = Checkpoints(self.runtime)

    @property
    def book(self):
        return self.runtime.book

    def connect(self, site, version=2):
        stream = SiteStream(site, "a1", version)
        self.runtime.streams.open(stream)
        return stream

    async def upload(self, site, data=b"result", owner=None, hold=None):
        owner = owner or sites_owner(JOB, 0, 1)
        manifest = Manifest(len(data), 1024, (blake3_hex(data),))
        sent = common.Manifest(size=manifest.size, chunk_size=1024, chunks=manifest.chunks)
        header = common.PutBlobHeader(owner=owner, manifest=sent, indices=[0])

        async def messages():
            yield header.SerializeToString()
            if hold is not None:
                await hold.wait()
            yield data

        return await self.fleet.put_blob(messages(), site_call(site))

    async def offer(self, site, data=b"result", number=1, **extra):
        blob = await self.upload(site, data)
        request = fleet.Contribution(
            job=JOB, attempt=1, step=0, round=number, kind="train", site=site, blob=blob, weight=1, **extra
        )
        return await self.fleet.contribute(request, site_call(site))

    async def close(self, *members):
        decide = decisions.round_close(closed(members=members), lambda: self.runtime.holding.of(JOB))
        await self.runtime.ledger.propose("round_close", decide)

    async def end(self):
        await self.runtime.ledger.propose(
            "job_done", decisions.finish(JOB, "FINISHED:COMPLETED", "", "", done()["time"])
        )

    async def delete(self, job=JOB, request_id=REQUEST):
        return await self.admin.delete_job(admin.DeleteJobRequest(job=job, request_id=request_id), admin_call())

    async def operate(self, *sites, action="restart", request_id=REQUEST, **extra):
        request = admin.OperateRequest(request_id=request_id, action=action, sites=sites, **extra)
        return await self.admin.operate(request, admin_call())

    def told(self, stream):
        return [message.order.id for message in self.fleet._next(stream) if message.HasField("order")]

    def task(self, site, stream=None):
        (job,) = [m for m in self.fleet._next(stream or self.connect(site)) if m.HasField("assignment")][
            -1
        ].assignment.jobs
        return job


def site_call(site):
    return called(Principal("poc", "site", site), "Fleet.Contribute")


def admin_call():
    return called(Principal("poc", "project_admin", "admin@nvidia.com"), "Admin.DeleteJob")


@asynccontextmanager
async def primary_in(tmp_path, durability="durable"):
    primary = Primary(tmp_path, durability)
    task = spawn(primary.runtime.ledger.run(), "ledger")
    await primary.runtime.ledger.fence(2, "start")
    primary.runtime.role, primary.runtime.deadline = Role.ACTIVE, 1e9
    try:
        yield primary
    finally:
        await cancel(task)
        await asyncio.to_thread(primary.runtime.ledger._thread.shutdown)


# -- streams ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "defect"), [(SERVER_STOPPED("Server already stopped."), False), (OSError("a defect"), True)]
)
async def test_a_stream_that_ends_with_this_server_is_no_failure(tmp_path, error, defect):
    async def messages():
        yield fleet.SiteMessage(beat=fleet.Beat(jobs=[fleet.HeldJob(job=JOB, status="TRAINING")]))
        raise error

    async with primary_in(tmp_path) as primary:
        stream = primary.connect("site-1")
        with pytest.raises(OSError, match="a defect") if defect else contextlib.nullcontext():
            await primary.fleet._read(stream, messages())
        assert stream.held == {JOB: "TRAINING"}


async def test_a_site_is_away_also_when_its_call_is_cancelled_a_second_time(tmp_path):
    stuck = asyncio.Event()

    async def messages(cluster):
        yield fleet.SiteMessage(hello=fleet.Hello(cluster=cluster, wire_versions=[2]))
        try:
            await asyncio.Event().wait()
        finally:
            await stuck.wait()  # it takes a moment to end

    async with primary_in(tmp_path) as primary:
        call = called(Principal("poc", "site", "site-1"), "Fleet.Connect")

        async def serve():
            async with contextlib.aclosing(primary.fleet.connect(messages(primary.runtime.kit.cluster), call)) as told:
                async for _ in told:
                    pass

        task = spawn(serve(), "call")
        await eventually(lambda: primary.runtime.streams.connected() == {"site-1"})
        for _ in range(2):
            task.cancel()
            await asyncio.sleep(0)
        stuck.set()
        await asyncio.wait({task}, timeout=10)
        assert primary.runtime.streams.connected() == frozenset()


async def test_a_site_whose_beat_cannot_be_read_is_told_and_disconnected(tmp_path, caplog):
    async def messages(cluster):
        yield fleet.SiteMessage(hello=fleet.Hello(cluster=cluster, wire_versions=[2]))
        raise BadInput("3 bytes that are no message of this method")

    async with primary_in(tmp_path) as primary:
        call = called(Principal("poc", "site", "site-1"), "Fleet.Connect")
        stream = primary.fleet.connect(messages(primary.runtime.kit.cluster), call)
        with pytest.raises(BadInput, match="no message"):
            assert [message async for message in stream] == []
        assert primary.runtime.streams.connected() == frozenset()
    assert [record for record in caplog.records if record.exc_info] == []


# -- uploads ----------------------------------------------------------------------------------------------------------


async def test_uploads_go_to_the_open_round_alone(tmp_path):
    async with primary_in(tmp_path) as primary:
        await primary.upload("site-1")
        for owner in (sites_owner(JOB, 0, 2), sites_owner(JOB, 1, 1), bundle_owner(JOB), f"jobs/{JOB}/0-1/model"):
            with pytest.raises(NotAuthorised):
                await primary.upload("site-1", owner=owner)
        for site in ("site-1", "site-2"):
            await primary.offer(site)
        await primary.close("site-1", "site-2")
        with pytest.raises(RoundOver):
            await primary.upload("site-1")
        await primary.end()
        with pytest.raises(RoundOver):
            await primary.upload("site-1")


async def test_a_site_uploads_few_different_results_to_a_round_but_each_again(tmp_path):
    async with primary_in(tmp_path) as primary:
        for number in range(MAX_RESULTS):
            await primary.upload("site-1", b"%d" % number)
        with pytest.raises(Conflict, match="3 other results"):
            await primary.upload("site-1", b"one more")
        await primary.upload("site-1", b"0")  # its answer was lost
        await primary.upload("site-2", b"another's")


async def test_uploads_that_were_broken_off_count_too(tmp_path):
    async with primary_in(tmp_path) as primary:
        hold = asyncio.Event()
        for number in range(MAX_RESULTS):
            broken = asyncio.ensure_future(primary.upload("site-1", b"%d" % number, hold=hold))
            await eventually(lambda number=number: sum(map(len, primary.fleet._results.values())) == number + 1)
            broken.cancel()
        with pytest.raises(Conflict, match="3 other results"):
            await primary.upload("site-1", b"one more")
        await primary.upload("site-1", b"0")  # it is sent again


async def test_a_result_has_the_size_of_the_rounds_model_times_eight_at_most(tmp_path, monkeypatch):
    monkeypatch.setattr(fleet_service, "RESULT_SLACK", 10)
    monkeypatch.setattr(fleet_service, "MAX_FIRST_RESULT", 5)
    async with primary_in(tmp_path) as primary:
        with pytest.raises(BadInput, match=r"6 bytes .*: at most 5 are taken") as refused:
            await primary.upload("site-1", bytes(6))
        assert "initial_model" in refused.value.hint
        primary.book.jobs[JOB].open.model = {"owner": model_owner(JOB, 0, 0), "digest": "ab" * 32, "size": 3}
        await primary.upload("site-1", bytes(34))
        with pytest.raises(BadInput, match=r"35 bytes .*: at most 34 are taken"):
            await primary.upload("site-1", bytes(35))
        sent = common.Manifest(size=35, chunk_size=1024, chunks=[blake3_hex(bytes(35))])
        request = common.MissingChunksRequest(owner=sites_owner(JOB, 0, 1), manifest=sent)
        with pytest.raises(BadInput, match="35 bytes"):
            await primary.fleet.missing_chunks(request, site_call("site-1"))


async def test_uploads_leave_room_for_the_log_and_sites_keep_what_has_none(tmp_path):
    async with primary_in(tmp_path) as primary:
        blobs, hold = primary.runtime.store.blobs, asyncio.Event()
        blobs.usage = lambda: Usage(100_000, 1000 + 20)
        first = asyncio.ensure_future(primary.upload("site-1", bytes(15), hold=hold))
        await eventually(lambda: primary.fleet._disk._coming)
        with pytest.raises(StoreUnavailable, match="has no room"):  # 1000 are kept, and 15 of the 20 are spoken for
            await primary.upload("site-2", bytes(6))
        await primary.upload("site-2", bytes(5))
        hold.set()
        await first
        assert primary.fleet._disk._coming == []
        await primary.upload("site-2", bytes(20))


async def test_a_sites_fifth_upload_waits_for_one_of_four(tmp_path):
    async with primary_in(tmp_path) as primary:
        hold = asyncio.Event()
        held = [asyncio.ensure_future(primary.upload("site-1", b"same", hold=hold)) for _ in range(MAX_UPLOADS)]
        await eventually(primary.fleet._uploads["site-1"].locked)
        fifth = asyncio.ensure_future(primary.upload("site-1", b"same"))
        await primary.upload("site-2")  # nobody else waits
        assert not fifth.done()
        hold.set()
        await asyncio.gather(*held, fifth)


async def test_a_late_site_whose_model_was_collected_is_not_told_that_it_is_damaged(tmp_path):
    async with primary_in(tmp_path) as primary:

        def ask(owner):
            return primary.fleet.get_manifest(
                common.BlobRef(owner=owner, digest="ab" * 32, size=3), site_call("site-1")
            )

        with pytest.raises(StoreUnavailable, match="later round"):  # passing: it asks again, until its task changes
            await ask(model_owner(JOB, 0, 0))
        with pytest.raises(Corrupt):
            await ask(bundle_owner(JOB))
        primary.book.jobs[JOB].open.model = blob(model_owner(JOB, 0, 0))
        with pytest.raises(Corrupt):
            await ask(model_owner(JOB, 0, 0))


@pytest.mark.parametrize("ended", [False, True])
async def test_a_contribution_whose_blob_was_collected_with_its_round_gets_the_answer_of_the_log(tmp_path, ended):
    async with primary_in(tmp_path) as primary:
        late = await primary.upload("site-2", b"late")
        request = fleet.Contribution(
            job=JOB, attempt=1, step=0, round=1, kind="train", site="site-2", blob=late, weight=1, metrics_json="{}"
        )
        receipt = await primary.offer("site-1")
        if ended:
            await primary.end()
        else:
            await primary.close("site-1")
        primary.blobs.delete_owner(sites_owner(JOB, 0, 1))
        assert (await primary.fleet.contribute(request, site_call("site-2"))).gone
        request.site = "site-1"
        again = await primary.fleet.contribute(request, site_call("site-1"))
        assert (again.seq, again.superseded) == (receipt.seq, True)


async def test_the_record_of_a_contribution_names_the_sites_privacy_filters_where_it_has_any(tmp_path):
    async with primary_in(tmp_path) as primary:
        for wrong in (["x"] * 81, ["x" * 201], ["\x1b[2J"]):
            with pytest.raises(BadInput, match="privacy filters are told in"):
                await primary.offer("site-1", filters=wrong)
        await primary.offer("site-1", filters=["exclude(tensors=head.*)", "clip(norm=1)"])
        await primary.offer("site-2")
        given = {site: one.item for site, one in primary.book.jobs[JOB].open.contributions.items()}
        assert given["site-1"]["filters"] == ["exclude(tensors=head.*)", "clip(norm=1)"]
        assert "filters" not in given["site-2"]


# -- ephemeral jobs ---------------------------------------------------------------------------------------------------


async def test_a_contribution_of_an_ephemeral_job_is_held_handed_on_and_not_in_the_log(tmp_path):
    async with primary_in(tmp_path, "ephemeral") as primary:
        stream = primary.connect("site-1")
        assert primary.task("site-1", stream).durability == "ephemeral"
        end = primary.book.seq
        receipt = await primary.offer("site-1")
        assert (receipt.held, receipt.gone, receipt.superseded, receipt.epoch) == (True, False, False, 2)
        assert [item["site"] for item in primary.handed] == ["site-1"]
        assert not primary.task("site-1", stream).HasField("task"), "nobody asks it again"
        assert primary.task("site-2").HasField("task")
        again = await primary.offer("site-1")
        other = await primary.offer("site-1", b"trained again")
        assert (again.held, again.superseded, other.held, other.superseded) == (True, False, True, True)
        assert len(primary.handed) == 1
        assert primary.book.seq == end
        shown = await primary.admin.show_job(admin.JobRequest(job=JOB), admin_call())
        assert (shown.sites[0].name, shown.sites[0].status) == ("site-1", "DONE")
        with pytest.raises(Conflict, match="another contribution"):
            await primary.close("site-1", "site-2")
        await primary.offer("site-2")
        await primary.close("site-1", "site-2")
        assert primary.runtime.holding.of(JOB) == {}
        with pytest.raises(RoundOver):
            await primary.upload("site-1")
    assert fold(primary.slots)[0].jobs[JOB].closed[0]["members"] == ["site-1", "site-2"]


async def test_the_next_primary_asks_for_what_nobody_holds_any_more(tmp_path):
    async with primary_in(tmp_path, "ephemeral") as primary:
        await primary.offer("site-1")
        primary.runtime.holding._jobs.clear()  # as in a process that has just begun
        assert primary.task("site-1").HasField("task")
        assert (await primary.offer("site-1")).held


async def test_a_late_offer_to_an_ephemeral_job_is_gone(tmp_path):
    async with primary_in(tmp_path, "ephemeral") as primary:
        blob = await primary.upload("site-2")
        await primary.offer("site-1")
        await primary.close("site-1")
        late = fleet.Contribution(job=JOB, attempt=1, step=0, round=1, kind="train", site="site-2", blob=blob, weight=1)
        assert (await primary.fleet.contribute(late, site_call("site-2"))).gone


async def test_a_site_that_would_not_keep_its_result_is_refused(tmp_path):
    async with primary_in(tmp_path, "ephemeral") as primary:
        primary.connect("site-1", version=1)
        with pytest.raises(ProtocolError, match="wire version 1"):
            await primary.offer("site-1")


# -- admins -----------------------------------------------------------------------------------------------------------


async def test_only_an_ended_job_is_deleted_once_and_its_blobs_go(tmp_path):
    async with primary_in(tmp_path) as primary:
        await primary.upload("site-1")
        with pytest.raises(Conflict, match="has not ended"):
            await primary.delete()
        await primary.end()
        await primary.delete(JOB[:6])
        end = primary.book.seq
        await primary.delete(JOB[:6])  # its answer was lost
        assert primary.book.seq == end
        with pytest.raises(JobNotFound):
            await primary.delete(request_id="request98")
        with pytest.raises(JobNotFound):
            await primary.admin.show_job(admin.JobRequest(job=JOB), admin_call())
        assert (await primary.admin.list_jobs(admin.ListJobsRequest(), admin_call())).jobs == []
        assert primary.blobs.owners("jobs") != []
        assert await primary.checkpoints.write()
        assert primary.blobs.owners("jobs") == []


async def test_who_watches_a_job_that_is_deleted_is_told(tmp_path):
    async with primary_in(tmp_path) as primary:
        watch = primary.admin.watch_job(admin.JobRequest(job=JOB), admin_call())
        assert (await anext(watch)).summary.status == "RUNNING"
        following = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0)
        primary.admin._watchers, watchers = set(), primary.admin._watchers  # asleep while it ends
        await primary.end()
        await primary.delete()
        for watcher in watchers:
            watcher.set()
        with pytest.raises(JobNotFound):
            await following


async def test_sites_are_told_once_each_also_the_one_that_comes_later(tmp_path):
    async with primary_in(tmp_path) as primary:
        one, old = primary.connect("site-1"), primary.connect("site-3", version=1)
        reply = await primary.operate("@ALL", reason="new software")
        assert (list(reply.sites), list(reply.disconnected)) == (["site-1"], ["site-2", "site-3"])
        assert (primary.told(one), primary.told(one), primary.told(old)) == ([REQUEST], [], [])
        assert primary.told(primary.connect("site-2")) == [REQUEST]
        end = primary.book.seq
        record = fold(primary.slots)[1][-1]
        assert (record.kind, record.body["action"], record.body["target"]) == ("admin_action", "restart", "@ALL")
        primary.connect("site-4")
        await primary.operate("@ALL", reason="new software")  # its answer was lost
        assert primary.book.seq == end
        with pytest.raises(Conflict):
            await primary.operate("site-1")
        assert primary.link.heard == []


async def test_the_admin_hears_which_sites_refuse_and_an_order_is_passed_on_as_it_was_signed(tmp_path):
    async with primary_in(tmp_path) as primary:
        told = []

        async def play(site, refusal):
            answered = asyncio.Event()

            async def messages():
                hello = fleet.Hello(cluster=primary.runtime.kit.cluster, wire_versions=[2], answers_orders=True)
                yield fleet.SiteMessage(hello=hello)
                await answered.wait()
                if refusal is not None:
                    answer = fleet.OrderAnswer(id=REQUEST, refusal=refusal)
                    yield fleet.SiteMessage(beat=fleet.Beat(answers=[answer]))
                    await asyncio.Event().wait()

            call = called(Principal("poc", "site", site), "Fleet.Connect")
            async for message in primary.fleet.connect(messages(), call):
                if message.HasField("order"):
                    told.append((site, message.order.statement))
                    answered.set()

        async with asyncio.TaskGroup() as sites:
            played = [
                sites.create_task(play("site-1", None)),  # obeys: its stream ends
                sites.create_task(play("site-2", "operate is none")),
                sites.create_task(play("site-3", "")),  # had obeyed before
            ]
            await eventually(lambda: len(primary.runtime.streams.connected()) == 3)
            reply = await primary.operate("@ALL")
            for one in played:
                one.cancel()
        assert sorted(told) == [(f"site-{number}", b"") for number in (1, 2, 3)]
        assert list(reply.sites) == ["site-1", "site-3"]
        assert [(one.site, one.reason) for one in reply.refused] == [("site-2", "operate is none")]
        primary.runtime.kit.ca.parent.mkdir(exist_ok=True)
        primary.runtime.kit.ca.write_bytes(b"")
        with pytest.raises(BadSignature, match="not a signed statement"):
            await primary.operate("@ALL", request_id=f"{REQUEST}2", statement=b"{}")


async def test_a_server_is_restarted_by_its_supervisor_after_its_answer(tmp_path):
    async with primary_in(tmp_path) as primary:
        assert list((await primary.operate(server=True)).sites) == []
        await eventually(lambda: primary.link.heard == ["restart"])
        primary.link.heard.clear()
        await primary.operate(server=True)  # repeated to the primary of then, which is not to be restarted
        later = asyncio.Event()
        asyncio.get_running_loop().call_later(2 * RESTART_DELAY_S, later.set)
        await later.wait()
        assert primary.link.heard == []


async def test_what_cannot_be_asked_is_refused_and_not_recorded(tmp_path):
    async with primary_in(tmp_path) as primary:
        end = primary.book.seq
        for error, words in (
            (BadInput, {"sites": ("site-1",), "action": "dance"}),
            (BadInput, {"sites": (), "action": "restart"}),
            (BadInput, {"sites": (), "action": "shutdown", "server": True}),
            (NotFound, {"sites": ("site-9",), "action": "restart"}),
        ):
            with pytest.raises(error):
                await primary.operate(*words.pop("sites"), **words)
        primary.book.log_version = 1
        for ask in (primary.operate("site-1"), primary.delete()):
            with pytest.raises(Refused, match="log version 2"):
                await ask
        assert primary.book.seq == end


async def test_a_full_disk_takes_no_new_job_but_says_so_and_repeats_old_answers(tmp_path):
    async with primary_in(tmp_path) as primary:
        primary.blobs.room = Usage(100 * GIB, GIB // 2)
        request = admin.SubmitJobRequest(
            job=OTHER, request_id=REQUEST, bundle=common.BlobRef(owner=bundle_owner(OTHER), digest="ab" * 32, size=3)
        )
        with pytest.raises(Refused, match=r"0\.5 GiB of 100\.0 GiB"):
            await primary.admin.submit_job(request, admin_call())
        known = admin.SubmitJobRequest(job=JOB, request_id="request1", bundle=common.BlobRef(**submitted()["bundle"]))
        assert (await primary.admin.submit_job(known, admin_call())).job == JOB
        status = await primary.admin.check_status(common.Empty(), admin_call())
        assert "new jobs are refused" in status.warnings[0]
        assert (status.store_free, status.log_version, status.low_water, status.checkpoint) == (GIB // 2, 2, 0, 0)
        for _ in range(2):
            await primary.offer("site-1")
            await primary.runtime.ledger.propose("handoff", lambda _: {"to": "x", "request_id": "y"})
            assert await primary.checkpoints.write()
        status = await primary.admin.check_status(common.Empty(), admin_call())
        assert status.checkpoint == primary.book.checkpoints[-1].seq
        assert status.low_water == primary.book.checkpoints[0].covered + 1


# -- another primary --------------------------------------------------------------------------------------------------


async def test_a_primary_that_slept_through_a_failover_and_a_compaction_is_fenced_by_the_checkpoint(tmp_path):
    async with primary_in(tmp_path) as primary:
        other = Writer(primary.slots, "server2", "j1", epoch=3, blobs=primary.blobs)
        for _ in range(2):
            other.append("handoff", {"to": "server1", "request_id": "r"})
            cover(primary.slots, primary.blobs, other)
        assert primary.book.seq + 1 not in primary.slots.contents
        await primary.runtime.ledger.read_on()
        assert primary.runtime.role is Role.FENCED
        assert primary.runtime.stopping.is_set()
        assert primary.book.fence.name == "server2"
        with pytest.raises(NotPrimary, match="server2"):
            await primary.offer("site-1")
