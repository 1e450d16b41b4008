"""The log over a store: reads and verifies the chain, appends at its end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from fedhelm.errors import BadInput, Corrupt, Fenced, NotFound, SlotTaken, StoreUnavailable, WrongStore
from fedhelm.ids import new_nonce
from fedhelm.persist.base import LogStore
from fedhelm.persist.chain import GENESIS, Tip
from fedhelm.persist.record import By, Draft, Record, decode, seal

__all__ = ["Log"]


class Log:
    """One reader's and writer's position in the log.

    A fresh one has read nothing: `read_new` loads. `append` writes at `next_seq` exactly, so what is appended was
    decided with all that is before it: whoever loses the slot reads on and decides again.

    All calls but the properties and `at` belong to one thread at a time (they wait for the disk: a worker thread, not
    the event loop). Two at once raise RuntimeError, because the second would append a decision made without the
    first's record.
    """

    def __init__(self, store: LogStore) -> None:
        self._store = store
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

    def read_new(self) -> list[Record]:
        """Return every record from `next_seq` to the end of the log, verified, and advance past them.

        All or nothing: on an error nothing was advanced, and the next call starts at the same slot.

        Raises:
            Corrupt: a slot is damaged, missing before others, or breaks the chain or its rules; the message names it.
            StoreUnavailable: the store cannot be read.
        """
        with self._alone():
            tip, found = self._tip, list[Record]()
            while True:
                while (data := self._store.read(tip.next_seq)) is not None:
                    tip = _verified(tip, data)
                    assert tip.last is not None
                    found.append(tip.last)
                if self._loaded or self._complete(tip):
                    break
            if found and self._attempt is not None:
                # An append that was told as failed may be among these; whoever relies on it now must not lose it.
                self._store.sync()
            self._advance(tip)
            self._loaded = True
            return found

    def append(self, draft: Draft) -> Record:
        """Append ``draft`` at `next_seq`, and return its record: durable, and read by everyone after.

        After StoreUnavailable the same draft may be appended again: if the first try did reach the store, that record
        is returned. Another draft may be appended as well: if the first try did reach the store, it lost the slot.

        Raises:
            SlotTaken: somebody has that slot; nothing was advanced. Read on and decide again.
            Fenced: the log, as far as it was read, does not let this writer append this; nothing was written.
            StoreUnavailable: no answer from the store; it may or may not have been written.
            BadInput: not JSON (NaN), too large, or genesis in a log that has begun.
            WrongStore: the log was not read yet, or has no genesis.
        """
        with self._alone():
            tip = self._tip
            if (draft.kind == GENESIS) != (tip.last is None):
                raise _out_of_place(draft)
            record, data = self._seal(draft)
            if reason := tip.overstepping(record):
                raise Fenced(f"slot {tip.next_seq} cannot be written: {reason}")
            self._attempt = record, data
            try:
                self._store.create(tip.next_seq, data)
            except SlotTaken:
                # Mine, if the store's first answer was lost. Equal bytes, hence an equal nonce.
                if self._occupant(tip.next_seq) != data:
                    raise
            self._advance(tip.after(record))
            return record

    def at(self, seq: int) -> Record:
        """Return the record of slot ``seq``, which `read_new` or `append` has passed.

        Raises:
            NotFound: the slot is at or after `next_seq`.
            Corrupt: it is damaged or missing.
            StoreUnavailable: the store cannot be read.
        """
        if not 0 <= seq < self.next_seq:
            raise NotFound(f"slot {seq} is not in the log, which was read up to {self.next_seq - 1}")
        data = self._store.read(seq)
        if data is None:
            raise Corrupt(f"slot {seq} is missing")
        return decode(data, seq)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._busy.acquire(blocking=False):
            raise RuntimeError("two threads use one Log at once")
        try:
            yield
        finally:
            self._busy.release()

    def _complete(self, tip: Tip) -> bool:
        """Whether the log ends at ``tip``, at the first load: a slot that is lost must not pass for the end."""
        highest = self._store.highest()
        if highest is None or highest < tip.next_seq:
            return True
        # Compaction: a slot below the low-water mark, read here after the miss, means "reload" instead.
        if self._store.read(tip.next_seq) is None:
            raise Corrupt(f"slot {tip.next_seq} is missing, slot {highest} is there")
        return False

    def _seal(self, draft: Draft) -> tuple[Record, bytes]:
        seq, prev = self._tip.next_seq, self._tip.prev
        if self._attempt is not None:
            # The same draft once more keeps its nonce, so that whichever try lands is the one.
            record, data = seal(draft, seq=seq, prev=prev, nonce=self._attempt[0].nonce)
            if data == self._attempt[1]:
                return record, data
        return seal(draft, seq=seq, prev=prev, nonce=new_nonce())

    def _occupant(self, seq: int) -> bytes:
        data = self._store.read(seq)
        if data is None:
            raise StoreUnavailable(f"slot {seq} is taken, and cannot be read yet")
        return data

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
