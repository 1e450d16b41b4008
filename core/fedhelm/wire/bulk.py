"""Blobs over the network: chunks that are hashed, resumable, and sent as raw messages of 1 MiB."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from blake3 import blake3
from google.protobuf.message import DecodeError

from fedhelm.errors import BadInput, Corrupt, FedhelmError, ProtocolError
from fedhelm.persist.base import BlobStore
from fedhelm.persist.blobs import BlobRef, Manifest
from fedhelm.v1 import common_pb2 as common

__all__ = [
    "CHUNK_SIZE",
    "PIECE",
    "SPARED",
    "fetch_blob",
    "manifest_of",
    "receive_blob",
    "ref_from_proto",
    "ref_to_proto",
    "stream_blob",
    "upload_file",
    "upload_sync",
]

PIECE = 1024 * 1024
"""Bytes of one raw message."""

CHUNK_SIZE = 8 * 1024 * 1024
"""Bytes of one chunk of an uploaded blob."""

SPARED = 64 * 1024 * 1024
"""Bytes of the disk that a download leaves free: results and lines still have to be kept there."""

_CALL_TIMEOUT = 10.0

_HIDDEN = "Internal error from Core"
"""What gRPC's asyncio client says of a call that its server has refused while a message was on its way: not why."""


def ref_to_proto(ref: BlobRef) -> common.BlobRef:
    """Return the wire's form of a reference."""
    return common.BlobRef(owner=ref.owner, digest=ref.digest, size=ref.size)


def ref_from_proto(ref: common.BlobRef) -> BlobRef:
    """Return the store's form of a reference; its owner is checked where the store is touched."""
    return BlobRef(owner=ref.owner, digest=ref.digest, size=ref.size)


def _manifest_to_proto(manifest: Manifest) -> common.Manifest:
    return common.Manifest(size=manifest.size, chunk_size=manifest.chunk_size, chunks=manifest.chunks)


def _manifest_from_proto(manifest: common.Manifest) -> Manifest:
    return Manifest(size=manifest.size, chunk_size=manifest.chunk_size, chunks=tuple(manifest.chunks))


def manifest_of(path: Path) -> Manifest:
    """Hash a file into the manifest of its blob."""
    chunks: list[str] = []
    size = 0
    with path.open("rb") as file:
        while data := file.read(CHUNK_SIZE):
            chunks.append(blake3(data).hexdigest())
            size += len(data)
    return Manifest(size=size, chunk_size=CHUNK_SIZE, chunks=tuple(chunks))


def _pieces(path: Path, owner: str, manifest: Manifest, indices: Sequence[int]) -> Iterator[bytes]:
    yield common.PutBlobHeader(owner=owner, manifest=_manifest_to_proto(manifest), indices=indices).SerializeToString()
    with path.open("rb") as file:
        for index in indices:
            left = min(manifest.chunk_size, manifest.size - index * manifest.chunk_size)
            file.seek(index * manifest.chunk_size)
            while left > 0:
                piece = file.read(min(PIECE, left))
                if not piece:
                    raise Corrupt(f"{path} became shorter while it was sent")
                left -= len(piece)
                yield piece


class _AsyncUploader(Protocol):
    async def missing_chunks(
        self, request: common.MissingChunksRequest, timeout: float
    ) -> common.MissingChunksReply: ...

    async def put_blob(self, messages: Any, timeout: float | None = None) -> common.BlobRef: ...


class _SyncUploader(Protocol):
    def missing_chunks(self, request: common.MissingChunksRequest, timeout: float) -> common.MissingChunksReply: ...

    def put_blob(self, messages: Any, timeout: float | None = None) -> common.BlobRef: ...


class _Fetcher(Protocol):
    async def get_manifest(self, blob: common.BlobRef, timeout: float) -> common.Manifest: ...

    def get_blob(self, request: common.GetBlobRequest) -> AsyncIterator[bytes]: ...


async def upload_file(stub: _AsyncUploader, owner: str, path: Path) -> common.BlobRef:
    """Upload a file as a blob; chunks that the store has already are not sent again.

    Raises:
        Corrupt: the file became shorter meanwhile.
        OSError: the file cannot be read.
        FedhelmError: whatever the call raised; calling again resumes.
    """
    manifest = await asyncio.to_thread(manifest_of, path)
    request = common.MissingChunksRequest(owner=owner, manifest=_manifest_to_proto(manifest))
    indices: Sequence[int] = range(len(manifest.chunks))
    if len(indices) > 1:
        indices = list((await stub.missing_chunks(request, timeout=_CALL_TIMEOUT)).indices)
    pieces = _pieces(path, owner, manifest, indices)
    failure: list[Exception] = []

    async def messages() -> AsyncIterator[bytes]:
        try:
            while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
                yield piece
        except (OSError, FedhelmError) as error:
            # Out of here it would cancel the call, and look to the caller as if its own task had been cancelled.
            failure.append(error)

    try:
        return await stub.put_blob(messages())
    except FedhelmError as error:
        if not failure and _HIDDEN in error.message:
            await stub.missing_chunks(request, timeout=_CALL_TIMEOUT)  # says why, where that is for good
        raise failure[0] if failure else error  # noqa: B904 - the server complains of the end of the stream only


def upload_sync(stub: _SyncUploader, owner: str, path: Path, progress: Callable[[int], None] | None = None) -> BlobRef:
    """The same as :func:`upload_file`, blocking.

    Args:
        stub: an admin stub.
        owner: of the blob.
        path: the file.
        progress: called with the number of bytes of each message sent.
    """
    manifest = manifest_of(path)
    indices: Sequence[int] = range(len(manifest.chunks))
    if len(indices) > 1:
        request = common.MissingChunksRequest(owner=owner, manifest=_manifest_to_proto(manifest))
        indices = list(stub.missing_chunks(request, timeout=_CALL_TIMEOUT).indices)

    failure: list[Exception] = []

    def messages() -> Iterator[bytes]:
        try:
            for number, piece in enumerate(_pieces(path, owner, manifest, indices)):
                yield piece
                if progress is not None and number:
                    progress(len(piece))
        except (OSError, FedhelmError) as error:
            failure.append(error)

    try:
        return ref_from_proto(stub.put_blob(messages()))
    except FedhelmError as error:
        raise failure[0] if failure else error  # noqa: B904 - as above


class _Assembler:
    """Cuts a stream of raw messages into the chunks a header announced."""

    def __init__(self, manifest: Manifest, indices: Sequence[int]) -> None:
        if len(indices) > len(manifest.chunks) or any(index >= len(manifest.chunks) for index in indices):
            raise ProtocolError("an upload announces a chunk that its manifest does not have")
        self._manifest = manifest
        self._indices = deque(indices)
        self._buffer = bytearray()

    @property
    def done(self) -> bool:
        return not self._indices

    def feed(self, piece: bytes) -> Iterator[tuple[str, bytes]]:
        """Add a message; yield each chunk it completes, as (digest, data)."""
        self._buffer += piece
        while self._indices:
            index = self._indices[0]
            want = min(self._manifest.chunk_size, self._manifest.size - index * self._manifest.chunk_size)
            if len(self._buffer) < want:
                return
            yield self._manifest.chunks[index], bytes(self._buffer[:want])
            del self._buffer[:want]
            self._indices.popleft()
        if self._buffer:
            raise ProtocolError("more bytes came than were announced")


async def receive_blob(
    messages: AsyncIterator[bytes], store: BlobStore, check_owner: Callable[[str], None], limit: int | None = None
) -> BlobRef:
    """Store an upload as it arrives; at most two chunks are in memory.

    Args:
        messages: a serialized ``PutBlobHeader``, then raw bytes.
        store: where the chunks go.
        check_owner: raises if the caller may not write under this owner.
        limit: largest size taken, bytes; None: the store's.

    Raises:
        BadInput: the blob is larger than ``limit``, or its chunks than the store takes.
        ProtocolError: the stream does not follow its header.
        Corrupt: a chunk is not what its digest says.
        StoreUnavailable: nothing was acknowledged.
    """
    header = common.PutBlobHeader()
    try:
        header.ParseFromString(await anext(messages))
    except (StopAsyncIteration, DecodeError) as error:
        raise ProtocolError("an upload does not begin with its header") from error
    check_owner(header.owner)
    manifest = _manifest_from_proto(header.manifest)
    if limit is not None and manifest.size > limit:
        raise BadInput(f"an upload of {manifest.size} bytes is larger than {limit}")
    if manifest.chunk_size > store.chunk_size:  # before anything is gathered in memory
        raise BadInput(f"an upload in chunks of {manifest.chunk_size} bytes; the store takes {store.chunk_size}")
    assembler = _Assembler(manifest, header.indices)
    async for piece in messages:
        for digest, data in assembler.feed(piece):
            await asyncio.to_thread(store.put_chunk, header.owner, digest, data)
    if not assembler.done:
        raise ProtocolError("an upload ended before its last chunk")
    return await asyncio.to_thread(store.put_manifest, header.owner, manifest)


async def stream_blob(store: BlobStore, ref: BlobRef, offset: int) -> AsyncIterator[bytes]:
    """Yield the bytes of a blob from an offset, in messages of at most 1 MiB; each chunk is verified first."""
    manifest = await asyncio.to_thread(store.manifest, ref)
    for index in range(offset // manifest.chunk_size, len(manifest.chunks)):
        data = await asyncio.to_thread(store.read_chunk, ref.owner, manifest.chunks[index])
        start = max(0, offset - index * manifest.chunk_size)
        for at in range(start, len(data), PIECE):
            yield data[at : at + PIECE]


async def fetch_blob(stub: _Fetcher, blob: common.BlobRef, target: Path) -> None:
    """Download a blob to a file: resumed from whole chunks of an earlier try, verified, then renamed into place.

    Whatever a server says, at most a chunk and a message are in memory, no more bytes are written than the manifest
    promises, and :data:`SPARED` bytes of the disk stay free.

    Raises:
        Corrupt: the bytes are not what the reference's digest says.
        BadInput: its chunks are larger than any that are uploaded, or the manifest is none.
        ProtocolError: more bytes came than were promised, or fewer.
        OSError: the disk has no room for it, or refused.
        FedhelmError: whatever the call raised; calling again resumes.
    """
    manifest = _manifest_from_proto(await stub.get_manifest(blob, timeout=_CALL_TIMEOUT))
    if manifest.digest != blob.digest or manifest.size != blob.size:
        raise Corrupt(f"the manifest of {blob.owner} {blob.digest[:12]} does not have its digest")
    if manifest.chunk_size > CHUNK_SIZE:  # before anything is gathered in memory
        raise BadInput(f"{blob.owner} comes in chunks of {manifest.chunk_size} bytes; at most {CHUNK_SIZE} are taken")
    part = target.with_name(f"{target.name}.part")
    have = min((part.stat().st_size if part.exists() else 0) // manifest.chunk_size, len(manifest.chunks))
    fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "r+b") as file:
        have = await asyncio.to_thread(_verified_chunks, file, manifest, have)
        file.seek(have * manifest.chunk_size)
        file.truncate()
        await asyncio.to_thread(_check_room, target.parent, manifest.size - have * manifest.chunk_size)
        if have < len(manifest.chunks):
            await _append(stub, blob, manifest, have, file)
        file.flush()
    part.replace(target)


async def _append(stub: _Fetcher, blob: common.BlobRef, manifest: Manifest, have: int, file: Any) -> None:
    offset = have * manifest.chunk_size
    assembler = _Assembler(manifest, range(have, len(manifest.chunks)))
    async for piece in stub.get_blob(common.GetBlobRequest(blob=blob, offset=offset)):
        for digest, data in assembler.feed(piece):
            if await asyncio.to_thread(_blake3, data) != digest:
                raise Corrupt(f"a chunk of {blob.owner} {blob.digest[:12]} arrived damaged")
            file.write(data)
    if not assembler.done:
        raise ProtocolError(f"the download of {blob.owner} ended early")


def _check_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size and size + SPARED > free:
        what = f"a download of {size} bytes more does not fit: {free} are free, and {SPARED} are to stay so"
        raise OSError(errno.ENOSPC, what, str(folder))


def _blake3(data: bytes) -> str:
    return blake3(data).hexdigest()


def _verified_chunks(file: Any, manifest: Manifest, have: int) -> int:
    for index in range(have):
        if blake3(file.read(manifest.chunk_size)).hexdigest() != manifest.chunks[index]:
            return index
    return have
