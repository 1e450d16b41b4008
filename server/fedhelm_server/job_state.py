"""One job as the log tells it, and its form in a checkpoint. Pure.

What ``to_state`` returns is made of JSON values. It shares what nobody changes (bodies of records) and copies the rest,
so a thread may write it while the book goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from fedhelm.learning.workflow import ClosedView, best_round

__all__ = [
    "CONTRIBUTION_KEY",
    "ContributionKey",
    "JobState",
    "Placed",
    "RoundKey",
    "RoundState",
    "Segment",
    "counted",
    "finished",
    "is_whole",
]

ContributionKey = tuple[int, int, int, str, str, int]
"""(attempt, step, round, kind, site, sequence) of one job."""

CONTRIBUTION_KEY = ("attempt", "step", "round", "kind", "site", "sequence")

RoundKey = tuple[int, int, str]
"""(step, round, kind) of one job."""


@dataclass(frozen=True)
class Placed:
    """An item and where it is in the log."""

    seq: int
    index: int
    epoch: int
    item: Mapping[str, Any]

    @property
    def key(self) -> ContributionKey:
        """What no two contributions have in common."""
        return tuple(self.item[name] for name in CONTRIBUTION_KEY)

    def to_state(self) -> list[Any]:
        """Return it as JSON values."""
        return [self.seq, self.index, self.epoch, self.item]


@dataclass(frozen=True)
class Segment:
    """A blob with what has left the log: of the slots after those of the segment before, up to ``last``."""

    last: int
    blob: Mapping[str, Any]


@dataclass
class RoundState:
    """A round that is open."""

    step: int
    round: int
    rounds: int
    kind: str
    members: tuple[str, ...]
    model: Mapping[str, Any] | None
    model_sha256: str | None
    deadline_s: float | None
    opened: str
    contributions: dict[str, Placed] = field(default_factory=dict)

    @property
    def key(self) -> RoundKey:
        """Which round of its job it is."""
        return self.step, self.round, self.kind

    def to_state(self) -> dict[str, Any]:
        """Return it as JSON values; the contributions are in the job's ``placed``."""
        return {**vars(self), "members": list(self.members), "contributions": None}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], placed: Mapping[ContributionKey, Placed]) -> Self:
        """Return the round that ``to_state`` gave ``state`` for."""
        found = cls(**{**state, "members": tuple(state["members"]), "contributions": {}})
        given = {one.item["site"]: one for key, one in placed.items() if key[1:4] == found.key}
        found.contributions.update(given)
        return found


@dataclass
class JobState:
    """What the log says of one job.

    ``placed`` has the contributions to the open round and to the one closed last: an older offer is "gone", because
    its round is closed. ``line_slots`` are the slots with its lines that no segment holds yet. ``closed`` has the
    rounds in the order of closing. What they say of each site is in the segments once a checkpoint covers them
    (`is_whole`), and of an ended job only the rounds that are asked for stay. ``end_seq`` is the slot that ended it.

    ``submission`` is what the submitter signed, as it came; ``submitter_org`` the organisation in their certificate:
    None and empty for a job of before jobs were signed. ``provenance`` is the blob of the signed statement of who
    trained what; None where the job has not completed, or did before there were such statements.
    """

    job: str
    name: str
    submitter: str
    request_id: str
    bundle: Mapping[str, Any]
    config: Mapping[str, Any]
    submit_time: str
    seq: int
    status: str = "SUBMITTED"
    reason: str = ""
    traceback: str = ""
    attempt: int = 1
    sites: tuple[str, ...] = ()
    failed: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    open: RoundState | None = None
    closed: list[Mapping[str, Any]] = field(default_factory=list)
    placed: dict[ContributionKey, Placed] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)
    line_bytes: dict[str, int] = field(default_factory=dict)
    line_slots: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    end_time: str | None = None
    end_seq: int | None = None
    submission: str | None = None
    submitter_org: str = ""
    provenance: Mapping[str, Any] | None = None
    _closed_keys: set[RoundKey] = field(default_factory=set, repr=False)

    @property
    def model(self) -> Mapping[str, Any] | None:
        """The newest closed round that made a model, or None."""
        return next((entry for entry in reversed(self.closed) if entry.get("model")), None)

    def best(self, closed: Sequence[Mapping[str, Any]] | None = None) -> Mapping[str, Any] | None:
        """Return the closed round that made the best model so far, or None; ``closed``: as of an earlier time."""
        entries = self.closed if closed is None else closed
        views = [ClosedView(entry["round"], entry["kind"], entry["metrics"]) for entry in entries]
        number = best_round(views, self.config["workflow"][0].get("best_metric"))
        return next((entry for entry in entries if entry["round"] == number and entry.get("model")), None)

    @property
    def ephemeral(self) -> bool:
        """Whether its contributions stay out of the log."""
        return self.config.get("durability") == "ephemeral"

    def is_closed(self, which: RoundKey) -> bool:
        """Tell whether the round (step, round, kind) is closed."""
        return which in self._closed_keys

    def close(self, entry: Mapping[str, Any]) -> None:
        """Close the open round with this entry; forget contributions to the rounds before it."""
        key = (entry["step"], entry["round"], entry["kind"])
        self.closed.append(entry)
        self._closed_keys.add(key)
        self.open = None
        self.placed = {one: placed for one, placed in self.placed.items() if one[1:4] == key}

    def archive(self, keep: int, segment: Segment) -> None:
        """Take note that everything up to ``segment.last`` is in the first ``keep`` segments and in this one."""
        self.segments[keep:] = [segment]
        self.line_slots = [slot for slot in self.line_slots if slot > segment.last]
        self.closed = [_slim(entry) if entry["seq"] <= segment.last else entry for entry in self.closed]

    def settle(self) -> None:
        """The job has ended, and its rounds are in segments: keep those that its assignment and its views need."""
        if any(map(is_whole, self.closed)):
            return
        newest = {(entry["step"], entry["kind"]): entry["round"] for entry in self.closed}
        rounds = {entry["round"] for entry in (self.best(), self.model) if entry is not None} | set(newest.values())
        self.closed = [entry for entry in self.closed if entry["round"] in rounds]
        self._closed_keys = _keys(self.closed)

    def to_state(self) -> dict[str, Any]:
        """Return it as JSON values; what is copied is what changes."""
        state = {**vars(self)}
        del state["_closed_keys"]
        return state | {
            "sites": list(self.sites),
            "failed": dict(self.failed),
            "open": self.open and self.open.to_state(),
            "closed": list(self.closed),
            "placed": [one.to_state() for one in self.placed.values()],
            "lines": dict(self.lines),
            "line_bytes": dict(self.line_bytes),
            "line_slots": list(self.line_slots),
            "segments": [[one.last, one.blob] for one in self.segments],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Return the job that ``to_state`` gave ``state`` for."""
        placed = {one.key: one for one in (Placed(*parts) for parts in state["placed"])}
        changed = {
            **{name: dict(state[name]) for name in ("failed", "lines", "line_bytes")},
            **{name: list(state[name]) for name in ("closed", "line_slots")},
            "sites": tuple(state["sites"]),
            "open": state["open"] and RoundState.from_state(state["open"], placed),
            "placed": placed,
            "segments": [Segment(*parts) for parts in state["segments"]],
            "_closed_keys": _keys(state["closed"]),
        }
        return cls(**{**state, **changed})


_OF_SITES = frozenset({"members", "weights", "site_metrics"})


def is_whole(entry: Mapping[str, Any]) -> bool:
    """Tell whether an entry of ``closed`` still says what each site gave: no segment holds it yet."""
    return not _OF_SITES.isdisjoint(entry)


def counted(entry: Mapping[str, Any]) -> list[str]:
    """Return the sites whose contributions a closed round is made of: its members but those that were refused."""
    return [site for site in entry["members"] if site not in entry.get("refused", ())]


def _slim(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    return {key: value for key, value in entry.items() if key not in _OF_SITES and key != "refused"}


def _keys(closed: Iterable[Mapping[str, Any]]) -> set[RoundKey]:
    return {(entry["step"], entry["round"], entry["kind"]) for entry in closed}


def finished(status: str) -> bool:
    """Tell whether a job with this status has ended."""
    return status.startswith("FINISHED:")
