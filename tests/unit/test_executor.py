import itertools

import pytest

from fedhelm_client.decide import Act, Situation, decide, status_of
from fedhelm_client.job_process import Ended, failure_of
from fedhelm_client.outbox import ContributionId

ONE = ContributionId(0, 0, 1, "train", 0)
TWO = ContributionId(0, 0, 2, "train", 0)


@pytest.mark.parametrize(
    ("now", "act"),
    [
        (Situation(), Act.START),
        (Situation(process="starting", task=ONE), Act.WAIT),
        (Situation(process="up"), Act.WAIT),
        (Situation(process="up", task=ONE), Act.WAIT),
        (Situation(process="up", asking=True), Act.WAIT),
        (Situation(process="up", task=ONE, asking=True), Act.HAND_OUT),
        (Situation(process="up", task=ONE, asking=True, fetching=ONE), Act.WAIT),
        (Situation(process="up", task=TWO, asking=True, fetching=ONE), Act.HAND_OUT),
        (Situation(process="up", task=TWO, in_hand=ONE), Act.WAIT),
        (Situation(process="over"), Act.WAIT),
        (Situation(process="over", task=ONE), Act.RETURNED),
        (Situation(failed=True, process="over", task=ONE), Act.WAIT),
        (Situation(failed=True, process="up"), Act.STOP),
        (Situation(finished="COMPLETED", process="none"), Act.DONE),
        (Situation(finished="COMPLETED", process="over"), Act.DONE),
        (Situation(finished="COMPLETED", process="up"), Act.WAIT),
        (Situation(finished="COMPLETED", process="up", asking=True), Act.END_SCRIPT),
        (Situation(finished="COMPLETED", process="up", patience=False), Act.STOP),
        (Situation(finished="COMPLETED", process="starting"), Act.STOP),
        (Situation(finished="ABORTED", process="up", in_hand=ONE), Act.STOP),
        (Situation(finished="FAILED", process="up", asking=True), Act.STOP),
        (Situation(finished="FAILED", process="none"), Act.DONE),
    ],
)
def test_next_step(now, act):
    assert decide(now) is act


def every_situation():
    for finished, failed, process, task, fetching, in_hand, asking, patience in itertools.product(
        (None, "COMPLETED", "ABORTED", "FAILED"),
        (False, True),
        ("none", "starting", "up", "over"),
        (None, ONE, TWO),
        (None, ONE),
        (None, ONE),
        (False, True),
        (False, True),
    ):
        yield Situation(finished, failed, process, task, fetching, in_hand, asking, patience)


def test_a_running_job_is_never_stopped_and_a_stopped_one_never_started():
    for now in every_situation():
        act = decide(now)
        if now.finished is None and not now.failed:
            assert act not in (Act.STOP, Act.DONE, Act.END_SCRIPT)
        else:
            assert act not in (Act.START, Act.HAND_OUT)
        if act is Act.HAND_OUT:
            assert now.asking
            assert now.task is not None
        if act is Act.DONE:
            assert now.process in ("none", "over")


def test_words_for_beats():
    assert status_of(Situation()) == "STARTING"
    assert status_of(Situation(process="up")) == "IDLE"
    assert status_of(Situation(process="up", in_hand=ONE)) == "TRAINING"
    assert status_of(Situation(failed=True, process="over")) == "FAILED"
    assert status_of(Situation(finished="COMPLETED", process="up")) == "ENDING"


@pytest.mark.parametrize(
    ("ended", "reason"),
    [
        (Ended(1, None, reason="ValueError: boom", traceback="Traceback"), "ValueError: boom"),
        (Ended(3, None, tail="oops"), "the script exited with status 3"),
        (Ended(0, None), "the script returned before the job ended"),
        (Ended(None, 11, tail="Fatal Python error"), "the script was killed by SIGSEGV"),
        (Ended(None, 9, reason="the nanny of the job was killed"), "the nanny of the job was killed"),
    ],
)
def test_reasons_of_failures(ended, reason):
    assert failure_of(ended)[0] == reason
    assert failure_of(ended)[1] == (ended.traceback or ended.tail)
