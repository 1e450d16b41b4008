"""What may follow what in the log: pure rules, the same for a reader and for a writer.

A writer decides with the whole log up to the slot before its own, because a slot can be created once only. So these
rules, checked against what was read, hold for the log itself, however long the writer was paused in between.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

from fedhelm.errors import BadInput, Corrupt
from fedhelm.persist.blobs import BlobRef
from fedhelm.persist.record import NO_RECORD, READABLE_VERSIONS, VERSION, By, Draft, Record, decode, encode
from fedhelm.plain_json import parse_plain

__all__ = ["CHECKPOINT", "CONFIG", "EPOCH_RAISING", "GENESIS", "KEPT", "Checkpoint", "Tip", "checkpoint_owner"]

GENESIS, CHECKPOINT, CONFIG = "genesis", "checkpoint", "config"
# Checkpoints that are kept, the newest ones.
KEPT = 2
# Kinds that may carry an epoch which the log has not seen yet. All others need the fence of their writer before them.
EPOCH_RAISING = frozenset({"fence", "epoch_repair"})


def checkpoint_owner(covered: int) -> str:
    """Return the owner of the blob of a checkpoint that covers the log up to slot ``covered``."""
    return f"checkpoints/{covered:016d}"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that the log names.

    Attributes:
        slot: Of its record.
        covered: The last slot that is folded into it; below ``slot``, because appends went on meanwhile.
        blob: The position and the fold.
    """

    slot: int
    covered: int
    blob: BlobRef

    @classmethod
    def of(cls, record: Record) -> Self:
        """Return what a ``checkpoint`` record names.

        Raises:
            BadInput: its body is not ``{covered, blob}``, or the blob is not that checkpoint's.
        """
        covered = record.body.get("covered")
        if record.kind != CHECKPOINT or type(covered) is not int or not 0 <= covered < record.seq:
            raise BadInput("a checkpoint covers slots before its own")
        blob = BlobRef.from_json(record.body.get("blob"))
        if blob.owner != checkpoint_owner(covered):
            raise BadInput(f"a checkpoint up to slot {covered} does not belong to {blob.owner}")
        return cls(record.seq, covered, blob)

    def to_json(self) -> dict[str, Any]:
        """Return ``{slot, covered, blob}``."""
        return {"slot": self.slot, "covered": self.covered, "blob": self.blob.to_json()}

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Return the checkpoint that `to_json` gave.

        Raises:
            BadInput: it is none.
        """
        if not isinstance(value, dict) or not all(type(value.get(name)) is int for name in ("slot", "covered")):
            raise BadInput("a checkpoint is {slot, covered, blob}")
        return cls(value["slot"], value["covered"], BlobRef.from_json(value.get("blob")))


@dataclass(frozen=True)
class Tip:
    """The end of the log as far as it was read: a position in the chain, and what the chain needs to go on from there.

    Attributes:
        next_seq: The first slot not read yet.
        last: The last record read.
        fence: The last record that raised the epoch: it says who may write.
        version: Of the records to be written: that of the newest ``config`` record, or of genesis.
        checkpoints: The newest that the log names, the newest last; at most `KEPT`.
    """

    next_seq: int = 0
    last: Record | None = None
    fence: Record | None = None
    version: int = VERSION
    checkpoints: tuple[Checkpoint, ...] = ()

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
        return self.misstated(record)

    def version_for(self, draft: Draft) -> int:
        """Return the version of the record that ``draft`` becomes here: ``config`` is the first of the new version.

        Raises:
            BadInput: ``config`` names no version that this program writes.
        """
        if draft.kind != CONFIG:
            return self.version
        version = draft.body.get("log_version")
        if type(version) is not int or version not in READABLE_VERSIONS:
            raise BadInput(f"log version {version!r:.40}; this program writes {sorted(READABLE_VERSIONS)}")
        return version

    def misstated(self, record: Record) -> str | None:
        """Say what in ``record`` contradicts the log before it; None if nothing does."""
        if record.kind == CONFIG:
            if record.body.get("log_version") != record.v or record.v < self.version:
                return f"config of version {record.v} in a log of version {self.version}"
        elif record.kind != GENESIS and record.v != self.version:
            return f"a record of version {record.v} in a log of version {self.version}"
        if record.kind == CHECKPOINT:
            try:
                covered = Checkpoint.of(record).covered
            except BadInput as error:
                return error.message
            if self.checkpoints and covered <= self.checkpoints[-1].covered:
                return f"a checkpoint up to slot {covered} after one up to slot {self.checkpoints[-1].covered}"
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
        tip = replace(self, next_seq=self.next_seq + 1, last=record)
        if record.kind in EPOCH_RAISING:
            return replace(tip, fence=record)
        if record.kind in {GENESIS, CONFIG}:
            return replace(tip, version=record.v)
        if record.kind == CHECKPOINT:
            return replace(tip, checkpoints=(*self.checkpoints, Checkpoint.of(record))[-KEPT:])
        return tip

    def to_json(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of a position that is not the beginning; the records as they are in the log.

        Raises:
            ValueError: it is the beginning.
        """
        if self.last is None:
            raise ValueError("nothing was read yet")
        return {
            "last": encode(self.last).decode(),
            "fence": encode(self.fence).decode() if self.fence else None,
            "version": self.version,
            "checkpoints": [one.to_json() for one in self.checkpoints],
        }

    @classmethod
    def from_json(cls, value: Any, next_seq: int) -> Self:
        """Return the position that `to_json` gave.

        Raises:
            Corrupt: it is none, or not that before slot ``next_seq``.
        """
        try:
            last = decode(value["last"].encode(), next_seq - 1)
            fence = None
            if value["fence"] is not None:
                text = value["fence"].encode()
                fence = decode(text, parse_plain(text)["seq"])
            checkpoints = tuple(Checkpoint.from_json(one) for one in value["checkpoints"])
            version = value["version"]
        except (KeyError, TypeError, AttributeError, ValueError, BadInput) as error:
            raise Corrupt(f"not a position in the log: {error!r}") from error
        if type(version) is not int or version not in READABLE_VERSIONS:
            raise Corrupt(f"a log of version {version!r:.40}; this program reads {sorted(READABLE_VERSIONS)}")
        return cls(next_seq, last, fence, version, checkpoints)
