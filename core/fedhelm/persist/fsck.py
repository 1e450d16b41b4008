"""Looking over a whole store, and mending what can be mended without a guess.

`examine` only reads, and may run while servers write; a finding that another run does not repeat was on the move.
`repair` must be the only one at the store: no server may run. It deletes nothing: what it takes away goes to
``<root>/quarantine/``, and what it puts in its place is proved by hashes to be what was there.
"""

from __future__ import annotations

import enum
import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fedhelm.errors import BadInput, Corrupt, Refused
from fedhelm.persist import checkpoint
from fedhelm.persist.blobs import BlobRef, Manifest, blake3_hex
from fedhelm.persist.chain import GENESIS, Tip
from fedhelm.persist.files import Files, make_directory, naming, read_file
from fedhelm.persist.log import Batch, Log
from fedhelm.persist.marks import Mark, Marks, decode_mark
from fedhelm.persist.posix import PosixBlobStore, PosixLogStore
from fedhelm.persist.record import Record, decode
from fedhelm.persist.references import Closed, needed

__all__ = ["Finding", "Remedy", "Report", "examine", "repair"]


class Remedy(enum.Enum):
    """What `repair` can do about a finding."""

    BACKUP = "from a backup"
    CUT = "from a backup, or cut off with what it said"
    SWEEP = "put aside"
    NONE = "nothing"


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be.

    Attributes:
        what: "slot", "mark", "blob" or "litter".
        path: The file, below the store's root.
        problem: One sentence.
        advice: What a person can do.
        remedy: What `repair` can do.
    """

    what: str
    path: str
    problem: str
    advice: str
    remedy: Remedy

    @property
    def harmless(self) -> bool:
        """Whether nothing is lost, and nobody minds."""
        return self.what == "litter"


@dataclass
class Report:
    """What a store holds, and what is wrong with it.

    Attributes:
        low_water: The first slot that counts.
        end: The slot after the last.
        version: Of the log at its end, if its chain is whole.
        blobs: How many blobs the log needs.
        findings: In the order of marks, slots, blobs, litter.
    """

    low_water: int = 0
    end: int = 0
    version: int | None = None
    blobs: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether everything that was acknowledged can be read."""
        return all(finding.harmless for finding in self.findings)


_RESTORE = "stop all servers, then repair from a backup"
_ELSE = "nothing here proves what was in it: restore the whole store from a backup"


def examine(root: Path, closed: Closed | None = None) -> Report:
    """Look over marks, slots, blobs and litter of the store in ``root``.

    Args:
        root: The store.
        closed: Which owners may have been deleted; without it a collected blob counts as missing.

    Raises:
        StoreUnavailable: the store cannot be read, or is not there.
    """
    report = Report()
    log = PosixLogStore(root)
    marks = _examine_marks(log, report)
    mark = marks[-1] if marks else Mark()
    report.low_water = mark.low_water
    records = _examine_slots(root, log, mark, report)
    if report.sound:
        _examine_blobs(root, mark, records, report, closed)
    report.findings += _leftovers(root, log, mark)
    return report


def _examine_marks(log: PosixLogStore, report: Report) -> list[Mark]:
    found = list[Mark]()
    for number in range(1, log.highest_mark() + 1):
        problem, data = "is missing", log.read_mark(number)
        if data is not None:
            try:
                mark = decode_mark(data, number)
            except Corrupt:
                problem = "is damaged"
            else:
                if not found or mark.low_water > found[-1].low_water:
                    found.append(mark)
                    continue
                problem = "is not above the one before"
        report.findings.append(Finding("mark", _path("marks", number), problem, _RESTORE, Remedy.BACKUP))
    return found


def _examine_slots(root: Path, log: PosixLogStore, mark: Mark, report: Report) -> list[Record]:
    """Verify what is kept, from the older checkpoint on; after damage only each record and its link to the next."""
    highest = log.highest()
    report.end = 0 if highest is None else highest + 1
    tip: Tip | None = Tip()
    records, last = list[Record](), None
    if mark.low_water:
        _verify_genesis(log, report)
        tip = _older_position(root, log, mark)
        last = tip.last if tip else None
    for seq in range(mark.low_water, report.end):
        record, problem = _look_at(log, seq)
        if record is not None and tip is not None:
            problem = tip.broken_link(record) or tip.overstepping(record)
        elif record is not None and last is not None and record.prev != last.sha256:
            problem = "does not continue the record before it"
        if problem is not None:
            tail = seq == report.end - 1 and record is None
            advice = f"{_RESTORE}; it is the last one, and may have been acknowledged" if tail else _RESTORE
            remedy = Remedy.CUT if tail else Remedy.BACKUP
            report.findings.append(Finding("slot", _path("log", seq), problem, advice, remedy))
            tip = None
        elif tip is not None and record is not None:
            tip = tip.after(record)
        last = record
        if record is not None:
            records.append(record)
    if report.end == 0:
        report.findings.append(Finding("slot", _path("log", 0), "is missing: the log is empty", _ELSE, Remedy.NONE))
    report.version = tip.version if tip else None
    return records


def _verify_genesis(log: PosixLogStore, report: Report) -> None:
    record, problem = _look_at(log, 0)
    problem = Tip().broken_link(record) if record is not None else problem
    if problem is not None:
        report.findings.append(Finding("slot", _path("log", 0), problem, _RESTORE, Remedy.BACKUP))


def _older_position(root: Path, log: PosixLogStore, mark: Mark) -> Tip | None:
    """Return where the kept slots begin, None if no checkpoint says so (which the blobs' findings tell)."""
    blobs = PosixBlobStore(root)
    for slot in range(mark.low_water, mark.checkpoint + 1):
        record, _ = _look_at(log, slot)
        if record is not None and record.kind == "checkpoint" and record.body.get("covered") == mark.low_water - 1:
            try:
                return checkpoint.load(log, blobs, slot)[0]
            except Corrupt:
                return None
    return None


def _look_at(log: PosixLogStore, seq: int) -> tuple[Record | None, str | None]:
    data = log.read(seq)
    if data is None:
        return None, "is missing"
    try:
        return decode(data, seq), None
    except Corrupt as error:
        return None, f"is damaged: {error.message}"


def _examine_blobs(root: Path, mark: Mark, records: list[Record], report: Report, closed: Closed | None) -> None:
    blobs, bodies = PosixBlobStore(root), [record.body for record in records]
    try:
        batch = Log(PosixLogStore(root), blobs).read_new()
    except Corrupt as error:
        # No checkpoint can be read: then nobody knows what else is needed.
        for ref in needed(Batch(), bodies, mark.low_water, None):
            if ref.owner.startswith("checkpoints/"):
                report.findings += _examine_blob(blobs, ref)
        if report.sound:
            report.findings.append(Finding("slot", _path("log", mark.checkpoint), error.message, _ELSE, Remedy.NONE))
        return
    refs = needed(batch, bodies, mark.low_water, closed)
    report.blobs = len(refs)
    for ref in refs:
        report.findings += _examine_blob(blobs, ref)
    owners = {ref.owner for ref in refs}
    for owner in blobs.owners(""):
        if owner not in owners:
            report.findings.append(_litter(f"blobs/{owner}", "is not named by the log, or not any more"))


def _examine_blob(blobs: PosixBlobStore, ref: BlobRef) -> Iterator[Finding]:
    folder = f"blobs/{ref.owner}"
    try:
        manifest = blobs.manifest(ref)
    except Corrupt as error:
        yield Finding("blob", f"{folder}/m-{ref.digest}", error.message, _RESTORE, Remedy.BACKUP)
        return
    for digest in dict.fromkeys(manifest.chunks):
        try:
            blobs.read_chunk(ref.owner, digest)
        except Corrupt as error:
            yield Finding("blob", f"{folder}/c-{digest}", error.message, _RESTORE, Remedy.BACKUP)


def _leftovers(root: Path, log: PosixLogStore, mark: Mark) -> Iterator[Finding]:
    with naming(root / "tmp"):
        names = sorted(Files().names(root / "tmp")) if (root / "tmp").is_dir() else []
    for name in names:
        yield _litter(f"tmp/{name}", "has no writer any more")
    for seq in log.slots():
        if 0 < seq < mark.low_water:
            yield _litter(_path("log", seq), "lies below the low-water mark")


def _litter(path: str, problem: str) -> Finding:
    return Finding("litter", path, problem, "nobody minds it; it can be put aside while no server runs", Remedy.SWEEP)


def _path(folder: str, number: int) -> str:
    return f"{folder}/{number:016d}"


def repair(root: Path, finding: Finding, backup: Path | None = None, *, accept_loss: bool = False) -> str:
    """Mend one finding of `examine`; examine again before mending the next. No server may run meanwhile.

    * Litter is put aside.
    * A slot, with those beside it that are damaged too, is taken from ``backup`` if the records there continue the one
      before and are continued by the one after. The last slot has none after it: there the damaged file itself has to
      show that it was this record.
    * A mark is taken from it if it is above the one before and below the one after; chunks and manifests, if their
      digest is right.
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
        before = _look_at(ours, seq - 1)[0]
        if before is None:
            raise Refused(f"slot {seq - 1} has to be mended before slot {seq}", hint=_RESTORE)
        prev = before.sha256
    while True:
        data, record = theirs.read(at), _look_at(theirs, at)[0]
        if record is None or data is None or prev not in {None, record.prev}:
            raise Refused(f"the backup's slot {at} does not continue slot {at - 1}", hint=_ELSE)
        good[_path("log", at)] = data
        after = _look_at(ours, at + 1)[0]
        if after is not None:
            # Nothing else has this hash: this alone would prove it.
            if after.prev != record.sha256:
                raise Refused(f"slot {at + 1} does not continue the backup's slot {at}", hint=_ELSE)
            return good
        if at + 1 >= end:
            if prev is None or not _resembles(ours.read(at), record, data):
                raise Refused(f"nothing shows that the last slot was the backup's {at}", hint=_ELSE)
            return good
        prev, at = record.sha256, at + 1


def _genesis_from(ours: PosixLogStore, theirs: PosixLogStore, low_water: int, end: int) -> dict[str, bytes]:
    """Of a shortened log: a later record that both have shows that the beginnings are the same."""
    data, record = theirs.read(0), _look_at(theirs, 0)[0]
    shared = any(ours.read(at) == theirs.read(at) and _look_at(ours, at)[0] for at in range(low_water, end))
    if record is None or data is None or record.kind != GENESIS or not shared:
        raise Refused("the backup's slot 0 is not that of this log", hint=_ELSE)
    return {_path("log", 0): data}


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
        raise Refused(f"the backup has no sound mark {number}", hint=_ELSE)
    known = [mark.low_water for mark in (beside[0], good, beside[1]) if mark is not None]
    if known != sorted(set(known)):
        raise Refused(f"the backup's mark {number} does not fit between those beside it", hint=_ELSE)
    return {_path("marks", number): data}


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
            Manifest.from_json(json.loads(data))
        except (BadInput, ValueError):
            good = False
    if data is None or not good:
        raise Refused(f"the backup has no sound {path}", hint=_ELSE)
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
