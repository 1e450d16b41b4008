"""The offline check finds nothing in a right history, and each planted violation in a wrong one."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from bench.faults.check import Evidence, JobEvidence, Receipt, check_history, check_job, check_models
from bench.faults.stalls import STARVED, Stalls, is_excused
from bench.faults.work import Call, JobPlan, expected_models, safetensors
from fedhelm.persist.record import NO_RECORD, By, Draft, seal
from fedhelm_lab.whole_log import read_history
from tests.support.waiting import eventually_sync

PLAN = JobPlan("small", ("site-1", "site-2"), rounds=2, size=8, lines=2)
JOB = "2oce3ptevpwz"
PRIMARY, OTHER = By("server1", "a"), By("server2", "b")
STAMP = "2026-11-22T18:00:00.000Z"


class Story:
    """A history in the making, and what clients know of it."""

    def __init__(self):
        self.history = []
        self.blobs = {}
        self.calls = {site: [] for site in PLAN.sites}
        self.receipts = []
        self.numbers = dict.fromkeys(PLAN.sites, 0)

    def add(self, kind, body, epoch=1, by=PRIMARY):
        prev = self.history[-1].sha256 if self.history else NO_RECORD
        draft = Draft(kind, epoch, by, body)
        record, _ = seal(draft, seq=len(self.history), prev=prev, nonce=f"n{len(self.history)}", version=2)
        self.history.append(record)
        return record

    def blob(self, values):
        data = safetensors(values)
        digest = hashlib.sha256(data).hexdigest()
        self.blobs[digest] = data
        return {"owner": f"jobs/{JOB}/0-1/sites", "digest": digest, "size": len(data)}

    def lines(self, site, values):
        lines = [{"kind": "scalar", "tag": "trial", "value": v, "step": 1, "time": STAMP} for v in values]
        item = {"job": JOB, "source": site, "first": self.numbers[site] + 1, "lines": lines}
        self.numbers[site] += len(lines)
        return self.add("metrics", {"items": [item]})

    def item(self, site, number, values):
        which = {"job": JOB, "attempt": 1, "step": 0, "round": number, "kind": "train", "site": site, "sequence": 0}
        weight = float(site[-1])
        return which | {"blob": self.blob(values), "weight": weight, "metrics": {}, "time": STAMP}

    def call(self, word, site, number, at):
        self.calls[site].append(Call(word, "train", number, 1, at))

    def evidence(self, **changes):
        acknowledged = {(JOB, site): number for site, number in self.numbers.items()}
        known = Evidence(tuple(self.receipts), acknowledged, dict.fromkeys(PLAN.sites, (1, 1, 2)))
        return replace(known, **changes)

    def job(self, **changes):
        return replace(
            JobEvidence(JOB, PLAN, expected_models(PLAN), "FINISHED:COMPLETED", self.calls, {}, None), **changes
        )

    def findings(self):
        return (
            check_history(self.history, self.evidence())
            + check_job(self.history, self.job())
            + check_models(self.history, JOB, lambda ref: self.blobs[ref["digest"]])
        )


def tell(*, spoil=lambda _story, _number: None):
    """A whole job; ``spoil(story, round)`` is called before each round closes, and with round 0 at the end."""
    story = Story()
    story.add("genesis", {"cluster": "c", "project": "p"}, epoch=0, by=By("provision", "z"))
    story.add("fence", {"cause": "first grant"})
    story.add("job_submitted", {"job": JOB, "name": "small"})
    model = np.zeros(PLAN.size, np.float32)
    for number in (1, 2):
        story.add("round_open", {"job": JOB, "step": 0, "round": number, "members": list(PLAN.sites)})
        given = []
        for site in PLAN.sites:
            story.call("begin", site, number, number)
            story.lines(site, [number * 1000 + k for k in range(PLAN.lines)])
            noise = np.random.default_rng([int(site[-1]), number]).normal(size=PLAN.size).astype(np.float32)
            given.append(model + noise)
            placed = story.add("contribution", {"items": [story.item(site, number, given[-1])]})
            story.receipts.append(Receipt(site, JOB, "train", number, placed.seq, placed.epoch))
            story.call("submit", site, number, number + 0.5)
            story.call("accepted", site, number, number + 0.6)
        spoil(story, number)
        total = sum(w * values.astype(np.float64) for w, values in zip((1.0, 2.0), given, strict=True))
        model = (total / 3.0).astype(np.float32)
        ref = story.blob(model)
        which = {"job": JOB, "attempt": 1, "step": 0, "round": number, "kind": "train"}
        sha256 = hashlib.sha256(story.blobs[ref["digest"]]).hexdigest()
        story.add("round_close", which | {"members": list(PLAN.sites), "model": ref, "model_sha256": sha256})
    story.add("job_done", {"job": JOB, "status": "FINISHED:COMPLETED", "reason": ""})
    spoil(story, 0)
    return story


def test_a_right_history_has_no_findings():
    assert tell().findings() == []


def test_a_failover_in_mid_job_is_right_too():
    def fail_over(story, number):
        if number == 0:
            story.add("fence", {"cause": "lease expired"}, epoch=2, by=OTHER)
            story.add("handoff", {"to": "server1", "request_id": "r"}, epoch=2, by=OTHER)

    assert tell(spoil=fail_over).findings() == []


def _only_in(number, deed):
    return lambda story, now: deed(story) if now == number else None


@pytest.mark.parametrize(
    ("says", "number", "deed"),
    [
        ("recorded twice", 2, lambda s: s.add("contribution", {"items": [s.item("site-1", 2, np.zeros(8, "f4"))]})),
        ("closed round", 2, lambda s: s.add("contribution", {"items": [s.item("site-3", 1, np.zeros(8, "f4"))]})),
        ("two writers", 0, lambda s: s.add("handoff", {"to": "x", "request_id": "r"}, by=OTHER)),
        ("second fence of epoch 1", 0, lambda s: s.add("fence", {"cause": "again"})),
        ("epoch 1 after 2", 0, lambda s: (s.add("fence", {"cause": "x"}, epoch=2, by=OTHER), s.lines("site-1", [1]))),
        ("which has no fence", 0, lambda s: s.add("handoff", {"to": "x", "request_id": "r"}, epoch=7)),
        ("has no cause", 0, lambda s: s.add("fence", {"cause": ""}, epoch=2, by=OTHER)),
        ("lines of", 0, lambda s: (s.numbers.update({"site-1": 9}), s.lines("site-1", [5]))),
        ("line 1000 of site-1 is recorded 2 times", 0, lambda s: s.lines("site-1", [1000])),
        ("is recorded 2 times", 0, lambda s: s.add("job_submitted", {"job": JOB, "name": "again"})),
        ("has ended 2 times", 0, lambda s: s.add("job_done", {"job": JOB, "status": "FINISHED:FAILED", "reason": ""})),
    ],
)
def test_what_a_log_must_not_hold_is_found(says, number, deed):
    findings = tell(spoil=_only_in(number, deed)).findings()
    assert any(says in one for one in findings), findings


def _without(story, kind, which=-1):
    """Take one record out of a history, and make the chain whole again: as if it had never been."""
    doomed = [record for record in story.history if record.kind == kind][which]
    told = Story()
    for record in story.history:
        if record is not doomed:
            told.add(record.kind, record.body, record.epoch, record.by)
    story.history = told.history
    return story


def test_a_lost_contribution_is_found():
    findings = _without(tell(), "contribution").findings()
    assert any("acknowledged but not in the log" in one for one in findings)
    assert any("is closed with ['site-1', 'site-2'], given by ['site-1']" in one for one in findings)


def test_a_lost_line_is_found():
    findings = _without(tell(), "metrics").findings()
    assert "I2: line 2000 of site-2 is lost" in findings
    assert any("line 4 of" in one and "was acknowledged, the log ends at 2" in one for one in findings)


def test_a_lost_job_is_found():
    story = tell()
    story.history = story.history[:2]
    assert check_job(story.history, story.job()) == [f"I7: accepted job {JOB} is not in the log"]


def test_a_job_without_an_end_is_found():
    assert any("has not ended" in one for one in _without(tell(), "job_done").findings())


def test_a_record_that_was_taken_out_breaks_the_chain():
    story = tell()
    del story.history[5]
    assert any(one.startswith("I8") for one in story.findings())


def test_a_wrong_model_is_found():
    story = tell()
    wrong = story.job(models=["0" * 64, expected_models(PLAN)[1]])
    assert check_job(story.history, wrong) == [f"the models of job {JOB} are not those of a run without a fault"]


def test_a_model_that_is_not_its_contributions_average_is_found():
    story = tell()
    closed = next(record.body for record in story.history if record.kind == "round_close")
    story.blobs[closed["model"]["digest"]] = safetensors(np.ones(PLAN.size, np.float32))
    assert [one for one in story.findings() if one.startswith("I5: the model of round 1")]


def test_a_blob_that_is_gone_is_found():
    story = tell()
    story.blobs.clear()
    assert any("cannot be computed again" in one for one in story.findings())


def test_a_finished_result_that_is_trained_again_is_found_even_after_a_kill():
    story = tell()
    story.call("begin", "site-1", 2, 9.0)
    found = check_job(story.history, story.job(kills={"site-1": (8.0,)}))
    assert found == ["site-1 trained round 2 again, whose result it had finished"]


def test_a_task_is_repeated_only_when_its_site_was_killed():
    story = tell()
    story.calls["site-1"].insert(0, Call("begin", "train", 1, 1, 0.5))
    assert check_job(story.history, story.job()) == ["site-1 trained round 1 twice, and nothing had killed it"]
    assert check_job(story.history, story.job(kills={"site-1": (0.7,)})) == []
    assert check_job(story.history, story.job(kills={"site-2": (0.7,)})) != []


def test_a_round_that_was_never_trained_is_found():
    story = tell()
    story.calls["site-2"] = [call for call in story.calls["site-2"] if call.round == 1]
    assert check_job(story.history, story.job()) == ["site-2 was called for [('train', 1)]"]


def test_what_a_client_was_told_has_to_be_in_the_log():
    story = tell()
    assert any("a client was told" in one for one in check_job(story.history, story.job(status="FINISHED:FAILED")))


def test_epochs_that_a_site_sees_go_up():
    story = tell()
    found = check_history(story.history, story.evidence(epochs_seen={"site-1": (1, 3, 2)}))
    assert found == ["I6: site-1 saw epochs [1, 3, 2]"]


def test_a_job_that_the_fault_was_meant_to_cost_has_to_say_why():
    def fail(story, number):
        if number == 0:
            story.history.pop()
            story.add("job_done", {"job": JOB, "status": "FINISHED:FAILED", "reason": "chunk 7 is damaged"})

    story = tell(spoil=fail)
    doomed = story.job(status="FINISHED:FAILED", doomed="chunk")
    assert check_job(story.history, doomed) == []
    assert check_job(story.history, replace(doomed, doomed="slot")) != []
    assert any("chunk 7 is damaged" in one for one in check_job(story.history, replace(doomed, doomed=None)))


def test_a_ghost_under_the_number_of_an_archived_slot_is_not_taken_for_it(tmp_path):
    told = {"cause": "first", "time": "2026-01-01T00:00:00.000Z"}
    for folder in ("log", "archive/log"):
        (tmp_path / folder).mkdir(parents=True)
    begin, data = seal(
        Draft("genesis", 0, By("provision", "p"), {"cluster": "c", "project": "p"}), seq=0, prev=NO_RECORD, nonce="n0"
    )
    (tmp_path / "log" / f"{0:016d}").write_bytes(data)
    real, data = seal(Draft("fence", 2, By("server2", "i2"), told), seq=1, prev=begin.sha256, nonce="n1")
    (tmp_path / "archive" / "log" / f"{1:016d}").write_bytes(data)
    _, ghost = seal(Draft("fence", 1, By("server1", "i1"), told), seq=1, prev=begin.sha256, nonce="n2")
    (tmp_path / "log" / f"{1:016d}").write_bytes(ghost)
    assert read_history(tmp_path) == [begin, real]


def test_a_job_that_was_aborted_ends_so_and_never_runs_again():
    def abort(story, number):
        if number == 0:
            story.history.pop()
            story.add("job_done", {"job": JOB, "status": "FINISHED:ABORTED", "reason": "on purpose"})

    story = tell(spoil=abort)
    aborted = story.job(status="FINISHED:ABORTED", aborted=True)
    assert check_job(story.history, aborted) == []
    assert check_job(tell().history, story.job(aborted=True)) == [f"aborted job {JOB} is FINISHED:COMPLETED"]
    story.add("round_open", {"job": JOB, "step": 0, "round": 3, "members": []}, epoch=2, by=OTHER)
    assert any("runs again: round_open" in one for one in check_job(story.history, aborted))


def test_only_a_machine_that_starved_excuses_a_needless_failover_and_only_in_a_quick_trial():
    assert is_excused(STARVED, quick=True)
    assert not is_excused(STARVED - 0.01, quick=True)
    assert not is_excused(60.0, quick=False)


def test_a_machine_that_stood_still_is_noticed(tmp_path):
    stalls = Stalls(tmp_path / "stalls").start()
    eventually_sync((tmp_path / "stalls").exists, 20)
    stalls.close()
    stalls.note(10.0, 3.0)
    stalls.note(20.0, 1.2)
    assert stalls.longest(0.0) >= 3.0
    assert Stalls(tmp_path / "unused").longest(0.0) == 0.0
    known = Stalls(tmp_path / "unused")
    known.note(10.0, 3.0)
    known.note(20.0, 1.2)
    assert (known.longest(5.0), known.longest(15.0), known.longest(25.0)) == (3.0, 1.2, 0.0)
