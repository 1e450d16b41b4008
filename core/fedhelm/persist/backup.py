"""A copy of a whole store, and the way back: log, marks, and the blobs that the log needs.

The source may be written to meanwhile: what is copied is the log up to the end that was read first. The copy appears
under its name when it is complete and was verified, or not at all.
"""

from __future__ import annotations

import secrets
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fedhelm.errors import Conflict, Corrupt, WrongStore
from fedhelm.persist.base import LogStore
from fedhelm.persist.blobs import CHUNK_SIZE, BlobRef
from fedhelm.persist.chain import CHECKPOINT, GENESIS, Checkpoint
from fedhelm.persist.files import Files, create_exclusively, naming
from fedhelm.persist.log import Log
from fedhelm.persist.marks import decode_mark
from fedhelm.persist.posix import PosixBlobStore, PosixLogStore, make_layout
from fedhelm.persist.record import decode
from fedhelm.persist.references import Closed, needed

__all__ = ["Copied", "back_up", "restore"]

# A compaction that overtakes the copy makes it begin again; one in a minute would be many.
_TRIES = 5


@dataclass(frozen=True)
class Copied:
    """What was copied.

    Attributes:
        cluster: Whose store it is.
        low_water: The first slot that counts.
        end: The slot after the last.
        epoch: The highest.
        blobs: How many.
        size: Their bytes.
    """

    cluster: str
    low_water: int
    end: int
    epoch: int
    blobs: int
    size: int


def back_up(root: Path, target: Path, closed: Closed | None = None, store: LogStore | None = None) -> Copied:
    """Copy the store ``root`` to the new directory ``target``, which is a store as well; servers may go on meanwhile.

    Args:
        root: The store.
        target: Must not exist; its parent must.
        closed: Which owners may have been deleted; without it a blob that was collected is an error.
        store: Reads the slots and marks of ``root``.

    Raises:
        Conflict: ``target`` exists.
        Corrupt: the store is damaged, or was compacted during every try: there is no copy.
        WrongStore: there is no store.
        StoreUnavailable: the one cannot be read, or the other not be written.
    """
    return _copy(root, target, closed, store or PosixLogStore(root))


def restore(target: Path, root: Path, closed: Closed | None = None) -> Copied:
    """Make the store ``root`` anew from what `back_up` left in ``target``, which stays as it is.

    ``root`` must not exist: put what is there aside. What was acknowledged after the backup is lost; the lease knows a
    longer log, so that no server leads before somebody has told it (``docs/ha.md``). Raises what `back_up` raises.
    """
    return _copy(target, root, closed, PosixLogStore(target))


def _copy(source: Path, target: Path, closed: Closed | None, store: LogStore) -> Copied:
    if target.exists() or target.is_symlink():
        raise Conflict(f"{target} exists", hint="choose a new name, or put it aside")
    if not (source / "log").is_dir():
        raise WrongStore(f"{source} is not a store", hint="is the shared directory mounted?")
    partial = target.parent / f".{target.name}.{secrets.token_hex(8)}.partial"
    try:
        copied = _try(source, partial, closed, store)
        with naming(target):
            partial.rename(target)
            Files().sync_directory(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return copied


def _try(source: Path, partial: Path, closed: Closed | None, store: LogStore) -> Copied:
    for last in (False,) * (_TRIES - 1) + (True,):
        before = _progress(store)
        make_layout(partial)
        try:
            return _copy_into(source, partial, closed, store)
        except Corrupt:
            # Deleted meanwhile, by a primary that goes on, or really damaged?
            if last or _progress(store) == before:
                raise
            # What jobs left stays: with little more to copy, the next try is faster than what is deleted meanwhile.
            for folder in ("log", "marks", "blobs/checkpoints"):
                shutil.rmtree(partial / folder, ignore_errors=True)
    raise AssertionError("the last try returns or raises")


def _progress(store: LogStore) -> tuple[int, int | None]:
    return store.highest_mark(), store.highest()


def _copy_into(source: Path, partial: Path, closed: Closed | None, ours: LogStore) -> Copied:
    files = Files()
    end = ours.highest()
    if end is None:
        raise WrongStore(f"{source} has no genesis record")
    # What a compaction deletes is read first, and written later: it seldom comes in between. What is kept of a log that
    # is compacted fits into memory.
    marks = {number: ours.read_mark(number) for number in range(1, ours.highest_mark() + 1)}
    newest = marks.get(len(marks))
    low_water = decode_mark(newest, len(marks)).low_water if newest else 0
    slots = {seq: ours.read(seq) for seq in (0, *range(max(low_water, 1), end + 1))}
    kept = [decode(data, seq) for seq, data in slots.items() if data is not None]
    for record in kept:
        if record.kind == CHECKPOINT and (one := Checkpoint.of(record)).covered >= low_water - 1:
            _copy_blob(source, partial, one.blob)
    for folder, contents in (("marks", marks), ("log", slots)):
        for number, data in contents.items():
            _write(files, partial, folder, number, data)
        with naming(partial):
            files.sync_directory(partial / folder)
    # Verifies the chain of what was copied.
    log = Log(PosixLogStore(partial), PosixBlobStore(partial))
    batch = log.read_new()
    if not kept or kept[0].kind != GENESIS:
        raise WrongStore(f"{source} has no genesis record")
    refs = needed(batch, [record.body for record in kept], low_water, closed)
    for ref in refs:
        _copy_blob(source, partial, ref)
    copies, owners = PosixBlobStore(partial), {ref.owner for ref in refs}
    for owner in copies.owners("jobs") if (partial / "blobs" / "jobs").is_dir() else ():
        if owner not in owners:  # of an earlier try
            copies.delete_owner(owner)
    return Copied(
        str(kept[0].body.get("cluster")), low_water, log.next_seq, log.epoch, len(refs), sum(ref.size for ref in refs)
    )


def _write(files: Files, partial: Path, folder: str, number: int, data: bytes | None) -> None:
    if data is None:
        raise Corrupt(f"{folder}/{number:016d} is missing")
    create_exclusively(files, partial / "tmp", partial / folder / f"{number:016d}", data)


def _copy_blob(source: Path, partial: Path, ref: BlobRef) -> None:
    with suppress(Corrupt):
        PosixBlobStore(partial).manifest(ref)
        return  # by an earlier try
    manifest = PosixBlobStore(source).manifest(ref)
    chunk_size = max(manifest.chunk_size, CHUNK_SIZE)
    ours, theirs = PosixBlobStore(source, chunk_size), PosixBlobStore(partial, chunk_size)
    for digest in dict.fromkeys(manifest.chunks):
        theirs.put_chunk(ref.owner, digest, ours.read_chunk(ref.owner, digest))
    theirs.put_manifest(ref.owner, manifest)
