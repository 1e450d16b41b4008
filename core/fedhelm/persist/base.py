"""What the log and the blobs ask of a store. One contract test-suite runs on every implementation and on the fakes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from fedhelm.persist.blobs import BlobRef, Manifest

__all__ = ["BlobStore", "BytesLike", "LogStore"]

BytesLike = bytes | bytearray | memoryview


class LogStore(Protocol):
    """Numbered slots, each created once, never changed."""

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

    def sync(self) -> None:
        """Make every slot that can be read durable.

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
