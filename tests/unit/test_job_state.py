"""A checkpoint's state is the book, exactly: whoever starts from it decides as one who has read every slot."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhelm.errors import Conflict, Corrupt, FedhelmError, JobNotFound, Refused
from fedhelm.persist.record import By, Record
from fedhelm_server import decisions, job_book
from fedhelm_server.assignments import assignment
from fedhelm_server.job_book import JobBook, Segment
from fedhelm_server.job_state import counted, is_whole
from fedhelm_server.job_views import detail
from fedhelm_server.ledger import BATCHED, Answer
from tests.fakes.server_log import (
    JOB,
    OTHER,
    TIME,
    Clock,
    blob,
    closed,
    contribution,
    done,
    line,
    opened,
    submitted,
)

ADMIN = "admin@nvidia.com"
SITES = ("site-1", "site-2")
SIGNED = {"submission": '{"statement": {}}', "submitter_org": "nvidia"}
STATEMENT = f"jobs/{JOB}/provenance"


def requests_of(number):
    return f"request{number:08d}"


def jobs():
    return st.sampled_from([JOB, OTHER])


def rounds():
    return st.tuples(st.integers(1, 4), st.sampled_from(["train", "train", "evaluate"]))


def failure(job, site):
    return {
        "job": job, "attempt": 1, "site": site, "round": 1, "reason": "boom", "traceback": "", "time": TIME
    }  # fmt: skip


def action(kind, decide):
    return kind, decide


def closing(job, number, kind):
    """Close with what is there, as a runner would."""

    def decide(book):
        open_ = book.jobs[job].open if job in book.jobs else None
        members = sorted(open_.contributions) if open_ else []
        model = {} if kind == "train" else {"model": None, "model_sha256": None, "model_blake3": None}
        return decisions.round_close(closed(number, members, kind, job, **model))(book)

    return "round_close", decide


def checkpointing(back):
    def decide(book):
        covered = book.seq - back
        if covered <= book.covered:
            return Answer(None)
        named = {
            job.job: {"keep": min(1, len(job.segments)), "blob": blob(f"jobs/{job.job}/lines/{covered:016d}")}
            for job in book.jobs.values()
            if any(slot <= covered for slot in job.line_slots)
            or any(entry["seq"] <= covered for entry in job.closed if is_whole(entry))
        }
        item = {"covered": covered, "blob": blob(f"checkpoints/{covered:016d}"), "segments": named}
        return decisions.checkpoint(item)(book)

    return "checkpoint", decide


def appending_lines(job, source, count):
    def decide(book):
        first = (book.jobs[job].lines.get(source, 0) if job in book.jobs else 0) + 1
        return decisions.lines(job, source, first, [line(float(n)) for n in range(count)])(book)

    return "metrics", decide


ACTIONS = st.one_of(
    st.builds(
        lambda job, n: action("job_submitted", decisions.submit(submitted(job, requests_of(n)))), jobs(), st.integers(0, 9)
    ),
    st.builds(lambda job: action("job_state", decisions.dispatch(job, SITES, TIME)), jobs()),
    st.builds(lambda job: action("job_state", decisions.running(job, TIME)), jobs()),
    st.builds(lambda job, r: action("round_open", decisions.round_open(opened(r[0], kind=r[1], job=job))), jobs(), rounds()),
    st.builds(
        lambda job, r, site: action("contribution", decisions.contribute(contribution(site, r[0], kind=r[1], job=job))),
        jobs(), rounds(), st.sampled_from(SITES),
    ),
    st.builds(lambda job, r: closing(job, *r), jobs(), rounds()),
    st.builds(appending_lines, jobs(), st.sampled_from(SITES), st.integers(1, 3)),
    st.builds(lambda job, site: action("site_failed", decisions.fail_site(failure(job, site))), jobs(), st.sampled_from(SITES)),
    st.builds(
        lambda job, n: action("job_done", decisions.abort(job, "", ADMIN, requests_of(n), TIME)), jobs(), st.integers(10, 15)
    ),
    st.builds(lambda job: action("job_done", decisions.finish(job, "FINISHED:COMPLETED", "", "", TIME)), jobs()),
    st.builds(
        lambda job, n: action("job_deleted", decisions.delete(job, ADMIN, requests_of(n), TIME)), jobs(), st.integers(20, 25)
    ),
    st.builds(checkpointing, st.integers(0, 3)),
    st.just(action("fence", lambda _: {"cause": "failover", "time": TIME})),
    st.just(action("handoff", lambda _: {"to": "server2", "request_id": "r"})),
    st.just(action("config", lambda _: {"log_version": 2})),
)  # fmt: skip

# Mostly a job that gets somewhere, with anything in between.
PATH = [
    action("job_submitted", decisions.submit(submitted(JOB) | SIGNED)),
    action("job_state", decisions.dispatch(JOB, SITES, TIME)),
    action("job_state", decisions.running(JOB, TIME)),
    *(
        step
        for number in (1, 2, 3)
        for step in (
            action("round_open", decisions.round_open(opened(number))),
            action("contribution", decisions.contribute(contribution("site-1", number))),
            appending_lines(JOB, "site-1", 2),
            action("contribution", decisions.contribute(contribution("site-2", number))),
            closing(JOB, number, "train"),
        )
    ),
    action("job_done", decisions.finish(JOB, "FINISHED:COMPLETED", "", "", TIME, provenance=blob(STATEMENT))),
]


def log_of(steps):
    """The records that correct writers make of these steps."""
    book, records, epoch = JobBook(), [], 1
    for kind, decide in [("genesis", lambda _: {}), ("fence", lambda _: {"cause": "start"}), *steps]:
        try:
            item = decide(book)
        except FedhelmError:
            continue
        if isinstance(item, Answer):
            continue
        epoch += kind == "fence" and len(records) > 1
        body = {"items": [item]} if kind in BATCHED else item
        one = Record(len(records), epoch * (len(records) > 0), By("server1", f"i{epoch}"), "n", "", kind, body, "", v=2)
        book.apply(one)
        records.append(one)
    return records


def fold(records, book=None):
    book = book or JobBook()
    for one in records:
        book.apply(one)
    return book


def revived(book):
    return JobBook.restore(json.loads(json.dumps(book.to_state())))


def seen(book):
    """What others can see of a book."""
    now = Clock().utcnow()
    return {
        "state": book.to_state(),
        "running": [job.job for job in book.running()],
        "waiting": [job.job for job in book.waiting()],
        "fence": book.fence,
        "covered": book.covered,
        "told": [assignment(book, site, 1, {JOB, OTHER}) for site in SITES],
        "shown": [detail(job, now, SITES, {}, {}) for job in book.jobs.values()],
        "placed": [list(job.placed.items()) for job in book.jobs.values()],
        "open": [list(job.open.contributions.items()) for job in book.jobs.values() if job.open],
        "models": [(job.model, job.best()) for job in book.jobs.values()],
        "closed": [
            [job.is_closed((0, number, kind)) for number in range(5) for kind in ("train", "evaluate")]
            for job in book.jobs.values()
        ],
        "prefixes": [job.job for job in book.match("abcd")],
    }


def decided(book, steps):
    """What every step would be answered on this book."""
    answers = []
    for _, decide in steps:
        try:
            answers.append(decide(book))
        except FedhelmError as error:
            answers.append((type(error), str(error)))
    return answers


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_a_book_from_a_checkpoint_is_the_book_of_one_who_read_everything(data):
    extra = data.draw(st.lists(st.tuples(st.integers(0, len(PATH)), ACTIONS), max_size=25))
    steps = list(PATH)
    for at, step in sorted(extra, key=lambda pair: -pair[0]):
        steps.insert(at, step)
    records = log_of(steps)
    cut = data.draw(st.integers(2, len(records)))
    early = fold(records[:cut])
    book = revived(early)
    assert seen(book) == seen(early)
    whole = fold(records)
    assert seen(fold(records[cut:], book)) == seen(whole)
    assert decided(book, steps) == decided(whole, steps)


def test_a_state_does_not_change_while_the_book_goes_on():
    records = log_of(PATH)
    for cut in range(2, len(records)):
        book = fold(records[:cut])
        state = book.to_state()
        before = json.dumps(state)
        fold(records[cut:], book)
        assert json.dumps(state) == before


def test_a_state_of_another_format_or_with_less_in_it_is_corrupt():
    state = fold(log_of(PATH)).to_state()
    with pytest.raises(Corrupt, match="format 9"):
        JobBook.restore({**state, "format": 9})
    for name in state:
        with pytest.raises(Corrupt, match=f"lacks or misstates '{name}'"):
            JobBook.restore({key: value for key, value in state.items() if key != name})
    with pytest.raises(Corrupt, match="misstates"):
        JobBook.restore({**state, "jobs": [{**state["jobs"][0], "surprise": 1}]})


def test_contributions_are_kept_for_the_open_and_the_last_closed_round_only():
    steps = PATH[: 3 + 2 * 5 + 2]  # two rounds closed, one contribution to the third
    book = fold(log_of(steps))
    assert {(key[2], key[4]) for key in book.jobs[JOB].placed} == {(2, "site-1"), (2, "site-2"), (3, "site-1")}
    answer = decisions.contribute(contribution("site-1", 1))(book).value
    assert (answer.gone, answer.placed) == (True, None)
    assert decisions.contribute(contribution("site-1", 2))(book).value.placed is not None


def test_the_newest_request_ids_stay_and_older_ones_are_refused(monkeypatch):
    monkeypatch.setattr(job_book, "MAX_REQUESTS", 3)
    ids = [f"{letters * 6}" for letters in ("aaaa2", "aaab2", "aaac2", "aaad2", "aaae2")]
    made = [f"abcdefghij{letter}2" for letter in "klmno"]
    steps = [("job_submitted", decisions.submit(submitted(job, key))) for job, key in zip(made, ids, strict=True)]
    for book in (fold(log_of(steps)), revived(fold(log_of(steps)))):
        assert list(book.requests) == ids[2:]
        assert book.request_floor == ids[1]
        with pytest.raises(Refused, match="older than all"):
            decisions.submit(submitted(OTHER, "aaab22222222"))(book)
        with pytest.raises(Conflict, match="another write"):
            decisions.submit(submitted(OTHER, ids[3]))(book)
        with pytest.raises(Refused):
            decisions.abort(made[0], "", ADMIN, "aaaa22222222", TIME)(book)
        assert isinstance(decisions.submit(submitted(made[0], ids[0]))(book), Answer)  # the job itself is known
        assert decisions.submit(submitted(OTHER, "zzzz22222222"))(book)["job"] == OTHER


def test_a_deleted_job_leaves_its_id_behind():
    records = log_of([*PATH, ("job_deleted", decisions.delete(JOB, ADMIN, "request99", TIME))])
    for book in (fold(records), revived(fold(records))):
        assert book.jobs == {}
        assert book.deleted[JOB]["seq"] == len(records) - 1
        with pytest.raises(Conflict, match="deleted"):
            decisions.submit(submitted(JOB, "request50"))(book)
        with pytest.raises(JobNotFound, match=f"deleted by {ADMIN}"):
            decisions.lines(JOB, "site-1", 1, [line(1.0)])(book)
        assert decisions.delete(JOB, ADMIN, "request99", TIME)(book) == Answer(None)
        with pytest.raises(JobNotFound):
            decisions.delete(JOB, ADMIN, "request98", TIME)(book)
    with pytest.raises(Conflict, match="has not ended"):
        decisions.delete(JOB, ADMIN, "request99", TIME)(fold(log_of(PATH[:5])))


def test_segments_take_the_place_of_slots_and_may_be_merged():
    book = fold(log_of([*PATH[:6], checkpointing(0)]))
    covered = book.covered
    assert (book.jobs[JOB].line_slots, [one.last for one in book.jobs[JOB].segments]) == ([], [covered])
    for number in range(2):
        book.apply(
            Record(book.seq + 1, 1, By("server1", "i1"), "n", "", "metrics",
                   {"items": [{"job": JOB, "source": "site-1", "first": 3 + number, "lines": [line(1.0)]}]}, "", v=2)
        )  # fmt: skip
    slots = list(book.jobs[JOB].line_slots)
    body = {"covered": slots[0], "blob": blob(), "segments": {JOB: {"keep": 0, "blob": blob(size=7)}}}
    book.apply(Record(book.seq + 1, 1, By("server1", "i1"), "n", "", "checkpoint", body, "", v=2))
    assert book.jobs[JOB].segments == [Segment(slots[0], blob(size=7))]
    assert book.jobs[JOB].line_slots == slots[1:]


def test_a_checkpoint_older_than_the_newest_is_neither_taken_nor_folded():
    book = fold(log_of([*PATH[:6], checkpointing(0)]))
    item = {"covered": book.covered, "blob": blob("jobs/x/y"), "segments": {}}
    assert decisions.checkpoint(item)(book) == Answer(False)
    assert decisions.checkpoint({**item, "blob": book.checkpoints[-1].blob})(book) == Answer(True)
    with pytest.raises(Corrupt, match="after one of slot"):
        book.apply(Record(book.seq + 1, 1, By("server1", "i1"), "n", "", "checkpoint", item, "", v=2))


def test_an_epoch_repair_leaves_nobody_in_charge():
    book = fold(log_of(PATH[:2]))
    body = {"from": 1, "to": 1 << 20, "reason": "restore", "time": TIME}
    book.apply(Record(book.seq + 1, 1 << 20, By("restore", "x"), "n", "", "epoch_repair", body, "", v=2))
    assert (book.fence.epoch, book.fence.name, book.max_epoch) == (1 << 20, "restore", 1 << 20)


def test_a_request_to_operate_is_recorded_once():
    item = {
        "request_id": "operate1", "action": "restart", "by": ADMIN, "target": "site-1", "reason": "", "time": TIME
    }  # fmt: skip
    book = fold(log_of([("admin_action", decisions.operate(item))]))
    assert decisions.operate(item)(book) == Answer(None)
    with pytest.raises(Conflict):
        decisions.operate({**item, "target": "site-2"})(book)
    assert revived(book).requests == book.requests


def test_an_aborted_job_is_over_for_one_who_starts_from_a_checkpoint():
    """A competitor's server that was restarted ran an aborted job again."""
    steps = [*PATH[:6], ("job_done", decisions.abort(JOB, "", ADMIN, "request9", TIME))]
    book = revived(fold(log_of(steps)))
    assert list(book.running()) == list(book.waiting()) == []
    assert book.jobs[JOB].status == "FINISHED:ABORTED"
    assert not assignment(book, "site-1", 1, {JOB}).jobs[0].HasField("task")
    with pytest.raises(Conflict, match="has ended"):
        decisions.round_open(opened(2))(book)


def test_an_end_in_the_log_stays_the_end():
    book = revived(fold(log_of([*PATH, ("job_done", lambda _: Answer(None))])))
    assert book.jobs[JOB].end_seq == len(log_of(PATH)) - 1
    assert decisions.finish(JOB, "FINISHED:FAILED", "", "", TIME)(book) == Answer(None)
    assert done()["status"] == book.jobs[JOB].status


def test_an_ended_job_keeps_the_rounds_that_are_asked_for_and_no_more():
    steps = [*PATH[:3]]
    for number in range(1, 30):
        accuracy = {"accuracy": 1 - abs(number - 7) / 100}
        steps += [
            action("round_open", decisions.round_open(opened(number))),
            *(action("contribution", decisions.contribute(contribution(site, number))) for site in SITES),
            action("round_close", decisions.round_close(closed(number, metrics=accuracy))),
        ]
    whole = fold(log_of(steps))
    before = whole.jobs[JOB]
    book = fold(log_of([*steps, checkpointing(0), PATH[-1]]))
    job = book.jobs[JOB]
    assert len(job.closed) == 29
    assert not any(map(is_whole, job.closed))
    book = fold(log_of([*steps, checkpointing(0), PATH[-1], checkpointing(0)]))
    job = book.jobs[JOB]
    assert [entry["round"] for entry in job.closed] == [7, 29]
    assert (job.best()["round"], job.model["round"]) == (before.best()["round"], before.model["round"])
    assert assignment(book, "site-1", 1, {JOB}).jobs[0].closed == assignment(whole, "site-1", 1, {JOB}).jobs[0].closed
    assert seen(revived(book)) == seen(book)


def test_what_was_signed_is_in_the_book_and_goes_to_the_sites_until_the_job_has_ended():
    book = fold(log_of(PATH[:-1]))
    job = book.jobs[JOB]
    assert (job.submission, job.submitter_org, job.provenance) == (*SIGNED.values(), None)
    (told,) = assignment(book, "site-1", 1, ()).jobs
    assert told.submission == SIGNED["submission"].encode()
    book = revived(fold(log_of(PATH)))
    assert book.jobs[JOB].provenance == blob(STATEMENT)
    assert book.jobs[JOB].submission == SIGNED["submission"]
    (told,) = assignment(book, "site-1", 1, {JOB}).jobs
    assert told.submission == b""


def test_a_checkpoint_and_a_record_of_before_jobs_were_signed_are_read():
    unsigned = [action("job_submitted", decisions.submit(submitted(JOB)))]
    state = fold(log_of([*unsigned, *PATH[1:]])).to_state()
    (job,) = state["jobs"]
    for key in ("submission", "submitter_org", "provenance"):
        del job[key]
    former = JobBook.restore(json.loads(json.dumps(state))).jobs[JOB]
    assert (former.submission, former.submitter_org, former.provenance) == (None, "", None)


def test_a_job_whose_newest_round_refused_a_contribution_says_whose_and_forgets_it_with_the_round():
    job = fold(log_of(PATH[:4])).jobs[JOB]
    job.closed.append({**closed(members=SITES), "refused": {"site-2": "holds nan in tensor 'w'"}, "seq": 9})
    assert (
        "site-2: refused in round 1: it holds nan in tensor 'w'" in detail(job, Clock().utcnow(), SITES, {}, {}).reason
    )
    assert counted(job.closed[-1]) == [site for site in sorted(SITES) if site != "site-2"]
    job.archive(0, Segment(9, {}))
    assert not is_whole(job.closed[-1])
    assert "refused" not in detail(job, Clock().utcnow(), SITES, {}, {}).reason


def test_a_job_that_goes_on_without_a_site_says_why():
    refusal = "site site-1 takes no job that brings its own code (enable_byoc is not set in its kit)"
    steps = [
        *PATH[:4],
        action("site_failed", decisions.fail_site(failure(JOB, "site-2"))),
        action("site_failed", decisions.fail_site({**failure(JOB, "site-1"), "reason": refusal})),
    ]
    job = fold(log_of(steps)).jobs[JOB]
    assert detail(job, Clock().utcnow(), SITES, {}, {}).reason == f"{refusal}; site-2: boom"
    job.failed = {f"site-{n}": {**failure(JOB, f"site-{n}"), "seq": 9} for n in range(1, 9)}
    assert detail(job, Clock().utcnow(), SITES, {}, {}).reason.endswith("site-5: boom; and 3 more")


def test_a_job_that_waits_for_a_site_where_it_has_ended_says_so():
    job = fold(log_of(PATH[:4])).jobs[JOB]  # as of the backup
    held = {"site-1": {JOB: "ENDED"}, "site-2": {JOB: "TRAINING"}}
    assert detail(job, Clock().utcnow(), SITES, held, {}).reason == (
        "round 1 waits for site-1, where this job has ended already: abort it, and submit it again"
    )
    assert detail(job, Clock().utcnow(), SITES, held, {}, given={"site-1"}).reason == ""
