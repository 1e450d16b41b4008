"""Commands about jobs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from fedhelm.admin.models import Job, JobDetail
from fedhelm.errors import BadInput, ExitStatus, Refused
from fedhelm.output import one_line
from fedhelm_console import render
from fedhelm_console.context import Console
from fedhelm_console.registry import Arg, Command, Result

__all__ = ["JOB_COMMANDS"]

TIMEOUT = 60.0
SHOWN = 20

_STATUSES = ("SUBMITTED", "DISPATCHED", "RUNNING", "FINISHED", "COMPLETED", "ABORTED", "FAILED")


def _summary(job: Job) -> dict[str, Any]:
    return {
        "job_id": job.job_id,
        "name": job.name,
        "status": job.status,
        "submit_time": job.submit_time,
        "duration_s": job.duration_s,
    }


def _detail(job: JobDetail) -> dict[str, Any]:
    return {
        **_summary(job.summary),
        "round": job.round,
        "rounds": job.rounds,
        "sites": [{"name": site.name, "status": site.status} for site in job.sites],
        "reason": job.reason or None,
        "traceback": job.traceback or None,
    }


def _folder(console: Console, text: str) -> Path:
    """Return the job's folder: absolute, or under the current directory, or under ``transfer/``."""
    given = Path(text).expanduser()
    places = [given] if given.is_absolute() else [Path.cwd() / given, console.transfer / given]
    for place in places:
        if place.is_dir():
            return place
    for place in places:
        if place.exists():
            raise BadInput(f"{place} is not a folder")
    tried = " or ".join(str(place) for place in places)
    raise BadInput(f"no job folder {tried}", hint="a job is a folder with a job.yaml")


def submit_job(
    console: Console, folder: Annotated[str, Arg("path", "the job's folder, here or in transfer/", metavar="DIR")]
) -> Result:
    """Upload a job's folder and make it a job."""
    place = _folder(console, folder)
    handle = console.session.submit(place, timeout=console.limit(TIMEOUT), progress=console.progress)
    console.remember(handle.job_id)
    return Result({"job_id": handle.job_id}, f"Submitted job: {handle.job_id}")


def list_jobs(
    console: Console,
    prefix: Annotated[str, Arg("job", "only ids that begin so")] = "",
    *,
    details: Annotated[bool, Arg("text", "who submitted it, too", ("-d", "--details"))] = False,
    name: Annotated[str | None, Arg("text", "only names that begin so", ("-n", "--name"))] = None,
    mine: Annotated[bool, Arg("text", "only those that I submitted", ("-u", "--mine"))] = False,
    reverse: Annotated[bool, Arg("text", "oldest first", ("-r", "--reverse"))] = False,
    limit: Annotated[int, Arg("number", f"at most so many (default {SHOWN})", ("-m", "--limit"), "N")] = SHOWN,
    status: Annotated[str | None, Arg("status", "only in this state", ("--status",), choices=_STATUSES)] = None,
    everything: Annotated[bool, Arg("text", "no limit", ("--all",))] = False,
) -> Result:
    """Show jobs, newest first."""
    filtered = name is not None or mine or status is not None
    most = 0 if everything else limit
    found = console.session.jobs(
        prefix=prefix, limit=0 if filtered or not most else most + 1, timeout=console.limit(TIMEOUT)
    )
    found = [
        job
        for job in found
        if (name is None or job.name.startswith(name))
        and (not mine or job.submitter == console.session.kit.name)
        and (status is None or status in job.status.split(":"))
    ]
    if most and len(found) > most:
        found = found[:most]
        console.say(f"the newest {most} are shown; --all for the rest")
    if reverse:
        found.reverse()
    return Result([_summary(job) for job in found], lambda: render.jobs(found, console.style, details=details))


def show_job(console: Console, job: Annotated[str, Arg("job", "id, prefix, @last, @running or @failed")]) -> Result:
    """Show one job: rounds, sites, why it waits, why it ended."""
    found = console.session.job(console.job(job), timeout=console.limit(TIMEOUT))
    return Result(_detail(found), lambda: render.job_detail(found, console.style))


def _shown_live(console: Console) -> Callable[[JobDetail], None] | None:
    """Return what shows each new state of a job in one line; None where nobody watches."""
    live = console.live
    if live is None:
        return None

    def show(state: JobDetail) -> None:
        if not state.finished:
            live(render.job_line(state, console.style))

    return show


def wait(console: Console, job: Annotated[str, Arg("running", "id, prefix, @last, @running or @failed")]) -> Result:
    """Wait until a job has finished; the exit status is the job's."""
    target = console.job(job)
    try:
        ended = console.session.wait(target, timeout=console.limit(None), changed=_shown_live(console))
    except KeyboardInterrupt:
        if not console.interactive:
            raise
        return Result(None, f"detached; the job continues: wait {target}", ExitStatus.INTERRUPTED)
    status = ExitStatus.OK if ended.summary.succeeded else ExitStatus.FAILED
    text = f"{ended.job_id} {console.style.state(ended.status)}" + (
        f": {one_line(ended.reason)}" if ended.reason else ""
    )
    return Result({"job_id": ended.job_id, "status": ended.status}, text, status)


def abort_job(
    console: Console,
    *jobs: Annotated[str, Arg("running", "at least one id, prefix, @last, @running or @failed", metavar="JOB")],
    reason: Annotated[str, Arg("text", "stands in show_job", ("--reason",), "TEXT")] = "",
) -> Result:
    """Abort jobs that have not finished."""
    limit = console.limit(TIMEOUT)
    found = [console.session.job(console.job(job), timeout=limit) for job in jobs]
    named = ", ".join(f"{job.job_id} {job.summary.name} ({job.status})" for job in found)
    console.confirm(f"Abort {named}?")
    done = [console.session.abort(job.job_id, reason=reason, timeout=limit) for job in found]
    data = [{"job_id": job.job_id, "status": job.status} for job in done]
    text = "\n".join(f"{job.job_id} {console.style.state(job.status)}" for job in done)
    return Result(data[0] if len(data) == 1 else data, text)


def delete_job(
    console: Console,
    *jobs: Annotated[str, Arg("finished", "at least one id, prefix, @last or @failed", metavar="JOB")],
) -> Result:
    """Delete what jobs that have ended left in the store; their ids stay taken."""
    limit = console.limit(TIMEOUT)
    found = list(
        {job.job_id: job for job in (console.session.job(console.job(one), timeout=limit) for one in jobs)}.values()
    )
    for job in found:
        if not job.finished:
            raise Refused(f"{job.job_id} is {job.status}: only a job that has ended is deleted", hint="abort_job, wait")
    named = ", ".join(f"{job.job_id} {job.summary.name} ({job.status})" for job in found)
    wanted = found[0].summary.name if len(found) == 1 else str(len(found))
    console.confirm(f"Delete models, curves and logs of {named}; this cannot be undone.", wanted)
    gone = [console.session.delete_job(job.job_id, timeout=limit) for job in found]
    return Result([{"job_id": one} for one in gone], "\n".join(f"{one} deleted" for one in gone))


def download_job(
    console: Console,
    job: Annotated[str, Arg("finished", "id, prefix, @last, @running or @failed")],
    folder: Annotated[str | None, Arg("path", "where (default: transfer/)", metavar="DIR")] = None,
) -> Result:
    """Fetch a job's models, logs and curves; an interrupted download goes on where it stopped."""
    place = console.transfer if folder is None else Path(folder).expanduser()
    target = console.job(job)
    try:
        path = console.session.download(target, place, timeout=console.limit(None), progress=console.progress)
    except KeyboardInterrupt:
        if not console.interactive:
            raise
        return Result(None, f"detached; what arrived is kept: download_job {target}", ExitStatus.INTERRUPTED)
    return Result({"path": str(path)}, f"Download to dir {path}")


JOB_COMMANDS = (
    Command(
        "submit_job",
        submit_job,
        "upload a job's folder and make it a job",
        ("submit_job hello-pt-tb", "submit_job ./my-job --timeout 120"),
        aliases=("submit",),
        errors=("BAD_INPUT", "NOT_SUPPORTED_YET", "STORE_UNAVAILABLE"),
    ),
    Command(
        "list_jobs",
        list_jobs,
        "show jobs, newest first",
        ("list_jobs", "list_jobs --status RUNNING -o json"),
        aliases=("ls",),
    ),
    Command(
        "show_job",
        show_job,
        "one job: rounds, sites, why it waits, why it ended",
        ("show_job @last", "show_job @last -o json"),
        errors=("JOB_NOT_FOUND", "AMBIGUOUS"),
    ),
    Command(
        "wait",
        wait,
        "wait until a job has finished; the exit status is the job's",
        ("wait @last", "wait @last --timeout 600"),
        errors=("JOB_NOT_FOUND", "AMBIGUOUS", "TIMEOUT"),
    ),
    Command(
        "abort_job",
        abort_job,
        "abort jobs that have not finished",
        ("abort_job @last", 'abort_job @last --reason "wrong data" --yes'),
        grade=1,
        errors=("JOB_NOT_FOUND", "AMBIGUOUS", "REFUSED"),
    ),
    Command(
        "delete_job",
        delete_job,
        "delete what jobs that have ended left in the store",
        ("delete_job @last", "delete_job k7m3 k7m4 --yes"),
        grade=2,
        errors=("JOB_NOT_FOUND", "AMBIGUOUS", "REFUSED", "CONFLICT"),
    ),
    Command(
        "download_job",
        download_job,
        "fetch a job's models, logs and curves",
        ("download_job @last", "download_job @last ./results"),
        aliases=("dl",),
        errors=("JOB_NOT_FOUND", "AMBIGUOUS", "CORRUPT"),
    ),
)
