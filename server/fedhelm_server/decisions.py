"""What a write may add to the log, decided on the newest book. Pure: a book and a request in, an item or answer out.

Every function returns a decision for :meth:`fedhelm_server.ledger.Ledger.propose`. A repeated request finds its first
answer in the book, so nothing is recorded twice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedhelm.errors import BadInput, Conflict, JobNotFound, NotAuthorised, ProtocolError, Refused
from fedhelm.learning.refusals import weight_problem
from fedhelm_server.job_book import CONTRIBUTION_KEY, ContributionKey, JobBook, JobState, Placed, finished
from fedhelm_server.ledger import Answer

__all__ = [
    "CONTRIBUTION_KEY",
    "SEQUENCE",
    "ContributionAnswer",
    "abort",
    "checkpoint",
    "contribute",
    "delete",
    "differs",
    "dispatch",
    "fail_site",
    "finish",
    "lines",
    "offer",
    "operate",
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
    if job in book.deleted:
        raise JobNotFound(f"job {job} was deleted by {book.deleted[job]['by']}")
    if job not in book.jobs:
        raise JobNotFound(f"no job {job}", hint="list_jobs")
    return book.jobs[job]


def _is_repeated(book: JobBook, request_id: str, write: tuple[str, str, str]) -> bool:
    """Tell whether this very write is in the log already.

    Raises:
        Conflict: the request id was used for another write.
        Refused: it is older than those that are remembered, so nobody can tell.
    """
    known = book.requests.get(request_id)
    if known is not None and known != write:
        raise Conflict(f"request id {request_id} was used for another write")
    if known is None and request_id <= book.request_floor:
        raise Refused(f"request id {request_id} is older than all that are remembered", hint="give the command again")
    return known is not None


def submit(item: Item) -> Decision:
    """Record a job. The same request id, or the same job from the same submitter with the same bundle: one job.

    Its signature is not compared: each try is signed afresh, and the first one that was recorded stays.
    """

    def decide(book: JobBook) -> Item | Answer:
        job = book.jobs.get(item["job"])
        if job is None or item["request_id"] in book.requests:
            _is_repeated(book, item["request_id"], ("submit", item["job"], item["submitter"]))
        if item["job"] in book.deleted:
            raise Conflict(f"job id {item['job']} belongs to a job that was deleted", hint="submit again with a new id")
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


def finish(
    job_id: str, status: str, reason: str, traceback: str, time: str, *, provenance: Mapping[str, Any] | None = None
) -> Decision:
    """End a job; ``provenance``: the blob of the signed statement of where its models come from."""

    def decide(book: JobBook) -> Item | Answer:
        if finished(_find(book, job_id).status):
            return Answer(None)
        said = {} if provenance is None else {"provenance": provenance}
        return {"job": job_id, "status": status, "reason": reason, "traceback": traceback, "time": time, **said}

    return decide


def abort(job_id: str, reason: str, by: str, request_id: str, time: str) -> Decision:
    """Abort a job that has not ended. The same request id again: the same answer."""

    def decide(book: JobBook) -> Item | Answer:
        if _is_repeated(book, request_id, ("abort", job_id, by)):
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


def delete(job_id: str, by: str, request_id: str, time: str) -> Decision:
    """Delete a job that has ended. The same request id again: the same answer."""

    def decide(book: JobBook) -> Item | Answer:
        if _is_repeated(book, request_id, ("delete", job_id, by)):
            return Answer(None)
        job = _find(book, job_id)
        if not finished(job.status):
            raise Conflict(f"job {job_id} has not ended: {job.status}", hint=f"abort_job {job_id}")
        return {"job": job_id, "request_id": request_id, "by": by, "time": time}

    return decide


def operate(item: Item) -> Decision:
    """Record what an admin asks of sites or servers, before it is done. The same request id again: the same answer."""

    def decide(book: JobBook) -> Item | Answer:
        if _is_repeated(book, item["request_id"], (item["action"], item["target"], item["by"])):
            return Answer(None)
        return item

    return decide


def checkpoint(item: Item) -> Decision:
    """Name a checkpoint's blob, unless the log has a newer one. Answers whether it was taken before."""

    def decide(book: JobBook) -> Item | Answer:
        if book.covered >= item["covered"]:
            return Answer(book.checkpoints[-1].blob == item["blob"])
        return item

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
    _check_contribution(item)
    key: ContributionKey = tuple(item[name] for name in CONTRIBUTION_KEY)

    def decide(book: JobBook) -> Item | Answer:
        job = _find(book, item["job"])
        placed = job.placed.get(key)
        if placed is not None:
            return Answer(ContributionAnswer(placed, superseded=differs(placed.item, item)))
        if not _is_wanted(job, item):
            return Answer(ContributionAnswer(None, gone=True))
        return item

    return decide


def offer(book: JobBook, item: Item) -> bool:
    """Tell whether the open round of an ephemeral job waits for this; False: it is gone. Raises as `contribute`."""
    _check_contribution(item)
    return _is_wanted(_find(book, item["job"]), item)


def differs(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Tell whether two contributions with one id have other contents."""
    return (one["blob"] or {}).get("digest") != (other["blob"] or {}).get("digest")


def _check_contribution(item: Item) -> None:
    if (wrong := weight_problem(item["weight"])) is not None:
        raise BadInput(f"the contribution of {item['site']} {wrong}")
    if not _metrics_ok(item["metrics"]):
        raise BadInput(f"metrics of {item['site']} are not finite numbers by name")
    if item["sequence"] != SEQUENCE:
        raise ProtocolError(f"a result with sequence {item['sequence']}: no task has it")


def _is_wanted(job: JobState, item: Item) -> bool:
    key = _round_key(item)
    if item["site"] not in job.sites:
        raise NotAuthorised(f"{item['site']} is no member of job {job.job}")
    if finished(job.status) or item["attempt"] != job.attempt or job.is_closed(key):
        return False
    if job.open is None or job.open.key != key or item["site"] not in job.open.members:
        raise ProtocolError(f"round {item['round']} ({item['kind']}) of job {job.job} is not open")
    if (item["blob"] is None) != (item["kind"] == "evaluate"):
        raise ProtocolError(f"a {item['kind']} result of job {job.job} with the wrong parts")
    return True


def _round_key(item: Mapping[str, Any]) -> tuple[int, int, str]:
    return item["step"], item["round"], item["kind"]


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


def own_lines(job_id: str, source: str, first: int, new: Sequence[Mapping[str, Any]]) -> Decision:
    """Record lines of a server's own runner, which numbered them; those already in the log are left out.

    Raises:
        Conflict: lines before these are missing.
    """

    def decide(book: JobBook) -> Item | Answer:
        acknowledged = _find(book, job_id).lines.get(source, 0)
        if first > acknowledged + 1:
            raise Conflict(f"lines of {source} from {first} on do not follow line {acknowledged} of job {job_id}")
        fresh = list(new[acknowledged + 1 - first :])
        return {"job": job_id, "source": source, "first": acknowledged + 1, "lines": fresh} if fresh else Answer(None)

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
        if job.is_closed(_round_key(item)):
            return Answer(None)
        if job.open is not None:
            if job.open.key == _round_key(item):
                return Answer(None)
            raise Conflict(f"round {job.open.round} of job {job.job} is open")
        return item

    return decide


def round_close(item: Item, held: Callable[[], Collection[str]] = tuple) -> Decision:
    """Close the open round with exactly the contributions that are in the log (docs/ha.md section 6, I4).

    Those that do not count, because nobody could average them, are named in ``refused``; they are members too.

    Args:
        item: the record's body.
        held: of an ephemeral job: tells the sites whose contributions to the open round are held now.
    """

    def decide(book: JobBook) -> Item | Answer:
        job = _find(book, item["job"])
        if finished(job.status):
            raise Conflict(f"job {job.job} has ended")
        if job.is_closed(_round_key(item)):
            return Answer(None)
        if job.open is None or job.open.key != _round_key(item):
            raise Conflict(f"round {item['round']} of job {job.job} is not open")
        if set(item["members"]) != set(held() if job.ephemeral else job.open.contributions):
            raise Conflict(f"round {item['round']} of job {job.job} has had another contribution")
        return item

    return decide
