"""What a write may add to the log, on every kind of book."""

from __future__ import annotations

import math

import pytest

from fedhelm.errors import BadInput, Conflict, FedhelmError, JobNotFound, NotAuthorised, ProtocolError
from fedhelm.persist.record import By, Record
from fedhelm_server import decisions
from fedhelm_server.decisions import ContributionAnswer
from fedhelm_server.job_book import JobBook
from fedhelm_server.ledger import Answer
from tests.fakes.server_log import (
    DIGEST,
    JOB,
    OTHER,
    TIME,
    closed,
    contribution,
    done,
    line,
    opened,
    state,
    submitted,
)


def book_of(*steps):
    """Fold (kind, body) pairs after genesis and a fence."""
    book = JobBook()
    for seq, (kind, body) in enumerate([("genesis", {}), ("fence", {"cause": "test"}), *steps]):
        book.apply(Record(seq, min(seq, 1), By("server1", "i1"), "n", "", kind, body, ""))
    return book


def batch(*found):
    return {"items": list(found)}


SUBMITTED = (("job_submitted", submitted()),)
DISPATCHED = (*SUBMITTED, ("job_state", state()))
OPEN = (*DISPATCHED, ("job_state", state("RUNNING", ())), ("round_open", opened()))
GIVEN = (*OPEN, ("contribution", batch(contribution("site-1"), contribution("site-2"))))
CLOSED = (*GIVEN, ("round_close", closed()))
ENDED = (*CLOSED, ("job_done", done()))


# -- submit, dispatch, end ----------------------------------------------------------------------------------------------


def test_a_new_job_is_recorded_and_the_same_write_again_is_not():
    assert decisions.submit(submitted())(book_of()) == submitted()
    assert decisions.submit(submitted())(book_of(*SUBMITTED)) == Answer(2)
    # also with a new request id, after the first one's answer was lost together with its console
    assert decisions.submit(submitted(request_id="request2"))(book_of(*SUBMITTED)) == Answer(2)
    assert decisions.submit(submitted())(book_of(*ENDED)) == Answer(2)
    for request_id in ("request1", "request2"):  # each try is signed afresh
        again = submitted(request_id=request_id) | {"submission": "signed later", "submitter_org": "nvidia"}
        assert decisions.submit(again)(book_of(*SUBMITTED)) == Answer(2)


@pytest.mark.parametrize(
    "other",
    [
        {"submitter": "eve@nvidia.com"},
        {"digest": "cd" * 32},
        {"job": OTHER},
        {"submitter": "eve@nvidia.com", "request_id": "request2"},
        {"digest": "cd" * 32, "request_id": "request2"},
    ],
)
def test_an_id_that_was_used_for_something_else_is_a_conflict(other):
    with pytest.raises(Conflict):
        decisions.submit(submitted(**other))(book_of(*SUBMITTED))


def test_a_job_is_dispatched_once_with_its_sites():
    decide = decisions.dispatch(JOB, ("site-1",), TIME)
    assert decide(book_of(*SUBMITTED)) == state(sites=("site-1",))
    assert decide(book_of(*DISPATCHED)) == Answer(None)
    assert decide(book_of(*ENDED)) == Answer(None)
    with pytest.raises(JobNotFound):
        decide(book_of())


def test_a_job_runs_once_it_was_dispatched():
    decide = decisions.running(JOB, TIME)
    assert decide(book_of(*DISPATCHED)) == state("RUNNING", ())
    for steps in (SUBMITTED, OPEN, ENDED):
        assert decide(book_of(*steps)) == Answer(None)


def test_a_job_ends_once():
    decide = decisions.finish(JOB, "FINISHED:FAILED", "why", "trace", TIME)
    assert decide(book_of(*OPEN)) == done("FINISHED:FAILED", reason="why", traceback="trace")
    assert decide(book_of(*ENDED)) == Answer(None)


def test_an_abort_is_recorded_once_per_request():
    decide = decisions.abort(JOB, "enough", "admin@nvidia.com", "request2", TIME)
    item = decide(book_of(*OPEN))
    assert (item["status"], item["reason"]) == ("FINISHED:ABORTED", "aborted by admin@nvidia.com: enough")
    after = book_of(*OPEN, ("job_done", item))
    assert decide(after) == Answer(None)
    with pytest.raises(Conflict, match="ended already"):
        decisions.abort(JOB, "", "admin@nvidia.com", "request3", TIME)(after)
    with pytest.raises(Conflict, match="request2"):
        decisions.abort(JOB, "", "eve@nvidia.com", "request2", TIME)(after)
    with pytest.raises(Conflict, match="request1"):
        decisions.abort(JOB, "", "admin@nvidia.com", "request1", TIME)(book_of(*OPEN))
    with pytest.raises(JobNotFound):
        decisions.abort(OTHER, "", "admin@nvidia.com", "request4", TIME)(after)


# -- contributions ------------------------------------------------------------------------------------------------------


def test_a_first_contribution_is_recorded_as_it_is():
    assert decisions.contribute(contribution())(book_of(*OPEN)) == contribution()


@pytest.mark.parametrize("steps", [GIVEN, CLOSED, ENDED])
def test_the_same_id_again_gets_its_receipt_at_any_later_time(steps):
    answer = decisions.contribute(contribution("site-2"))(book_of(*steps)).value
    assert (answer.placed.seq, answer.placed.index, answer.placed.epoch) == (6, 1, 1)
    assert (answer.superseded, answer.gone) == (False, False)


@pytest.mark.parametrize("steps", [GIVEN, CLOSED, ENDED])
def test_the_same_id_with_another_digest_gets_the_receipt_marked_superseded(steps):
    answer = decisions.contribute(contribution("site-2", digest="cd" * 32))(book_of(*steps)).value
    assert (answer.placed.seq, answer.placed.index) == (6, 1)
    assert answer.superseded
    assert answer.placed.item["blob"]["digest"] == DIGEST  # the log wins


def test_a_late_contribution_is_gone():
    steps = (*OPEN, ("contribution", batch(contribution("site-1"))), ("round_close", closed(members=("site-1",))))
    gone = Answer(ContributionAnswer(None, gone=True))
    assert decisions.contribute(contribution("site-2"))(book_of(*steps)) == gone
    following = (*steps, ("round_open", opened(2)))
    assert decisions.contribute(contribution("site-2"))(book_of(*following)) == gone
    aborted = (*OPEN, ("job_done", done("FINISHED:ABORTED")))
    assert decisions.contribute(contribution("site-2"))(book_of(*aborted)) == gone
    assert decisions.contribute(contribution("site-2", attempt=2))(book_of(*OPEN)) == gone


@pytest.mark.parametrize(
    ("item", "error"),
    [
        (contribution("site-9"), NotAuthorised),
        (contribution(number=2), ProtocolError),
        (contribution(kind="evaluate"), ProtocolError),
        (contribution(step=1), ProtocolError),
        (contribution(blob=None), ProtocolError),
        (contribution(job=OTHER), JobNotFound),
    ],
)
def test_a_contribution_that_nobody_asked_for_is_refused(item, error):
    with pytest.raises(error):
        decisions.contribute(item)(book_of(*OPEN))


def test_a_site_contributes_once_to_a_round_under_any_sequence():
    # A second one would change what a model is made of after it was made.
    for sequence in (1, 7):
        with pytest.raises(ProtocolError, match="sequence"):
            decisions.contribute(contribution(sequence=sequence))


def test_a_site_that_is_no_member_of_the_round_is_refused():
    steps = (*DISPATCHED, ("round_open", opened(members=("site-1",))))
    with pytest.raises(ProtocolError):
        decisions.contribute(contribution("site-2"))(book_of(*steps))


def test_a_round_of_evaluation_takes_metrics_and_no_tensors():
    steps = (*CLOSED, ("round_open", opened(kind="evaluate")))
    item = contribution(kind="evaluate", metrics={"accuracy": 0.5})
    assert decisions.contribute(item)(book_of(*steps)) == item
    with pytest.raises(ProtocolError, match="wrong parts"):
        decisions.contribute({**item, "blob": contribution()["blob"]})(book_of(*steps))
    answered = book_of(*steps, ("contribution", batch(item)))
    assert not decisions.contribute(item)(answered).value.superseded


@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf, -1.0, 1e16, 1e308])
def test_a_weight_is_a_finite_number_from_zero(weight):
    with pytest.raises(BadInput, match="weight"):
        decisions.contribute(contribution(weight=weight))


@pytest.mark.parametrize(
    "metrics",
    [
        {"x": math.nan},
        {"x": math.inf},
        {"x": "1"},
        {"x": None},
        {"x": [1]},
        {"x": True},
        {"x": 10**400},
        {"x" * 201: 1.0},
        {str(n): 1.0 for n in range(1001)},
    ],
    ids=["nan", "infinite", "text", "null", "list", "truth", "huge", "long name", "many"],
)
def test_metrics_are_finite_numbers_by_name(metrics):
    with pytest.raises(BadInput, match="metrics of site-1"):
        decisions.contribute(contribution(metrics=metrics))


# -- rounds -------------------------------------------------------------------------------------------------------------


def test_a_round_opens_once():
    assert decisions.round_open(opened())(book_of(*DISPATCHED)) == opened()
    assert decisions.round_open(opened())(book_of(*OPEN)) == Answer(None)
    with pytest.raises(Conflict, match=r"round 1 .* is open"):
        decisions.round_open(opened(2))(book_of(*OPEN))
    with pytest.raises(Conflict, match="ended"):
        decisions.round_open(opened(2))(book_of(*ENDED))


def test_a_round_that_was_closed_is_not_opened_again():
    # A runner that died may have asked, and its child asks again after the store came back: its successor was faster.
    assert decisions.round_open(opened())(book_of(*CLOSED)) == Answer(None)
    assert decisions.round_open(opened(kind="evaluate"))(book_of(*CLOSED)) == opened(kind="evaluate")
    assert decisions.round_open(opened(2))(book_of(*CLOSED)) == opened(2)


def test_a_round_closes_with_exactly_what_was_contributed():
    assert decisions.round_close(closed())(book_of(*GIVEN)) == closed()
    for members in ((), ("site-1",), ("site-1", "site-2", "site-3"), ("site-1", "site-3")):
        with pytest.raises(Conflict, match="another contribution"):
            decisions.round_close(closed(members=members))(book_of(*GIVEN))


def test_a_round_closes_once():
    assert decisions.round_close(closed())(book_of(*CLOSED)) == Answer(None)
    assert decisions.round_close(closed())(book_of(*CLOSED, ("round_open", opened(2)))) == Answer(None)
    with pytest.raises(Conflict, match="not open"):
        decisions.round_close(closed(2))(book_of(*GIVEN))
    with pytest.raises(Conflict, match="not open"):
        decisions.round_close(closed(2))(book_of(*CLOSED))
    with pytest.raises(Conflict, match="ended"):
        decisions.round_close(closed())(book_of(*GIVEN, ("job_done", done())))


# -- lines and failures -------------------------------------------------------------------------------------------------


def lines(first, *values):
    return decisions.lines(JOB, "site-1", first, [line(value) for value in values])


def test_lines_follow_one_another_without_gap_or_repetition():
    fresh = {"job": JOB, "source": "site-1", "first": 1, "lines": [line(1.0), line(2.0)]}
    assert lines(1, 1.0, 2.0)(book_of(*OPEN)) == fresh
    book = book_of(*OPEN, ("metrics", batch(fresh)))
    assert lines(1, 1.0, 2.0)(book) == Answer(2)
    assert lines(2, 2.0)(book) == Answer(2)
    assert lines(2, 2.0, 3.0)(book) == {**fresh, "first": 3, "lines": [line(3.0)]}
    assert lines(3, 3.0)(book) == {**fresh, "first": 3, "lines": [line(3.0)]}
    assert lines(4, 4.0)(book) == Answer(2)  # a gap: nothing is recorded


def test_a_site_that_used_up_its_bytes_is_told_once_in_the_log_and_refused_from_then_on():
    large = line("x" * (decisions.MAX_SOURCE_BYTES // 2), "log")

    def push(first, *new, source="site-1"):
        return decisions.lines(JOB, source, first, new)

    one = push(1, large)(book_of(*OPEN))
    assert one["lines"] == [large]
    two = push(2, large, line("last", "log"))(book_of(*OPEN, ("metrics", batch(one))))
    assert two["lines"][:2] == [large, line("last", "log")]
    assert (two["first"], len(two["lines"])) == (2, 3)
    assert two["lines"][2] == line("quota reached: later lines are in the site's log only", "log", "server", None)
    full = book_of(*OPEN, ("metrics", batch(one, two)))
    assert push(2, large, line("last", "log"))(full) == Answer(4)  # its answer was lost: it is in the log
    for first in (4, 5, 9):
        with pytest.raises(Conflict, match="quota reached"):
            push(first, line(1.0), line(2.0))(full)
    assert push(1, line(1.0), source="site-2")(full)["lines"] == [line(1.0)]


def test_only_a_member_has_lines_and_failures():
    for decide in (decisions.lines(JOB, "site-9", 1, [line(1.0)]), decisions.fail_site(failure("site-9"))):
        with pytest.raises(NotAuthorised):
            decide(book_of(*OPEN))


def test_a_servers_own_lines_are_recorded_once_by_the_numbers_that_the_runner_gave():
    def say(first, *texts):
        return decisions.own_lines(JOB, "server1", first, [line(text, "log") for text in texts])

    item = say(1, "a", "b")(book_of(*OPEN))
    assert item["first"] == 1
    book = book_of(*OPEN, ("metrics", batch(item)))
    assert say(1, "a", "b")(book) == Answer(None)  # its answer was lost
    assert (say(2, "b", "c")(book)["first"], say(2, "b", "c")(book)["lines"]) == (3, [line("c", "log")])
    with pytest.raises(Conflict, match="do not follow line 2"):
        say(4, "d")(book)


def failure(site="site-1", reason="boom", attempt=1):
    return {
        "job": JOB,
        "attempt": attempt,
        "site": site,
        "round": 1,
        "reason": reason,
        "traceback": "",
        "time": TIME,
    }


def test_the_first_reason_of_a_failed_site_stays():
    assert decisions.fail_site(failure())(book_of(*OPEN)) == failure()
    book = book_of(*OPEN, ("site_failed", failure()))
    assert decisions.fail_site(failure(reason="again"))(book).value["reason"] == "boom"
    assert decisions.fail_site(failure("site-2"))(book) == failure("site-2")
    assert decisions.fail_site(failure(attempt=2))(book_of(*OPEN)) == Answer(None)
    assert decisions.fail_site(failure())(book_of(*ENDED)) == Answer(None)


@pytest.mark.parametrize(
    "decide",
    [
        decisions.round_open(opened(job=OTHER)),
        decisions.round_close(closed(job=OTHER)),
        decisions.lines(OTHER, "site-1", 1, []),
        decisions.own_lines(OTHER, "server1", 1, []),
        decisions.fail_site({**failure(), "job": OTHER}),
        decisions.finish(OTHER, "FINISHED:FAILED", "", "", TIME),
        decisions.running(OTHER, TIME),
    ],
)
def test_a_job_that_is_not_in_the_log_is_not_found(decide):
    with pytest.raises(JobNotFound):
        decide(book_of(*OPEN))


@pytest.mark.parametrize("steps", [(), SUBMITTED, DISPATCHED, OPEN, GIVEN, CLOSED, ENDED])
def test_what_a_decision_records_can_always_be_folded(steps):
    every = [
        ("job_submitted", decisions.submit(submitted())),
        ("job_state", decisions.dispatch(JOB, ("site-1", "site-2"), TIME)),
        ("job_state", decisions.running(JOB, TIME)),
        ("job_done", decisions.finish(JOB, "FINISHED:FAILED", "", "", TIME)),
        ("job_done", decisions.abort(JOB, "", "a@b", "request9", TIME)),
        ("round_open", decisions.round_open(opened())),
        ("round_open", decisions.round_open(opened(2))),
        ("round_close", decisions.round_close(closed())),
        ("site_failed", decisions.fail_site(failure())),
        ("contribution", decisions.contribute(contribution("site-1"))),
        ("contribution", decisions.contribute(contribution("site-2", number=2))),
        ("metrics", lines(1, 1.0)),
        ("metrics", decisions.own_lines(JOB, "server1", 1, [line("a", "log")])),
    ]
    recorded = 0
    for kind, decide in every:
        try:
            item = decide(book_of(*steps))
        except FedhelmError:
            continue
        if not isinstance(item, Answer):
            recorded += 1
            book_of(*steps, (kind, batch(item) if kind in ("contribution", "metrics") else item))
    assert recorded or steps == ENDED
