"""Blobs over the network: resumed, verified, and only as much in memory as a chunk or two."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedhelm.wire.bulk as wire_bulk
from fedhelm.errors import (
    BadInput,
    Corrupt,
    FedhelmError,
    NotAuthorised,
    NotPrimary,
    ProtocolError,
    RoundOver,
    Unreachable,
)
from fedhelm.persist.blobs import BlobReader, BlobWriter, Manifest, blake3_hex
from fedhelm.security.authorization import Object
from fedhelm.v1 import common_pb2 as common
from fedhelm.wire.bulk import (
    fetch_blob,
    manifest_of,
    receive_blob,
    ref_from_proto,
    ref_to_proto,
    stream_blob,
    upload_file,
    upload_sync,
)
from fedhelm.wire.channels import AdminStub, FleetStub, aio_channel, sync_channel
from tests.fakes.persist_memory import MemoryBlobStore
from tests.fakes.wire_service import ADMIN, FLEET, AdminDesk, FleetDesk, serving
from tests.support.kits import ADMIN as ADMIN_NAME
from tests.support.kits import make_kits

OWNER = "jobs/abcdefghijkl/0-1/sites"
CHUNK = wire_bulk.CHUNK_SIZE


@pytest.fixture(scope="module")
def kits(tmp_path_factory):
    return make_kits(tmp_path_factory.mktemp("kits"))


@pytest.fixture
def small(monkeypatch):
    """Chunks of 1000 bytes in messages of 300: the same code, without megabytes."""
    monkeypatch.setattr(wire_bulk, "CHUNK_SIZE", 1000)
    monkeypatch.setattr(wire_bulk, "PIECE", 300)


@pytest.fixture
def blobs():
    return MemoryBlobStore(chunk_size=1000)


def noise(size, seed=1):
    return random.Random(seed).randbytes(size)


def written(tmp_path, data, name="file"):
    path = tmp_path / name
    path.write_bytes(data)
    return path


def manifest(data, chunk=1000):
    chunks = tuple(blake3_hex(data[at : at + chunk]) for at in range(0, len(data), chunk))
    return Manifest(len(data), chunk, chunks)


def header(one, indices=None, owner=OWNER):
    proto = common.Manifest(size=one.size, chunk_size=one.chunk_size, chunks=one.chunks)
    indices = range(len(one.chunks)) if indices is None else indices
    return common.PutBlobHeader(owner=owner, manifest=proto, indices=indices).SerializeToString()


async def stream(*messages):
    for one in messages:
        yield one


def receive(blobs, *messages, check=lambda owner: None, **options):
    return asyncio.run(receive_blob(stream(*messages), blobs, check, **options))


# -- receiving ----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 3500), st.lists(st.integers(1, 1500), min_size=1, max_size=8))
def test_however_the_messages_are_cut_the_blob_is_whole(size, cuts):
    data, blobs, pieces, at = noise(size), MemoryBlobStore(chunk_size=1000), [], 0
    while at < size:
        step = cuts[len(pieces) % len(cuts)]
        pieces.append(data[at : at + step])
        at += step
    ref = receive(blobs, header(manifest(data)), *pieces)
    assert BlobReader(blobs, ref).read() == data


def test_only_the_announced_chunks_are_expected(blobs):
    data = noise(2500)
    one = manifest(data)
    for index in (0, 2):
        blobs.put_chunk(OWNER, one.chunks[index], data[index * 1000 : (index + 1) * 1000])
    ref = receive(blobs, header(one, [1]), data[1000:2000])
    assert BlobReader(blobs, ref).read() == data


@pytest.mark.parametrize("messages", [(), (b"\xff\xff\xff",), (b"no header at all",)])
def test_an_upload_begins_with_its_header(blobs, messages):
    with pytest.raises(ProtocolError, match="header"):
        receive(blobs, *messages)


def test_an_upload_that_does_not_keep_to_its_header_is_refused(blobs):
    data = noise(2500)
    one = manifest(data)
    with pytest.raises(ProtocolError, match="before its last chunk"):
        receive(blobs, header(one), data[:2000])
    with pytest.raises(ProtocolError, match="more bytes"):
        receive(blobs, header(one), data, b"x")
    with pytest.raises(ProtocolError, match="does not have"):
        receive(blobs, header(one, [3]))
    with pytest.raises(BadInput, match="manifest"):
        receive(blobs, header(Manifest(1000, 1000, one.chunks[:1])).replace(b"\x08\xe8\x07", b"\x08\xe9\x07"))
    assert blobs.manifests == {}


def test_a_damaged_chunk_is_refused_and_the_good_ones_stay_for_the_next_try(blobs):
    data = noise(3000)
    one = manifest(data)
    with pytest.raises(Corrupt):
        receive(blobs, header(one), data[:1000], bytes(1000), data[2000:])
    assert blobs.manifests == {}
    assert blobs.missing(OWNER, one) == [1, 2]


def test_chunks_larger_than_the_stores_are_refused_before_they_are_gathered(blobs):
    taken = []

    async def endless():
        yield header(Manifest(1 << 31, 1 << 31, (blake3_hex(b""),)))
        while len(taken) < 100:
            taken.append(1)
            yield bytes(100)

    with pytest.raises(BadInput, match="chunks of"):
        asyncio.run(receive_blob(endless(), blobs, lambda owner: None))
    assert not taken


def test_owner_and_size_are_checked_before_anything_is_stored(blobs):
    def nobody(owner):
        raise NotAuthorised(owner)

    data = noise(1500)
    with pytest.raises(NotAuthorised, match=OWNER):
        receive(blobs, header(manifest(data)), data, check=nobody)
    with pytest.raises(BadInput, match="larger than 1499"):
        receive(blobs, header(manifest(data)), data, limit=1499)
    assert blobs.chunks == {}
    assert receive(blobs, header(manifest(data)), data, limit=1500).size == 1500


# -- streaming ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 1, 999, 1000, 1001, 2499, 2500, 9999])
def test_a_blob_is_streamed_from_any_offset(blobs, small, offset):
    data = noise(2500)
    writer = BlobWriter(blobs, OWNER)
    writer.write(data)
    ref = writer.finish()

    async def gather():
        return [piece async for piece in stream_blob(blobs, ref, offset)]

    pieces = asyncio.run(gather())
    assert b"".join(pieces) == data[offset:]
    assert all(len(piece) <= 300 for piece in pieces)


def test_a_reference_survives_the_wire():
    ref = ref_from_proto(common.BlobRef(owner=OWNER, digest="ab" * 32, size=7))
    assert ref_from_proto(ref_to_proto(ref)) == ref
    with pytest.raises(BadInput):
        ref_from_proto(common.BlobRef(owner="../etc", digest="ab" * 32, size=7))


# -- over TLS -----------------------------------------------------------------------------------------------------------


def connected(kits, port):
    channel = aio_channel(kits["site-1"], "127.0.0.1", port, "server1")
    return channel, FleetStub(channel, "server1")


async def test_an_upload_that_was_cut_resumes_with_the_missing_chunks_only(kits, tmp_path, blobs, small):
    data = noise(4500)
    path, desk = written(tmp_path, data), FleetDesk(blobs)
    async with serving(kits["server1"], FLEET, desk) as port:
        channel, stub = connected(kits, port)
        async with channel:
            desk.cut_upload_after = 2600  # header included
            with pytest.raises(FedhelmError):
                await upload_file(stub, OWNER, path)
            kept = len(blobs.chunks)
            assert 0 < kept < 5
            desk.cut_upload_after = None
            ref = await upload_file(stub, OWNER, path)
            assert desk.received < len(data) - kept * 1000 + 1000  # and the header
            assert BlobReader(blobs, ref_from_proto(ref)).read() == data
            await upload_file(stub, OWNER, path)
            assert desk.received < 1000  # the header alone


async def test_equal_chunks_are_sent_once(kits, tmp_path, blobs, small):
    path, desk = written(tmp_path, bytes(4000)), FleetDesk(blobs)
    async with serving(kits["server1"], FLEET, desk) as port:
        channel, stub = connected(kits, port)
        async with channel:
            ref = await upload_file(stub, OWNER, path)
    assert desk.received < 2000
    assert BlobReader(blobs, ref_from_proto(ref)).read() == bytes(4000)


@pytest.mark.parametrize("size", [0, 1, 1000])
async def test_small_files_travel_both_ways(kits, tmp_path, blobs, small, size):
    path, target = written(tmp_path, noise(size)), tmp_path / "target"
    async with serving(kits["server1"], FLEET, FleetDesk(blobs)) as port:
        channel, stub = connected(kits, port)
        async with channel:
            await fetch_blob(stub, await upload_file(stub, OWNER, path), target)
    assert target.read_bytes() == noise(size)
    assert not (tmp_path / "target.part").exists()


async def test_a_file_that_becomes_shorter_is_an_error_and_no_cancellation(kits, tmp_path, blobs, small):
    path, desk = written(tmp_path, noise(2500)), FleetDesk(blobs)
    real = desk.missing_chunks

    async def shrink(request, call):
        path.write_bytes(b"short")
        return await real(request, call)

    desk.missing_chunks = shrink
    async with serving(kits["server1"], FLEET, desk) as port:
        channel, stub = connected(kits, port)
        async with channel:
            with pytest.raises(Corrupt, match="shorter"):
                await asyncio.wait_for(upload_file(stub, OWNER, path), 10)
    assert blobs.manifests == {}


async def test_the_servers_own_error_reaches_the_uploader(kits, tmp_path, blobs, small):
    desk = FleetDesk(blobs)
    desk.raises = NotPrimary("ask server2", hint="server2")
    async with serving(kits["server1"], FLEET, desk) as port:
        channel, stub = connected(kits, port)
        async with channel:
            with pytest.raises(NotPrimary) as caught:
                await upload_file(stub, OWNER, written(tmp_path, noise(700)))
    assert caught.value.hint == "server2"


class HidingStub:
    """As gRPC's asyncio client where a server refuses an upload while a piece is on its way."""

    def __init__(self, reason):
        self.reason, self.asked = reason, 0

    async def missing_chunks(self, request, timeout):
        self.asked += 1
        if self.reason is not None:
            raise self.reason
        return common.MissingChunksReply()

    async def put_blob(self, messages, timeout=None):
        raise Unreachable("server1 cannot be reached: Internal error from Core")


async def test_the_reason_that_grpc_hides_is_asked_for(tmp_path, small):
    path = written(tmp_path, noise(700))
    for reason in (RoundOver("round 0-1 is over"), None):
        stub = HidingStub(reason)
        with pytest.raises(RoundOver if reason else Unreachable):
            await upload_file(stub, OWNER, path)
        assert stub.asked == 1


async def stored(blobs, data):
    writer = BlobWriter(blobs, OWNER)
    writer.write(data)
    return ref_to_proto(writer.finish())


async def test_a_fetch_that_was_cut_resumes_at_a_whole_chunk(kits, tmp_path, blobs, small):
    data, desk, target = noise(4500), FleetDesk(blobs), tmp_path / "model"
    ref = await stored(blobs, data)
    async with serving(kits["server1"], FLEET, desk) as port:
        channel, stub = connected(kits, port)
        async with channel:
            desk.cut_fetch_after = 2300
            with pytest.raises(FedhelmError):
                await fetch_blob(stub, ref, target)
            assert not target.exists()
            desk.cut_fetch_after = None
            await fetch_blob(stub, ref, target)
    assert target.read_bytes() == data
    assert [request.offset for request in desk.calls] == [0, 2000]


@pytest.mark.parametrize(
    ("left", "offset"),
    [
        (lambda data: data[:2000] + bytes(1000), 2000),  # the third chunk is another
        (lambda data: bytes(1000) + data[1000:3000], 0),
        (lambda data: data[:1700], 1000),
        (lambda data: data + bytes(5000), 4000),  # longer than the blob
    ],
    ids=["damaged", "damaged first", "torn", "longer"],
)
async def test_what_an_earlier_try_left_is_verified_before_it_is_kept(kits, tmp_path, blobs, small, left, offset):
    data, desk, target = noise(4500), FleetDesk(blobs), tmp_path / "model"
    ref = await stored(blobs, data)
    (tmp_path / "model.part").write_bytes(left(data))
    async with serving(kits["server1"], FLEET, desk) as port:
        channel, stub = connected(kits, port)
        async with channel:
            await fetch_blob(stub, ref, target)
    assert target.read_bytes() == data
    assert [request.offset for request in desk.calls] == [offset]


async def test_a_damaged_fetch_is_refused_and_leaves_no_file(kits, tmp_path, blobs, small):
    desk, target = FleetDesk(blobs), tmp_path / "model"
    desk.damage = True
    ref = await stored(blobs, noise(2500))
    async with serving(kits["server1"], FLEET, desk) as port:
        channel, stub = connected(kits, port)
        async with channel:
            with pytest.raises(Corrupt, match="damaged"):
                await fetch_blob(stub, ref, target)
    assert not target.exists()


async def test_a_manifest_that_is_not_the_one_asked_for_is_refused(kits, tmp_path, blobs, small):
    class Liar(FleetDesk):
        async def get_manifest(self, request, call):
            return common.Manifest(size=3, chunk_size=3, chunks=[blake3_hex(b"abc")])

    ref = await stored(blobs, noise(2500))
    async with serving(kits["server1"], FLEET, Liar(blobs)) as port:
        channel, stub = connected(kits, port)
        async with channel:
            with pytest.raises(Corrupt, match="manifest"):
                await fetch_blob(stub, ref, tmp_path / "model")


class Lying:
    """A server's answers, without a network between."""

    def __init__(self, one, data=b""):
        self._manifest = one
        self._data = data
        self.asked = 0

    @property
    def ref(self):
        return common.BlobRef(owner=OWNER, digest=self._manifest.digest, size=self._manifest.size)

    async def get_manifest(self, blob, timeout):
        one = self._manifest
        return common.Manifest(size=one.size, chunk_size=one.chunk_size, chunks=one.chunks)

    async def get_blob(self, request):
        self.asked += 1
        yield self._data


async def test_a_chunk_larger_than_any_is_not_gathered_in_memory(tmp_path):
    size = 2 * 1024**3
    server = Lying(Manifest(size, size, ("ab" * 32,)))
    with pytest.raises(BadInput, match=f"comes in chunks of {size} bytes; at most {CHUNK} are taken"):
        await fetch_blob(server, server.ref, tmp_path / "model")
    assert (server.asked, list(tmp_path.iterdir())) == (0, [])


async def test_what_does_not_fit_the_disk_is_not_begun(tmp_path, small, monkeypatch):
    data = noise(1500)
    server = Lying(manifest(data), data)
    monkeypatch.setattr(wire_bulk, "SPARED", 1 << 60)  # a disk that is nearly full
    with pytest.raises(OSError, match=r"a download of 1500 bytes more does not fit: \d+ are free"):
        await fetch_blob(server, server.ref, tmp_path / "model")
    assert server.asked == 0
    monkeypatch.setattr(wire_bulk, "SPARED", 0)
    await fetch_blob(server, server.ref, tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == data


async def test_bytes_behind_the_promised_ones_are_refused(tmp_path, small):
    data = noise(1500)
    server = Lying(manifest(data), data + b"more")
    with pytest.raises(ProtocolError, match="more bytes came than were announced"):
        await fetch_blob(server, server.ref, tmp_path / "model")
    assert not (tmp_path / "model").exists()


async def test_a_console_uploads_and_counts_what_it_sent(kits, tmp_path, small):
    path, desk, progress = written(tmp_path, noise(900)), AdminDesk(), []
    reply = common.BlobRef(owner=OWNER, digest="ab" * 32, size=900)

    async def put_blob(messages, call):
        call.passage.admit(Object())
        async for piece in messages:
            desk.received += len(piece)
        return reply

    desk.put_blob = put_blob
    async with serving(kits["server1"], ADMIN, desk) as port:

        def upload():
            with sync_channel(kits[ADMIN_NAME], "127.0.0.1", port, "server1") as channel:
                return upload_sync(AdminStub(channel, "server1"), OWNER, path, progress.append)

        ref = await asyncio.to_thread(upload)
    assert ref == ref_from_proto(reply)
    assert sum(progress) == 900
    assert desk.received > 900


def test_a_manifest_is_made_in_real_chunks(tmp_path):
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(CHUNK + 5)
    one = manifest_of(path)
    assert (one.size, one.chunk_size, len(one.chunks)) == (CHUNK + 5, CHUNK, 2)
    assert one.chunks[1] == blake3_hex(bytes(5))
