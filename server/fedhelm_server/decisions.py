"""What a write may add to the log, decided on the newest book. Pure: a book and a request in, an item or answer out.

Every function returns a decision for :meth:`fedhelm_server.ledger.Ledger.propose`. A repeated request finds its first
answer in the book, so nothing is recorded twice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedhelm.errors import BadInput, Conflict, JobNotFound, NotAuthorised, ProtocolError
from fedhelm_server.job_book import CONTRIBUTION_KEY, ContributionKey, JobBook, JobState, Placed, finished
from fedhelm_server.ledger import Answer

__all__ = [
    "CONTRIBUTION_KEY",
    "SEQUENCE",
    "ContributionAnswer",
    "abort",
    "contribute",
    "dispatch",
    "fail_site",
    "finish",
    "lines",
    "own_lines",
    "round_close",
    "round_open",
    "running",
    "submit",
]

SEQUENCE = 0
"""Sequence of every task: a site contributes once to a round."""

Item = dict[str, Any]
Decision = Callable[[JobBook], Item | Answer]


def _find(book: JobBook, job: str) -> JobState:
    if job not in book.jobs:
        raise JobNotFound(f"no job {job}", hint="list_jobs")
    return book.jobs[job]


def submit(item: Item) -> Decision:
    """Record a job. The same request id, or the same job from the same submitter with the same bundle: one job."""

    def decide(book: JobBook) -> Item | Answer:
        known = book.requests.get(item["request_id"])
        if known is not None and known != ("submit", item["job"], item["submitter"]):
            raise Conflict(f"request id {item['request_id']} was used for another write")
        job = book.jobs.get(item["job"])
        if job is None:
            return item
        if (job.submitter, job.bundle["digest"]) != (item["submitter"], item["bundle"]["digest"]):
            raise Conflict(f"job id {job.job} belongs to another submission", hint="submit again with a new id")
        return Answer(job.seq)

    return decide


def dispatch(job_id: str, sites: Sequence[str], time: str) -> Decision:
    """Fix a waiting job's sites."""

    def decide(book: JobBook) -> Item | Answer:
        if _find(book, job_id).status != "SUBMITTED":
            return Answer(None)
        return {"job": job_id, "status": "DISPATCHED", "sites": list(sites), "reason": "", "time": time}

    return decide


def running(job_id: str, time: str) -> Decision:
    """Say that a dispatched job's workflow has begun."""

    def decide(book: JobBook) -> Item | Answer:
        if _find(book, job_id).status != "DISPATCHED":
            return Answer(None)
        return {"job": job_id, "status": "RUNNING", "sites": [], "reason": "", "time": time}

    return decide


def finish(job_id: str, status: str, reason: str, traceback: str, time: str) -> Decision:
    """End a job."""

    def decide(book: JobBook) -> Item | Answer:
        if finished(_find(book, job_id).status):
            return Answer(None)
        return {"job": job_id, "status": status, "reason": reason, "traceback": traceback, "time": time}

    return decide


def abort(job_id: str, reason: str, by: str, request_id: str, time: str) -> Decision:
    """Abort a job that has not ended. The same request id again: the same answer."""

    def decide(book: JobBook) -> Item | Answer:
        known = book.requests.get(request_id)
        if known is not None:
            if known != ("abort", job_id, by):
                raise Conflict(f"request id {request_id} was used for another write")
            return Answer(None)
        job = _find(book, job_id)
        if finished(job.status):
            raise Conflict(f"job {job_id} has ended already: {job.status}")
        text = f"aborted by {by}" + (f": {reason}" if reason else "")
        return {
            "job": job_id,
            "status": "FINISHED:ABORTED",
            "reason": text,
            "traceback": "",
            "request_id": request_id,
            "by": by,
            "time": time,
        }

    return decide


@dataclass(frozen=True)
class ContributionAnswer:
    """What the log already says of a contribution: its place, or that its round is over."""

    placed: Placed | None
    superseded: bool = False
    gone: bool = False


MAX_METRICS = 1000
MAX_METRIC_NAME = 200


def _metrics_ok(metrics: Mapping[str, Any]) -> bool:
    return len(metrics) <= MAX_METRICS and all(
        isinstance(name, str) and len(name) <= MAX_METRIC_NAME and _is_finite(value) for name, value in metrics.items()
    )


def _is_finite(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


def contribute(item: Item) -> Decision:
    """Record one contribution (docs/ha.md section 5): once per id; a late one is gone.

    Raises:
        BadInput: its weight or a metric is no finite number.
        ProtocolError: no task has its sequence.
    """
    if not (math.isfinite(item["weight"]) and item["weight"] >= 0):
        raise BadInput(f"weight {item['weight']} of {item['site']} is not a number of at least 0")
    if not _metrics_ok(item["metrics"]):
        raise BadInput(f"metrics of {item['site']} are not finite numbers by name")
    if item["sequence"] != SEQUENCE:
        raise ProtocolError(f"a result with sequence {item['sequence']}: no task has it")
    key: ContributionKey = tuple(item[name] for name in CONTRIBUTION_KEY)

    def decide(book: JobBook) -> Item | Answer:
        job = _find(book, item["job"])
        placed = job.placed.get(key)
        if placed is not None:
            return Answer(ContributionAnswer(placed, superseded=_digest(placed.item) != _digest(item)))
        if item["site"] not in job.sites:
            raise NotAuthorised(f"{item['site']} is no member of job {job.job}")
        open_ = job.open
        if finished(job.status) or item["attempt"] != job.attempt or _is_closed(job, key):
            return Answer(ContributionAnswer(None, gone=True))
        if open_ is None or (open_.step, open_.round, open_.kind) != key[1:4] or item["site"] not in open_.members:
            raise ProtocolError(f"round {item['round']} ({item['kind']}) of job {job.job} is not open")
        if (item["blob"] is None) != (item["kind"] == "evaluate"):
            raise ProtocolError(f"a {item['kind']} result of job {job.job} with the wrong parts")
        return item

    return decide


def _digest(item: Mapping[str, Any]) -> Any:
    blob = item["blob"]
    return None if blob is None else blob["digest"]


def _is_closed(job: JobState, key: ContributionKey) -> bool:
    return job.is_closed(key[1:4])


MAX_SOURCE_BYTES = 256 * 1024 * 1024
"""Bytes of lines (as JSON) that one site may record for one job; the batch that reaches it is still taken."""

_QUOTA = "quota reached: later lines are in the site's log only"


def lines(job_id: str, source: str, first: int, new: Sequence[Mapping[str, Any]]) -> Decision:
    """Record numbered lines of a source; those already in the log are left out. Answers the last number in the log.

    The batch with which the source has used up :data:`MAX_SOURCE_BYTES` is followed by a line that says so. Every
    server counts the same, from the log.

    Raises:
        Conflict: the source had used it up before; the site keeps the rest to itself.
    """

    def decide(book: JobBook) -> Item | Answer:
        job = _find(book, job_id)
        if source not in job.sites:
            raise NotAuthorised(f"{source} is no member of job {job_id}")
        acknowledged = job.lines.get(source, 0)
        fresh = list(new[max(0, acknowledged + 1 - first) :])
        if not fresh:
            return Answer(acknowledged)
        used = job.line_bytes.get(source, 0)
        if used >= MAX_SOURCE_BYTES:
            raise Conflict(f"{_QUOTA}: job {job_id} has had {used} bytes of lines from {source}")
        if first > acknowledged + 1:
            return Answer(acknowledged)  # a gap: the site sends again from the next number
        if used + len(json.dumps(fresh)) >= MAX_SOURCE_BYTES:
            stamp = str(fresh[-1].get("time", "-"))[:40]
            fresh.append({"kind": "log", "tag": "server", "value": _QUOTA, "step": None, "time": stamp})
        return {"job": job_id, "source": source, "first": acknowledged + 1, "lines": fresh}

    return decide


def own_lines(job_id: str, source: str, new: Sequence[Mapping[str, Any]]) -> Decision:
    """Record lines of a server's own runner, numbered as they are appended."""

    def decide(book: JobBook) -> Item | Answer:
        first = _find(book, job_id).lines.get(source, 0) + 1
        return {"job": job_id, "source": source, "first": first, "lines": list(new)}

    return decide


def fail_site(item: Item) -> Decision:
    """Record that a site's job process died; the first reason stays."""

    def decide(book: JobBook) -> Item | Answer:
        job = _find(book, item["job"])
        if item["site"] not in job.sites:
            raise NotAuthorised(f"{item['site']} is no member of job {job.job}")
        if finished(job.status) or item["site"] in job.failed or item["attempt"] != job.attempt:
            return Answer(job.failed.get(item["site"]))
        return item

    return decide


def round_open(item: Item) -> Decision:
    """Open a round of a job; one that is open or closed already stays as it is (a runner that died asked before)."""

    def decide(book: JobBook) -> Item | Answer:
        job = _find(book, item["job"])
        if finished(job.status):
            raise Conflict(f"job {job.job} has ended")
        if job.is_closed((item["step"], item["round"], item["kind"])):
            return Answer(None)
        if job.open is not None:
            if (job.open.step, job.open.round, job.open.kind) == (item["step"], item["round"], item["kind"]):
                return Answer(None)
            raise Conflict(f"round {job.open.round} of job {job.job} is open")
        return item

    return decide


def round_close(item: Item) -> Decision:
    """Close the open round with exactly the contributions that are in the log (docs/ha.md section 6, I4)."""

    def decide(book: JobBook) -> Item | Answer:
        job = _find(book, item["job"])
        if finished(job.status):
            raise Conflict(f"job {job.job} has ended")
        if job.is_closed((item["step"], item["round"], item["kind"])):
            return Answer(None)
        if job.open is None or (job.open.step, job.open.round, job.open.kind) != (
            item["step"],
            item["round"],
            item["kind"],
        ):
            raise Conflict(f"round {item['round']} of job {job.job} is not open")
        if set(item["members"]) != set(job.open.contributions):
            raise Conflict(f"round {item['round']} of job {job.job} has had another contribution")
        return item

    return decide
