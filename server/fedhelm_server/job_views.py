"""What admins are shown of a job. Pure: from the book to messages."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from datetime import datetime

from fedhelm.v1 import admin_pb2 as admin
from fedhelm_server.job_book import JobState, finished

__all__ = ["MAX_TOLD", "detail", "site_status", "summary"]

MAX_TOLD = 5
"""Sites whose failures `show_job` tells; more are counted."""


def summary(job: JobState, now: datetime) -> admin.JobSummary:
    """Return the line of `list_jobs`."""
    end = datetime.fromisoformat(job.end_time) if job.end_time else now
    return admin.JobSummary(
        job=job.job,
        name=job.name,
        status=job.status,
        submit_time=job.submit_time,
        duration_s=max(0.0, round((end - datetime.fromisoformat(job.submit_time)).total_seconds(), 3)),
        submitter=job.submitter,
    )


def site_status(
    job: JobState, site: str, connected: Collection[str], held: Mapping[str, str], given: Collection[str]
) -> str:
    """Return what `show_job` says of a site of a job.

    FAILED: its script died. DONE: it has contributed to the open round, or the job is complete. STOPPED: the job ended
    otherwise. DISCONNECTED; STARTING: its job process is on its way; TRAINING; WAITING: it has nothing to do.

    Args:
        job: the job.
        site: one of its sites.
        connected: names of the sites with a stream.
        held: job id -> status, as that site's stream reported last.
        given: the sites that have contributed to the open round.
    """
    if site in job.failed:
        return "FAILED"
    if finished(job.status):
        return "DONE" if job.status == "FINISHED:COMPLETED" else "STOPPED"
    if site not in connected:
        return "DISCONNECTED"
    if job.open is not None and site in given:
        return "DONE"
    doing = held.get(job.job, "")
    return doing if doing in ("TRAINING", "STARTING") else "WAITING"


def _reason(
    job: JobState,
    waits: Mapping[str, str],
    connected: Collection[str],
    held: Mapping[str, Mapping[str, str]],
    given: Collection[str],
) -> str:
    if job.reason:
        return job.reason
    if job.job in waits:
        return waits[job.job]
    if job.open is not None:
        absent = [s for s in job.open.members if s not in given and s not in connected]
        if absent:
            return f"round {job.open.round} waits for {', '.join(absent)} to connect"
        ended = [s for s in job.open.members if s not in given and held.get(s, {}).get(job.job) == "ENDED"]
        if ended:  # the store was put back to before that
            where = f"{', '.join(ended)}, where this job has ended already"
            return f"round {job.open.round} waits for {where}: abort it, and submit it again"
    return _failures(job)


def _refusals(job: JobState) -> list[str]:
    """Whose contributions the round that was closed last did without."""
    last = job.closed[-1] if job.closed else {}
    return [
        f"{site}: refused in round {last['round']}: it {why}" for site, why in sorted(last.get("refused", {}).items())
    ]


def _failures(job: JobState) -> str:
    """Return why sites of a job that goes on without them failed, or refused it, or were refused."""
    reasons = {site: str(job.failed[site]["reason"]) for site in sorted(job.failed)}
    told = [text if text.startswith(f"site {site}") else f"{site}: {text}" for site, text in reasons.items()]
    told += _refusals(job)
    more = f"; and {len(told) - MAX_TOLD} more" if len(told) > MAX_TOLD else ""
    return "; ".join(told[:MAX_TOLD]) + more


def _round(job: JobState) -> int:
    if job.open is not None:
        return job.open.round
    return max((entry["round"] for entry in job.closed), default=0)


def detail(
    job: JobState,
    now: datetime,
    connected: Collection[str],
    held: Mapping[str, Mapping[str, str]],
    waits: Mapping[str, str],
    *,
    given: Collection[str] | None = None,
) -> admin.JobDetail:
    """Return what `show_job` shows.

    Args:
        job: the job.
        now: for the duration of one that runs.
        connected: names of the sites with a stream.
        held: site -> (job id -> status), as the streams reported last.
        waits: job id -> why it is not dispatched yet.
        given: sites whose contributions to the open round are held; None: they are those in the log.
    """
    if given is None:
        given = job.open.contributions if job.open is not None else ()
    message = admin.JobDetail(
        summary=summary(job, now),
        round=_round(job),
        rounds=job.config["workflow"][0]["rounds"],
        reason=_reason(job, waits, connected, held, given),
        traceback=job.traceback,
        metrics_json=json.dumps(job.closed[-1]["metrics"]) if job.closed else "",
    )
    for site in sorted(job.sites):
        message.sites.add(name=site, status=site_status(job, site, connected, held.get(site, {}), given))
    return message
