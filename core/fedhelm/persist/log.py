"""The log over a store: reads and verifies the chain, appends at its end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from fedhelm.errors import BadInput, Corrupt, Fenced, NotFound, SlotTaken, StoreUnavailable, WrongStore
from fedhelm.ids import new_nonce
from fedhelm.persist import checkpoint
from fedhelm.persist.base import BlobStore, LogStore
from fedhelm.persist.blobs import BlobRef
from fedhelm.persist.chain import EPOCH_RAISING, GENESIS, Tip
from fedhelm.persist.checkpoint import Base
from fedhelm.persist.compaction import Compaction, compact
from fedhelm.persist.marks import Marks
from fedhelm.persist.record import By, Draft, Record, decode, seal

__all__ = ["Base", "Batch", "Log"]


@dataclass(frozen=True)
class Batch:
    """What `Log.read_new` found.

    Attributes:
        base: A checkpoint to start from: whatever the reader has folded is dropped, and this is its fold now. None: go
            on with what was folded, or, at the first read, with nothing.
        records: Those that follow, in order.
    """

    base: Base | None = None
    records: list[Record] = field(default_factory=list)


class Log:
    """One reader's and writer's position in the log.

    ``blobs`` is where checkpoints are; without it only a log that was never shortened can be read.

    A fresh one has read nothing: `read_new` loads. `append` writes at `next_seq` exactly, so what is appended was
    decided with all that is before it: whoever loses the slot reads on and decides again.

    `read_new` and `append` belong to one thread at a time (they wait for the disk: a worker thread, not the event
    loop). Two at once raise RuntimeError, because the second would append a decision made without the first's record.
    All else may be called by any thread.
    """

    def __init__(self, store: LogStore, blobs: BlobStore | None = None) -> None:
        self._store = store
        self._blobs = blobs
        self._marks = Marks(store)
        self._tip = Tip()
        self._loaded = False
        # The last append at next_seq whose outcome is not known to the caller as success.
        self._attempt: tuple[Record, bytes] | None = None
        self._busy = threading.Lock()

    @property
    def tip(self) -> Tip:
        """The end of the log as far as it was read: one consistent value, from any thread."""
        return self._tip

    @property
    def next_seq(self) -> int:
        """The first slot not read yet, where `append` writes."""
        return self._tip.next_seq

    @property
    def last(self) -> Record | None:
        """The last record read or appended."""
        return self._tip.last

    @property
    def fence(self) -> Record | None:
        """The last record that raised the epoch."""
        return self._tip.fence

    @property
    def epoch(self) -> int:
        """The highest epoch read; 0 before the first fence."""
        return self._tip.epoch

    def leads(self, epoch: int, by: By) -> bool:
        """Whether the last fence read is that of ``by`` in ``epoch``."""
        return self._tip.leads(epoch, by)

    @property
    def version(self) -> int:
        """Of the records to be written: that of the newest ``config`` record read, or of genesis."""
        return self._tip.version

    @property
    def low_water(self) -> int:
        """The first slot that counts, as far as was seen; 0 in a log that was never shortened."""
        return self._marks.low_water

    @property
    def checkpoint(self) -> int | None:
        """The slot of the newest checkpoint's record read."""
        return self._tip.checkpoints[-1].slot if self._tip.checkpoints else None

    def read_new(self) -> Batch:
        """Return every record from `next_seq` to the end of the log, verified, and advance past them.

        At the first read of a log that was shortened, and when the next slot lies below the low-water mark now, they
        follow a checkpoint, which is the batch's base.

        All or nothing: on an error nothing was advanced, and the next call starts at the same slot.

        Raises:
            Corrupt: a slot is damaged, missing before others, or breaks the chain or its rules; the message names it.
            StoreUnavailable: the store cannot be read.
        """
        with self._alone():
            if not self._loaded:
                self._marks.find()
            start, base = self._tip, None
            while True:
                if start.next_seq < self._marks.low_water:
                    start, base = self._restart()
                try:
                    tip, found = self._read_from(start)
                except Corrupt:
                    if self._outdated(start):
                        continue
                    raise
                if not self._outdated(start):
                    break
            if found and self._attempt is not None:
                # An append that was told as failed may be among these; whoever relies on it now must not lose it.
                self._store.sync()
            self._advance(tip)
            self._loaded = True
            return Batch(base, found)

    def append(self, draft: Draft) -> Record:
        """Append ``draft`` at `next_seq`, and return its record: durable, and read by everyone after.

        After StoreUnavailable the same draft may be appended again: if the first try did reach the store, that record
        is returned. Another draft may be appended as well: if the first try did reach the store, it lost the slot.

        Raises:
            SlotTaken: somebody has that slot; nothing was advanced. Read on and decide again.
            Fenced: the log, as far as it was read, does not let this writer append this; or the slot was compacted
                away long since, and the next `read_new` starts from a checkpoint. Nothing was written that counts.
            StoreUnavailable: no answer from the store; it may or may not have been written.
            Corrupt: the record before is not the one that was read: a restore replaced the log while this writer
                slept; or a slot is missing where this would go. Nothing was written.
            BadInput: not JSON (NaN), too large, genesis in a log that has begun, or a kind or checkpoint that the log
                cannot have here.
            WrongStore: the log was not read yet, or has no genesis.
        """
        with self._alone():
            tip = self._tip
            if (draft.kind == GENESIS) != (tip.last is None):
                raise _out_of_place(draft)
            record, data = self._seal(draft)
            if reason := tip.overstepping(record):
                raise Fenced(f"slot {tip.next_seq} cannot be written: {reason}")
            if reason := tip.misstated(record):
                raise BadInput(f"slot {tip.next_seq} cannot be written: {reason}")
            self._require_ground(tip)
            self._require_end(tip, draft)
            self._attempt = record, data
            self._create(tip.next_seq, data)
            self._advance(tip.after(record))
            return record

    def at(self, seq: int) -> Record:
        """Return the record of slot ``seq``, which `read_new` or `append` has passed.

        Raises:
            NotFound: the slot is at or after `next_seq`, or below the low-water mark. (The last fence is always found.)
            Corrupt: it is damaged or missing.
            StoreUnavailable: the store cannot be read.
        """
        tip = self._tip
        for known in (tip.last, tip.fence):
            if known is not None and known.seq == seq and seq < self._marks.low_water:
                return known
        if not 0 <= seq < tip.next_seq:
            raise NotFound(f"slot {seq} is not in the log, which was read up to {tip.next_seq - 1}")
        data = self._store.read(seq)
        if seq < self._marks.look().low_water:
            raise NotFound(f"slot {seq} was compacted away; the log begins with {self._marks.low_water}")
        if data is None:
            raise Corrupt(f"slot {seq} is missing")
        return decode(data, seq)

    def write_checkpoint_blob(self, position: Tip, state: dict[str, Any]) -> BlobRef:
        """Write the blob of a checkpoint; the record that names it is appended by the caller, later.

        May be called by any thread while others append.

        Args:
            position: The `tip` at the moment when the state was taken.
            state: The fold up to there, JSON values only.

        Raises:
            BadInput: the state is not JSON.
            StoreUnavailable: full, missing or read-only.
        """
        return checkpoint.write(self._require_blobs(), position, state)

    def compact(self) -> Compaction:
        """Advance the low-water mark to the older of two checkpoints, and delete what lies below the mark.

        Slots in ascending order, then the blobs of older checkpoints. May be called by any thread while others append,
        by any server, as often as one likes, and be killed anywhere: the next call goes on. Slot 0 stays: it says whose
        store this is.

        Raises:
            Corrupt: one of the two checkpoints cannot be read: nothing was deleted.
            StoreUnavailable: no answer from the store.
        """
        return compact(self._store, self._require_blobs(), self._marks, self._tip)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._busy.acquire(blocking=False):
            raise RuntimeError("two threads use one Log at once")
        try:
            yield
        finally:
            self._busy.release()

    def _restart(self) -> tuple[Tip, Base]:
        """Return where a reader starts whose next slot lies below the mark."""
        while True:
            mark = self._marks.current
            try:
                return checkpoint.load_newest(self._store, self._require_blobs(), mark)
            except Corrupt:
                # Deleted meanwhile, if a newer mark says so.
                if self._marks.look().number == mark.number:
                    raise

    def _read_from(self, tip: Tip) -> tuple[Tip, list[Record]]:
        found = list[Record]()
        while True:
            while (data := self._store.read(tip.next_seq)) is not None:
                tip = _verified(tip, data)
                assert tip.last is not None
                found.append(tip.last)
            if self._loaded or self._complete(tip):
                return tip, found

    def _outdated(self, start: Tip) -> bool:
        """Whether what was read from ``start`` on means nothing: part of it lies below the mark as it is now."""
        return start.next_seq < self._marks.look().low_water

    def _complete(self, tip: Tip) -> bool:
        """Whether the log ends at ``tip``, at the first load: a slot that is lost must not pass for the end."""
        highest = self._store.highest()
        if highest is None or highest < tip.next_seq:
            return True
        if self._store.read(tip.next_seq) is None:
            raise Corrupt(f"slot {tip.next_seq} is missing, slot {highest} is there")
        return False

    def _require_ground(self, tip: Tip) -> None:
        """See that the record before is still there: a restored log may end where a sleeper's does not."""
        if tip.last is None:
            return
        found = self._store.read(tip.last.seq)
        if found is not None and tip.last.sha256.encode() in found:
            return
        if tip.last.seq >= self._marks.look().low_water:
            raise Corrupt(f"slot {tip.last.seq} is not what was read there: the log was replaced")

    def _require_end(self, tip: Tip, draft: Draft) -> None:
        """See that the log ends here: a slot that was lost must not be filled with something else.

        Who raises the epoch lists the slots: it is about to answer for what others wrote. Any other writer looks at
        the one that follows.
        """
        seq = tip.next_seq
        if draft.kind == GENESIS:
            return
        if draft.kind in EPOCH_RAISING:
            highest = self._store.highest()
        else:
            highest = None if self._store.read(seq + 1) is None else seq + 1
        if highest is None or highest <= seq:
            return
        # Slots are created in order. If this one is there now, or was compacted away, creating it will say so.
        if self._store.read(seq) is None and seq >= self._marks.look().low_water:
            raise Corrupt(f"slot {seq} is missing, slot {highest} is there")

    def _create(self, seq: int, data: bytes) -> None:
        """Create the slot; when this returns, it counts."""
        try:
            self._store.create(seq, data)
        except SlotTaken:
            found = self._store.read(seq)
            # Mine, if the store's first answer was lost. Equal bytes, hence an equal nonce.
            if found not in {None, data}:
                raise
            self._require_kept(seq)
            if found is None:
                raise StoreUnavailable(f"slot {seq} is taken, and cannot be read yet") from None
        else:
            self._require_kept(seq)

    def _require_kept(self, seq: int) -> None:
        """After a create: a slot below the mark was there before, and was created a second time."""
        low_water = self._marks.look().low_water
        if seq >= low_water:
            return
        with suppress(StoreUnavailable):  # everybody ignores it; the next compaction deletes it
            self._store.delete(seq)
        raise Fenced(f"slot {seq} was compacted away; the log begins with {low_water}")

    def _require_blobs(self) -> BlobStore:
        if self._blobs is None:
            raise RuntimeError("this Log was opened without the blobs, where checkpoints are")
        return self._blobs

    def _seal(self, draft: Draft) -> tuple[Record, bytes]:
        seq, prev, version = self._tip.next_seq, self._tip.prev, self._tip.version_for(draft)
        if self._attempt is not None:
            # The same draft once more keeps its nonce, so that whichever try lands is the one.
            record, data = seal(draft, seq=seq, prev=prev, nonce=self._attempt[0].nonce, version=version)
            if data == self._attempt[1]:
                return record, data
        return seal(draft, seq=seq, prev=prev, nonce=new_nonce(), version=version)

    def _advance(self, tip: Tip) -> None:
        if tip.next_seq != self._tip.next_seq:
            self._attempt = None
        self._tip = tip


def _verified(tip: Tip, data: bytes) -> Tip:
    record = decode(data, tip.next_seq)
    if reason := tip.broken_link(record) or tip.overstepping(record):
        raise Corrupt(f"slot {tip.next_seq}: {reason}")
    return tip.after(record)


def _out_of_place(draft: Draft) -> Exception:
    if draft.kind == GENESIS:
        return BadInput("genesis is the first record and no other")
    return WrongStore("the log was not read, or has no genesis", hint="is the store mounted?")
