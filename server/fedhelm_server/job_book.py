"""The job book: jobs, rounds, receipts and acknowledged lines, as a fold over the log. Pure: no I/O, no clock.

A standby folds as it tails; a primary folds its own appends. Two servers that have read the same slots have equal
books. ``apply`` checks what no correct writer can violate (docs/ha.md section 6) and raises ``Corrupt`` where it is.
"""

from __future__ import annotations

import heapq
import json
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from fedhelm.errors import Corrupt
from fedhelm.persist.record import Record
from fedhelm_server.job_state import (
    CONTRIBUTION_KEY,
    ContributionKey,
    JobState,
    Placed,
    RoundState,
    Segment,
    finished,
)

__all__ = [
    "CONTRIBUTION_KEY",
    "MAX_FENCES",
    "MAX_REQUESTS",
    "Checkpoint",
    "ContributionKey",
    "Fence",
    "JobBook",
    "JobState",
    "Placed",
    "RoundState",
    "Segment",
    "finished",
]

MAX_REQUESTS = 10_000
"""Request ids that are remembered: the newest. Older ones are refused, so none is ever taken for a new one."""

MAX_FENCES = 1000
"""Fences that are remembered, so that the overseer's history can be made again from the log."""

STATE_FORMAT = 1


@dataclass(frozen=True)
class Fence:
    """A record that raised the epoch: who may write after it. After an ``epoch_repair`` that is nobody.

    ``time`` is for people; None in records of version 1.
    """

    epoch: int
    name: str
    incarnation: str
    cause: str
    seq: int
    time: str | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A ``checkpoint`` record: its slot, the last slot that it covers, and its blob."""

    seq: int
    covered: int
    blob: Mapping[str, Any]


class JobBook:
    """The fold. Only ``apply`` changes it."""

    def __init__(self) -> None:
        self.jobs: dict[str, JobState] = {}
        self._alive: dict[str, JobState] = {}
        self.deleted: dict[str, Mapping[str, Any]] = {}
        """Tombstones: the ``job_deleted`` bodies with their slots. Such an id is never used again."""
        self.requests: dict[str, tuple[str, str, str]] = {}
        """request id -> (kind of write, job or target, who); the newest ``MAX_REQUESTS``."""
        self.request_floor = ""
        """A request id up to this one that is not in ``requests`` was forgotten."""
        self._request_order: list[str] = []
        self.fences: deque[Fence] = deque(maxlen=MAX_FENCES)
        self.max_epoch = 0
        self.seq = -1
        self.handoff: Mapping[str, Any] | None = None
        self.log_version = 1
        self.checkpoints: tuple[Checkpoint, ...] = ()
        """The newest two, the newest last."""

    @property
    def fence(self) -> Fence | None:
        """The newest fence."""
        return self.fences[-1] if self.fences else None

    @property
    def covered(self) -> int:
        """The last slot that the newest checkpoint covers; -1 without one."""
        return self.checkpoints[-1].covered if self.checkpoints else -1

    def to_state(self) -> dict[str, Any]:
        """Return all of it as JSON values, in a form that the next ``apply`` does not change."""
        return {
            "format": STATE_FORMAT,
            "seq": self.seq,
            "max_epoch": self.max_epoch,
            "log_version": self.log_version,
            "handoff": self.handoff,
            "fences": [[*vars(one).values()] for one in self.fences],
            "checkpoints": [[one.seq, one.covered, one.blob] for one in self.checkpoints],
            "requests": [[key, *value] for key, value in self.requests.items()],
            "request_floor": self.request_floor,
            "deleted": list(self.deleted.values()),
            "jobs": [job.to_state() for job in self.jobs.values()],
        }

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> Self:
        """Return the book that ``to_state`` gave ``state`` for.

        Raises:
            Corrupt: it is none, or of another version.
        """
        try:
            if state["format"] != STATE_FORMAT:
                raise Corrupt(f"a checkpoint of format {state['format']!r:.40}; this program reads {STATE_FORMAT}")
            book = cls()
            for name in ("seq", "max_epoch", "log_version", "handoff", "request_floor"):
                setattr(book, name, state[name])
            book.fences.extend(Fence(*parts) for parts in state["fences"])
            book.checkpoints = tuple(Checkpoint(*parts) for parts in state["checkpoints"])
            book.requests = {key: (kind, target, who) for key, kind, target, who in state["requests"]}
            book._request_order = sorted(book.requests)  # a sorted list is a heap
            book.deleted = {body["job"]: body for body in state["deleted"]}
            book.jobs = {job.job: job for job in map(JobState.from_state, state["jobs"])}
        except (KeyError, TypeError, ValueError) as error:
            raise Corrupt(f"a checkpoint lacks or misstates {error}") from error
        book._alive = {job.job: job for job in book.jobs.values() if not finished(job.status)}
        return book

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

    def _remember(self, request_id: str, write: tuple[str, str, str]) -> None:
        if request_id not in self.requests:
            heapq.heappush(self._request_order, request_id)
        self.requests[request_id] = write
        if len(self.requests) > MAX_REQUESTS:
            oldest = heapq.heappop(self._request_order)
            del self.requests[oldest]
            self.request_floor = max(self.request_floor, oldest)

    def _genesis(self, record: Record) -> set[str]:
        if record.seq != 0:
            raise Corrupt(f"slot {record.seq}: a second genesis")
        self.log_version = record.v
        return set()

    def _raise_epoch(self, record: Record, cause: str, time: str | None) -> None:
        if self.fence is not None and record.epoch <= self.fence.epoch:
            raise Corrupt(f"slot {record.seq}: a second fence of epoch {record.epoch}")
        self.fences.append(Fence(record.epoch, record.by.name, record.by.incarnation, cause, record.seq, time))
        self.handoff = None

    def _fence(self, record: Record) -> set[str]:
        self._raise_epoch(record, record.body["cause"], record.body.get("time"))
        return set()

    def _epoch_repair(self, record: Record) -> set[str]:
        self._raise_epoch(record, f"epoch repair: {record.body['reason']}", record.body["time"])
        return set()

    def _handoff(self, record: Record) -> set[str]:
        self.handoff = record.body
        return set()

    def _config(self, record: Record) -> set[str]:
        self.log_version = max(self.log_version, int(record.body["log_version"]))
        return set()

    def _admin_action(self, record: Record) -> set[str]:
        body = record.body
        self._remember(body["request_id"], (body["action"], body["target"], body["by"]))
        return set()

    def _checkpoint(self, record: Record) -> set[str]:
        covered = int(record.body["covered"])
        if not self.covered < covered < record.seq:
            raise Corrupt(f"slot {record.seq}: a checkpoint of slot {covered} after one of slot {self.covered}")
        for job_id, segment in record.body.get("segments", {}).items():
            if job_id in self.jobs:  # else it was deleted while the checkpoint was written
                self.jobs[job_id].archive(segment["keep"], Segment(covered, segment["blob"]))
        for job in self.jobs.values():
            if job.end_seq is not None and self.covered < job.end_seq <= covered:
                job.settle()
        self.checkpoints = (*self.checkpoints[-1:], Checkpoint(record.seq, covered, record.body["blob"]))
        return set()

    def _job_deleted(self, record: Record) -> set[str]:
        job, body = self._job(record), record.body
        if not finished(job.status):
            raise Corrupt(f"slot {record.seq}: job {job.job} is deleted before its end")
        del self.jobs[job.job]
        self.deleted[job.job] = {**body, "seq": record.seq}
        self._remember(body["request_id"], ("delete", job.job, body["by"]))
        return {job.job}

    def _job_submitted(self, record: Record) -> set[str]:
        body = record.body
        if body["job"] in self.jobs or body["job"] in self.deleted:
            raise Corrupt(f"slot {record.seq}: job {body['job']} is submitted twice")
        names = ("job", "name", "submitter", "request_id", "bundle", "config")
        signed = {key: body[key] for key in ("submission", "submitter_org") if body.get(key)}  # of before: neither
        job = JobState(**{key: body[key] for key in names}, **signed, submit_time=body["time"], seq=record.seq)
        self.jobs[job.job] = self._alive[job.job] = job
        self._remember(job.request_id, ("submit", job.job, job.submitter))
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
            if job.open is None or job.open.key != key[1:4]:
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
        if job.open is None or job.open.key != (body["step"], body["round"], body["kind"]):
            raise Corrupt(f"slot {record.seq}: a round of job {job.job} is closed that is not open")
        given, members = set(job.open.contributions), set(body["members"])
        if not members <= set(job.open.members) if job.ephemeral else members != given:
            raise Corrupt(f"slot {record.seq}: the closed set of job {job.job} is not what was contributed")
        job.close({**body, "epoch": record.epoch, "seq": record.seq, "primary": record.by.name})
        return {job.job}

    def _job_done(self, record: Record) -> set[str]:
        job, body = self._job(record), record.body
        if finished(job.status):
            raise Corrupt(f"slot {record.seq}: job {job.job} has ended already")
        job.status = body["status"]
        job.reason = body.get("reason") or ""
        job.traceback = body.get("traceback") or ""
        job.end_time, job.end_seq = body["time"], record.seq
        job.provenance = body.get("provenance")
        del self._alive[job.job]
        if body.get("request_id"):
            self._remember(body["request_id"], ("abort", job.job, body.get("by", "")))
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
    "job_deleted": JobBook._job_deleted,  # noqa: SLF001
    "checkpoint": JobBook._checkpoint,  # noqa: SLF001
    "config": JobBook._config,  # noqa: SLF001
    "epoch_repair": JobBook._epoch_repair,  # noqa: SLF001
    "admin_action": JobBook._admin_action,  # noqa: SLF001
}
