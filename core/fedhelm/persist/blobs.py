"""Blobs: a manifest over independent chunks, each with its own BLAKE3 digest, all under one owner."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from blake3 import blake3

from fedhelm.errors import BadInput, Corrupt
from fedhelm.persist.base import BlobStore, BytesLike
from fedhelm.persist.record import canonical

__all__ = [
    "CHUNK_SIZE",
    "MAX_CHUNKS",
    "BlobReader",
    "BlobRef",
    "BlobWriter",
    "Manifest",
    "blake3_hex",
    "check_digest",
    "check_owner",
]

CHUNK_SIZE = 8 * 1024 * 1024
MAX_CHUNKS = 131_072  # 1 TiB of 8 MiB chunks

_DIGEST = re.compile(r"[0-9a-f]{64}")
# Shorter than the names of chunks and manifests (66), so that no owner's folder can stand where a chunk belongs.
_COMPONENT = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_MAX_COMPONENTS = 8
_VERIFY_BLOCK = 1024 * 1024


def blake3_hex(data: BytesLike) -> str:
    """Return the BLAKE3 digest of ``data``: 64 hex digits."""
    return blake3(data).hexdigest()


def check_digest(digest: str) -> str:
    """Return ``digest`` if it has the form of one.

    Raises:
        BadInput: it has not.
    """
    if not _DIGEST.fullmatch(digest):
        raise BadInput(f"{digest!r:.80} is not a digest (64 hex digits)")
    return digest


def check_owner(owner: str) -> str:
    """Return ``owner`` if it may own blobs: such as ``jobs/k7m3tq4w9zpx/0-3/sites``.

    One to eight components of lower-case letters, digits, ``.``, ``_`` and ``-``, beginning and ending with a letter
    or digit, at most 64 characters each: nothing that a path could misread.

    Raises:
        BadInput: it may not.
    """
    parts = owner.split("/")
    if len(parts) > _MAX_COMPONENTS or not all(_COMPONENT.fullmatch(part) for part in parts):
        raise BadInput(f"{owner!r:.80} cannot own blobs")
    return owner


def _whole(value: Mapping[str, Any], key: str, what: str) -> int:
    number = value.get(key)
    if type(number) is not int or number < 0:
        raise BadInput(f"{what}: {key} is not a whole number")
    return number


def _text(value: Mapping[str, Any], key: str, what: str) -> str:
    text = value.get(key)
    if not isinstance(text, str):
        raise BadInput(f"{what}: {key} is not a text")
    return text


@dataclass(frozen=True)
class BlobRef:
    """Where a blob is: what records and messages carry instead of bytes.

    Attributes:
        owner: Under which the chunks live (see `check_owner`).
        digest: BLAKE3 of the manifest's canonical JSON.
        size: Bytes of the blob.

    Raises:
        BadInput: a field does not have its form.
    """

    owner: str
    digest: str
    size: int

    def __post_init__(self) -> None:
        check_owner(self.owner)
        check_digest(self.digest)
        if self.size < 0:
            raise BadInput(f"a blob of {self.size} bytes")

    def to_json(self) -> dict[str, Any]:
        """Return ``{owner, digest, size}``."""
        return {"owner": self.owner, "digest": self.digest, "size": self.size}

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Return the reference that `to_json` gave.

        Raises:
            BadInput: it is none.
        """
        if not isinstance(value, Mapping) or value.keys() != {"owner", "digest", "size"}:
            raise BadInput("a blob reference is {owner, digest, size}")
        what = "blob reference"
        return cls(_text(value, "owner", what), _text(value, "digest", what), _whole(value, "size", what))


@dataclass(frozen=True)
class Manifest:
    """What a blob consists of.

    Attributes:
        size: Bytes of the blob.
        chunk_size: Bytes of every chunk but the last, which has the rest.
        chunks: BLAKE3 of each chunk, in order; none for an empty blob.

    Raises:
        BadInput: the numbers do not fit one another, or a digest does not have its form.
    """

    size: int
    chunk_size: int
    chunks: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.size < 0 or self.chunk_size < 1 or len(self.chunks) != -(-self.size // self.chunk_size):
            raise BadInput(f"manifest: {len(self.chunks)} chunks of {self.chunk_size} bytes cannot hold {self.size}")
        if len(self.chunks) > MAX_CHUNKS:
            raise BadInput(f"manifest: more than {MAX_CHUNKS} chunks")
        for digest in self.chunks:
            check_digest(digest)

    def length(self, index: int) -> int:
        """Return the bytes of chunk ``index``."""
        return min(self.chunk_size, self.size - index * self.chunk_size)

    def canonical(self) -> bytes:
        """Return the canonical JSON: what the store keeps."""
        return canonical({"size": self.size, "chunk_size": self.chunk_size, "chunks": list(self.chunks)})

    @cached_property
    def digest(self) -> str:
        """BLAKE3 of `canonical`: the blob's name."""
        return blake3_hex(self.canonical())

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Return the manifest in a JSON value.

        Raises:
            BadInput: it is none.
        """
        if not isinstance(value, Mapping) or value.keys() != {"size", "chunk_size", "chunks"}:
            raise BadInput("a manifest is {size, chunk_size, chunks}")
        chunks = value["chunks"]
        if not isinstance(chunks, list | tuple) or not all(isinstance(one, str) for one in chunks):
            raise BadInput("manifest: chunks is not a list of digests")
        return cls(_whole(value, "size", "manifest"), _whole(value, "chunk_size", "manifest"), tuple(chunks))


class BlobWriter:
    """Writes one blob from a stream of bytes, holding at most one chunk in memory.

    An abandoned writer leaves chunks that nothing names.
    """

    def __init__(self, store: BlobStore, owner: str) -> None:
        self._store = store
        self._owner = check_owner(owner)
        self._chunk_size = store.chunk_size
        self._buffer = bytearray()
        self._chunks: list[str] = []
        self._size = 0
        self._finished = False

    def write(self, data: BytesLike) -> None:
        """Add bytes.

        Raises:
            StoreUnavailable: full, missing or read-only.
            ValueError: the blob was finished.
        """
        if self._finished:
            raise ValueError("the blob is finished")
        view = memoryview(data).cast("B")
        while view:
            if not self._buffer and len(view) >= self._chunk_size:
                self._put(view[: self._chunk_size])
                view = view[self._chunk_size :]
                continue
            room = self._chunk_size - len(self._buffer)
            self._buffer += view[:room]
            view = view[room:]
            if len(self._buffer) == self._chunk_size:
                self._put(self._buffer)
                self._buffer.clear()

    def finish(self) -> BlobRef:
        """Complete the blob; durable when this returns.

        Raises:
            StoreUnavailable: full, missing or read-only; may be called again.
        """
        if self._buffer:
            self._put(self._buffer)
            self._buffer.clear()
        self._finished = True
        return self._store.put_manifest(self._owner, Manifest(self._size, self._chunk_size, tuple(self._chunks)))

    def _put(self, chunk: BytesLike) -> None:
        digest = blake3_hex(chunk)
        self._store.put_chunk(self._owner, digest, chunk)
        self._chunks.append(digest)
        self._size += len(chunk)


class BlobReader:
    """Reads a blob into the caller's buffers; every chunk is verified when it is first touched.

    Holds no open file and no chunk, so a thousand of them cost nothing.

    Raises:
        Corrupt: the manifest is damaged or missing.
        StoreUnavailable: the store cannot be read.
    """

    def __init__(self, store: BlobStore, ref: BlobRef) -> None:
        self._store = store
        self._ref = ref
        self._manifest = store.manifest(ref)
        self._verified: set[int] = set()

    @property
    def size(self) -> int:
        """Bytes of the blob."""
        return self._manifest.size

    @property
    def manifest(self) -> Manifest:
        """The blob's chunks. Reads of whole chunks are the cheapest."""
        return self._manifest

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` with the bytes from ``offset`` on.

        Raises:
            BadInput: that is not inside the blob.
            Corrupt: a chunk is damaged or missing; what is in ``view`` then means nothing.
            StoreUnavailable: the store cannot be read.
        """
        view = memoryview(view).cast("B")
        if offset < 0 or offset + len(view) > self.size:
            raise BadInput(f"bytes {offset} to {offset + len(view)} of a blob of {self.size}")
        while view:
            index, start = divmod(offset, self._manifest.chunk_size)
            part = view[: self._manifest.length(index) - start]
            self._read(index, start, part)
            view = view[len(part) :]
            offset += len(part)

    def read(self, offset: int = 0, size: int | None = None) -> bytes:
        """Return ``size`` bytes from ``offset`` on, or all that follow; raises what `read_into` does."""
        buffer = bytearray(max(0, self.size - offset) if size is None else size)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def _read(self, index: int, start: int, part: memoryview) -> None:
        owner, digest = self._ref.owner, self._manifest.chunks[index]
        if len(part) == self._manifest.length(index):
            self._store.read_part(owner, digest, 0, part)
            self._check(index, blake3_hex(part))
        elif index in self._verified:
            self._store.read_part(owner, digest, start, part)
        else:
            self._read_through(index, start, part)

    def _read_through(self, index: int, start: int, part: memoryview) -> None:
        """Hash the whole chunk in small blocks and keep ``part`` as it passes: what is delivered is what was hashed."""
        owner, digest = self._ref.owner, self._manifest.chunks[index]
        length, hasher = self._manifest.length(index), blake3()
        scratch = memoryview(bytearray(min(_VERIFY_BLOCK, length)))
        for position in range(0, length, _VERIFY_BLOCK):
            block = scratch[: length - position]
            self._store.read_part(owner, digest, position, block)
            hasher.update(block)
            low, high = max(start, position), min(start + len(part), position + len(block))
            if low < high:
                part[low - start : high - start] = block[low - position : high - position]
        self._check(index, hasher.hexdigest())

    def _check(self, index: int, digest: str) -> None:
        if digest != self._manifest.chunks[index]:
            raise Corrupt(f"blob {self._ref.owner}/{self._ref.digest}: chunk {index} is damaged")
        self._verified.add(index)
