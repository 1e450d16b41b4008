"""Whether the trials of the code as it is reach what was promised: one line for each bar that is missed. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from bench.faults.kinds import BOUNDS, CLASSES, KINDS, Kind, class_of
from bench.faults.lines import PER_PHASE, SAMPLES, Line
from bench.faults.table import COSTS, percentile, unmended

__all__ = ["KINDS_AT_LEAST", "LONG_SECONDS", "TRIALS", "misses"]

TRIALS = 500
KINDS_AT_LEAST = 20
LONG_SECONDS = 20.0
"""A trial that takes longer has to have seen a checkpoint and a compaction."""


def misses(lines: Sequence[Line], everything: Sequence[Line], kinds: Sequence[Kind] | None = None) -> list[str]:
    """Return one line for each bar that is not reached; empty: all are.

    Args:
        lines: trials of the code as it is, in full length.
        everything: all lines; those that say which commit mended a failure are among them.
        kinds: that have to be there; without it, all.
    """
    wanted = list(KINDS.values()) if kinds is None else list(kinds)
    ran = [line for line in lines if line.get("verdict") in ("ok", "failed")]
    return [
        *_counts(ran),
        *_failures(ran, everything),
        *_gaps(ran),
        *(text for kind in wanted for text in _kind(kind, lines, ran)),
        *_housekeeping(ran),
    ]


def _counts(ran: Sequence[Line]) -> Iterator[str]:
    if len(ran) < TRIALS:
        yield f"{len(ran)} trials, {TRIALS} are wanted"
    names = {line["kind"] for line in ran}
    if len(names) < KINDS_AT_LEAST:
        yield f"{len(names)} kinds, {KINDS_AT_LEAST} are wanted"


def _failures(ran: Sequence[Line], everything: Sequence[Line]) -> Iterator[str]:
    failed = unmended(ran, everything)
    for name, pattern in COSTS.items():
        found = [finding for line in failed for finding in line["findings"] if pattern.search(finding)]
        if found:
            yield f"{name}: {len(found)}, none is allowed; the first: {found[0]}"
    for line in failed:
        said = line["findings"][0] if line["findings"] else "it does not say why"
        yield f"failed: {line['kind']} in {line['phase']}, seed {line['seed']}, trial {line['trial']}: {said}"


def _gaps(ran: Sequence[Line]) -> Iterator[str]:
    for klass, bound in BOUNDS.items():
        gaps = [line["gap_s"] for line in ran if class_of(line) == klass and line.get("gap_s") is not None]
        if len(gaps) < SAMPLES:
            yield f"{CLASSES[klass]}: {len(gaps)} gaps, {SAMPLES} are wanted"
        if gaps and (found := percentile(gaps, 99)) >= bound:
            yield f"{CLASSES[klass]}: the 99th percentile of {len(gaps)} gaps is {found:.2f} s, not under {bound:g} s"


def _kind(kind: Kind, lines: Sequence[Line], ran: Sequence[Line]) -> Iterator[str]:
    mine = [line for line in ran if line["kind"] == kind.name]
    why = {str(line["reason"]) for line in lines if line["kind"] == kind.name and line.get("verdict") == "not run"}
    if why and not mine:
        yield f"{kind.name}: not run: {'; '.join(sorted(why))}"
        return
    met = Counter(line["phase"] for line in mine)
    few = [f"{phase} {met[phase]}" for phase in kind.phases if met[phase] < PER_PHASE]
    if few:
        yield f"{kind.name}: each phase is wanted {PER_PHASE} times, it met {', '.join(few)}"
    if kind.failover is False and kind.bound is not None:
        longest = max((line.get("silence_s") or 0.0 for line in mine), default=0.0)
        if longest > kind.bound:
            yield f"{kind.name}: {longest:.2f} s without an acknowledgement, {kind.bound:g} s are allowed"


def _housekeeping(ran: Sequence[Line]) -> Iterator[str]:
    for line in ran:
        if line["seconds"] > LONG_SECONDS and not (line["checkpoints"] and line["compactions"]):
            yield (
                f"{line['kind']}, seed {line['seed']}, trial {line['trial']}: {line['seconds']:.0f} s "
                f"with {line['checkpoints']} checkpoints and {line['compactions']} compactions"
            )
