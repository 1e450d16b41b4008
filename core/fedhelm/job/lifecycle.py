"""The life of a job: six statuses and the events that lead from one to the next. Pure."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from fedhelm.errors import Conflict

__all__ = ["JobEvent", "JobStatus", "transition"]


class JobStatus(enum.StrEnum):
    """Where a job is; the values are those of the log and of every interface."""

    SUBMITTED = "SUBMITTED"
    DISPATCHED = "DISPATCHED"
    RUNNING = "RUNNING"
    COMPLETED = "FINISHED:COMPLETED"
    ABORTED = "FINISHED:ABORTED"
    FAILED = "FINISHED:FAILED"

    @property
    def finished(self) -> bool:
        """Whether nothing more can happen to it."""
        return self in (JobStatus.COMPLETED, JobStatus.ABORTED, JobStatus.FAILED)


class JobEvent(enum.StrEnum):
    """What happens to a job."""

    DISPATCH = "dispatch"  # its sites are fixed
    START = "start"  # its runner works
    COMPLETE = "complete"  # its workflow has come to its end
    ABORT = "abort"  # an admin said so
    FAIL = "fail"  # it cannot go on; the log has the reason


_ANYTIME: Final[Mapping[JobEvent, JobStatus]] = MappingProxyType(
    {JobEvent.ABORT: JobStatus.ABORTED, JobEvent.FAIL: JobStatus.FAILED}
)

_NEXT: Final[Mapping[JobStatus, Mapping[JobEvent, JobStatus]]] = MappingProxyType(
    {
        JobStatus.SUBMITTED: {JobEvent.DISPATCH: JobStatus.DISPATCHED, **_ANYTIME},
        JobStatus.DISPATCHED: {JobEvent.START: JobStatus.RUNNING, **_ANYTIME},
        JobStatus.RUNNING: {JobEvent.COMPLETE: JobStatus.COMPLETED, **_ANYTIME},
        JobStatus.COMPLETED: {},
        JobStatus.ABORTED: {},
        JobStatus.FAILED: {},
    }
)


def transition(status: JobStatus, event: JobEvent) -> JobStatus:
    """Return the status after ``event``.

    Raises:
        Conflict: it cannot happen in this status; a finished job takes no event at all.
    """
    following = _NEXT[status].get(event)
    if following is None:
        raise Conflict(f"a job that is {status} cannot {event}")
    return following
