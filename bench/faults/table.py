"""The README's table, made from the lines of results."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.faults.kinds import BOUNDS, CLASSES, class_of
from bench.faults.phases import PHASES

__all__ = ["BEGIN", "COSTS", "END", "percentile", "table", "unmended", "write_readme"]

BEGIN = "<!-- faults: made by `python -m bench.faults --write-readme` -->"
END = "<!-- faults: end -->"

COSTS: Mapping[str, re.Pattern[str]] = {
    "lost": re.compile(r"^I2|is lost|is not in the log|I7: accepted|not those of a run"),
    "doubled": re.compile(r"^I3|recorded twice|times$|^I4|I7: job|I7: aborted"),
    "epochs with two writers": re.compile(r"two writers"),
    "trained again": re.compile(r"trained round"),
}
"""What a fault must never cost -> the findings that say that it did."""

_DURABLE = re.compile(r"(.*, )([0-9.]+)( ms for a durable .*)")

Line = dict[str, Any]


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that at least ``percent`` of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(r) + " |" for r in rows)]


def _gaps(lines: Sequence[Line]) -> list[str]:
    rows = []
    for klass, title in CLASSES.items():
        gaps = [line["gap_s"] for line in lines if class_of(line) == klass and line.get("gap_s") is not None]
        if gaps:
            bound = f"{BOUNDS[klass]:g} s" if klass in BOUNDS else ""
            figures = (statistics.median(gaps), percentile(gaps, 99), max(gaps))
            rows.append([title, str(len(gaps)), *(f"{one:.2f} s" for one in figures), bound])
    return _rows(["gap", "trials", "median", "99th percentile", "worst", "goal (99th)"], rows)


def _count(lines: Sequence[Line], pattern: re.Pattern[str]) -> int:
    return sum(bool(pattern.search(finding)) for line in lines for finding in line["findings"])


def _kinds(lines: Sequence[Line], not_run: Iterable[str]) -> list[str]:
    rows = []
    for name in sorted({line["kind"] for line in lines}):
        mine = [line for line in lines if line["kind"] == name]
        phases = Counter(line["phase"] for line in mine)
        gaps = [line["gap_s"] for line in mine if line.get("gap_s") is not None]
        rows.append(
            [
                f"`{name}`",
                str(len(mine)),
                *(str(_count(mine, pattern)) for pattern in COSTS.values()),
                "/".join(str(phases[phase]) for phase in PHASES),
                f"{statistics.median(gaps):.2f} / {max(gaps):.2f} s" if gaps else "",
            ]
        )
    rows += [[f"`{name}`", "not run", *[""] * (len(COSTS) + 2)] for name in sorted(not_run)]
    return _rows(["fault", "trials", *COSTS, "in each phase", "gap, median / worst"], rows)


def _machines(told: Sequence[str]) -> list[str]:
    """Return each machine once, with the range of what a durable file took on it."""
    took: dict[tuple[str, str], list[float]] = {}
    for one in told:
        found = _DURABLE.fullmatch(one)
        key, value = ((found[1], found[3]), float(found[2])) if found else ((one, ""), 0.0)
        took.setdefault(key, []).append(value)
    return [
        f"{head}{min(values):g} to {max(values):g}{tail}" if tail else head
        for (head, tail), values in sorted(took.items())
    ]


def table(lines: Sequence[Line], everything: Sequence[Line]) -> str:
    """Return the tables as Markdown.

    Args:
        lines: trials of the code as it is.
        everything: all lines, for the list of trials that ever failed.
    """
    ran = [line for line in lines if line.get("verdict") in ("ok", "failed")]
    if not ran:
        return "No trial of this code has run yet."
    failed = sum(line["verdict"] == "failed" for line in ran)
    machines = _machines([str(line["machine"]) for line in ran])
    loads = [float(line["load"]) for line in ran]
    commits = sorted({str(line["commit"])[:12] for line in ran})
    head = [
        f"{len(ran)} trials of {len({line['kind'] for line in ran})} kinds, {failed} failed.",
        f"Commits: {', '.join(commits)}.",
        f"Machine: {'; '.join(machines)}. Load average before a trial: {min(loads):.1f} to {max(loads):.1f}.",
    ]
    phases = f"Phases are counted in the order {', '.join(PHASES)}."
    skipped = [line for line in lines if line.get("verdict") == "not run"]
    reasons = sorted({f"`{line['kind']}`: {line['reason']}" for line in skipped})
    tail = ["", "Not run on this machine:", "", *(f"* {one}" for one in reasons)] if reasons else []
    never = {line["kind"] for line in skipped} - {line["kind"] for line in ran}
    return "\n".join([*head, "", *_gaps(ran), "", *_kinds(ran, never), "", phases, *tail, *_failures(everything)])


def _mended(everything: Sequence[Line]) -> dict[tuple[str, int, int], str]:
    """Return the commit that mended each failure which was mended."""
    mends = [(one["mends"], str(one["by"])) for one in everything if "mends" in one]
    return {(one["commit"], one["seed"], one["trial"]): by for one, by in mends}


def unmended(lines: Sequence[Line], everything: Sequence[Line]) -> list[Line]:
    """Return those trials of ``lines`` that failed, and of which no line says what mended them."""
    mended = _mended(everything)
    failed = (line for line in lines if line.get("verdict") == "failed")
    return [line for line in failed if (line["commit"], line["seed"], line["trial"]) not in mended]


def _failures(everything: Sequence[Line]) -> list[str]:
    mended = _mended(everything)
    rows = []
    for line in everything:
        if line.get("verdict") == "failed":
            by = mended.get((line["commit"], line["seed"], line["trial"]))
            first = line["findings"][0] if line["findings"] else ""
            place = (
                f"{line['kind']} in {line['phase']} (seed {line['seed']}, trial {line['trial']}, {line['commit'][:9]})"
            )
            rows.append([place, first.replace("|", "/")[:160], by[:12] if by else "open"])
    if not rows:
        return []
    return ["", "Trials that failed, at any commit:", "", *_rows(["trial", "first finding", "mended by"], rows)]


def write_readme(path: Path, text: str) -> None:
    """Put the table between the markers of a Markdown file.

    Raises:
        ValueError: the file lacks them.
    """
    page = path.read_text(encoding="utf-8")
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} lacks the lines {BEGIN} and {END}")
    path.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")
