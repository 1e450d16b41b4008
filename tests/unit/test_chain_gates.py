"""The chain of every gRPC call, over real TLS: revoked certificates, the second gate, and what the audit file is told."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
from datetime import timedelta

import grpc
import grpc.aio
import pytest

from fedhelm.errors import AuditUnavailable, BadCertificate, FedhelmError, JobNotFound, NotAuthorised
from fedhelm.security.authorization import Object, Policy, default_policy
from fedhelm.security.pki import CertificateAuthority, load_certificate, serial_of
from fedhelm.tasks import cancel, spawn
from fedhelm.v1 import admin_pb2 as admin
from fedhelm.v1 import fleet_pb2 as fleet
from fedhelm.wire.chain import ServiceHandlers
from fedhelm.wire.channels import AdminStub, FleetStub, aio_channel, sync_channel
from tests.fakes.wire_service import ADMIN, FLEET, AdminDesk, FleetDesk, Noted, serving
from tests.support.kits import ADMIN as ADMIN_NAME
from tests.support.kits import make_kits
from tests.support.waiting import eventually

T = 10.0


@pytest.fixture(scope="module")
def kits(tmp_path_factory):
    return make_kits(tmp_path_factory.mktemp("kits"), servers=1, sites=2)


def serial(kit):
    return serial_of(load_certificate(kit.cert.read_bytes(), "certificate"))


class Revoked(set):
    """The revoked serials."""

    def check(self, serial):
        if serial in self:
            raise BadCertificate("the certificate was revoked on 2026-01-01: lost")


def desk_at(implementation, service, **gates):
    gates = {"policy": default_policy(), **gates}
    return ServiceHandlers(service, implementation, project="poc", epoch=lambda: 1, **gates)


@contextlib.asynccontextmanager
async def fleet_at(kit, port):
    async with aio_channel(kit, "127.0.0.1", port, "server1") as channel:
        yield FleetStub(channel, "server1")


async def ask(kit, port, call):
    def run():
        with sync_channel(kit, "127.0.0.1", port, "server1") as channel:
            return call(AdminStub(channel, "server1"))

    return await asyncio.to_thread(run)


def told(trail):
    return [(entry.action, str(entry.outcome), entry.by and entry.by.name) for entry in trail.entries]


# -- revoked certificates -------------------------------------------------------------------------------------------------


async def test_a_revoked_certificate_is_refused_and_written_while_others_go_on(kits):
    desk, trail, revoked = FleetDesk(), Noted(), Revoked({serial(kits["site-1"])})
    async with serving(kits["server1"], FLEET, desk, trail=trail, revocations=revoked) as port:
        async with fleet_at(kits["site-1"], port) as stub:
            with pytest.raises(BadCertificate, match="revoked on 2026-01-01: lost"):
                await stub.contribute(fleet.Contribution(), T)
        async with fleet_at(kits["site-2"], port) as stub:
            assert (await stub.contribute(fleet.Contribution(), T)).seq == 1
    assert [call.principal.name for call in desk.calls] == ["site-2"]
    assert told(trail) == [("Fleet.Contribute", "denied", "site-1")]
    assert trail.entries[0].by.serial == serial(kits["site-1"])


class SlowDesk(FleetDesk):
    """Takes for ever to answer a contribution, and sends without end whatever the other end reads."""

    def __init__(self):
        super().__init__()
        self.began, self.ended, self.sent = asyncio.Event(), 0, 0

    async def contribute(self, request, call):
        self.began.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.ended += 1

    async def get_blob(self, request, call):
        try:
            while True:
                self.sent += 1
                yield bytes(1 << 20)
        finally:
            self.ended += 1


async def test_calls_that_run_end_when_their_certificate_is_revoked(kits):
    desk, trail, revoked = SlowDesk(), Noted(), Revoked()
    handlers = desk_at(desk, FLEET, trail=trail, revocations=revoked)

    async def hello():
        yield fleet.SiteMessage(hello=fleet.Hello(highest_epoch=3))
        await asyncio.Event().wait()

    async with (
        serving(kits["server1"], FLEET, desk, handlers=handlers) as port,
        fleet_at(kits["site-1"], port) as mine,
        fleet_at(kits["site-2"], port) as other,
    ):
        streams = [stub.connect(hello()) for stub in (mine, other)]
        for stream in streams:
            assert (await anext(stream)).announce.epoch == 3
        unary = asyncio.ensure_future(mine.contribute(fleet.Contribution(), T))
        await asyncio.wait_for(desk.began.wait(), T)
        revoked.add(serial(kits["site-1"]))
        assert handlers.end_calls([serial(kits["site-1"]), "5f"]) == 2
        for call in (unary, anext(streams[0])):
            with pytest.raises(BadCertificate, match="revoked on 2026-01-01"):
                await asyncio.wait_for(call, T)
        assert desk.ended == 1
        await eventually(lambda: handlers.end_calls([serial(kits["site-1"])]) == 0)
        assert handlers.end_calls([serial(kits["site-2"])]) == 1, "the other's stream was left alone"
    connects = [one for one in told(trail) if one[0] == "Fleet.Connect"]
    assert connects[:3] == [
        ("Fleet.Connect", "allowed", "site-1"),
        ("Fleet.Connect", "allowed", "site-2"),
        ("Fleet.Connect", "denied", "site-1"),
    ]


async def test_a_stream_that_nobody_reads_ends_too_when_its_certificate_is_revoked(kits):
    desk, revoked = SlowDesk(), Revoked()
    handlers = desk_at(desk, FLEET, revocations=revoked)
    async with (
        serving(kits["server1"], FLEET, desk, handlers=handlers) as port,
        aio_channel(kits["site-1"], "127.0.0.1", port, "server1") as channel,
    ):
        call = channel.unary_stream("/fedhelm.v1.Fleet/GetBlob")(b"")
        assert await call.read()
        await stands_still(lambda: desk.sent)
        assert handlers.end_calls([serial(kits["site-1"])]) == 1
        await eventually(lambda: desk.ended == 1)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(read_all(call), T)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert "revoked" in caught.value.details()


async def greeting(stay):
    yield fleet.SiteMessage(hello=fleet.Hello(highest_epoch=1))
    await asyncio.sleep(stay)


class Talkative(FleetDesk):
    """Reads a site's stream in a task of its own, and tells it something every few milliseconds."""

    def __init__(self):
        super().__init__()
        self.began = self.ended = 0

    async def connect(self, messages, call):
        self.began += 1
        reader = spawn(self._read(messages), "reader")
        try:
            for count in itertools.count():
                if reader.done():
                    break
                for _ in range(1 + count % 3):
                    yield fleet.ServerMessage(announce=fleet.Announce(epoch=1))
                await asyncio.wait({reader}, timeout=count % 5 / 1000)
        finally:
            self.ended += 1  # first: while it waits, it may be cancelled once more
            await cancel(reader)

    async def _read(self, messages):
        with contextlib.suppress(grpc.aio.BaseError):
            async for _ in messages:
                pass


async def test_a_caller_that_leaves_at_any_moment_is_noticed_without_the_garbage_collector(kits):
    desk = Talkative()
    handlers = desk_at(desk, FLEET)
    gc.disable()
    try:
        async with serving(kits["server1"], FLEET, desk, handlers=handlers) as port:
            for count in range(120):
                async with fleet_at(kits["site-1"], port) as site:
                    stream = site.connect(greeting(stay=T if count % 2 else count % 20 / 1000))
                    for _ in range(1 + count % 5):
                        await anext(stream, None)
            await eventually(lambda: (desk.began, desk.ended) == (120, 120))
            assert handlers.end_calls([serial(kits["site-1"])]) == 0
    finally:
        gc.enable()


async def test_a_stream_may_be_ended_at_any_moment(kits):
    """While its first answer is written or a later one, or between two: the caller always learns why."""
    desk, revoked = SlowDesk(), Revoked()
    handlers = desk_at(desk, FLEET, revocations=revoked)
    async with (
        serving(kits["server1"], FLEET, desk, handlers=handlers) as port,
        aio_channel(kits["site-1"], "127.0.0.1", port, "server1") as channel,
    ):
        for moment in range(0, 150, 5):
            reader = asyncio.ensure_future(read_all(channel.unary_stream("/fedhelm.v1.Fleet/GetBlob")(b"")))
            for _ in range(moment):
                await asyncio.sleep(0)
            await eventually(lambda: handlers.end_calls([serial(kits["site-1"])]))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await asyncio.wait_for(reader, T)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def read_all(call):
    while await call.read() is not grpc.aio.EOF:
        pass


async def stands_still(value):
    """Wait until the value has not changed for a while: nobody takes what is sent."""
    last = None
    while value() != last:
        last = value()
        await asyncio.sleep(0.2)


async def to_its_end(stream):
    async for _ in stream:
        pass


class Late:
    """A clock near the certificate's end: says so many seconds before it, one after the other, the last for ever."""

    def __init__(self, kit, *left):
        self.end = load_certificate(kit.cert.read_bytes(), "certificate").not_valid_after_utc
        self.left = list(left)

    def utcnow(self):
        return self.end - timedelta(seconds=self.left.pop(0) if len(self.left) > 1 else self.left[0])


async def test_a_connection_that_outlives_its_certificate_makes_no_calls(kits):
    desk, trail, clock = FleetDesk(), Noted(), Late(kits["site-1"], 60, -1)
    async with (
        serving(kits["server1"], FLEET, desk, trail=trail, clock=clock) as port,
        fleet_at(kits["site-1"], port) as stub,
    ):
        await stub.contribute(fleet.Contribution(), T)
        with pytest.raises(BadCertificate, match="the certificate of site site-1 expired on") as late:
            await stub.contribute(fleet.Contribution(), T)
    assert "new kit" in late.value.hint
    assert len(desk.calls) == 1
    assert told(trail) == [("Fleet.Contribute", "denied", "site-1")]


async def test_a_stream_ends_with_its_certificate(kits):
    desk, forever = FleetDesk(), asyncio.Event()

    async def hello():
        yield fleet.SiteMessage(hello=fleet.Hello())
        await forever.wait()

    clock = Late(kits["site-1"], 60, 0.3)  # when the call begins, and then how long it may last
    async with serving(kits["server1"], FLEET, desk, clock=clock) as port, fleet_at(kits["site-1"], port) as stub:
        stream = stub.connect(hello())
        with pytest.raises(BadCertificate, match="the certificate of site site-1 expired on"):
            await asyncio.wait_for(to_its_end(stream), T)


# -- the second gate ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda stub: stub.check_status(T),
        lambda stub: list(stub.watch_job(admin.JobRequest(), T)),
    ],
    ids=["unary", "stream"],
)
async def test_a_handler_that_asked_nobody_gives_no_answer(kits, caplog, call):
    desk = AdminDesk()
    desk.about = None
    async with serving(kits["server1"], ADMIN, desk) as port:
        with pytest.raises(FedhelmError) as caught:
            await ask(kits[ADMIN_NAME], port, call)
        assert caught.value.code == "INTERNAL"
        assert "without asking the policy" in caught.value.message
        desk.about = Object()
        assert await ask(kits[ADMIN_NAME], port, call) is not None


async def test_a_stream_without_an_answer_was_asked_about_too(kits):
    class Silent(AdminDesk):
        def watch_job(self, request, call):
            async def stream():
                if self.about is not None:
                    call.passage.admit(self.about)
                for nothing in ():
                    yield nothing

            return stream()

    desk = Silent()
    async with serving(kits["server1"], ADMIN, desk) as port:
        assert await ask(kits[ADMIN_NAME], port, lambda stub: list(stub.watch_job(admin.JobRequest(), T))) == []
        desk.about = None
        with pytest.raises(FedhelmError, match="without asking the policy"):
            await ask(kits[ADMIN_NAME], port, lambda stub: list(stub.watch_job(admin.JobRequest(), T)))


def policy_of(**permissions):
    return Policy.parse(json.dumps({"format_version": "1.0", "permissions": permissions}), "local/authorization.json")


async def test_the_policy_decides_and_another_may_take_its_place(kits):
    desk, trail = AdminDesk(), Noted()
    handlers = desk_at(desk, ADMIN, trail=trail)
    async with serving(kits["server1"], ADMIN, desk, handlers=handlers) as port:
        abort = admin.AbortJobRequest(job="x")
        await ask(kits[ADMIN_NAME], port, lambda stub: stub.abort_job(abort, T))
        handlers.policy = policy_of(project_admin={"view": "any"})
        with pytest.raises(NotAuthorised, match="manage_job is not named for project_admin"):
            await ask(kits[ADMIN_NAME], port, lambda stub: stub.abort_job(abort, T))
        await ask(kits[ADMIN_NAME], port, lambda stub: stub.check_status(T))
    assert told(trail) == [("Admin.AbortJob", "allowed", ADMIN_NAME), ("Admin.AbortJob", "denied", ADMIN_NAME)]


# -- what is written ------------------------------------------------------------------------------------------------------


async def test_what_failed_is_written_with_its_error_and_a_look_is_not(kits):
    desk, trail = AdminDesk(raises=JobNotFound("no job x")), Noted()
    async with serving(kits["server1"], ADMIN, desk, trail=trail) as port:
        for call in (
            lambda stub: stub.abort_job(admin.AbortJobRequest(job="x"), T),
            lambda stub: stub.show_job(admin.JobRequest(job="x"), T),
        ):
            with pytest.raises(JobNotFound):
                await ask(kits[ADMIN_NAME], port, call)
    (entry,) = trail.entries
    assert (entry.action, entry.outcome, entry.why) == ("Admin.AbortJob", "failed", "JOB_NOT_FOUND: no job x")
    assert entry.by.org == kits[ADMIN_NAME].org


async def test_what_is_denied_by_saying_that_it_is_not_there_is_written_as_denied(kits):
    hidden = JobNotFound("no job matches 'x'")
    hidden.__cause__ = NotAuthorised("view needs o:submitter; it is beta's")
    desk, trail = AdminDesk(raises=hidden), Noted()
    async with serving(kits["server1"], ADMIN, desk, trail=trail) as port:
        with pytest.raises(JobNotFound) as told_so:
            await ask(kits[ADMIN_NAME], port, lambda stub: stub.show_job(admin.JobRequest(job="x"), T))
    assert "beta" not in told_so.value.message
    assert told(trail) == [("Admin.ShowJob", "denied", ADMIN_NAME)]
    assert "it is beta's" in trail.entries[0].why


async def test_a_sites_stream_is_written_when_it_is_answered_and_not_when_it_ends(kits):
    desk, trail = FleetDesk(), Noted()
    done = asyncio.Event()

    async def hello():
        yield fleet.SiteMessage(hello=fleet.Hello())
        await done.wait()

    async with serving(kits["server1"], FLEET, desk, trail=trail) as port, fleet_at(kits["site-1"], port) as stub:
        stream = stub.connect(hello())
        await anext(stream)
        assert told(trail) == [("Fleet.Connect", "allowed", "site-1")]
        done.set()
        assert [message async for message in stream] == []
    assert len(trail.entries) == 1


async def test_who_shows_a_certificate_of_another_project_is_written_by_where_it_came_from(tmp_path):
    kits = make_kits(tmp_path, authority=CertificateAuthority.create("poc"))
    desk, trail = FleetDesk(), Noted()
    async with (
        serving(kits["server1"], FLEET, desk, project="another", trail=trail) as port,
        fleet_at(kits["site-1"], port) as stub,
    ):
        for _ in range(2):
            with pytest.raises(BadCertificate):
                await stub.contribute(fleet.Contribution(), T)
    assert desk.calls == []
    first, second = trail.entries
    assert (first.action, first.outcome, first.by) == ("Fleet.Contribute", "denied", None)
    assert dict(first.object) == dict(second.object) == {"from": "ipv4:127.0.0.1"}
    assert "project 'poc'" in first.why


async def test_a_command_is_refused_while_its_line_cannot_be_written_and_looks_and_sites_go_on(kits):
    desk, trail = AdminDesk(), Noted()
    trail.problem = "No space left on device"
    abort = admin.AbortJobRequest(job="x")
    async with serving(kits["server1"], ADMIN, desk, trail=trail) as port:
        with pytest.raises(AuditUnavailable, match=r"refused: its line cannot be written .*: No space left on device"):
            await ask(kits[ADMIN_NAME], port, lambda stub: stub.abort_job(abort, T))
        assert desk.calls == []
        assert await ask(kits[ADMIN_NAME], port, lambda stub: stub.check_status(T)) is not None
        trail.problem = None
        await ask(kits[ADMIN_NAME], port, lambda stub: stub.abort_job(abort, T))
    assert told(trail) == [("Admin.AbortJob", "failed", ADMIN_NAME), ("Admin.AbortJob", "allowed", ADMIN_NAME)]
    trail.problem = "No space left on device"
    async with (
        serving(kits["server1"], FLEET, FleetDesk(), trail=trail) as port,
        fleet_at(kits["site-1"], port) as stub,
    ):
        assert (await stub.contribute(fleet.Contribution(), T)).seq == 1


async def test_a_command_is_not_confirmed_whose_line_is_not_written_and_it_is_written_once(kits):
    trail = Noted()

    class Full(AdminDesk):
        async def abort_job(self, request, call):
            trail.problem = "No space left on device"
            return await self.__getattr__("abort_job")(request, call)

    desk = Full()
    async with serving(kits["server1"], ADMIN, desk, trail=trail) as port:
        with pytest.raises(AuditUnavailable, match="carried out, but its line is not in the audit file yet"):
            await ask(kits[ADMIN_NAME], port, lambda stub: stub.abort_job(admin.AbortJobRequest(job="x"), T))
    assert told(trail) == [("Admin.AbortJob", "allowed", ADMIN_NAME)]
