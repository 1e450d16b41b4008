"""What every BlobStore does: the real one and the fake that other tests use."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from fedhelm.errors import BadInput, Corrupt, NotFound
from fedhelm.persist.blobs import BlobReader, BlobRef, BlobWriter, Manifest, blake3_hex
from fedhelm.persist.posix import PosixBlobStore, make_layout
from tests.fakes.persist_memory import MemoryBlobStore

OWNER = "jobs/k7m3tq4w9zpx/0-1/sites"
CHUNK = 1024


@pytest.fixture(params=["posix", "memory"])
def store(request, tmp_path):
    if request.param == "posix":
        make_layout(tmp_path / "store")
        return PosixBlobStore(tmp_path / "store", chunk_size=CHUNK)
    return MemoryBlobStore(chunk_size=CHUNK)


def content(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def write(store, data: bytes, owner: str = OWNER) -> BlobRef:
    writer = BlobWriter(store, owner)
    writer.write(data)
    return writer.finish()


def manifest_of(data: bytes, chunk_size: int = CHUNK) -> Manifest:
    chunks = tuple(blake3_hex(data[at : at + chunk_size]) for at in range(0, len(data), chunk_size))
    return Manifest(len(data), chunk_size, chunks)


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 17])
def test_what_is_written_is_read(store, size):
    data = content(size)
    ref = write(store, data)
    assert ref == BlobRef(OWNER, manifest_of(data).digest, size)
    assert store.manifest(ref) == manifest_of(data)
    assert BlobReader(store, ref).read() == data


def test_the_pieces_of_writing_do_not_matter(store):
    data = content(5 * CHUNK + 100)
    writer = BlobWriter(store, OWNER)
    view, random_ = memoryview(data), random.Random(1)
    while view:
        length = random_.choice([1, 7, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3])
        writer.write(view[:length])
        view = view[length:]
    assert writer.finish() == write(store, data)


def test_every_range_reads_the_same_bytes(store):
    data = content(4 * CHUNK + 11)
    ref = write(store, data)
    random_ = random.Random(2)
    for _ in range(300):
        low = random_.randrange(len(data) + 1)
        high = random_.randrange(low, len(data) + 1)
        reader = BlobReader(store, ref)
        assert reader.read(low, high - low) == data[low:high]
        assert reader.read(low, high - low) == data[low:high]


def test_a_range_outside_the_blob_is_refused(store):
    reader = BlobReader(store, write(store, content(10)))
    for offset, size in [(-1, 1), (0, 11), (10, 1), (11, 0)]:
        with pytest.raises(BadInput):
            reader.read(offset, size)


def test_an_interrupted_upload_goes_on_where_it_stopped(store):
    data = content(3 * CHUNK)
    manifest = manifest_of(data)
    assert store.missing(OWNER, manifest) == [0, 1, 2]
    store.put_chunk(OWNER, manifest.chunks[1], data[CHUNK : 2 * CHUNK])
    assert store.missing(OWNER, manifest) == [0, 2]
    with pytest.raises(NotFound, match="chunk 0"):
        store.put_manifest(OWNER, manifest)
    for index in store.missing(OWNER, manifest):
        store.put_chunk(OWNER, manifest.chunks[index], data[index * CHUNK : (index + 1) * CHUNK])
    assert store.missing(OWNER, manifest) == []
    assert BlobReader(store, store.put_manifest(OWNER, manifest)).read() == data


def test_everything_may_be_put_twice(store):
    data = content(2 * CHUNK)
    ref = write(store, data)
    assert write(store, data) == ref
    assert store.put_manifest(OWNER, manifest_of(data)) == ref


def test_equal_chunks_are_asked_for_once(store):
    data = bytes(CHUNK) * 3 + b"tail"
    manifest = manifest_of(data)
    assert store.missing(OWNER, manifest) == [0, 3]
    assert BlobReader(store, write(store, data)).read() == data


def test_owners_share_nothing(store):
    data = content(CHUNK)
    ref = write(store, data)
    other = "jobs/k7m3tq4w9zpx/0-2/sites"
    assert store.missing(other, manifest_of(data)) == [0]
    with pytest.raises(Corrupt, match="missing"):
        store.manifest(BlobRef(other, ref.digest, ref.size))


def test_a_chunk_that_is_not_what_it_says_is_refused(store):
    digest = blake3_hex(b"this")
    with pytest.raises(Corrupt, match=digest):
        store.put_chunk(OWNER, digest, b"that")
    assert store.missing(OWNER, Manifest(4, CHUNK, (digest,))) == [0]


@pytest.mark.parametrize("data", [b"", bytes(CHUNK + 1)])
def test_empty_and_too_large_chunks_are_refused(store, data):
    with pytest.raises(BadInput):
        store.put_chunk(OWNER, blake3_hex(data), data)


def test_a_manifest_with_larger_chunks_than_the_stores_is_refused(store):
    manifest = manifest_of(content(2 * CHUNK), chunk_size=2 * CHUNK)
    with pytest.raises(BadInput):
        store.missing(OWNER, manifest)
    with pytest.raises(BadInput):
        store.put_manifest(OWNER, manifest)


def test_a_manifest_that_lies_about_a_chunks_length_is_refused(store):
    data = content(100)
    write(store, data)
    with pytest.raises(Corrupt):
        store.put_manifest(OWNER, Manifest(99, CHUNK, (blake3_hex(data),)))


def test_a_reference_with_another_size_is_refused(store):
    ref = write(store, content(100))
    with pytest.raises(Corrupt):
        store.manifest(BlobRef(OWNER, ref.digest, 101))


@pytest.mark.parametrize(
    "owner",
    [
        "",
        "/",
        "/etc",
        "jobs/",
        "jobs//x",
        "../x",
        "jobs/../../x",
        "jobs/.",
        "jobs/.hidden",
        "jobs/x\n",
        "jobs/X",
        "jobs/a b",
        "jobs/a\0b",
        "jobs\\x",
        "jobs/é",
        "a/b/c/d/e/f/g/h/i",
        "jobs/" + "a" * 65,
    ],
)
def test_no_owner_leads_out_of_the_store(store, owner):
    data = b"data"
    digest = blake3_hex(data)
    manifest = Manifest(4, CHUNK, (digest,))
    for call in (
        lambda: store.put_chunk(owner, digest, data),
        lambda: store.put_manifest(owner, manifest),
        lambda: store.missing(owner, manifest),
        lambda: store.read_chunk(owner, digest),
        lambda: store.read_part(owner, digest, 0, memoryview(bytearray(1))),
        lambda: BlobWriter(store, owner),
        lambda: BlobRef(owner, digest, 4),
    ):
        with pytest.raises(BadInput):
            call()


@pytest.mark.parametrize("digest", ["", "../../x", "A" * 64, "0" * 63, "0" * 65, "0" * 64 + "\n", "0" * 63 + "/"])
def test_no_digest_leads_out_of_the_store(store, digest):
    for call in (
        lambda: store.put_chunk(OWNER, digest, b"data"),
        lambda: store.read_chunk(OWNER, digest),
        lambda: store.read_part(OWNER, digest, 0, memoryview(bytearray(1))),
        lambda: BlobRef(OWNER, digest, 4),
        lambda: Manifest(4, CHUNK, (digest,)),
    ):
        with pytest.raises(BadInput):
            call()


def test_a_missing_chunk_is_named(store):
    digest = blake3_hex(b"never put")
    with pytest.raises(Corrupt, match=digest):
        store.read_chunk(OWNER, digest)
    with pytest.raises(Corrupt, match=digest):
        store.read_part(OWNER, digest, 0, memoryview(bytearray(1)))


def test_a_part_beyond_the_chunk_is_refused(store):
    ref = write(store, b"four")
    chunk = store.manifest(ref).chunks[0]
    view = memoryview(bytearray(3))
    store.read_part(OWNER, chunk, 1, view)
    assert bytes(view) == b"our"
    with pytest.raises(Corrupt):
        store.read_part(OWNER, chunk, 2, view)


def test_owners_are_listed_below_a_prefix(store):
    assert store.owners("") == []
    names = ["checkpoints/0000000000000009", "jobs/a/0-1/model", "jobs/a/0-1/sites", "jobs/a/bundle", "jobs/ab/bundle"]
    for name in names:
        write(store, content(10), name)
    assert store.owners("") == names
    assert store.owners("jobs") == names[1:]
    assert store.owners("jobs/a") == names[1:4]
    assert store.owners("jobs/a/bundle") == ["jobs/a/bundle"]
    assert store.owners("jobs/b") == []
    with pytest.raises(BadInput):
        store.owners("../x")


def test_an_owner_with_an_unfinished_upload_is_listed(store):
    store.put_chunk(OWNER, blake3_hex(b"data"), b"data")
    assert store.owners("jobs") == [OWNER]
    assert store.delete_owner(OWNER) == 4
    assert store.owners("") == []


def test_a_deleted_owner_is_gone_and_nothing_else(store):
    data, job = content(2 * CHUNK + 1), OWNER.rsplit("/", 2)[0]
    ref = write(store, data)
    others = [write(store, data, f"{job}/{name}") for name in ("bundle", "0-1/model", "0-10/sites")]
    below = write(store, data, f"{OWNER}/deeper")
    freed = store.delete_owner(OWNER)
    assert freed == len(data) + len(manifest_of(data).canonical())
    assert store.delete_owner(OWNER) == 0
    assert store.owners(OWNER) == [f"{OWNER}/deeper"]
    with pytest.raises(Corrupt, match="missing"):
        store.manifest(ref)
    for other in (*others, below):
        assert BlobReader(store, other).read() == data


def test_a_late_upload_to_a_deleted_owner_is_swept_by_the_next_deletion(store):
    data = content(CHUNK)
    write(store, data)
    store.delete_owner(OWNER)
    assert BlobReader(store, write(store, data)).read() == data
    assert store.owners("jobs") == [OWNER]
    store.delete_owner(OWNER)
    assert store.owners("") == []


def test_no_foreign_owner_is_deleted(store):
    with pytest.raises(BadInput):
        store.delete_owner("../log")
    assert store.delete_owner("jobs/never/was") == 0


def test_the_room_on_the_disk_is_told(store):
    usage = store.usage()
    assert 0 <= usage.free <= usage.total
    assert usage.total > 0


def test_many_threads_may_write_the_same_blob_and_others(store):
    shared = content(3 * CHUNK, seed=99)

    def upload(index: int) -> None:
        own = content(2 * CHUNK + index, seed=index)
        assert BlobReader(store, write(store, own, f"jobs/j{index % 3}/0-1/sites")).read() == own
        assert BlobReader(store, write(store, shared)).read() == shared

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(upload, range(24)))
