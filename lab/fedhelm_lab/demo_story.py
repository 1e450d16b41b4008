"""What the demo tells: when to strike, what a round was closed with, and what proves that nothing was lost. Pure."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from fedhelm.errors import FedhelmError
from fedhelm.output import table

if TYPE_CHECKING:
    from fedhelm.admin.models import JobDetail
    from fedhelm.persist.record import Record

__all__ = [
    "KILL_ROUND",
    "Evidence",
    "Moment",
    "Progress",
    "Round",
    "count_calls",
    "count_contributions",
    "followed_after",
    "moment_to_kill",
    "rounds_of",
    "rounds_table",
]

KILL_ROUND = 2

_LOG_LINE = re.compile(r"(\S+Z) (\S+) INFO (.*)")
_ANSWERED = re.compile(r"job (\S+): (\w+) of round (\d+) answered by the script")
_FOLLOWING = re.compile(r"following (\S+), epoch (\d+)")


@dataclass(frozen=True)
class Moment:
    """Who has contributed to the open round, and who is still at work."""

    round: int
    done: tuple[str, ...]
    busy: tuple[str, ...]

    def sentence(self) -> str:
        """Return ``round 2: site-1 has contributed, site-2 still trains``."""
        parts = []
        if self.done:
            parts.append(f"{_names(self.done)} {'has' if len(self.done) == 1 else 'have'} contributed")
        if self.busy:
            parts.append(f"{_names(self.busy)} still {'trains' if len(self.busy) == 1 else 'train'}")
        return f"round {self.round}: {', '.join(parts) or 'it is open'}"


def _names(sites: Sequence[str]) -> str:
    return " and ".join(sites) if len(sites) < 3 else f"{len(sites)} sites"


def moment_to_kill(state: JobDetail) -> Moment | None:
    """Return the moment if this is the one: in round 2 one site has contributed and another still trains.

    A later round will do where that moment was too short to be seen, and a lone site is interrupted while it trains.
    """
    if state.finished or state.round < KILL_ROUND:
        return None
    moment = Moment(
        round=state.round,
        done=tuple(site.name for site in state.sites if site.status == "DONE"),
        busy=tuple(site.name for site in state.sites if site.status == "TRAINING"),
    )
    half = bool(moment.busy) and (bool(moment.done) or len(state.sites) == 1)
    return moment if half or state.round > KILL_ROUND else None


class Progress:
    """Turns the states of a job into one announcement for each round that was closed with an accuracy."""

    def __init__(self) -> None:
        self._seen = ""
        self._told = 0

    def closed(self, state: JobDetail) -> tuple[int, float] | None:
        """Return (round, held-out accuracy) when ``state`` shows one that was not told yet.

        A state carries the metrics of the last closed round; the round that it names may be the next one already.
        """
        if not state.metrics_json or state.metrics_json == self._seen:
            return None
        accuracy = json.loads(state.metrics_json).get("accuracy")
        if accuracy is None:
            return None
        self._seen = state.metrics_json
        same = state.finished or self._told == state.round - 1
        self._told = state.round if same else state.round - 1
        return self._told, float(accuracy)


@dataclass(frozen=True)
class Round:
    """One round of the result: held-out accuracy, and who closed it."""

    number: int
    accuracy: float
    primary: str
    epoch: int


def rounds_of(summary: Mapping[str, Any]) -> list[Round]:
    """Return the evaluated rounds of a downloaded ``summary.json``."""
    return [
        Round(entry["round"], float(entry["metrics"]["accuracy"]), str(entry["primary"]), entry["epoch"])
        for entry in summary["rounds"]
        if entry["kind"] == "evaluate"
    ]


def count_contributions(records: Iterable[Record], job: str) -> Counter[tuple[int, str, str]]:
    """Count what the log holds of a job: (round, kind, site) -> contributions."""
    found: Counter[tuple[int, str, str]] = Counter()
    for record in records:
        if record.kind == "contribution":
            found.update(
                (item["round"], item["kind"], item["site"]) for item in record.body["items"] if item["job"] == job
            )
    return found


def count_calls(site: str, log: str, job: str) -> Counter[tuple[int, str, str]]:
    """Count what a site's own log says of its script: (round, kind, site) -> answers."""
    found: Counter[tuple[int, str, str]] = Counter()
    for line in log.splitlines():
        if (parts := _LOG_LINE.fullmatch(line)) and (told := _ANSWERED.fullmatch(parts[3])) and told[1] == job:
            found[int(told[3]), told[2], site] += 1
    return found


def followed_after(log: str, epoch: int, killed: datetime) -> float | None:
    """Return the seconds from the kill to the line in a site's log that says that it follows this epoch's primary."""
    for line in log.splitlines():
        if (parts := _LOG_LINE.fullmatch(line)) and (told := _FOLLOWING.fullmatch(parts[3])) and int(told[2]) == epoch:
            return (datetime.fromisoformat(parts[1]) - killed).total_seconds()
    return None


@dataclass(frozen=True)
class Evidence:
    """What was found afterwards, in the log of the servers and in the logs of the sites.

    Args:
        sites: the job's sites.
        rounds: how many rounds it had.
        recorded: see :func:`count_contributions`.
        called: see :func:`count_calls`, of all sites together.
    """

    sites: Sequence[str]
    rounds: int
    recorded: Counter[tuple[int, str, str]]
    called: Counter[tuple[int, str, str]]

    @property
    def expected(self) -> list[tuple[int, str, str]]:
        """What there must be exactly once."""
        kinds = ("train", "evaluate")
        return [(number, kind, site) for number in range(1, self.rounds + 1) for kind in kinds for site in self.sites]

    @property
    def nothing_lost(self) -> bool:
        """Every contribution is in the log once, and no script was asked twice."""
        once = dict.fromkeys(self.expected, 1)
        return dict(self.recorded) == once and dict(self.called) == once

    def contributions(self, number: int) -> str:
        """Return how often each site's training is in the log for a round, ``site-1 1, site-2 1``."""
        counts = {site: self.recorded[number, "train", site] for site in self.sites}
        if len(self.sites) > 3 and set(counts.values()) == {1}:
            return f"1 from each of {len(self.sites)} sites"
        return ", ".join(f"{site} {count}" for site, count in counts.items())

    def verdict(self) -> str:
        """Return what was found, in lines of at most 77 characters as long as all is well."""
        if self.nothing_lost:
            sites = "1 site" if len(self.sites) == 1 else f"{len(self.sites)} sites"
            return (
                f"Nothing was lost and nothing was done twice: the log holds {self.recorded.total()} contributions,\n"
                f"{sites} x {self.rounds} rounds x (train + test), each exactly once, and each is one run\n"
                "of a site's script."
            )
        return "Not exactly once: " + "; ".join(self._wrong())

    def check(self) -> None:
        """Do nothing if nothing was lost.

        Raises:
            FedhelmError: names what is not there exactly once.
        """
        if not self.nothing_lost:
            raise FedhelmError(f"{'; '.join(self._wrong())}", hint="every contribution is expected exactly once")

    def _wrong(self) -> list[str]:
        return [
            f"{kind} of round {number} by {site}: recorded {self.recorded[number, kind, site]} times, "
            f"done {self.called[number, kind, site]} times"
            for number, kind, site in sorted({*self.expected, *self.recorded, *self.called})
            if (self.recorded[number, kind, site], self.called[number, kind, site]) != (1, 1)
        ]


def rounds_table(rounds: Sequence[Round], evidence: Evidence) -> str:
    """Return accuracy and contributions of each round, and who closed it."""
    rows = [
        (one.number, f"{one.accuracy:.1%}", f"{one.primary}, epoch {one.epoch}", evidence.contributions(one.number))
        for one in rounds
    ]
    return table(("round", "accuracy", "closed by", "contributions in the log"), rows)
