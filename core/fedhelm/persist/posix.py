"""The store in a directory that all servers share: local disk, or NFS without attribute caching.

::

    <root>/log/<16 digits>             one record each
    <root>/marks/<16 digits>           low-water marks
    <root>/blobs/<owner>/c-<digest>    chunks
    <root>/blobs/<owner>/m-<digest>    manifests
    <root>/tmp/                        files before they get their name
    <root>/archive/                    if somebody made it: a second name for every file of log and blobs that goes

A file is written and fsynced in ``tmp/``, gets its name by ``link(2)``, which fails if the name is taken, and the
directory is fsynced. Files have mode 0600, directories 0700. ``log``, ``blobs`` and ``tmp`` are made by
`make_layout` alone: where they are missing, the store is not there. (Stores of the first version lack ``marks``.)
"""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from pathlib import Path

from fedhelm.errors import BadInput, Corrupt, NotFound, SlotTaken, StoreUnavailable
from fedhelm.persist.base import BytesLike, Usage
from fedhelm.persist.blobs import (
    CHUNK_SIZE,
    MAX_CHUNKS,
    BlobRef,
    Manifest,
    blake3_hex,
    check_digest,
    check_owner,
)
from fedhelm.persist.files import Files, create_exclusively, make_directory, naming, read_file
from fedhelm.persist.record import MAX_RECORD_BYTES

__all__ = ["PosixBlobStore", "PosixLogStore", "make_layout"]

_SLOT = re.compile(r"[0-9]{16}")
_CONTENT_NAME = len("c-") + 64
_MAX_MANIFEST_BYTES = MAX_CHUNKS * 67 + 1024


def make_layout(root: Path, files: Files | None = None) -> None:
    """Make the directories of a store, durably; those that exist stay as they are.

    Raises:
        StoreUnavailable: they cannot be made; the message names the path.
    """
    files = files or Files()
    with naming(root):
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("log", "marks", "blobs", "tmp"):
            make_directory(root / name)
        files.sync_directory(root)
        files.sync_directory(root.parent)


class PosixLogStore:
    """Slots and marks as files. An append costs two fsyncs: of the file and of the directory."""

    def __init__(self, root: Path, files: Files | None = None) -> None:
        self._files = files or Files()
        self._root = root
        self._directory = root / "log"
        self._marks = root / "marks"
        self._temporary = root / "tmp"

    def create(self, seq: int, data: bytes) -> None:
        """Create slot ``seq``; see `LogStore.create`."""
        if not self._create(self._directory, seq, data):
            raise SlotTaken(f"slot {seq} is taken")

    def read(self, seq: int) -> bytes | None:
        """Return the bytes of slot ``seq``; see `LogStore.read`."""
        return self._read(self._directory, seq)

    def highest(self) -> int | None:
        """Return the highest slot; see `LogStore.highest`."""
        return max(_numbers(self._directory), default=None)

    def slots(self) -> list[int]:
        """Return the slots that exist; see `LogStore.slots`."""
        return sorted(_numbers(self._directory))

    def delete(self, seq: int) -> None:
        """Unlink slot ``seq``; see `LogStore.delete`."""
        _delete(self._files, self._root, self._directory / _name(seq))

    def create_mark(self, number: int, data: bytes) -> None:
        """Create mark ``number``; see `LogStore.create_mark`."""
        with naming(self._marks):
            self._require()
            if make_directory(self._marks):  # a store of the first version
                self._files.sync_directory(self._root)
        if not self._create(self._marks, number, data):
            raise SlotTaken(f"mark {number} is taken")

    def read_mark(self, number: int) -> bytes | None:
        """Return the bytes of mark ``number``; see `LogStore.read_mark`."""
        return self._read(self._marks, number)

    def highest_mark(self) -> int:
        """Return the highest mark; see `LogStore.highest_mark`."""
        with naming(self._directory):
            self._require()
        return max(_numbers(self._marks), default=0) if self._marks.is_dir() else 0

    def sync(self) -> None:
        """Fsync the directories; see `LogStore.sync`."""
        self._sync(self._directory)
        if self._marks.is_dir():
            self._sync(self._marks)

    def _create(self, directory: Path, number: int, data: bytes) -> bool:
        created = create_exclusively(self._files, self._temporary, directory / _name(number), data)
        # Also when it was taken: its creator may have died between the name and this, and it counts from now on.
        self._sync(directory)
        return created

    def _read(self, directory: Path, number: int) -> bytes | None:
        data = read_file(directory / _name(number), MAX_RECORD_BYTES + 1)
        if data is None:
            with naming(self._directory):
                self._require()
        return data

    def _require(self) -> None:
        self._directory.stat()  # not mounted is not the end of the log

    def _sync(self, directory: Path) -> None:
        with naming(directory):
            self._files.sync_directory(directory)


def _name(number: int) -> str:
    return f"{number:016d}"


def _numbers(directory: Path) -> list[int]:
    with naming(directory), os.scandir(directory) as entries:
        return [int(entry.name) for entry in entries if _SLOT.fullmatch(entry.name)]


def _delete(files: Files, root: Path, path: Path) -> None:
    """Unlink ``path``, under another name in the archive if there is one."""
    archive = root / "archive"
    with naming(path):
        if archive.is_dir():
            second = archive / path.relative_to(root)
            second.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # There already: this deletion was tried before, or it is a ghost, whose slot was archived when it was real.
            with suppress(FileExistsError, FileNotFoundError):
                files.link(path, second)
        with suppress(FileNotFoundError):
            files.unlink(path)


class PosixBlobStore:
    """Chunks and manifests as files.

    A blob of n new chunks in a known folder costs n + 2 fsyncs: each file, and the folder once for all of them.
    """

    def __init__(self, root: Path, chunk_size: int = CHUNK_SIZE, files: Files | None = None) -> None:
        self._files = files or Files()
        self._directory = root / "blobs"
        self._temporary = root / "tmp"
        self._chunk_size = chunk_size
        # Folders whose own names this process knows to be durable.
        self._durable: set[Path] = set()

    @property
    def chunk_size(self) -> int:
        """Bytes of a chunk; see `BlobStore.chunk_size`."""
        return self._chunk_size

    def missing(self, owner: str, manifest: Manifest) -> list[int]:
        """Return the chunks the store lacks; see `BlobStore.missing`."""
        folder = self._folder(owner)
        if manifest.chunk_size > self._chunk_size:
            raise BadInput(f"chunks of {manifest.chunk_size} bytes, at most {self._chunk_size} are taken")
        found, lacking = dict[str, int](), list[int]()
        for index, digest in enumerate(manifest.chunks):
            expected = manifest.length(index)
            if digest not in found:
                size = self._size(folder / f"c-{digest}")
                if size is None:
                    lacking.append(index)
                found[digest] = expected if size is None else size
            if found[digest] != expected:
                raise Corrupt(f"{folder}/c-{digest}: {found[digest]} bytes, the manifest says {expected}")
        return lacking

    def put_chunk(self, owner: str, digest: str, data: BytesLike) -> None:
        """Keep one chunk; see `BlobStore.put_chunk`."""
        folder, length = self._folder(owner), memoryview(data).nbytes
        target = folder / f"c-{check_digest(digest)}"
        if not 1 <= length <= self._chunk_size:
            raise BadInput(f"a chunk of {length} bytes; 1 to {self._chunk_size} are taken")
        if blake3_hex(data) != digest:
            raise Corrupt(f"chunk {digest} of {owner} does not have this digest")
        if self._size(target) is None:
            self._make_folder(folder)
            create_exclusively(self._files, self._temporary, target, data)

    def put_manifest(self, owner: str, manifest: Manifest) -> BlobRef:
        """Complete a blob; see `BlobStore.put_manifest`."""
        if lacking := self.missing(owner, manifest):
            raise NotFound(f"blob {owner}/{manifest.digest}: chunk {lacking[0]} is not in the store")
        folder = self._folder(owner)
        target = folder / f"m-{manifest.digest}"
        if self._size(target) is None:
            self._make_folder(folder)
            create_exclusively(self._files, self._temporary, target, manifest.canonical())
        # Once, for the chunks and the manifest: nothing may name the blob before this function returns.
        self._sync_folder(folder)
        return BlobRef(owner, manifest.digest, manifest.size)

    def manifest(self, ref: BlobRef) -> Manifest:
        """Return the manifest of a blob; see `BlobStore.manifest`."""
        path = self._folder(ref.owner) / f"m-{check_digest(ref.digest)}"
        data = self._read(path, _MAX_MANIFEST_BYTES)
        if blake3_hex(data) != ref.digest:
            raise Corrupt(f"{path} is damaged")
        try:
            manifest = Manifest.from_json(json.loads(data))
        except (BadInput, ValueError, RecursionError) as error:
            raise Corrupt(f"{path} is no manifest: {error}") from error
        if manifest.size != ref.size:
            raise Corrupt(f"{path}: {manifest.size} bytes, the reference says {ref.size}")
        return manifest

    def read_chunk(self, owner: str, digest: str) -> bytes:
        """Return one chunk; see `BlobStore.read_chunk`."""
        path = self._folder(owner) / f"c-{check_digest(digest)}"
        data = self._read(path, self._chunk_size + 1)
        if blake3_hex(data) != digest:
            raise Corrupt(f"{path} is damaged")
        return data

    def read_part(self, owner: str, digest: str, offset: int, view: memoryview) -> None:
        """Fill ``view`` by ``preadv``; see `BlobStore.read_part`."""
        path = self._folder(owner) / f"c-{check_digest(digest)}"
        with naming(path):
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                raise self._lost(path) from None
            try:
                while view:
                    count = os.preadv(descriptor, [view], offset)
                    if count == 0:
                        raise Corrupt(f"{path} is too short")
                    view, offset = view[count:], offset + count
            finally:
                os.close(descriptor)

    def owners(self, prefix: str) -> list[str]:
        """Return the folders that hold files; see `BlobStore.owners`."""
        top = self._folder(prefix) if prefix else self._directory
        self._require()
        with naming(top):
            found = [Path(at) for at, _, names in os.walk(top, onerror=_unless_gone) if any(map(_is_content, names))]
        return sorted(str(one.relative_to(self._directory)) for one in found)

    def delete_owner(self, owner: str) -> int:
        """Unlink the files of ``owner``; see `BlobStore.delete_owner`."""
        folder, freed = self._folder(owner), 0
        self._require()
        with naming(folder):
            try:
                with os.scandir(folder) as entries:
                    sizes = {entry.name: entry.stat().st_size for entry in entries if _is_content(entry.name)}
            except FileNotFoundError:
                return 0
        # Manifests first: no manifest is ever there whose chunks were deleted.
        for name in sorted(sizes, reverse=True):
            _delete(self._files, self._directory.parent, folder / name)
            freed += sizes[name]
        # Whatever is not empty stays. The first component is shared with owners that are still to come.
        for one in reversed(self._above(folder)[1:]):
            try:
                one.rmdir()
            except OSError:
                break
            self._durable.discard(one)
        return freed

    def usage(self) -> Usage:
        """Return the room on the disk; see `BlobStore.usage`."""
        with naming(self._directory):
            disk = os.statvfs(self._directory)
        return Usage(disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize)

    def _folder(self, owner: str) -> Path:
        return self._directory / check_owner(owner)

    def _size(self, path: Path) -> int | None:
        with naming(path):
            try:
                return path.stat().st_size
            except FileNotFoundError:
                pass
        self._require()
        return None

    def _require(self) -> None:
        with naming(self._directory):
            self._directory.stat()  # not mounted is not an empty store

    def _read(self, path: Path, limit: int) -> bytes:
        data = read_file(path, limit)
        if data is None:
            raise self._lost(path)
        return data

    def _lost(self, path: Path) -> Corrupt | StoreUnavailable:
        try:
            self._require()
        except StoreUnavailable as error:
            return error
        return Corrupt(f"{path} is missing")

    def _above(self, folder: Path) -> list[Path]:
        """Return ``folder`` and those between it and ``blobs``, outermost first."""
        names = folder.relative_to(self._directory).parts
        return [self._directory.joinpath(*names[: count + 1]) for count in range(len(names))]

    def _make_folder(self, folder: Path) -> None:
        with naming(folder):
            for one in self._above(folder):
                if make_directory(one):
                    self._durable.discard(one)

    def _sync_folder(self, folder: Path) -> None:
        with naming(folder):
            self._files.sync_directory(folder)
            for one in self._above(folder):
                if one not in self._durable:
                    self._files.sync_directory(one.parent)
                    self._durable.add(one)


def _is_content(name: str) -> bool:
    return name.startswith(("c-", "m-")) and len(name) == _CONTENT_NAME


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
