"""The job book: jobs, rounds, receipts and acknowledged lines, as a fold over the log. Pure: no I/O, no clock.

A standby folds as it tails; a primary folds its own appends. Two servers that have read the same slots have equal
books. ``apply`` checks what no correct writer can violate (docs/ha.md section 6) and raises ``Corrupt`` where it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fedhelm.errors import Corrupt
from fedhelm.persist.record import Record

__all__ = ["CONTRIBUTION_KEY", "ContributionKey", "Fence", "JobBook", "JobState", "Placed", "RoundState", "finished"]

ContributionKey = tuple[int, int, int, str, str, int]
"""(attempt, step, round, kind, site, sequence) of one job."""

CONTRIBUTION_KEY = ("attempt", "step", "round", "kind", "site", "sequence")


@dataclass(frozen=True)
class Fence:
    """The newest fence in the log: who may write."""

    epoch: int
    name: str
    incarnation: str
    cause: str
    seq: int


@dataclass(frozen=True)
class Placed:
    """An item and where it is in the log."""

    seq: int
    index: int
    epoch: int
    item: Mapping[str, Any]


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


@dataclass
class JobState:
    """What the log says of one job."""

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
    end_time: str | None = None

    @property
    def model(self) -> Mapping[str, Any] | None:
        """The newest closed round that made a model, or None."""
        return next((entry for entry in reversed(self.closed) if entry.get("model")), None)

    def is_closed(self, which: tuple[int, int, str]) -> bool:
        """Tell whether the round (step, round, kind) is closed."""
        return any((entry["step"], entry["round"], entry["kind"]) == which for entry in self.closed)


def finished(status: str) -> bool:
    """Tell whether a job with this status has ended."""
    return status.startswith("FINISHED:")


class JobBook:
    """The fold. Only ``apply`` changes it."""

    def __init__(self) -> None:
        self.jobs: dict[str, JobState] = {}
        self._alive: dict[str, JobState] = {}
        self.requests: dict[str, tuple[str, str, str]] = {}
        """request id -> (kind of write, job, submitter)"""
        self.fence: Fence | None = None
        self.max_epoch = 0
        self.seq = -1
        self.handoff: Mapping[str, Any] | None = None

    def apply(self, record: Record) -> set[str]:
        """Fold one record; return the ids of the jobs it changed.

        Raises:
            Corrupt: the record cannot follow what was read before; the message names the slot.
        """
        if record.seq != self.seq + 1 or record.epoch < self.max_epoch:
            raise Corrupt(f"slot {record.seq}: out of order after slot {self.seq}, epoch {self.max_epoch}")
        handler = _HANDLERS.get(record.kind)
        if handler is None:
            raise Corrupt(f"slot {record.seq}: a record of unknown kind {record.kind!r}")
        try:
            changed: set[str] = handler(self, record)
        except (KeyError, TypeError, ValueError) as error:
            raise Corrupt(f"slot {record.seq}: a {record.kind} record lacks or misstates {error}") from error
        self.seq = record.seq
        self.max_epoch = record.epoch
        return changed

    def running(self) -> Iterator[JobState]:
        """Yield the jobs that were dispatched and have not ended, in order of submission."""
        return (job for job in self._alive.values() if job.status != "SUBMITTED")

    def waiting(self) -> Iterator[JobState]:
        """Yield the jobs that wait to be dispatched, in order of submission."""
        return (job for job in self._alive.values() if job.status == "SUBMITTED")

    def match(self, prefix: str) -> list[JobState]:
        """Return the jobs whose id begins with ``prefix``."""
        if prefix in self.jobs:
            return [self.jobs[prefix]]
        return [job for key, job in self.jobs.items() if key.startswith(prefix)]

    def _job(self, record: Record) -> JobState:
        job = self.jobs.get(record.body["job"])
        if job is None:
            raise Corrupt(f"slot {record.seq}: a {record.kind} record of an unknown job {record.body['job']!r}")
        return job

    def _genesis(self, record: Record) -> set[str]:
        if record.seq != 0:
            raise Corrupt(f"slot {record.seq}: a second genesis")
        return set()

    def _fence(self, record: Record) -> set[str]:
        if self.fence is not None and record.epoch <= self.fence.epoch:
            raise Corrupt(f"slot {record.seq}: a second fence of epoch {record.epoch}")
        self.fence = Fence(record.epoch, record.by.name, record.by.incarnation, record.body["cause"], record.seq)
        self.handoff = None
        return set()

    def _handoff(self, record: Record) -> set[str]:
        self.handoff = record.body
        return set()

    def _job_submitted(self, record: Record) -> set[str]:
        body = record.body
        if body["job"] in self.jobs:
            raise Corrupt(f"slot {record.seq}: job {body['job']} is submitted twice")
        names = ("job", "name", "submitter", "request_id", "bundle", "config")
        job = JobState(**{key: body[key] for key in names}, submit_time=body["time"], seq=record.seq)
        self.jobs[job.job] = self._alive[job.job] = job
        self.requests[job.request_id] = ("submit", job.job, job.submitter)
        return {job.job}

    def _job_state(self, record: Record) -> set[str]:
        job = self._job(record)
        if finished(job.status):
            raise Corrupt(f"slot {record.seq}: job {job.job} has ended already")
        job.status = record.body["status"]
        job.reason = record.body.get("reason") or ""
        if record.body.get("sites"):
            job.sites = tuple(record.body["sites"])
        return {job.job}

    def _site_failed(self, record: Record) -> set[str]:
        job = self._job(record)
        job.failed.setdefault(record.body["site"], {**record.body, "seq": record.seq, "epoch": record.epoch})
        return {job.job}

    def _round_open(self, record: Record) -> set[str]:
        job, body = self._job(record), record.body
        if job.open is not None:
            raise Corrupt(f"slot {record.seq}: a round of job {job.job} is open already")
        if finished(job.status) or job.is_closed((body["step"], body["round"], body["kind"])):
            raise Corrupt(f"slot {record.seq}: a round of job {job.job} is opened after its end")
        job.open = RoundState(
            step=body["step"],
            round=body["round"],
            rounds=body["rounds"],
            kind=body["kind"],
            members=tuple(body["members"]),
            model=body["model"],
            model_sha256=body["model_sha256"],
            deadline_s=body["deadline_s"],
            opened=body["time"],
        )
        return {job.job}

    def _contribution(self, record: Record) -> set[str]:
        changed = set()
        for index, item in enumerate(record.body["items"]):
            job = self.jobs[item["job"]]
            key: ContributionKey = tuple(item[name] for name in CONTRIBUTION_KEY)
            if key in job.placed:
                raise Corrupt(f"slot {record.seq}: contribution {'/'.join(map(str, key))} is recorded twice")
            placed = Placed(record.seq, index, record.epoch, item)
            job.placed[key] = placed
            if job.open is None or (job.open.step, job.open.round, job.open.kind) != key[1:4]:
                raise Corrupt(f"slot {record.seq}: a contribution to a round of {job.job} that is not open")
            job.open.contributions[item["site"]] = placed
            changed.add(job.job)
        return changed

    def _metrics(self, record: Record) -> set[str]:
        for item in record.body["items"]:
            job = self.jobs[item["job"]]
            acknowledged = job.lines.get(item["source"], 0)
            if item["first"] != acknowledged + 1:
                raise Corrupt(f"slot {record.seq}: lines of {item['source']} do not follow line {acknowledged}")
            job.lines[item["source"]] = acknowledged + len(item["lines"])
            size = len(json.dumps(item["lines"]))
            job.line_bytes[item["source"]] = job.line_bytes.get(item["source"], 0) + size
            if not job.line_slots or job.line_slots[-1] != record.seq:
                job.line_slots.append(record.seq)
        return {item["job"] for item in record.body["items"]}

    def _round_close(self, record: Record) -> set[str]:
        job, body = self._job(record), record.body
        if job.open is None or (job.open.step, job.open.round, job.open.kind) != (
            body["step"],
            body["round"],
            body["kind"],
        ):
            raise Corrupt(f"slot {record.seq}: a round of job {job.job} is closed that is not open")
        if set(body["members"]) != set(job.open.contributions):
            raise Corrupt(f"slot {record.seq}: the closed set of job {job.job} is not what was contributed")
        job.closed.append({**body, "epoch": record.epoch, "seq": record.seq})
        job.open = None
        return {job.job}

    def _job_done(self, record: Record) -> set[str]:
        job, body = self._job(record), record.body
        if finished(job.status):
            raise Corrupt(f"slot {record.seq}: job {job.job} has ended already")
        job.status = body["status"]
        job.reason = body.get("reason") or ""
        job.traceback = body.get("traceback") or ""
        job.end_time = body["time"]
        del self._alive[job.job]
        if body.get("request_id"):
            self.requests[body["request_id"]] = ("abort", job.job, body.get("by", ""))
        return {job.job}


_HANDLERS: Mapping[str, Any] = {
    "genesis": JobBook._genesis,  # noqa: SLF001 - the table of the class's own handlers
    "fence": JobBook._fence,  # noqa: SLF001
    "handoff": JobBook._handoff,  # noqa: SLF001
    "job_submitted": JobBook._job_submitted,  # noqa: SLF001
    "job_state": JobBook._job_state,  # noqa: SLF001
    "site_failed": JobBook._site_failed,  # noqa: SLF001
    "round_open": JobBook._round_open,  # noqa: SLF001
    "contribution": JobBook._contribution,  # noqa: SLF001
    "metrics": JobBook._metrics,  # noqa: SLF001
    "round_close": JobBook._round_close,  # noqa: SLF001
    "job_done": JobBook._job_done,  # noqa: SLF001
}
