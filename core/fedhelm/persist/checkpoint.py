"""Checkpoints: the fold of the log up to a slot, and the position there, as a blob that a record names."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from fedhelm.errors import BadInput, Corrupt
from fedhelm.persist.base import BlobStore, LogStore
from fedhelm.persist.blobs import BlobReader, BlobRef, BlobWriter
from fedhelm.persist.chain import CHECKPOINT, Checkpoint, Tip, checkpoint_owner
from fedhelm.persist.marks import Mark
from fedhelm.persist.record import canonical, decode

__all__ = ["Base", "load", "load_newest", "write"]


@dataclass(frozen=True)
class Base:
    """Where a reader starts that cannot, or need not, read the log from its beginning.

    Attributes:
        covered: The last slot that is folded into ``state``.
        state: The fold, as the writer of the checkpoint gave it; it replaces whatever the reader had folded.
    """

    covered: int
    state: dict[str, Any]


def write(blobs: BlobStore, position: Tip, state: dict[str, Any]) -> BlobRef:
    """Write the blob of a checkpoint: the fold up to ``position``. Durable when this returns; no record names it yet.

    Raises:
        BadInput: the state is not JSON.
        ValueError: the position is the beginning of the log.
        StoreUnavailable: full, missing or read-only.
    """
    data = canonical({"position": position.to_json(), "state": state})
    writer = BlobWriter(blobs, checkpoint_owner(position.next_seq - 1))
    writer.write(data)
    return writer.finish()


def load(store: LogStore, blobs: BlobStore, slot: int) -> tuple[Tip, Base]:
    """Return the position and the fold of the checkpoint whose record is in ``slot``.

    Raises:
        Corrupt: the record or the blob is damaged, missing, or not of a checkpoint.
        StoreUnavailable: the store cannot be read.
    """
    data = store.read(slot)
    if data is None:
        raise Corrupt(f"slot {slot} is missing, which holds a checkpoint")
    try:
        checkpoint = Checkpoint.of(decode(data, slot))
        value = json.loads(BlobReader(blobs, checkpoint.blob).read())
        position, state = value["position"], value["state"]
    except (BadInput, ValueError, KeyError, TypeError, RecursionError) as error:
        raise Corrupt(f"slot {slot}: not a checkpoint: {error!r}") from error
    if not isinstance(state, dict):
        raise Corrupt(f"slot {slot}: the checkpoint's state is not an object")
    return Tip.from_json(position, checkpoint.covered + 1), Base(checkpoint.covered, state)


def load_newest(store: LogStore, blobs: BlobStore, mark: Mark) -> tuple[Tip, Base]:
    """Return what `load` gives for the checkpoint that ``mark`` names, or for the older one if that is damaged.

    Raises:
        Corrupt: both are; the message is about the newer.
        StoreUnavailable: the store cannot be read.
    """
    try:
        return load(store, blobs, mark.checkpoint)
    except Corrupt:
        older = _older(store, mark)
        if older is None:
            raise
        return load(store, blobs, older)


def _older(store: LogStore, mark: Mark) -> int | None:
    """Find the record of the checkpoint that ends right below the mark. Who reads on from it verifies the chain."""
    for slot in range(mark.low_water, mark.checkpoint):
        data = store.read(slot)
        if data is None:
            return None
        record = decode(data, slot)
        if record.kind == CHECKPOINT and record.body.get("covered") == mark.low_water - 1:
            return slot
    return None
