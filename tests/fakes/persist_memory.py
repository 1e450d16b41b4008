"""Stores in memory that pass the contract tests of the real ones, and that fail on demand."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from fedhelm.errors import BadInput, Corrupt, NotFound, SlotTaken, StoreUnavailable
from fedhelm.persist.base import BytesLike, Usage
from fedhelm.persist.blobs import BlobRef, Manifest, blake3_hex, check_digest, check_owner

# What the next `create` does instead of working:
UNAVAILABLE = "unavailable"  # nothing is created, StoreUnavailable
LOST = "lost"  # created; the answer is lost: StoreUnavailable
REPEATED = "repeated"  # created; the transport repeats the request and answers "taken"


class MemoryLogStore:
    """Slots in a dict.

    Attributes:
        contents: The slots that are there.
        marks: The marks that are there.
        archive: The first contents of every slot that was deleted.
        called: Called with the name of each call and its number, before it does anything: other members' chance.
        faults: Consumed one per `create`: UNAVAILABLE, LOST, REPEATED, or None for none.
        before_create: Called with the slot before each `create`: another writer's chance to be first.
        down: While True every call raises StoreUnavailable.
        synced: How often `sync` was called.
    """

    def __init__(self) -> None:
        self.contents: dict[int, bytes] = {}
        self.marks: dict[int, bytes] = {}
        self.archive: dict[int, bytes] = {}
        self.called: Callable[[str, int], None] | None = None
        self.faults: deque[str | None] = deque()
        self.before_create: Callable[[int], None] | None = None
        self.down = False
        self.synced = 0
        self._lock = threading.Lock()

    def create(self, seq: int, data: bytes) -> None:
        if self.before_create is not None:
            self.before_create(seq)
        self._require()
        fault = self.faults.popleft() if self.faults else None
        if fault == UNAVAILABLE:
            raise StoreUnavailable("memory: no answer")
        with self._lock:
            if seq in self.contents:
                raise SlotTaken(f"slot {seq} is taken")
            self.contents[seq] = bytes(data)
        if fault == LOST:
            raise StoreUnavailable("memory: the answer was lost")
        if fault == REPEATED:
            raise SlotTaken(f"slot {seq} is taken")

    def read(self, seq: int) -> bytes | None:
        self._call("read", seq)
        return self.contents.get(seq)

    def highest(self) -> int | None:
        self._require()
        return max(self.contents, default=None)

    def slots(self) -> list[int]:
        return sorted(self.contents)

    def delete(self, seq: int) -> None:
        self._call("delete", seq)
        data = self.contents.pop(seq, None)
        if data is not None:
            self.archive.setdefault(seq, data)

    def create_mark(self, number: int, data: bytes) -> None:
        self._call("create_mark", number)
        with self._lock:
            if number in self.marks:
                raise SlotTaken(f"mark {number} is taken")
            self.marks[number] = bytes(data)

    def read_mark(self, number: int) -> bytes | None:
        self._call("read_mark", number)
        return self.marks.get(number)

    def highest_mark(self) -> int:
        self._require()
        return max(self.marks, default=0)

    def sync(self) -> None:
        self._require()
        self.synced += 1

    def _call(self, name: str, number: int) -> None:
        if self.called is not None:
            self.called(name, number)
        self._require()

    def _require(self) -> None:
        if self.down:
            raise StoreUnavailable("memory: down")


class MemoryBlobStore:
    """Chunks and manifests in dicts.

    Attributes:
        chunks: By owner and digest.
        manifests: By owner and digest.
        down: While True every call raises StoreUnavailable.
        room: What `usage` returns.
    """

    def __init__(self, chunk_size: int = 1024) -> None:
        self.chunks: dict[tuple[str, str], bytes] = {}
        self.manifests: dict[tuple[str, str], Manifest] = {}
        self.down = False
        self.room = Usage(10**9, 10**9)
        self._chunk_size = chunk_size

    @property
    def chunk_size(self) -> int:
        return self._chunk_size

    def missing(self, owner: str, manifest: Manifest) -> list[int]:
        self._require(owner)
        if manifest.chunk_size > self._chunk_size:
            raise BadInput("chunks too large")
        lacking = []
        for index, digest in enumerate(manifest.chunks):
            chunk = self.chunks.get((owner, digest))
            if chunk is None:
                if digest not in manifest.chunks[:index]:
                    lacking.append(index)
            elif len(chunk) != manifest.length(index):
                raise Corrupt(f"chunk {digest} has another length")
        return lacking

    def put_chunk(self, owner: str, digest: str, data: BytesLike) -> None:
        self._require(owner)
        check_digest(digest)
        if not 1 <= memoryview(data).nbytes <= self._chunk_size:
            raise BadInput("a chunk of this length is not taken")
        if blake3_hex(data) != digest:
            raise Corrupt(f"chunk {digest} does not have this digest")
        self.chunks.setdefault((owner, digest), bytes(data))

    def put_manifest(self, owner: str, manifest: Manifest) -> BlobRef:
        if lacking := self.missing(owner, manifest):
            raise NotFound(f"chunk {lacking[0]} is missing")
        self.manifests[owner, manifest.digest] = manifest
        return BlobRef(owner, manifest.digest, manifest.size)

    def manifest(self, ref: BlobRef) -> Manifest:
        self._require(ref.owner)
        manifest = self.manifests.get((ref.owner, ref.digest))
        if manifest is None:
            raise Corrupt(f"blob {ref.digest} is missing")
        if manifest.size != ref.size:
            raise Corrupt(f"blob {ref.digest} has another size")
        return manifest

    def read_chunk(self, owner: str, digest: str) -> bytes:
        self._require(owner)
        chunk = self.chunks.get((owner, check_digest(digest)))
        if chunk is None:
            raise Corrupt(f"chunk {digest} is missing")
        if blake3_hex(chunk) != digest:
            raise Corrupt(f"chunk {digest} is damaged")
        return chunk

    def read_part(self, owner: str, digest: str, offset: int, view: memoryview) -> None:
        self._require(owner)
        chunk = self.chunks.get((owner, check_digest(digest)))
        if chunk is None or len(chunk) < offset + len(view):
            raise Corrupt(f"chunk {digest} is missing or too short")
        view[:] = chunk[offset : offset + len(view)]

    def owners(self, prefix: str) -> list[str]:
        self._require(prefix or "x")
        found = {owner for owner, _ in (*self.chunks, *self.manifests)}
        return sorted(one for one in found if not prefix or one == prefix or one.startswith(f"{prefix}/"))

    def delete_owner(self, owner: str) -> int:
        self._require(owner)
        freed = 0
        for key in [key for key in self.manifests if key[0] == owner]:
            freed += len(self.manifests.pop(key).canonical())
        for key in [key for key in self.chunks if key[0] == owner]:
            freed += len(self.chunks.pop(key))
        return freed

    def usage(self) -> Usage:
        self._require("x")
        return self.room

    def _require(self, owner: str) -> None:
        check_owner(owner)
        if self.down:
            raise StoreUnavailable("memory: down")
