"""What a caller sends is read behind the gates, and what one caller can make a server hold has bounds: over real TLS."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import grpc.aio
import pytest

from fedhelm.errors import BadCertificate, BadInput, DeadlineExceeded, NotAuthorised, ProtocolError, Unreachable
from fedhelm.security.authorization import default_policy
from fedhelm.security.tls import client_context
from fedhelm.v1 import common_pb2 as common
from fedhelm.v1 import fleet_pb2 as fleet
from fedhelm.wire import incoming, live_calls
from fedhelm.wire import serving as serving_module
from fedhelm.wire.chain import ServiceHandlers
from fedhelm.wire.channels import FleetStub, aio_channel
from fedhelm.wire.faults import decode_error
from fedhelm.wire.serving import connections_of
from tests.fakes.wire_service import FLEET, FleetDesk, Noted, serving
from tests.support import http2
from tests.support.kits import ADMIN as ADMIN_NAME
from tests.support.kits import make_kits
from tests.support.revoking import serial_of
from tests.support.waiting import eventually

T = 10.0
CONTRIBUTE = "/fedhelm.v1.Fleet/Contribute"
METHODS = ("Contribute", "GetBlob", "PutBlob", "Connect")
"""One of each kind: a single request or a stream of them, a single answer or a stream of them."""


@pytest.fixture(scope="module")
def kits(tmp_path_factory):
    return make_kits(tmp_path_factory.mktemp("kits"), servers=1, sites=2)


class Revoked(set):
    """The revoked serials."""

    def check(self, serial):
        if serial in self:
            raise BadCertificate("the certificate was revoked on 2026-01-01: lost")


def who_is_refused(kits):
    """Kit, list of revoked serials, and the error that it gets."""
    return {
        "revoked": (kits["site-1"], Revoked({serial_of(kits["site-1"])}), BadCertificate),
        "of another role": (kits[ADMIN_NAME], Revoked(), NotAuthorised),
    }


@contextlib.asynccontextmanager
async def channel_to(kit, port):
    async with aio_channel(kit, "127.0.0.1", port, "server1") as channel:
        yield channel


async def send(channel, method, *messages, then_wait=False):
    """Call a method with these bytes; return the first answer. ``then_wait``: the caller does not end its side."""

    async def said():
        for message in messages:
            yield message
        if then_wait:
            await asyncio.Event().wait()

    call = channel.stream_stream(f"/fedhelm.v1.Fleet/{method}")(said(), timeout=T)
    try:
        return await call.read()
    except grpc.aio.AioRpcError as error:
        raise decode_error(error.code(), error.details(), error.trailing_metadata(), "server1") from None
    finally:
        call.cancel()


def told(trail):
    return [(entry.action, str(entry.outcome), entry.by and entry.by.name) for entry in trail.entries]


# -- the gates come first -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["revoked", "of another role"])
@pytest.mark.parametrize("method", METHODS)
async def test_who_may_not_call_is_refused_before_anything_is_read(kits, caplog, who, method):
    """No message, one that cannot be read: it is the certificate that is refused, and written; no traceback."""
    kit, revoked, error = who_is_refused(kits)[who]
    desk, trail = FleetDesk(), Noted()
    async with (
        serving(kits["server1"], FLEET, desk, trail=trail, revocations=revoked) as port,
        channel_to(kit, port) as channel,
    ):
        with pytest.raises(error):
            await send(channel, method, then_wait=True)
        with pytest.raises(error):
            await send(channel, method, b"\xff")
    assert desk.calls == []
    assert told(trail) == [(f"Fleet.{method}", "denied", kit.name)] * 2
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("who", ["revoked", "of another role"])
async def test_who_may_not_call_is_refused_in_the_middle_of_a_message(kits, who):
    """The server says how the call ended, and takes no more of it: it never had a whole message."""
    kit, revoked, _ = who_is_refused(kits)[who]
    trail = Noted()
    async with (
        serving(kits["server1"], FLEET, FleetDesk(), trail=trail, revocations=revoked) as port,
        http2.connected(client_context(kit), port) as caller,
    ):
        await caller.call(CONTRIBUTE, http2.part_of_a_message(4 << 20, b"half"))
        await asyncio.wait_for(caller.ended(), T)
    assert told(trail) == [("Fleet.Contribute", "denied", kit.name)]


async def test_a_call_whose_message_never_ends_can_be_revoked(kits):
    trail = Noted()
    gates = {"policy": default_policy(), "trail": trail}
    handlers = ServiceHandlers(FLEET, FleetDesk(), project="poc", epoch=lambda: 1, **gates)
    async with (
        serving(kits["server1"], FLEET, None, handlers=handlers) as port,
        http2.connected(client_context(kits["site-1"]), port) as caller,
    ):
        await caller.call(CONTRIBUTE, http2.part_of_a_message(4 << 20, b"half"))
        await eventually(lambda: handlers.end_calls([serial_of(kits["site-1"])]))
        await asyncio.wait_for(caller.ended(), T)
    assert told(trail) == [("Fleet.Contribute", "denied", "site-1")]


# -- behind the gates ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["Contribute", "GetBlob", "Connect"])
async def test_bytes_that_are_no_message_are_bad_input_and_written(kits, caplog, method):
    desk, trail = FleetDesk(), Noted()
    async with (
        serving(kits["server1"], FLEET, desk, trail=trail) as port,
        channel_to(kits["site-1"], port) as channel,
    ):
        with pytest.raises(BadInput, match=f"Fleet.{method}: 1 bytes that are no message of this method"):
            await send(channel, method, b"\xff")
    assert told(trail) == [(f"Fleet.{method}", "failed", "site-1")]
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_message_in_the_middle_of_a_stream_that_is_none_is_written_too(kits):
    desk, trail = FleetDesk(), Noted()
    hello = fleet.SiteMessage(hello=fleet.Hello(highest_epoch=3)).SerializeToString()

    async def said():
        yield hello
        yield b"\xff"

    async with (
        serving(kits["server1"], FLEET, desk, trail=trail) as port,
        channel_to(kits["site-1"], port) as channel,
    ):
        stream = channel.stream_stream("/fedhelm.v1.Fleet/Connect")(said(), timeout=T)
        assert await stream.read()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
    assert isinstance(decode_error(caught.value.code(), "", caught.value.trailing_metadata(), ""), BadInput)
    assert told(trail) == [("Fleet.Connect", "allowed", "site-1"), ("Fleet.Connect", "failed", "site-1")]


@pytest.mark.parametrize("method", ["Contribute", "GetBlob"])
async def test_a_call_without_its_message_is_refused(kits, method):
    desk = FleetDesk()
    async with serving(kits["server1"], FLEET, desk) as port, channel_to(kits["site-1"], port) as channel:
        with pytest.raises(ProtocolError, match="without a message"):
            await send(channel, method)
    assert desk.calls == []


@pytest.mark.parametrize("method", ["Contribute", "GetBlob", "Connect"])
async def test_the_first_message_has_a_time_limit(kits, monkeypatch, method):
    monkeypatch.setattr(incoming, "READ_S", 0.1)
    async with serving(kits["server1"], FLEET, FleetDesk()) as port, channel_to(kits["site-1"], port) as channel:
        with pytest.raises(DeadlineExceeded, match=r"no whole message came within 0\.1 s"):
            await send(channel, method, then_wait=True)


async def test_a_second_message_is_not_waited_for_and_changes_nothing(kits):
    desk = FleetDesk()
    message = fleet.Contribution(site="site-1").SerializeToString()
    async with serving(kits["server1"], FLEET, desk) as port, channel_to(kits["site-1"], port) as channel:
        first = await send(channel, "Contribute", message, then_wait=True)
        assert common.Receipt.FromString(first).seq == 1
        assert await send(channel, "Contribute", message, b"\xff") == first
    assert len(desk.calls) == 2


async def test_one_caller_has_so_many_messages_read_at_once_and_others_do_not_wait_for_it(kits, monkeypatch):
    monkeypatch.setattr(incoming, "READS", 2)
    desk = FleetDesk()
    handlers = ServiceHandlers(FLEET, desk, project="poc", epoch=lambda: 1, policy=default_policy())
    message = fleet.Contribution(site="site-1").SerializeToString()
    async with (
        serving(kits["server1"], FLEET, desk, handlers=handlers) as port,
        channel_to(kits["site-1"], port) as one,
        channel_to(kits["site-1"], port) as again,
        channel_to(kits["site-2"], port) as other,
    ):
        halves = [asyncio.ensure_future(send(one, "Contribute", then_wait=True)) for _ in range(2)]
        await eventually(lambda: len(handlers.calls) == 2)
        third = asyncio.ensure_future(send(again, "Contribute", message))
        await eventually(lambda: len(handlers.calls) == 3)
        for _ in range(5):
            await send(other, "Contribute", message)
        assert {call.principal.name for call in desk.calls} == {"site-2"}, "the third waits, by whatever connection"
        halves[0].cancel()
        assert common.Receipt.FromString(await asyncio.wait_for(third, T)).seq == 1
        halves[1].cancel()


# -- how much there may be ----------------------------------------------------------------------------------------------


async def test_a_connection_has_so_many_calls_and_each_so_much_unread(kits, monkeypatch):
    """The server tells every client of HTTP/2; one that does not listen gets no further."""
    monkeypatch.setattr(serving_module, "MAX_STREAMS", 5)
    handlers = ServiceHandlers(FLEET, FleetDesk(), project="poc", epoch=lambda: 1, policy=default_policy())
    async with (
        serving(kits["server1"], FLEET, None, handlers=handlers) as port,
        http2.connected(client_context(kits["site-1"]), port) as caller,
    ):
        told = await asyncio.wait_for(caller.settings(), T)
        assert told[http2.MAX_CONCURRENT_STREAMS] == 5
        assert told[http2.INITIAL_WINDOW_SIZE] == serving_module.WINDOW
        for _ in range(5):
            await caller.call(CONTRIBUTE, http2.part_of_a_message(100, b"half"))
        await eventually(lambda: len(handlers.calls) == 5)
        sixth = await caller.call(CONTRIBUTE, http2.part_of_a_message(100, b"half"))
        await asyncio.wait_for(caller.broken(sixth), T)
        assert len(handlers.calls) == 5


async def test_a_client_with_more_calls_than_its_connection_may_have_waits_and_is_served(kits, monkeypatch):
    monkeypatch.setattr(serving_module, "MAX_STREAMS", 5)
    desk = FleetDesk()
    async with serving(kits["server1"], FLEET, desk) as port, channel_to(kits["site-1"], port) as channel:
        stub = FleetStub(channel, "server1")
        await asyncio.gather(*(stub.contribute(fleet.Contribution(), T) for _ in range(300)))
    assert len(desk.calls) == 300


async def test_one_certificate_has_so_many_calls_over_all_its_connections(kits, monkeypatch):
    monkeypatch.setattr(live_calls, "MAX_CALLS", 2)
    message = fleet.Contribution(site="site-1").SerializeToString()
    hello = fleet.SiteMessage(hello=fleet.Hello(highest_epoch=3)).SerializeToString()

    async def greet():
        yield hello
        await asyncio.Event().wait()

    async with (
        serving(kits["server1"], FLEET, FleetDesk()) as port,
        channel_to(kits["site-1"], port) as one,
        channel_to(kits["site-1"], port) as again,
        channel_to(kits["site-2"], port) as other,
    ):
        streams = [channel.stream_stream("/fedhelm.v1.Fleet/Connect")(greet()) for channel in (one, again)]
        for stream in streams:
            assert await stream.read()
        with pytest.raises(Unreachable, match="2 calls open already"):
            await send(again, "Contribute", message)
        assert await send(other, "Contribute", message)
        streams[0].cancel()

        async def served():
            with contextlib.suppress(Unreachable):
                return await send(again, "Contribute", message)

        await eventually(served)


async def test_a_crowd_without_certificates_is_closed_and_takes_nothing_from_those_who_are_served(kits, monkeypatch):
    monkeypatch.setattr(serving_module, "connections_of", lambda _: 3)
    async with serving(kits["server1"], FLEET, FleetDesk()) as port, channel_to(kits["site-1"], port) as channel:
        stub = FleetStub(channel, "server1")
        await stub.contribute(fleet.Contribution(), T)
        crowd = [await asyncio.open_connection("127.0.0.1", port) for _ in range(10)]
        closed = [asyncio.ensure_future(reader.read(1)) for reader, _ in crowd]
        await eventually(lambda: sum(one.done() for one in closed) == 8)
        assert (await stub.contribute(fleet.Contribution(), T)).seq == 1
        for one, (_, writer) in zip(closed, crowd, strict=True):
            one.cancel()
            writer.close()
        async with channel_to(kits["site-2"], port) as other:  # there is room again
            assert (await FleetStub(other, "server1").contribute(fleet.Contribution(), T)).seq == 1


@pytest.mark.parametrize(
    ("open_files", "connections"), [(256, 64), (1024, 384), (4096, 1920), (65536, 4096), (1 << 30, 4096)]
)
def test_connections_leave_files_to_the_store(open_files, connections):
    assert connections_of(open_files) == connections


async def test_a_server_with_all_its_calls_tells_the_next_to_come_again(kits, monkeypatch):
    monkeypatch.setattr(serving_module, "MAX_RPCS", 1)

    async def greet():
        yield fleet.SiteMessage(hello=fleet.Hello(highest_epoch=3))
        await asyncio.Event().wait()

    async with (
        serving(kits["server1"], FLEET, FleetDesk()) as port,
        channel_to(kits["site-1"], port) as one,
        channel_to(kits["site-2"], port) as other,
    ):
        stream = FleetStub(one, "server1").connect(greet())
        await anext(stream)
        with pytest.raises(Unreachable, match="as many calls as it takes"):
            await FleetStub(other, "server1").contribute(fleet.Contribution(), T)
        await stream.aclose()

        async def served():
            with contextlib.suppress(Unreachable):
                return await FleetStub(other, "server1").contribute(fleet.Contribution(), T)

        await eventually(served)
