"""The fold over the log: pure, the same everywhere, and it refuses what no correct writer can have written."""

from __future__ import annotations

import pytest

from fedhelm.errors import Corrupt
from fedhelm.persist.record import By, Record
from fedhelm_server.job_book import Fence, JobBook, finished
from tests.fakes.persist_memory import MemoryLogStore
from tests.fakes.server_log import (
    JOB,
    OTHER,
    TIME,
    Writer,
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


def record(seq, kind, body, epoch=1, by=("server1", "i1")):
    return Record(seq, epoch, By(*by), "n", "", kind, body, "")


def apply_all(*steps):
    book = JobBook()
    for seq, (kind, body) in enumerate([("genesis", {}), ("fence", {"cause": "test"}), *steps]):
        book.apply(record(seq, kind, body, min(seq, 1)))
    return book


OPEN = (
    ("job_submitted", submitted()),
    ("job_state", state()),
    ("job_state", state("RUNNING", ())),
    ("round_open", opened()),
)


def given(*found_items):
    return "contribution", {"items": list(found_items)}


def test_a_whole_job():
    book = apply_all(*OPEN)
    job = book.jobs[JOB]
    assert (job.status, job.sites, job.open.members) == ("RUNNING", ("site-1", "site-2"), ("site-1", "site-2"))
    assert list(book.running()) == [job]
    assert list(book.waiting()) == []
    for seq, (kind, body) in enumerate(
        [
            given(contribution("site-1"), contribution("site-2", weight=3.0)),
            ("metrics", {"items": [{"job": JOB, "source": "site-1", "first": 1, "lines": [line(1.0), line(2.0)]}]}),
            ("round_close", closed()),
            ("job_done", done(reason="")),
        ],
        6,
    ):
        assert book.apply(record(seq, kind, body)) == {JOB}
    assert (job.status, job.end_time, job.lines, job.line_slots) == ("FINISHED:COMPLETED", TIME, {"site-1": 2}, [7])
    assert job.model["model_sha256"] == "cd" * 32
    assert (job.closed[0]["epoch"], job.closed[0]["seq"]) == (1, 8)
    assert job.open is None
    assert list(book.running()) == []
    assert {(placed.seq, placed.index) for placed in job.placed.values()} == {(6, 0), (6, 1)}


def test_a_fold_from_a_store_equals_one_that_followed():
    store = found(MemoryLogStore())
    writer = Writer(store)
    writer.job()
    half, _ = fold(store)
    writer.append("round_open", opened())
    writer.contribute(contribution("site-1"), contribution("site-2"))
    writer.append("round_close", closed())
    whole, records = fold(store)
    for one in records[half.seq + 1 :]:
        half.apply(one)
    assert half.jobs == whole.jobs
    assert (half.seq, half.max_epoch, half.fence, half.requests) == (
        whole.seq,
        whole.max_epoch,
        whole.fence,
        whole.requests,
    )


def test_the_newest_fence_says_who_may_write_and_voids_a_handoff():
    book = apply_all(("handoff", {"to": "server2", "request_id": "r"}))
    assert book.handoff == {"to": "server2", "request_id": "r"}
    book.apply(record(3, "fence", {"cause": "handoff"}, 2, ("server2", "j1")))
    assert book.fence == Fence(2, "server2", "j1", "handoff", 3)
    assert book.handoff is None
    assert book.max_epoch == 2


def test_the_newest_model_is_that_of_the_last_round_that_made_one():
    book = apply_all(*OPEN, given(contribution("site-1")), ("round_close", closed(members=("site-1",))))
    book.apply(record(8, "round_open", opened(kind="evaluate")))
    book.apply(record(9, *given(contribution("site-1", kind="evaluate"))))
    body = closed(members=("site-1",), kind="evaluate", model=None, model_sha256=None)
    book.apply(record(10, "round_close", body))
    assert book.jobs[JOB].model["kind"] == "train"


def test_matching_by_prefix_prefers_the_whole_id():
    book = apply_all(("job_submitted", submitted()), ("job_submitted", submitted(OTHER, "request2")))
    assert [job.job for job in book.match("abcd")] == [JOB, OTHER]
    assert [job.job for job in book.match(JOB)] == [JOB]
    assert book.match("zz") == []


def test_a_job_has_ended_when_its_status_says_so():
    assert [finished(one) for one in ("SUBMITTED", "DISPATCHED", "RUNNING", "FINISHED:FAILED")] == [False] * 3 + [True]


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ([("genesis", {})], "second genesis"),
        ([("fence", {"cause": "again"})], "second fence of epoch 1"),
        ([("made_up", {})], "unknown kind"),
        ([("job_state", state())], "unknown job"),
        ([("job_submitted", {"job": JOB})], "lacks or misstates 'name'"),
        ([("job_submitted", submitted()), ("job_submitted", submitted())], "submitted twice"),
        ([*OPEN, ("round_open", opened(2))], "open already"),
        ([*OPEN, given(contribution("site-1"), contribution("site-1"))], "recorded twice"),
        ([*OPEN, given(contribution("site-1")), given(contribution("site-1", digest="0" * 64))], "recorded twice"),
        ([*OPEN, given(contribution(number=2))], "not open"),
        ([*OPEN, given(contribution(kind="evaluate"))], "not open"),
        ([*OPEN, given(contribution(job=OTHER))], "lacks or misstates"),
        ([*OPEN, given(contribution("site-1")), ("round_close", closed())], "not what was contributed"),
        ([*OPEN, given(contribution("site-1")), ("round_close", closed(members=()))], "not what was contributed"),
        ([*OPEN, ("round_close", closed(2))], "not open"),
        ([*OPEN, ("job_done", done()), ("job_done", done())], "ended already"),
        ([*OPEN, ("job_done", done()), ("job_state", state())], "ended already"),
        ([*OPEN[:3], ("job_done", done()), ("round_open", opened())], "after its end"),
        (
            [*OPEN, given(contribution()), ("round_close", closed(members=("site-1",))), ("round_open", opened())],
            "after its end",
        ),
        (
            [*OPEN, ("metrics", {"items": [{"job": JOB, "source": "site-1", "first": 2, "lines": [line(1.0)]}]})],
            "do not follow line 0",
        ),
        ([*OPEN, ("contribution", {"items": 7})], "lacks or misstates"),
        ([*OPEN, ("contribution", {})], "lacks or misstates 'items'"),
    ],
)
def test_what_no_correct_writer_can_have_written_is_refused_with_its_slot(steps, says):
    *good, (kind, body) = steps
    book = apply_all(*good)
    slot = len(good) + 2
    with pytest.raises(Corrupt, match=says) as caught:
        book.apply(record(slot, kind, body))
    assert f"slot {slot}:" in caught.value.message


def test_slots_are_folded_in_order_and_epochs_never_fall():
    book = apply_all()
    for bad in (record(1, "handoff", {}), record(3, "handoff", {}), record(2, "handoff", {}, epoch=0)):
        with pytest.raises(Corrupt, match="out of order"):
            book.apply(bad)
    book.apply(record(2, "handoff", {"to": "x", "request_id": "y"}))


def test_a_record_that_was_refused_leaves_the_position_as_it_was():
    book = apply_all(*OPEN)
    with pytest.raises(Corrupt):
        book.apply(record(6, "round_close", closed(2)))
    assert book.seq == 5
    assert book.jobs[JOB].open is not None


def test_requests_remember_who_asked_for_what():
    book = apply_all(("job_submitted", submitted()))
    book.apply(record(3, "job_done", done("FINISHED:ABORTED", request_id="request2", by="admin@nvidia.com")))
    assert book.requests == {
        "request1": ("submit", JOB, "admin@nvidia.com"),
        "request2": ("abort", JOB, "admin@nvidia.com"),
    }
