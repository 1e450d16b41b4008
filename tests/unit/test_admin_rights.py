"""What each admin may do with whose job and whose site: the admin service over a real book and ledger, in memory."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncGenerator
from types import SimpleNamespace

import pytest

from fedhelm.errors import Ambiguous, Conflict, JobNotFound, NotAuthorised, NotFound
from fedhelm.persist.blobs import blake3_hex
from fedhelm.persist.log import Log
from fedhelm.persist.store import Store
from fedhelm.security.authorization import Policy
from fedhelm.security.identity import Principal
from fedhelm.security.policy import PERMISSIONS
from fedhelm.tasks import cancel, spawn
from fedhelm.v1 import admin_pb2 as admin
from fedhelm.v1 import common_pb2 as common
from fedhelm.v1 import fleet_pb2 as fleet
from fedhelm_server.admin_service import AdminService
from fedhelm_server.disk_budget import DiskBudget
from fedhelm_server.fleet_service import FleetService
from fedhelm_server.job_control import JobControl
from fedhelm_server.places import bundle_owner
from fedhelm_server.role import Role
from fedhelm_server.runtime import Runtime
from fedhelm_server.streams import SiteStream
from tests.fakes.persist_memory import MemoryBlobStore, MemoryLogStore
from tests.fakes.server_kit import server_kit
from tests.fakes.server_log import Clock, Writer, done, found, state, submitted
from tests.support.calls import called
from tests.support.waiting import eventually

ALICES, BOBS, OLD, NO_JOB = "abcdefghijkl", "abcdefghijkm", "zyxwvutsrqpo", "nopqrstuvwxy"
"""Alice's runs, Bob's has ended; the old one was submitted by Alice when nobody wrote down organisations."""

PAUL = Principal("poc", "project_admin", "paul@p.org", "p")
OLGA = Principal("poc", "org_admin", "olga@a.org", "a")
ALICE = Principal("poc", "lead", "alice@a.org", "a")
ADAM = Principal("poc", "lead", "adam@a.org", "a")
MARY = Principal("poc", "member", "mary@a.org", "a")
BOB = Principal("poc", "lead", "bob@b.org", "b")
EVERYBODY = (PAUL, OLGA, ALICE, ADAM, MARY, BOB)

REQUEST = "request99"


class Desk:
    """The admin service of a primary with three jobs and three sites: one of each organisation, and one never seen."""

    def __init__(self, tmp_path):
        slots, blobs = found(MemoryLogStore()), MemoryBlobStore()
        writer = Writer(slots, "server9", "i0")
        writer.append("config", {"log_version": 2})
        for job, who, org in ((ALICES, ALICE, "a"), (BOBS, BOB, "b"), (OLD, ALICE, None)):
            item = submitted(job, f"request-{job}", who.name)
            writer.append("job_submitted", {**item, **({"submitter_org": org} if org else {})})
        writer.append("job_state", state(job=ALICES))
        for job in (BOBS, OLD):
            writer.append("job_done", done(job=job))
        store = Store(tmp_path, "c" * 32, "poc", Log(slots, blobs), blobs)
        kit = dataclasses.replace(server_kit(tmp_path, "fast"), sites=("site-a", "site-b", "site-c"))
        self.runtime = Runtime(kit, "i1", store, Clock(), SimpleNamespace(post=lambda *_, **__: None))
        for org in "ab":
            stream = SiteStream(f"site-{org}", "i1", 2, org)
            stream.held = {ALICES: "TRAINING", BOBS: "TRAINING"}
            self.runtime.streams.open(stream)
        control = JobControl(self.runtime)
        control.disk = SimpleNamespace(
            look=nothing, warnings=list, require_room=nothing, room_for=DiskBudget(blobs).room_for
        )
        control.runners = SimpleNamespace(reconcile=lambda _: None, hand=lambda _: None)
        self.service = AdminService(self.runtime, control)
        self.prepared, self.orders = [], []
        self.service._downloads = SimpleNamespace(prepare=self._prepare, stream=self._stream)
        self.runtime.orders.give = lambda order, sites: self.orders.append(sorted(sites))

    async def _prepare(self, job, seq):
        self.prepared.append(job)
        return [{"path": "model", "size": 3, "blake3": "ab"}]

    async def _stream(self, job, seq, path, offset):
        self.prepared.append(job)
        yield b"abc"

    @property
    def book(self):
        return self.runtime.book

    def upload(self, who, job, method="Admin.MissingChunks"):
        manifest = common.Manifest(size=1, chunk_size=1, chunks=[blake3_hex(b"x")])
        request = common.MissingChunksRequest(owner=bundle_owner(job), manifest=manifest)
        return self.service.missing_chunks(request, called(who, method))

    async def operate(self, who, *sites, server=False, request_id=REQUEST):
        request = admin.OperateRequest(request_id=request_id, action="restart", sites=sites, server=server)
        return await self.service.operate(request, called(who, "Admin.Operate"))

    async def act(self, verb, who, job):
        """Do it, past gate one, which `called` asks; return what it gave."""
        service = self.service
        match verb:
            case "show":
                return (await service.show_job(admin.JobRequest(job=job), called(who, "Admin.ShowJob"))).summary.job
            case "watch":
                async with contextlib.aclosing(
                    service.watch_job(admin.JobRequest(job=job), called(who, "Admin.WatchJob"))
                ) as shown:
                    return (await anext(shown)).summary.job
            case "abort":
                request = admin.AbortJobRequest(request_id=f"{REQUEST}abort", job=job)
                return (await service.abort_job(request, called(who, "Admin.AbortJob"))).job
            case "prepare":
                request = admin.JobRequest(job=job)
                return (await service.prepare_download(request, called(who, "Admin.PrepareDownload"))).job
            case "file":
                request = admin.DownloadFileRequest(job=job, path="model")
                return [one async for one in service.download_file(request, called(who, "Admin.DownloadFile"))]
            case "delete":
                request = admin.DeleteJobRequest(request_id=f"{REQUEST}delete", job=job)
                return await service.delete_job(request, called(who, "Admin.DeleteJob"))
        raise AssertionError(verb)


async def nothing():
    return None


@pytest.fixture
async def desk(tmp_path):
    made = Desk(tmp_path)
    runtime = made.runtime
    await runtime.ledger.read_on()
    await runtime.ledger.fence(2, "test")
    runtime.role, runtime.deadline = Role.ACTIVE, 1e9
    loop = spawn(runtime.ledger.run(), "ledger")
    yield made
    await cancel(loop)


LOOK = {"show", "watch"}
ALL = LOOK | {"abort", "prepare", "file"}
ON_ALICES = {PAUL: ALL, OLGA: ALL, ALICE: ALL, ADAM: LOOK, MARY: LOOK, BOB: set()}
GATE_ONE = {"abort": "job.manage", "delete": "job.manage", "prepare": "job.download", "file": "job.download"}


@pytest.mark.parametrize("who", EVERYBODY, ids=lambda who: who.name)
@pytest.mark.parametrize("verb", sorted(ALL))
async def test_what_each_may_do_with_alices_job(desk, who, verb):
    before = (desk.book.seq, desk.book.jobs[ALICES].status)
    if verb in ON_ALICES[who]:
        assert await desk.act(verb, who, ALICES) in (ALICES, [b"abc"])
        assert (desk.book.jobs[ALICES].status == "FINISHED:ABORTED") == (verb == "abort")
        return
    if who is BOB:  # of another organisation: to him there is no such job, and the audit file knows better
        with pytest.raises(JobNotFound) as unknown:
            await desk.act(verb, who, ALICES)
        with pytest.raises(JobNotFound) as none_at_all:
            await desk.act(verb, who, NO_JOB)
        assert unknown.value.message.replace(ALICES, NO_JOB) == none_at_all.value.message
        assert unknown.value.hint == none_at_all.value.hint
        refused = unknown.value.__cause__
        assert isinstance(refused, NotAuthorised)
    else:
        with pytest.raises(NotAuthorised) as caught:
            await desk.act(verb, who, ALICES)
        refused = caught.value
    assert who.name in refused.message
    assert (desk.book.seq, desk.book.jobs[ALICES].status) == before
    assert desk.prepared == []


@pytest.mark.parametrize("who", EVERYBODY, ids=lambda who: who.name)
async def test_who_may_delete_bobs_job_that_has_ended(desk, who):
    if who in (PAUL, BOB):
        await desk.act("delete", who, BOBS)
        assert BOBS in desk.book.deleted
        await desk.act("delete", who, BOBS)  # the answer that was lost is given again
        other = BOB if who is PAUL else PAUL
        with pytest.raises(JobNotFound):  # and to nobody else
            await desk.act("delete", other, BOBS)
        return
    with pytest.raises(NotAuthorised if who is MARY else JobNotFound):  # gate one has no member delete anything
        await desk.act("delete", who, BOBS)
    assert BOBS in desk.book.jobs
    assert desk.book.requests.get(f"{REQUEST}delete") is None


async def test_a_job_of_before_is_its_submitters_and_no_organisations(desk):
    assert await desk.act("prepare", ALICE, OLD) == OLD
    assert await desk.act("show", PAUL, OLD) == OLD
    for who in (OLGA, ADAM, BOB):
        with pytest.raises(JobNotFound):
            await desk.act("prepare", who, OLD)


async def test_jobs_are_counted_for_those_who_may_see_them(desk):
    counted = {}
    for who in (PAUL, OLGA, BOB):
        reply = await desk.service.check_status(common.Empty(), called(who, "Admin.CheckStatus"))
        counted[who.name] = reply.jobs_running + reply.jobs_waiting
    assert counted == {PAUL.name: 1, OLGA.name: 1, BOB.name: 0}, "it is alice's, of a"


async def listed(desk, who, **request):
    reply = await desk.service.list_jobs(admin.ListJobsRequest(**request), called(who, "Admin.ListJobs"))
    return [job.job for job in reply.jobs]


async def test_lists_have_only_what_one_may_see_and_the_limit_counts_that(desk):
    assert await listed(desk, PAUL) == [OLD, BOBS, ALICES]
    assert await listed(desk, OLGA) == await listed(desk, MARY) == [ALICES]
    assert await listed(desk, BOB, limit=1) == [BOBS]
    assert await listed(desk, MARY, limit=1, prefix="abcd") == [ALICES]
    assert await listed(desk, MARY, prefix=OLD) == []


async def test_the_beginning_of_an_id_names_only_what_one_may_see(desk):
    assert await desk.act("show", MARY, "abcd") == ALICES
    assert await desk.act("show", BOB, "abcd") == BOBS
    with pytest.raises(Ambiguous) as many:
        await desk.act("show", PAUL, "abcd")
    assert ALICES in many.value.hint
    with pytest.raises(JobNotFound):
        await desk.act("show", BOB, OLD[:6])
    with pytest.raises(JobNotFound):
        await desk.act("show", BOB, "abc")
    with pytest.raises(NotAuthorised, match=r"adam@a\.org did not submit it"):
        await desk.act("abort", ADAM, "abcd")  # he sees it, and it is not his


async def status(desk, who):
    reply = await desk.service.check_status(common.Empty(), called(who, "Admin.CheckStatus"))
    return {site.name: list(site.jobs) for site in reply.sites}


async def test_the_status_shows_ones_own_sites_and_of_their_jobs_what_one_may_see(desk):
    assert await status(desk, PAUL) == {"site-a": [ALICES, BOBS], "site-b": [ALICES, BOBS], "site-c": []}
    for who in (OLGA, ALICE, MARY):
        assert await status(desk, who) == {"site-a": [ALICES]}
    assert await status(desk, BOB) == {"site-b": [BOBS]}


async def test_an_organisations_admin_operates_its_own_sites_and_nothing_else(desk):
    before = desk.book.seq
    for sites, server in ((["site-b"], False), (["site-a", "site-b"], False), (["@ALL"], False), (["site-a"], True)):
        with pytest.raises(NotAuthorised, match=r"operate needs o:site"):
            await desk.operate(OLGA, *sites, server=server)
    with pytest.raises(NotAuthorised, match="organisation of site-c is not known"):
        await desk.operate(OLGA, "site-c")
    assert desk.book.seq == before
    assert desk.orders == []
    await desk.operate(OLGA, "site-a")
    assert desk.orders == [["site-a"]]
    await desk.operate(PAUL, "@ALL", request_id=f"{REQUEST}all")
    assert desk.orders[1:] == [["site-a", "site-b", "site-c"]]


async def test_a_site_is_of_the_organisation_in_the_certificate_that_it_connects_with(desk):
    async def hello():
        yield fleet.SiteMessage(hello=fleet.Hello(cluster=desk.runtime.kit.cluster, wire_versions=[2]))
        await asyncio.Event().wait()

    assert desk.runtime.org_of("site-c") is None
    call = called(Principal("poc", "site", "site-c", "a", "5f"), "Fleet.Connect")
    async with contextlib.aclosing(FleetService(desk.runtime).connect(hello(), call)) as stream:
        assert (await anext(stream)).welcome.server == "server1"
        assert set(await status(desk, OLGA)) == {"site-a", "site-c"}
    assert desk.runtime.org_of("site-c") == "a"


async def test_a_site_that_is_away_is_still_its_organisations(desk):
    desk.runtime.streams.close(desk.runtime.streams.get("site-a"))
    reply = await desk.operate(OLGA, "site-a")
    assert list(reply.disconnected) == ["site-a"]
    assert await status(desk, OLGA) == {"site-a": []}


async def test_of_a_site_that_never_connected_the_kit_tells_the_organisation_and_its_certificate_has_the_last_word(
    desk,
):
    desk.runtime.kit = dataclasses.replace(desk.runtime.kit, site_orgs={"site-a": "b", "site-c": "a"})
    await desk.operate(OLGA, "site-a", "site-c")
    assert desk.orders == [["site-a", "site-c"]]
    assert set(await status(desk, OLGA)) == {"site-a", "site-c"}
    with pytest.raises(NotAuthorised):
        await desk.operate(BOB, "site-a")


async def test_a_site_that_nobody_knows_is_told_without_naming_those_of_others(desk):
    with pytest.raises(NotFound, match="no site 'site-x'") as unknown:
        await desk.operate(OLGA, "site-x")
    assert unknown.value.hint == "site-a"
    with pytest.raises(NotFound) as unknown:
        await desk.operate(PAUL, "site-x")
    assert unknown.value.hint == "site-a site-b site-c"


async def test_nobody_writes_under_the_id_of_anothers_job(desk):
    for who, job in ((BOB, ALICES), (PAUL, ALICES), (ADAM, ALICES), (ALICE, BOBS)):
        with pytest.raises(NotAuthorised, match="submitted by somebody else"):
            await desk.upload(who, job)
        with pytest.raises(NotAuthorised, match="submitted by somebody else"):
            await desk.service.put_blob(header(job), called(who, "Admin.PutBlob"))
        request = admin.SubmitJobRequest(request_id=REQUEST, job=job)
        with pytest.raises(NotAuthorised, match="submitted by somebody else"):
            await desk.service.submit_job(request, called(who, "Admin.SubmitJob"))
    assert list((await desk.upload(ALICE, ALICES)).indices) == [0]
    assert list((await desk.upload(BOB, "kkkkkkkkkkkk")).indices) == [0]


async def test_an_admins_third_upload_waits_for_one_of_two(desk):
    hold, read = asyncio.Event(), []

    async def held(job):
        read.append(job)
        yield common.PutBlobHeader(owner=bundle_owner(job), manifest=ONE_BYTE, indices=[0]).SerializeToString()
        await hold.wait()
        yield b"x"

    def upload(who, job):
        return asyncio.ensure_future(desk.service.put_blob(held(job), called(who, "Admin.PutBlob")))

    jobs = ["kkkkkkkkkkkk", "llllllllllll", "mmmmmmmmmmmm"]
    running = [upload(ALICE, job) for job in jobs]
    running.append(upload(BOB, "nnnnnnnnnnnn"))
    await eventually(lambda: "nnnnnnnnnnnn" in read)
    assert read == [*jobs[:2], "nnnnnnnnnnnn"]
    hold.set()
    assert [ref.owner for ref in await asyncio.gather(*running[:3])] == [bundle_owner(job) for job in jobs]
    await running[3]


ONE_BYTE = common.Manifest(size=1, chunk_size=1, chunks=[blake3_hex(b"x")])


async def header(job):
    yield common.PutBlobHeader(owner=bundle_owner(job), manifest=ONE_BYTE, indices=[0]).SerializeToString()
    pytest.fail("its bytes were read")


@pytest.mark.parametrize("who", [OLGA, MARY], ids=lambda who: who.name)
async def test_who_may_not_submit_does_not_even_learn_what_is_stored(desk, who):
    assert who.role not in PERMISSIONS["job.submit"]  # gate one
    with pytest.raises(NotAuthorised, match=r"lacks the permission job\.submit"):
        await desk.upload(who, "kkkkkkkkkkkk")


async def test_every_handler_that_has_a_right_asks(desk):
    """By a policy that allows nothing: no answer, whoever asks."""
    empty = Policy()
    service, about = desk.service, admin.JobRequest(job=ALICES)
    before = desk.book.seq
    calls = {
        "Admin.MissingChunks": common.MissingChunksRequest(owner=bundle_owner(ALICES)),
        "Admin.PutBlob": header(ALICES),
        "Admin.SubmitJob": admin.SubmitJobRequest(request_id=REQUEST, job=ALICES),
        "Admin.ShowJob": about,
        "Admin.WatchJob": about,
        "Admin.AbortJob": admin.AbortJobRequest(request_id=REQUEST, job=ALICES),
        "Admin.PrepareDownload": about,
        "Admin.DownloadFile": admin.DownloadFileRequest(job=ALICES, path="model"),
        "Admin.DeleteJob": admin.DeleteJobRequest(request_id=REQUEST, job=BOBS),
        "Admin.Operate": admin.OperateRequest(request_id=REQUEST, action="restart", server=True),
    }
    for name, request in calls.items():
        handler = "".join(f"_{c.lower()}" if c.isupper() else c for c in name.partition(".")[2]).lstrip("_")
        answer = getattr(service, handler)(request, called(PAUL, name, policy=empty))
        with pytest.raises((NotAuthorised, JobNotFound)) as refused:
            await (anext(answer) if isinstance(answer, AsyncGenerator) else answer)
        assert isinstance(refused.value, NotAuthorised) or isinstance(refused.value.__cause__, NotAuthorised)
    listing = await service.list_jobs(admin.ListJobsRequest(), called(PAUL, "Admin.ListJobs", policy=empty))
    shown = await service.check_status(common.Empty(), called(PAUL, "Admin.CheckStatus", policy=empty))
    assert list(listing.jobs) == list(shown.sites) == []
    assert desk.book.seq == before


async def test_a_deleted_id_is_not_used_again(desk):
    await desk.act("delete", BOB, BOBS)
    with pytest.raises(Conflict, match="was deleted"):
        await desk.upload(BOB, BOBS)
