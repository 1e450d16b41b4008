"""What a site is told: the whole of it, from the book alone."""

from __future__ import annotations

import json

import pytest

from fedhelm.persist.log import Log
from fedhelm_server.assignments import assignment, task_of
from fedhelm_server.job_book import JobBook
from tests.fakes.persist_memory import MemoryLogStore
from tests.fakes.server_log import (
    DIGEST,
    JOB,
    OTHER,
    TIME,
    Writer,
    blob,
    closed,
    contribution,
    done,
    fold,
    found,
    line,
    opened,
    state,
    submitted,
)


@pytest.fixture
def writer():
    return Writer(found(MemoryLogStore()))


def told(writer, site="site-1", held=(), epoch=7):
    return assignment(fold(writer.log._store)[0], site, epoch, frozenset(held))


def test_nothing_to_do_is_an_empty_list_with_epoch_and_position(writer):
    message = told(writer)
    assert (message.epoch, message.seq, list(message.jobs)) == (7, 1, [])
    assert assignment(JobBook(), "site-1", 0, frozenset()).seq == 0


def test_a_job_that_waits_is_nobodys_yet(writer):
    writer.append("job_submitted", submitted())
    assert list(told(writer).jobs) == []


def test_a_dispatched_job_is_running_for_its_sites_and_has_no_task_yet(writer):
    writer.append("job_submitted", submitted())
    writer.append("job_state", state(sites=("site-2", "site-1")))
    (job,) = told(writer).jobs
    assert (job.job, job.name, job.status, job.attempt, job.app, job.script) == (
        JOB,
        "hello",
        "RUNNING",
        1,
        "app",
        "train.py",
    )
    assert (job.bundle.owner, job.bundle.digest, job.bundle.size) == (f"jobs/{JOB}/bundle", DIGEST, 3)
    assert list(job.members) == ["site-1", "site-2"]
    assert not job.HasField("task")
    assert list(told(writer, "site-3").jobs) == []


def test_an_open_round_is_a_task_until_it_was_answered(writer):
    writer.job()
    writer.append("round_open", {**opened(2, rounds=5, step=1), "deadline_s": 30.0})
    task = told(writer).jobs[0].task
    assert (task.step, task.round, task.rounds, task.kind, task.sequence, task.deadline_s) == (1, 2, 5, "train", 0, 30)
    assert task.upload_owner == f"jobs/{JOB}/1-2/sites"
    assert not task.HasField("model")
    writer.contribute(contribution("site-1", 2, step=1))
    assert not told(writer, "site-1").jobs[0].HasField("task")
    assert told(writer, "site-2").jobs[0].HasField("task")


def test_a_task_names_the_model_it_begins_with(writer):
    writer.job()
    model = blob(f"jobs/{JOB}/0-1/model", size=9)
    writer.append("round_open", {**opened(), "model": model, "model_sha256": "cd" * 32})
    task = told(writer).jobs[0].task
    assert (task.model.owner, task.model.size, task.model_sha256) == (model["owner"], 9, "cd" * 32)


def test_who_is_no_member_or_has_failed_has_no_task(writer):
    writer.job()
    writer.append("round_open", opened(members=("site-1",)))
    assert not told(writer, "site-2").jobs[0].HasField("task")
    failure = {"job": JOB, "attempt": 1, "site": "site-1", "round": 1, "reason": "x", "traceback": "", "time": TIME}
    writer.append("site_failed", failure)
    (job,) = told(writer, "site-1").jobs
    assert (job.status, job.HasField("task")) == ("RUNNING", False)
    assert task_of(fold(writer.log._store)[0].jobs[JOB], "site-1") is None


def test_the_newest_closed_round_of_each_kind_lets_copies_go(writer):
    writer.job()
    for number in (1, 2):
        for kind in ("train", "evaluate"):
            writer.append("round_open", opened(number, kind=kind))
            writer.contribute(contribution("site-1", number, kind=kind))
            writer.append("round_close", closed(number, ("site-1",), kind))
    writer.append("round_open", opened(3))
    found_closed = {(one.step, one.kind): one.round for one in told(writer).jobs[0].closed}
    assert found_closed == {(0, "train"): 2, (0, "evaluate"): 2}


def test_acknowledged_lines_are_the_sites_own(writer):
    writer.job()
    lines = [{"job": JOB, "source": "site-1", "first": 1, "lines": [line(1.0), line(2.0)]}]
    writer.append("metrics", {"items": lines})
    assert [told(writer, site).jobs[0].lines_acknowledged for site in ("site-1", "site-2")] == [2, 0]


def test_the_end_of_a_job_is_told_to_who_still_has_something_of_it(writer):
    writer.job()
    writer.append("round_open", opened())
    writer.append("job_done", done("FINISHED:ABORTED"))
    assert list(told(writer).jobs) == []
    (job,) = told(writer, held={JOB, "unknownjob22"}).jobs
    assert (job.status, job.HasField("task")) == ("FINISHED:ABORTED", False)
    assert list(told(writer, "site-3", held={JOB}).jobs) == []


def test_several_jobs_are_listed_in_one_order(writer):
    writer.job(OTHER)
    writer.job(JOB)
    assert [job.job for job in told(writer).jobs] == [JOB, OTHER]
    assert [job.job for job in told(writer, held=(OTHER, JOB)).jobs] == [JOB, OTHER]


def test_who_wrote_and_who_read_tell_the_same_bytes(writer):
    """Options keep no order of their own: it must not matter whether this server was the one that appended them."""
    body = submitted()
    body["config"]["options"] = {"z": 1, "a": {"y": 2.5, "b": [1, 2]}}
    own = JobBook()
    log = Log(writer.log._store)
    for record in log.read_new().records:
        own.apply(record)
    own.apply(writer.append("job_submitted", body))  # as the writer got it back
    own.apply(writer.append("job_state", state()))
    read = told(writer)
    mine = assignment(own, "site-1", 7, frozenset())
    assert mine.SerializeToString(deterministic=True) == read.SerializeToString(deterministic=True)
    assert json.loads(read.jobs[0].options_json) == body["config"]["options"]


def test_a_site_that_still_holds_something_of_a_deleted_job_is_told_to_let_it_go(writer):
    writer.append("job_submitted", submitted())
    writer.append("job_state", state())
    writer.append("job_done", done())
    writer.append("job_deleted", {"job": JOB, "request_id": "request9", "by": "admin", "time": TIME})
    assert list(told(writer).jobs) == []
    (job,) = told(writer, held={JOB, OTHER}).jobs
    assert (job.job, job.status, job.HasField("task")) == (JOB, "FINISHED:DELETED", False)
