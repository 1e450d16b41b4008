"""Shortening the log: what is deleted, and in which order, so that it may end after any step."""

from __future__ import annotations

from dataclasses import dataclass

from fedhelm.errors import Corrupt
from fedhelm.persist import checkpoint
from fedhelm.persist.base import BlobStore, LogStore
from fedhelm.persist.chain import KEPT, Checkpoint, Tip
from fedhelm.persist.marks import Marks
from fedhelm.persist.record import decode

__all__ = ["Compaction", "compact"]

_CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Compaction:
    """What one compaction did.

    Attributes:
        low_water: The first slot that counts now; 0 if there is no mark yet.
        marked: Whether it created a mark.
        slots: How many slots it deleted.
        owners: The checkpoints whose blobs it deleted.
        freed: Bytes of these blobs.
    """

    low_water: int
    marked: bool = False
    slots: int = 0
    owners: tuple[str, ...] = ()
    freed: int = 0


def compact(store: LogStore, blobs: BlobStore, marks: Marks, tip: Tip) -> Compaction:
    """Shorten the log as `Log.compact` says, as far as the checkpoints of ``tip`` allow.

    Any reader may: the checkpoints are in the log, and what is in the log stays true. So a writer that lost its lead in
    between does no harm.
    """
    low_water, marked = marks.look().low_water, False
    mine = tip.checkpoints[0].covered + 1 if len(tip.checkpoints) == KEPT else 0
    if mine <= low_water == 0:
        return Compaction(0)
    # What is deleted below rests on records and marks that somebody else may have made, and not made durable.
    store.sync()
    if mine > low_water:
        for one in tip.checkpoints:
            _require_sound(store, blobs, one)
        marked = marks.advance(mine, tip.checkpoints[-1].slot)
        low_water = marks.low_water
    doomed = [seq for seq in store.slots() if 0 < seq < low_water]
    for seq in doomed:
        store.delete(seq)
    # Those between two kept ones, which no record names, go when they are older than both.
    owners = [owner for owner in blobs.owners(_CHECKPOINTS) if _covered(owner) < low_water - 1]
    freed = sum(blobs.delete_owner(owner) for owner in owners)
    return Compaction(low_water, marked, len(doomed), tuple(owners), freed)


def _require_sound(store: LogStore, blobs: BlobStore, one: Checkpoint) -> None:
    """See that a reader can start from a checkpoint before what it stands for is deleted."""
    position, _ = checkpoint.load(store, blobs, one.slot)
    data = store.read(one.covered)
    if data is None or decode(data, one.covered).sha256 != position.prev:
        raise Corrupt(f"slot {one.slot}: the checkpoint is not that of the log up to slot {one.covered}")


def _covered(owner: str) -> int:
    name = owner.removeprefix(_CHECKPOINTS + "/")
    # Nobody writes others. One that a hand put there is left alone.
    return int(name) if name.isdecimal() else 1 << 63
