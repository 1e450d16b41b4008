"""Which phase of a round a moment falls into, and waiting for one.

A round goes through ``training`` (all members have their task), ``uploading`` (a script has submitted, and its blob is
not complete in the store), ``appending`` (a blob is complete, and its contribution is not in the log), ``aggregating``
(all contributions are in the log, the model is not in the store) and ``closing`` (the model is there; until the next
round is open, or the job has ended). Sites are at different places: the one that is furthest before its
contribution counts. What is before the first round is ``starting``, what is after the job ``over``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.faults.history import Seen, blob_file
from bench.faults.work import JobPlan, read_calls
from bench.federation import now

__all__ = ["PHASES", "Aim", "Round", "phase_at", "rounds_of", "wait_for_phase"]

PHASES = ("training", "uploading", "appending", "aggregating", "closing")

_POLL = 0.002


@dataclass
class Round:
    """Moments of one round (boot time); by site where a site does it. What has not happened is missing."""

    opened: float
    submitted: dict[str, float] = field(default_factory=dict)
    uploaded: dict[str, float] = field(default_factory=dict)
    recorded: dict[str, float] = field(default_factory=dict)
    aggregated: float | None = None
    closed: float | None = None


def phase_at(moment: float, rounds: Mapping[int, Round], members: Sequence[str], over: float | None) -> str:
    """Return the phase that a moment falls into. Pure."""
    if over is not None and over <= moment:
        return "over"
    begun = [one for one in rounds.values() if one.opened <= moment]
    if not begun:
        return "starting"
    current = max(begun, key=lambda one: one.opened)
    if current.closed is not None and current.closed <= moment:
        return "closing"

    def reached(times: Mapping[str, float], site: str) -> bool:
        return times.get(site, float("inf")) <= moment

    waiting = [site for site in members if not reached(current.recorded, site)]
    if not waiting:
        return "closing" if current.aggregated is not None and current.aggregated <= moment else "aggregating"
    if any(reached(current.uploaded, site) for site in waiting):
        return "appending"
    return "uploading" if any(reached(current.submitted, site) for site in waiting) else "training"


def _mtime(store: Path, ref: Mapping[str, str]) -> float | None:
    """Boot time at which a blob's manifest was written."""
    try:
        written = blob_file(store, ref["owner"], f"m-{ref['digest']}").stat().st_mtime
    except OSError:
        return None
    return written - time.time() + now()


def rounds_of(job: str, plan: JobPlan, shared: Path, seen: Sequence[Seen], store: Path) -> dict[int, Round]:
    """Return what is known of a job's rounds, from the log as it was seen, the sites' calls and the store."""
    rounds: dict[int, Round] = {}
    for one in seen:
        record = one.record
        for item in record.body.get("items", (record.body,)):
            if item.get("job") != job:
                continue
            if record.kind == "round_open":
                rounds[item["round"]] = Round(one.at)
            elif record.kind == "contribution":
                rounds[item["round"]].recorded[item["site"]] = one.at
                if (moment := _mtime(store, item["blob"])) is not None:
                    rounds[item["round"]].uploaded[item["site"]] = min(moment, one.at)
            elif record.kind == "round_close":
                rounds[item["round"]].closed = one.at
                if (moment := _mtime(store, item["model"])) is not None:
                    rounds[item["round"]].aggregated = min(moment, one.at)
    for site in plan.sites:
        for call in read_calls(shared, site):
            if call.word == "submit" and call.round in rounds:
                rounds[call.round].submitted.setdefault(site, call.at)
    return rounds


@dataclass(frozen=True)
class Aim:
    """When to strike: in which round, how long after the phase was entered (seconds)."""

    phase: str
    round: int
    delay: float


def _entered(aim: Aim, job: str, plan: JobPlan, shared: Path, seen: Sequence[Seen], store: Path) -> bool:
    items = [
        (one.record.kind, item)
        for one in seen
        for item in one.record.body.get("items", (one.record.body,))
        if item.get("job") == job and item.get("round") == aim.round
    ]
    given = {item["site"] for kind, item in items if kind == "contribution"}
    words = {site: [one.word for one in read_calls(shared, site) if one.round == aim.round] for site in plan.sites}
    blobs = store / "blobs" / "jobs" / job / f"0-{aim.round}"
    match aim.phase:
        case "training":
            return all("begin" in said for said in words.values())
        case "uploading":
            return any("submit" in said for said in words.values())
        case "appending":
            return _count(blobs / "sites") > len(given) or bool(given)
        case "aggregating":
            return given == set(plan.sites)
        case _:
            return _count(blobs / "model") > 0 or any(kind == "round_close" for kind, _ in items)


def _count(folder: Path) -> int:
    try:
        return sum(path.name.startswith("m-") for path in folder.iterdir())
    except OSError:
        return 0


def wait_for_phase(
    aim: Aim, job: str, plan: JobPlan, shared: Path, since: Callable[[], Sequence[Seen]], store: Path, limit: float
) -> bool:
    """Wait until the job enters the phase, and ``delay`` longer; False when it does not within ``limit`` seconds.

    Args:
        aim: which phase.
        job: its id.
        plan: what it does.
        shared: folder of its calls.
        since: returns the records since before the job.
        store: where the blobs are.
        limit: seconds.
    """
    deadline = now() + limit
    while not _entered(aim, job, plan, shared, since(), store):
        if now() > deadline:
            return False
        time.sleep(_POLL)
    time.sleep(aim.delay)
    return True
