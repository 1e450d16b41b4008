"""What may follow what in the log: pure rules, the same for a reader and for a writer.

A writer decides with the whole log up to the slot before its own, because a slot can be created once only. So these
rules, checked against what was read, hold for the log itself, however long the writer was paused in between.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fedhelm.persist.record import NO_RECORD, By, Record

__all__ = ["EPOCH_RAISING", "GENESIS", "Tip"]

GENESIS = "genesis"
# Kinds that may carry an epoch which the log has not seen yet. All others need the fence of their writer before them.
EPOCH_RAISING = frozenset({"fence", "epoch_repair"})


@dataclass(frozen=True)
class Tip:
    """The end of the log as far as it was read.

    Attributes:
        next_seq: The first slot not read yet.
        last: The last record read.
        fence: The last record that raised the epoch: it says who may write.
    """

    next_seq: int = 0
    last: Record | None = None
    fence: Record | None = None

    @property
    def prev(self) -> str:
        """What ``prev`` of the next record must be."""
        return self.last.sha256 if self.last else NO_RECORD

    @property
    def epoch(self) -> int:
        """The highest epoch in the log; 0 before the first fence."""
        return self.last.epoch if self.last else 0

    def leads(self, epoch: int, by: By) -> bool:
        """Whether the last fence is that of ``by`` in ``epoch``: whether it, and nobody else, may append."""
        fence = self.fence
        return fence is not None and fence.kind == "fence" and (fence.epoch, fence.by) == (epoch, by)

    def broken_link(self, record: Record) -> str | None:
        """Say why ``record`` is not the next link of the chain; None if it is."""
        if record.seq != self.next_seq:
            return f"holds record {record.seq}"
        if record.prev != self.prev:
            return "does not continue the record before it"
        if (record.kind == GENESIS) != (record.seq == 0):
            return f"{record.kind!r} in slot {record.seq}"
        if record.kind == GENESIS and record.epoch != 0:
            return f"genesis of epoch {record.epoch}"
        return None

    def overstepping(self, record: Record) -> str | None:
        """Say why the writer of ``record`` may not append it here; None if it may."""
        if record.kind == GENESIS:
            return None
        if record.kind in EPOCH_RAISING:
            if record.epoch > self.epoch:
                return None
            return f"{record.kind} of epoch {record.epoch}, the log has epoch {self.epoch}"
        if record.epoch < self.epoch:
            return f"epoch {record.epoch} after epoch {self.epoch}"
        if not self.leads(record.epoch, record.by):
            holder = f"{self.fence.by.name} ({self.fence.by.incarnation})" if self.fence else "nobody"
            return f"{record.by.name} ({record.by.incarnation}) in epoch {record.epoch}, which {holder} holds"
        return None

    def after(self, record: Record) -> Tip:
        """Return the tip once ``record`` is the last."""
        fence = record if record.kind in EPOCH_RAISING else self.fence
        return replace(self, next_seq=self.next_seq + 1, last=record, fence=fence)
