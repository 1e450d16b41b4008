"""What the log and the blobs ask of a store. One contract test-suite runs on every implementation and on the fakes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from fedhelm.persist.blobs import BlobRef, Manifest

__all__ = ["BlobStore", "BytesLike", "LogStore", "Usage"]

BytesLike = bytes | bytearray | memoryview


@dataclass(frozen=True)
class Usage:
    """The disk below a store, in bytes.

    Attributes:
        total: Its size.
        free: What this user may still write.
    """

    total: int
    free: int


class LogStore(Protocol):
    """Numbered slots, each created once, never changed; and numbered marks, which are never deleted either.

    May be used by several threads at once.
    """

    def create(self, seq: int, data: bytes) -> None:
        """Create slot ``seq`` with ``data``; durable when this returns.

        Raises:
            SlotTaken: the slot is there already, durably, whoever created it. It may be this very call's own doing,
                where a transport repeats requests: the caller reads the slot to know.
            StoreUnavailable: no answer. The slot may or may not have been created, or be created later.
        """
        ...

    def read(self, seq: int) -> bytes | None:
        """Return the bytes of slot ``seq``, None if there is none.

        Raises:
            StoreUnavailable: the store cannot be read; a store that is not there is not an empty one.
        """
        ...

    def highest(self) -> int | None:
        """Return the highest slot that exists, by a listing; None if there is none.

        Raises:
            StoreUnavailable: the store cannot be listed.
        """
        ...

    def slots(self) -> list[int]:
        """Return the slots that exist, ascending, by a listing.

        Raises:
            StoreUnavailable: the store cannot be listed.
        """
        ...

    def delete(self, seq: int) -> None:
        """Delete slot ``seq``; one that is not there is fine. Only a slot below a durable mark may be deleted.

        Raises:
            StoreUnavailable: it may or may not have been deleted.
        """
        ...

    def create_mark(self, number: int, data: bytes) -> None:
        """Create mark ``number`` with ``data``; raises, and is durable, as `create`."""
        ...

    def read_mark(self, number: int) -> bytes | None:
        """Return the bytes of mark ``number``, None if there is none; raises as `read`."""
        ...

    def highest_mark(self) -> int:
        """Return the highest mark that exists, by a listing; 0 if there is none; raises as `highest`."""
        ...

    def sync(self) -> None:
        """Make every slot and every mark that can be read durable.

        Raises:
            StoreUnavailable: it cannot be known.
        """
        ...


class BlobStore(Protocol):
    """Chunks and manifests under owners, each created once, never changed. May be used by several threads at once."""

    @property
    def chunk_size(self) -> int:
        """Bytes of a chunk that writers should use, and the most that is taken."""
        ...

    def missing(self, owner: str, manifest: Manifest) -> list[int]:
        """Return the indices of the chunks the store lacks, ascending; of equal chunks the first.

        Raises:
            BadInput: the owner or the manifest's chunk size is not allowed.
            Corrupt: a chunk is there with another length.
            StoreUnavailable: the store cannot be read.
        """
        ...

    def put_chunk(self, owner: str, digest: str, data: BytesLike) -> None:
        """Keep one chunk; present already is fine. It is durable only when a manifest that names it is.

        Raises:
            BadInput: owner or digest is malformed, or the chunk is empty or too large.
            Corrupt: ``data`` does not have this digest.
            StoreUnavailable: full, missing or read-only.
        """
        ...

    def put_manifest(self, owner: str, manifest: Manifest) -> BlobRef:
        """Complete a blob: chunks, manifest and directories are durable when this returns.

        Raises:
            BadInput: the owner or the manifest's chunk size is not allowed.
            NotFound: a chunk is missing.
            Corrupt: a chunk has another length than the manifest says.
            StoreUnavailable: full, missing or read-only.
        """
        ...

    def manifest(self, ref: BlobRef) -> Manifest:
        """Return the manifest of a blob, verified.

        Raises:
            Corrupt: damaged or missing.
            StoreUnavailable: the store cannot be read.
        """
        ...

    def read_chunk(self, owner: str, digest: str) -> bytes:
        """Return one chunk, verified.

        Raises:
            Corrupt: damaged or missing.
            StoreUnavailable: the store cannot be read.
        """
        ...

    def read_part(self, owner: str, digest: str, offset: int, view: memoryview) -> None:
        """Fill ``view`` with the chunk's bytes from ``offset`` on, **not** verified: `BlobReader` does that.

        Raises:
            Corrupt: the chunk is missing or shorter.
            StoreUnavailable: the store cannot be read.
        """
        ...

    def owners(self, prefix: str) -> list[str]:
        """Return the owners at or below ``prefix`` ("" is all) that hold chunks or manifests, sorted, by a listing.

        Raises:
            BadInput: the prefix cannot own blobs.
            StoreUnavailable: the store cannot be listed.
        """
        ...

    def delete_owner(self, owner: str) -> int:
        """Delete all that ``owner`` holds, not what is below it; return the bytes freed. Nothing there is fine.

        The owner must be closed: no record may name its blobs, now or later. What is written there meanwhile, or after,
        may stay; another call deletes it.

        Raises:
            BadInput: the owner is not allowed.
            StoreUnavailable: some of it may be left.
        """
        ...

    def usage(self) -> Usage:
        """Return the size of the disk, and what is free.

        Raises:
            StoreUnavailable: the store is not there.
        """
        ...
