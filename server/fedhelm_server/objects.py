"""What calls of admins touch, as the policy sees it: jobs and sites with their organisations. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from fedhelm.errors import Ambiguous, JobNotFound, NotAuthorised
from fedhelm.security.authorization import Object
from fedhelm.security.identity import Principal
from fedhelm.security.passage import Passage
from fedhelm_server.job_book import JobBook, JobState

__all__ = ["PREFIX_LENGTH", "count_visible", "find_job", "job_object", "own_job", "site_object", "visible_jobs"]

PREFIX_LENGTH = 4
"""Letters of a job's id that name it, where no other job begins with them."""


def job_object(job: JobState) -> Object:
    """Return a job as the policy sees it; whose organisation is not known (a job of before) is nobody's own."""
    return Object(submitter=job.submitter, submitter_org=job.submitter_org or None)


def own_job(principal: Principal) -> Object:
    """Return a job of the caller's own."""
    return Object(submitter=principal.name, submitter_org=principal.org or None)


def site_object(org_of: Callable[[str], str | None]) -> Callable[[str], Object]:
    """Return what makes a site what the policy sees, given who tells its organisation (None: not known)."""
    return lambda site: Object(site, org_of(site))


def find_job(book: JobBook, prefix: str, passage: Passage) -> JobState:
    """Return the job with this id, or the one whose id begins so among those that the caller may look at.

    Whether the caller may do with it what they ask is for the handler to ask.

    Raises:
        JobNotFound: there is none, or none that the caller may know of; in the second case its cause is the denial.
        Ambiguous: more than one; the hint names some of them.
    """
    nothing = JobNotFound(f"no job matches {prefix!r:.40}", hint="list_jobs")
    if prefix in book.jobs:
        job = book.jobs[prefix]
        if not passage.may_view(job_object(job)):
            try:  # may the caller do what they ask nevertheless?
                passage.admit(job_object(job), job=job.job)
            except NotAuthorised as denied:
                raise nothing from denied  # whoever guesses an id learns neither that there is one nor whose it is
        return job
    matches = (
        [job for job in book.match(prefix) if passage.may_view(job_object(job))] if len(prefix) >= PREFIX_LENGTH else []
    )
    if not matches:
        raise nothing
    if len(matches) > 1:
        raise Ambiguous(f"{len(matches)} jobs match {prefix!r}", hint=" ".join(job.job for job in matches[:5]))
    return matches[0]


def count_visible(jobs: Iterable[JobState], passage: Passage) -> int:
    """Return how many of these jobs the caller may know of."""
    return sum(passage.may_view(job_object(job)) for job in jobs)


def visible_jobs(book: JobBook, ids: Iterable[str], passage: Passage) -> list[str]:
    """Return, sorted, those of the ids that the caller may know of; an id that no job has is nobody's own."""
    jobs = ((one, book.jobs.get(one)) for one in ids)
    return sorted(one for one, job in jobs if passage.may_view(Object() if job is None else job_object(job)))
