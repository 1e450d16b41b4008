"""Looking over a whole store: marks, slots, blobs.

It only reads, and may run while servers write; a finding that another run does not repeat was on the move. What can be
done about findings is in `fedhelm.persist.mending`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fedhelm.errors import Corrupt
from fedhelm.persist import checkpoint
from fedhelm.persist.blobs import BlobRef
from fedhelm.persist.chain import Tip
from fedhelm.persist.files import Files, naming
from fedhelm.persist.log import Batch, Log
from fedhelm.persist.marks import Mark, decode_mark
from fedhelm.persist.posix import PosixBlobStore, PosixLogStore
from fedhelm.persist.record import Record, decode
from fedhelm.persist.references import Closed, needed

__all__ = ["ELSE", "RESTORE", "Finding", "Remedy", "Report", "examine", "look_at", "store_path"]


class Remedy(enum.Enum):
    """What `repair` can do about a finding."""

    BACKUP = "from a backup"
    CUT = "from a backup, or cut off with what it said"
    REBUILD = "from a backup, or from the checkpoints in the log"
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


RESTORE = "stop all servers, then repair from a backup"
_CUT = "cut it off with --accept-loss: it is the last one, and may have been acknowledged"
ELSE = "nothing here proves what was in it: restore the whole store from a backup"


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
    if mark.number < log.highest_mark():
        return report  # which slots count is not known before that mark is mended
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
        report.findings.append(Finding("mark", store_path("marks", number), problem, RESTORE, Remedy.REBUILD))
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
        record, problem = look_at(log, seq)
        if record is not None and tip is not None:
            problem = tip.broken_link(record) or tip.overstepping(record)
        elif record is not None and last is not None and record.prev != last.sha256:
            problem = "does not continue the record before it"
        if problem is not None:
            tail = seq == report.end - 1 and record is None
            advice = f"{RESTORE}, or {_CUT}" if tail else RESTORE
            remedy = Remedy.CUT if tail else Remedy.BACKUP
            report.findings.append(Finding("slot", store_path("log", seq), problem, advice, remedy))
            tip = None
        elif tip is not None and record is not None:
            tip = tip.after(record)
        last = record
        if record is not None:
            records.append(record)
    if report.end == 0:
        report.findings.append(Finding("slot", store_path("log", 0), "is missing: the log is empty", ELSE, Remedy.NONE))
    report.version = tip.version if tip else None
    return records


def _verify_genesis(log: PosixLogStore, report: Report) -> None:
    record, problem = look_at(log, 0)
    problem = Tip().broken_link(record) if record is not None else problem
    if problem is not None:
        report.findings.append(Finding("slot", store_path("log", 0), problem, RESTORE, Remedy.BACKUP))


def _older_position(root: Path, log: PosixLogStore, mark: Mark) -> Tip | None:
    """Return where the kept slots begin, None if no checkpoint says so (which the blobs' findings tell)."""
    blobs = PosixBlobStore(root)
    for slot in range(mark.low_water, mark.checkpoint + 1):
        record, _ = look_at(log, slot)
        if record is not None and record.kind == "checkpoint" and record.body.get("covered") == mark.low_water - 1:
            try:
                return checkpoint.load(log, blobs, slot)[0]
            except Corrupt:
                return None
    return None


def look_at(log: PosixLogStore, seq: int) -> tuple[Record | None, str | None]:
    """Return the record of a slot, or what is wrong with it; the chain is not looked at."""
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
            report.findings.append(
                Finding("slot", store_path("log", mark.checkpoint), error.message, ELSE, Remedy.NONE)
            )
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
        yield Finding("blob", f"{folder}/m-{ref.digest}", error.message, RESTORE, Remedy.BACKUP)
        return
    for digest in dict.fromkeys(manifest.chunks):
        try:
            blobs.read_chunk(ref.owner, digest)
        except Corrupt as error:
            yield Finding("blob", f"{folder}/c-{digest}", error.message, RESTORE, Remedy.BACKUP)


def _leftovers(root: Path, log: PosixLogStore, mark: Mark) -> Iterator[Finding]:
    with naming(root / "tmp"):
        names = sorted(Files().names(root / "tmp")) if (root / "tmp").is_dir() else []
    for name in names:
        yield _litter(f"tmp/{name}", "has no writer any more")
    for seq in log.slots():
        if 0 < seq < mark.low_water:
            yield _litter(store_path("log", seq), "lies below the low-water mark")


def _litter(path: str, problem: str) -> Finding:
    return Finding("litter", path, problem, "nobody minds it; it can be put aside while no server runs", Remedy.SWEEP)


def store_path(folder: str, number: int) -> str:
    """Return the file of a slot ("log") or of a mark ("marks"), below the store's root."""
    return f"{folder}/{number:016d}"
