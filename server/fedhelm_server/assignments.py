"""From the book to what one site should be doing. Pure: the message is the same on every server with this book."""

from __future__ import annotations

import json
from collections.abc import Collection

from fedhelm.v1 import common_pb2 as common
from fedhelm.v1 import fleet_pb2 as fleet
from fedhelm_server.decisions import SEQUENCE
from fedhelm_server.job_book import JobBook, JobState, finished
from fedhelm_server.places import sites_owner

__all__ = ["assignment", "task_of"]


DELETED = "FINISHED:DELETED"
"""What a site is told of a job that is in the log no more: to let go of what it has of it."""


def task_of(job: JobState, site: str) -> fleet.Task | None:
    """Return the task that ``site`` still owes the open round of ``job``, or None."""
    open_ = job.open
    if open_ is None or site not in open_.members or site in open_.contributions or site in job.failed:
        return None
    task = fleet.Task(
        step=open_.step,
        round=open_.round,
        rounds=open_.rounds,
        kind=open_.kind,
        sequence=SEQUENCE,
        model_sha256=open_.model_sha256 or "",
        deadline_s=open_.deadline_s or 0.0,
        upload_owner=sites_owner(job.job, open_.step, open_.round),
    )
    if open_.model is not None:
        task.model.CopyFrom(common.BlobRef(**open_.model))
    return task


def _closed(job: JobState) -> list[fleet.ClosedRound]:
    newest = {(entry["step"], entry["kind"]): entry["round"] for entry in job.closed}
    return [fleet.ClosedRound(step=step, round=round_, kind=kind) for (step, kind), round_ in newest.items()]


def _assigned(job: JobState, site: str, has_given: bool) -> fleet.AssignedJob:
    message = fleet.AssignedJob(
        job=job.job,
        name=job.name,
        attempt=job.attempt,
        status=job.status if finished(job.status) else "RUNNING",
        bundle=common.BlobRef(**job.bundle),
        app=next(iter(job.config["deploy"])),
        script=job.config["script"],
        options_json=json.dumps(job.config.get("options") or {}),
        closed=_closed(job),
        lines_acknowledged=job.lines.get(site, 0),
        custom_code=True,
        members=sorted(job.sites),
        durability=job.config.get("durability", "durable"),
        submission=b"" if finished(job.status) else (job.submission or "").encode(),
    )
    task = None if finished(job.status) or has_given else task_of(job, site)
    if task is not None:
        message.task.CopyFrom(task)
    return message


def assignment(
    book: JobBook, site: str, epoch: int, held: Collection[str], given: Collection[str] = ()
) -> fleet.Assignment:
    """Return the whole of what ``site`` should be doing.

    Args:
        book: the fold of the log.
        site: whose.
        epoch: of the primary that sends it.
        held: ended jobs that the site still has something of; it is told how they ended.
        given: ephemeral jobs whose open round has this site's result, which is held in memory. A task that is there
            again, because nobody holds the result any more, asks the site for it.
    """
    wanted = {job.job for job in book.running()} | {job for job in held if job in book.jobs}
    jobs = [
        _assigned(book.jobs[job], site, job in given)
        for job in sorted(wanted)
        if site in book.jobs[job].sites and book.jobs[job].status != "SUBMITTED"
    ]
    jobs += [fleet.AssignedJob(job=job, status=DELETED) for job in sorted(set(held) & book.deleted.keys())]
    return fleet.Assignment(epoch=epoch, seq=max(0, book.seq), jobs=jobs)
