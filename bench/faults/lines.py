"""The file of results: one JSON line for each trial, only ever appended; which lines count, and what is still missing.

A line counts as *current* while no commit after its own touched the product's code. Older lines stay; the class of a
kind is the one that it has now. A failed trial is never dropped: a line ``{"mends": {...}}`` may say later which commit
mended it.
"""

from __future__ import annotations

import json
import random
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from bench.faults.kinds import BOUNDS, KINDS, Kind, class_of
from bench.machine import REPOSITORY

__all__ = [
    "PRODUCT",
    "RESULTS",
    "SAMPLES",
    "Line",
    "append_line",
    "code_state",
    "deck",
    "done_trials",
    "is_counted",
    "is_current",
    "missing",
    "read_lines",
]

RESULTS = REPOSITORY / "bench" / "results-faults.jsonl"
PRODUCT = ("overseer", "server", "client", "core/fedhelm/persist", "core/fedhelm/wire")
SAMPLES = 200
"""How many gaps each class with a promise needs."""

PER_PHASE = 3
"""How often each kind has to meet each of its phases."""

Line = dict[str, Any]


def read_lines(path: Path) -> list[Line]:
    """Return every line; a last one that was cut off is left out."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.split("\n")[:-1] if line]


def append_line(path: Path, line: Line) -> None:
    """Append one line, durably enough for a run that is killed."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60)
    return done.stdout.strip() if done.returncode == 0 else ""


def code_state() -> tuple[str, bool]:
    """Return the commit, and whether the product's code differs from it."""
    return _git("rev-parse", "HEAD") or "unknown", bool(_git("status", "--porcelain", "--", *PRODUCT))


@cache
def _contains(commit: str, newest: str) -> bool:
    done = subprocess.run(
        ["git", "merge-base", "--is-ancestor", newest, commit],
        cwd=REPOSITORY,
        capture_output=True,
        check=False,
        timeout=60,
    )
    return done.returncode == 0


@cache
def _newest() -> str:
    return _git("log", "-1", "--format=%H", "--", *PRODUCT)


def is_current(line: Line) -> bool:
    """Whether a trial ran the product's code as it is now."""
    return not line.get("dirty") and bool(_newest()) and _contains(str(line.get("commit")), _newest())


def is_counted(line: Line) -> bool:
    """Whether a trial ran the product's code as it is now, with freezes and outages in full length."""
    return is_current(line) and not line.get("quick")


def done_trials(lines: Iterable[Line], current: Callable[[Line], bool]) -> set[tuple[int, int]]:
    """Return (seed, trial) of what need not run again."""
    return {(line["seed"], line["trial"]) for line in lines if "seed" in line and current(line)}


def deck(seed: int, kinds: Sequence[Kind]) -> Iterator[tuple[Kind, str]]:
    """Yield kinds with phases for ever, all of it from the seed: each kind with each of its phases once a deck.

    A kind with a larger weight is that often in a deck.
    """
    number = 0
    while True:
        rng = random.Random(f"deck:{seed}:{number}")
        cards = [(kind, phase) for kind in kinds for phase in kind.phases for _ in range(kind.weight)]
        rng.shuffle(cards)
        yield from cards
        number += 1


def missing(lines: Iterable[Line], kinds: Iterable[Kind] | None = None) -> Counter[tuple[str, str]]:
    """Return how many trials each kind still needs in each phase, by the phase that was really met.

    Phases count three times; what a class lacks for its samples is shared among its kinds' phases by weight.
    """
    ran = [line for line in lines if line.get("verdict") in ("ok", "failed")]
    met = Counter((line["kind"], line["phase"]) for line in ran)
    wanted = Counter(
        {
            (kind.name, phase): max(0, PER_PHASE - met[kind.name, phase])
            for kind in kinds or KINDS.values()
            for phase in kind.phases
        }
    )
    for klass in BOUNDS:
        members = [kind for kind in kinds or KINDS.values() if kind.klass == klass]
        samples = sum(class_of(line) == klass and line.get("gap_s") is not None for line in ran)
        planned = sum(wanted[kind.name, phase] for kind in members for phase in kind.phases)
        cards = [(kind.name, phase) for kind in members for phase in kind.phases for _ in range(kind.weight)]
        for number in range(max(0, SAMPLES - samples - planned) if cards else 0):
            wanted[cards[number % len(cards)]] += 1
    return +wanted
