"""Mending what `fedhelm.persist.fsck.examine` found, where hashes prove what was there.

Whoever mends must be the only one at the store: no server may run. Nothing is deleted: what is taken away goes to
``<root>/quarantine/``.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

from fedhelm.errors import BadInput, Corrupt, Refused
from fedhelm.persist import checkpoint
from fedhelm.persist.blobs import Manifest, blake3_hex
from fedhelm.persist.chain import CHECKPOINT, GENESIS, Checkpoint, Tip
from fedhelm.persist.files import Files, make_directory, naming, read_file
from fedhelm.persist.fsck import ELSE, RESTORE, Finding, Remedy, look_at, store_path
from fedhelm.persist.marks import Mark, Marks, decode_mark
from fedhelm.persist.posix import PosixBlobStore, PosixLogStore
from fedhelm.persist.record import Record
from fedhelm.plain_json import parse_plain

__all__ = ["repair"]


def repair(root: Path, finding: Finding, backup: Path | None = None, *, accept_loss: bool = False) -> str:
    """Mend one finding of `examine`; examine again before mending the next. No server may run meanwhile.

    * Litter is put aside.
    * A slot, with those beside it that are damaged too, is taken from ``backup`` if the records there continue the one
      before and are continued by the one after. The last slot has none after it: there the damaged file itself has to
      show that it was this record.
    * A mark is taken from it if it is above the one before and below the one after. Without one it is made anew: the
      newest from two sound checkpoints with all slots since, another as any between those beside it, because whoever
      reads it reads the next as well.
    * Chunks and manifests are taken from it if their digest is right.
    * A damaged last slot that no backup has is put aside only if ``accept_loss``: whatever it said, it may have been
      acknowledged. A server will not lead before the lease was told, since the log is shorter than it was.

    Returns:
        What was done, one sentence.

    Raises:
        Refused: nothing proves what belongs there; nothing was changed.
        StoreUnavailable: the store cannot be written.
    """
    bench = _Bench(root)
    if finding.remedy is Remedy.SWEEP:
        bench.put_aside(finding.path)
        return f"{finding.path} was put aside"
    if finding.remedy is Remedy.NONE:
        raise Refused(f"{finding.path} cannot be mended", hint=finding.advice)
    try:
        good = _from_backup(root, finding, backup)
    except Refused:
        if finding.remedy is Remedy.REBUILD:
            bench.replace(finding.path, _rebuilt_mark(root, int(Path(finding.path).name)).encode())
            return f"{finding.path} made anew from the checkpoints in the log"
        if finding.remedy is Remedy.CUT and accept_loss:
            bench.put_aside(finding.path)
            return f"{finding.path} was put aside; what it said is lost"
        raise
    for path, data in good.items():
        bench.replace(path, data)
    return f"{', '.join(good)} restored from {backup}"


def _from_backup(root: Path, finding: Finding, backup: Path | None) -> dict[str, bytes]:
    if backup is None:
        raise Refused(f"{finding.path} can only be mended from a backup", hint=finding.advice)
    name = Path(finding.path).name
    if finding.what == "slot":
        return _slots_from(root, int(name), backup)
    if finding.what == "mark":
        return _mark_from(root, int(name), backup)
    return _content_from(finding.path, backup)


def _slots_from(root: Path, seq: int, backup: Path) -> dict[str, bytes]:
    ours, theirs = PosixLogStore(root), PosixLogStore(backup)
    end, low_water = (ours.highest() or 0) + 1, Marks(ours).find().low_water
    if seq == 0 < low_water:
        return _genesis_from(ours, theirs, low_water, end)
    good, at = dict[str, bytes](), seq
    prev = Tip().prev if seq == 0 else None
    if seq > low_water:
        before = look_at(ours, seq - 1)[0]
        if before is None:
            raise Refused(f"slot {seq - 1} has to be mended before slot {seq}", hint=RESTORE)
        prev = before.sha256
    while True:
        data, record = theirs.read(at), look_at(theirs, at)[0]
        if record is None or data is None or prev not in {None, record.prev}:
            why = " has no slot {0}" if data is None else "'s slot {0} does not continue slot {1}"
            raise Refused(f"the backup{why.format(at, at - 1)}", hint=ELSE)
        good[store_path("log", at)] = data
        after = look_at(ours, at + 1)[0]
        if after is not None:
            # Nothing else has this hash: this alone would prove it.
            if after.prev != record.sha256:
                raise Refused(f"slot {at + 1} does not continue the backup's slot {at}", hint=ELSE)
            return good
        if at + 1 >= end:
            if prev is None or not _resembles(ours.read(at), record, data):
                raise Refused(f"nothing shows that the last slot was the backup's {at}", hint=ELSE)
            return good
        prev, at = record.sha256, at + 1


def _genesis_from(ours: PosixLogStore, theirs: PosixLogStore, low_water: int, end: int) -> dict[str, bytes]:
    """Of a shortened log: a later record that both have shows that the beginnings are the same."""
    data, record = theirs.read(0), look_at(theirs, 0)[0]
    shared = any(ours.read(at) == theirs.read(at) and look_at(ours, at)[0] for at in range(low_water, end))
    if record is None or data is None or record.kind != GENESIS or not shared:
        raise Refused("the backup's slot 0 is not that of this log", hint=ELSE)
    return {store_path("log", 0): data}


def _resembles(damaged: bytes | None, record: Record, good: bytes) -> bool:
    """Whether what is left of a file shows that it was this record: cut off, or with its hash or nonce still in it."""
    if not damaged:
        return False
    return good.startswith(damaged) or record.sha256.encode() in damaged or f'"{record.nonce}"'.encode() in damaged


def _mark_from(root: Path, number: int, backup: Path) -> dict[str, bytes]:
    ours, data = PosixLogStore(root), PosixLogStore(backup).read_mark(number)
    beside = [_mark_or_none(ours.read_mark(other), other) for other in (number - 1, number + 1)]
    good = _mark_or_none(data, number)
    if good is None or data is None:
        raise Refused(f"the backup has no sound mark {number}", hint=ELSE)
    known = [mark.low_water for mark in (beside[0], good, beside[1]) if mark is not None]
    if known != sorted(set(known)):
        raise Refused(f"the backup's mark {number} does not fit between those beside it", hint=ELSE)
    return {store_path("marks", number): data}


def _rebuilt_mark(root: Path, number: int) -> Mark:
    ours, blobs = PosixLogStore(root), PosixBlobStore(root)
    before, after = (_mark_or_none(ours.read_mark(other), other) for other in (number - 1, number + 1))
    floor = before.low_water if before else 0
    if number < ours.highest_mark():
        if after is None or (number > 1 and before is None) or floor + 1 >= after.low_water:
            raise Refused(f"mark {number} has no room between those beside it", hint=ELSE)
        return Mark(number, floor + 1, after.checkpoint)
    for older, newer in _pairs(ours):
        low_water = older.covered + 1
        first = look_at(ours, low_water)[0]
        try:
            position, _ = checkpoint.load(ours, blobs, older.slot)
            checkpoint.load(ours, blobs, newer.slot)
        except Corrupt:
            continue
        if low_water > floor and first is not None and first.prev == position.prev:
            return Mark(number, low_water, newer.slot)
    raise Refused(f"no two checkpoints in the log show what mark {number} said", hint=ELSE)


def _pairs(ours: PosixLogStore) -> Iterator[tuple[Checkpoint, Checkpoint]]:
    """Yield neighbouring checkpoints, the newest first, below which every slot is there from the older's end on."""
    seq = ours.highest()
    found = list[Checkpoint]()
    while seq is not None and (record := look_at(ours, seq)[0]) is not None:
        if record.kind == CHECKPOINT:
            found.append(Checkpoint.of(record))
        while len(found) > 1 and found[1].covered + 1 >= seq:
            newer = found.pop(0)
            yield found[0], newer
        seq -= 1


def _mark_or_none(data: bytes | None, number: int) -> Mark | None:
    try:
        return decode_mark(data, number) if data is not None else None
    except Corrupt:
        return None


def _content_from(path: str, backup: Path) -> dict[str, bytes]:
    data = read_file(backup / path, 1 << 62)
    kind, digest = Path(path).name.split("-", 1)
    good = data is not None and blake3_hex(data) == digest
    if good and data is not None and kind == "m":
        try:
            Manifest.from_json(parse_plain(data))
        except (BadInput, ValueError):
            good = False
    if data is None or not good:
        raise Refused(f"the backup has no sound {path}", hint=ELSE)
    return {path: data}


class _Bench:
    """Takes files away and puts files in their place, durably, and without a moment in which the name is missing."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._files = Files()
        self._aside = root / "quarantine"

    def put_aside(self, path: str) -> None:
        target = self._root / path
        with naming(target):
            files = [one for one in target.iterdir() if one.is_file()] if target.is_dir() else [target]
            for one in files:
                self._keep(str(one.relative_to(self._root)))
                one.unlink()
                self._files.sync_directory(one.parent)

    def replace(self, path: str, data: bytes) -> None:
        target = self._root / path
        with naming(target):
            if target.exists():
                self._keep(path)
            for one in reversed([each for each in target.parents if self._root in each.parents]):
                make_directory(one)
            scratch = self._root / "tmp" / f"{target.name}.{secrets.token_hex(8)}"
            self._files.write(scratch, data)
            scratch.replace(target)
            self._files.sync_directory(target.parent)

    def _keep(self, path: str) -> None:
        second = self._aside / f"{path}.{secrets.token_hex(4)}"
        with naming(second):
            second.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._files.link(self._root / path, second)
            self._files.sync_directory(second.parent)
