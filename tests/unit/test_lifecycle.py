from __future__ import annotations

import itertools

import pytest

from fedhelm.errors import Conflict
from fedhelm.job.lifecycle import JobEvent, JobStatus, transition

LEGAL = {
    ("SUBMITTED", "dispatch"): "DISPATCHED",
    ("SUBMITTED", "abort"): "FINISHED:ABORTED",
    ("SUBMITTED", "fail"): "FINISHED:FAILED",
    ("DISPATCHED", "start"): "RUNNING",
    ("DISPATCHED", "abort"): "FINISHED:ABORTED",
    ("DISPATCHED", "fail"): "FINISHED:FAILED",
    ("RUNNING", "complete"): "FINISHED:COMPLETED",
    ("RUNNING", "abort"): "FINISHED:ABORTED",
    ("RUNNING", "fail"): "FINISHED:FAILED",
}


@pytest.mark.parametrize(("status", "event"), list(itertools.product(JobStatus, JobEvent)))
def test_every_pair_of_status_and_event(status, event):
    if (status, event) in LEGAL:
        assert transition(status, event) == LEGAL[status, event]
        return
    with pytest.raises(Conflict, match=f"is {status} cannot {event}"):
        transition(status, event)


def test_finished_is_what_takes_no_event():
    assert {status for status in JobStatus if status.finished} == set(JobStatus) - {pair[0] for pair in LEGAL}
