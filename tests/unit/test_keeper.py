"""The rules of the keeper, each as a script on a clock of its own. Times are those of the default profile:
T 3, R 0.5, Q 0.5, M 0.5; a lease may be used for 3 * 0.999 - 0.5 = 2.497 s after a renewal was sent."""

from dataclasses import replace
from itertools import pairwise

import pytest

from fedhelm_server import keeper_values as kv
from tests.fakes.server_script import Driven, T

USABLE = 3 * 0.999 - 0.5


@pytest.fixture
def script():
    return Driven()


# --- registering


def test_a_child_is_started_at_once_and_registered_when_it_is_ready(script):
    script.on(kv.Tick())
    script.take(kv.StartChild)
    script.start_child()
    script.beat(ready=False)
    script.none_of(kv.Register)
    script.beat(ready=True, log_epoch=2, log_seq=7, cluster="abc")
    call = script.take(kv.Register)
    assert (call.incarnation, call.replaces, call.report.log_epoch, call.report.log_seq) == ("c1", None, 2, 7)
    assert not script.state.ready
    script.answer(kv.Register)
    script.take(kv.WaitLease)
    assert script.state.ready
    assert script.said[-1] == "server1: standby"


def test_a_child_that_does_not_get_ready_is_registered_with_its_reason_all_the_same(script):
    script.on(kv.Tick())
    script.start_child()
    script.beat(ready=False, reason="the store is missing")
    script.after(1.9)
    script.none_of(kv.Register)
    script.after(0.2)
    assert script.take(kv.Register).report.reason == "the store is missing"
    script.answer(kv.Register)
    assert not script.state.ready
    assert script.said[-1] == "server1: not ready: the store is missing"


def test_an_overseer_that_does_not_answer_is_asked_again_every_r(script):
    script.on(kv.Tick())
    script.start_child()
    script.beat(ready=True)
    script.take(kv.Register)
    script.fail(kv.Register)
    script.after(0.4)
    script.none_of(kv.Register)
    script.after(0.1)
    script.take(kv.Register)
    assert [text for text in script.said if "no answer" in text] == ["server1: no answer from the overseer: time-out"]


def test_a_name_that_is_live_elsewhere_is_retried_for_2t_then_the_supervisor_ends_with_the_message(script):
    script.on(kv.Tick())
    script.start_child()
    script.beat(ready=True)
    began = script.now
    script.take(kv.Register)
    while not script.state.done:
        script.answer(kv.Register, ok=False, retry_after=0.5, message="server1 runs as c9 already")
        script.after(0.5) if not script.state.done else None
        assert script.now - began < 10
    assert 2 * T.lease <= script.now - began <= 2 * T.lease + 2 * T.renew
    assert script.take(kv.Quit).error == "server1 runs as c9 already"
    assert script.take(kv.KillChild).incarnation == "c1"


def test_a_name_that_becomes_free_meanwhile_is_taken(script):
    script.on(kv.Tick())
    script.start_child()
    script.beat(ready=True)
    script.answer(kv.Register, ok=False, retry_after=0.5, message="live")
    script.after(0.5)
    script.answer(kv.Register)
    assert script.state.ready
    assert script.said[-1] == "server1: standby"


def test_an_overseer_that_was_away_meanwhile_is_given_another_2t(script):
    script.on(kv.Tick())
    script.start_child()
    script.beat(ready=True)
    script.answer(kv.Register, ok=False, retry_after=0.5, message="live")
    script.after(5.5)
    script.fail(kv.Register)
    script.after(0.5)
    script.answer(kv.Register, ok=False, retry_after=0.5, message="live, as the new overseer thinks")
    script.after(0.5)
    assert not script.state.done
    script.answer(kv.Register)
    assert script.state.ready


def test_a_refusal_without_a_time_to_retry_ends_at_once(script):
    script.on(kv.Tick())
    script.start_child()
    script.beat(ready=True)
    script.answer(kv.Register, ok=False, message="another cluster's log")
    assert script.take(kv.Quit).error == "another cluster's log"


def test_a_standby_beats_every_r_and_polls_on_with_the_version_it_saw(script):
    script.standby()
    sent = 0
    for _ in range(40):
        script.after(0.05)
        if any(isinstance(action, kv.Beat) for action in script.actions):
            sent += 1
            script.answer(kv.Beat)
    assert 4 <= sent <= 5
    script.answer(kv.WaitLease, kv.Lease(version=9, epoch=2, holder="server2", incarnation="x", state="active"))
    assert script.take(kv.WaitLease).after == 9


def test_an_overseer_that_forgot_this_server_is_told_again(script):
    script.standby()
    script.after(0.5)
    script.fail(kv.Beat, "no such incarnation", denied=True)
    assert script.take(kv.Register).incarnation == "c1"


# --- grant, renewals, deadline


def test_a_grant_is_passed_on_with_a_deadline_from_before_it_can_have_been_made(script):
    script.standby()
    polled = script.now
    script.after(0.3)
    script.granted(epoch=3, cause="server2: child exited with signal 9")
    [(kind, fields)] = script.frames()
    assert kind == "grant"
    # The row without the grant was last seen in the answer to a call sent when the poll was.
    assert fields == {
        "epoch": 3, "deadline": pytest.approx(polled + USABLE), "cause": "server2: child exited with signal 9", "log_seq": 41,
    }  # fmt: skip
    assert script.take(kv.Renew).epoch == 3
    assert script.said[-1] == "server1: promoting, epoch 3 (server2: child exited with signal 9)"


def test_a_grant_seen_twice_is_passed_on_once(script):
    script.standby()
    script.granted()
    script.answer(kv.WaitLease, script.row("granted", 3))
    assert script.frames() == []


@pytest.mark.parametrize("row", [{"holder": "server2"}, {"incarnation": "c0"}])
def test_a_grant_to_somebody_else_or_another_incarnation_is_none_for_this_child(script, row):
    script.standby()
    script.answer(kv.WaitLease, script.row("granted", 3, **row))
    assert script.frames() == []
    assert script.hold is None


def test_the_deadline_counts_from_before_a_renewal_was_sent(script):
    script.active()
    script.after(0.5)
    sent = script.calls[kv.Renew][1]
    script.after(0.3)
    script.answer(kv.Renew)
    assert script.frames() == [("lease", {"deadline": pytest.approx(sent + USABLE)})]


def test_a_holder_renews_every_r_one_call_at_a_time(script):
    script.active()
    times = []
    for _ in range(60):
        script.after(0.05)
        if any(isinstance(action, kv.Renew) for action in script.actions):
            times.append(script.now)
            script.answer(kv.Renew)
    assert all(0.45 <= later - before <= 0.56 for before, later in pairwise(times))
    assert len(times) >= 5
    script.after(0.5)
    script.calls.pop(kv.Renew)
    script.after(2)  # unanswered
    assert kv.Renew not in script.calls


def test_active_is_told_until_it_is_answered(script):
    script.standby()
    script.granted()
    script.answer(kv.Renew)
    script.on(kv.ChildActive("c1", 3, 42))
    assert script.take(kv.Activate) == kv.Activate("c1", 3, 42)
    script.fail(kv.Activate)
    script.after(0.2)
    script.none_of(kv.Activate)
    script.after(0.1)
    script.take(kv.Activate)
    script.answer(kv.Activate, script.row("active", 3))
    script.after(2)
    script.none_of(kv.Activate)
    assert "server1: primary, epoch 3 (server2 died)" in script.said


def test_zero_rows_demote_at_once_and_the_child_comes_back_as_a_standby(script):
    script.active()
    script.after(0.5)
    taken = kv.Lease(version=9, epoch=4, holder="server2", incarnation="x", state="granted")
    script.answer(kv.Renew, taken, ok=False)
    assert script.take(kv.KillChild).incarnation == "c1"
    assert script.hold is None
    script.on(kv.ChildExited("c1", "exited with signal 9"))
    script.none_of(kv.Release)
    script.take(kv.StartChild)
    script.start_child()
    script.beat(ready=True)
    call = script.take(kv.Register)
    assert (call.incarnation, call.replaces) == ("c2", "c1")


def test_a_row_of_somebody_else_in_a_view_is_a_hint_that_makes_the_holder_renew_now(script):
    script.active()
    script.after(0.5)
    script.answer(kv.Renew)
    script.after(0.1)
    script.answer(kv.WaitLease, kv.Lease(version=9, epoch=4, holder="server2", incarnation="x", state="granted"))
    script.none_of(kv.KillChild)
    script.take(kv.Renew)


def test_an_overseer_whose_database_is_behind_does_not_demote_the_holder_it_is_told_again(script):
    script.active(epoch=5)
    script.after(0.5)
    script.answer(kv.Renew, kv.Lease(version=0, epoch=0), ok=False)
    script.none_of(kv.KillChild)
    assert script.take(kv.Register).incarnation == "c1"
    script.answer(kv.Register, script.row("active", 5))
    assert script.hold.epoch == 5


def test_overseers_away_past_the_deadline_means_unleased_and_back_with_the_next_renewal(script):
    script.active()
    deadline = script.hold.deadline
    unleased = None
    while script.now < deadline + 1:
        script.after(0.05)
        if script.frames():
            unleased = (script.now, script.frames())
        if any(isinstance(action, kv.Renew) for action in script.actions):
            script.fail(kv.Renew)
            if script.frames():
                unleased = (script.now, script.frames())
    assert unleased is not None
    assert deadline < unleased[0] < deadline + T.renew + 0.1
    assert unleased[1] == [("unleased", {"since": deadline})]
    assert script.said[-1] == "server1: primary, epoch 3 (server2 died), DEGRADED: no failover"
    script.after(0.5)
    script.answer(kv.Renew)
    sent = script.calls[kv.Renew][1]
    assert script.frames() == [("lease", {"deadline": pytest.approx(sent + USABLE)})]
    assert script.said[-1] == "server1: primary, epoch 3 (server2 died)"


# --- watchdog


def test_a_wedged_child_stops_the_renewals_is_killed_after_half_t_and_released_only_when_reaped(script):
    script.active()
    script.after(0.5)
    script.answer(kv.Renew)
    silent_since = script.now
    script.after(1.45, beats=False)
    script.none_of(kv.KillChild)
    script.after(0.1, beats=False)
    assert "no beat for 1.5 s" in script.take(kv.KillChild).why
    assert script.now - silent_since <= 1.6
    script.after(5)
    script.none_of(kv.Renew, kv.Release, kv.StartChild)  # waitpid has not returned
    script.on(kv.ChildExited("c1", "exited with signal 9"))
    release = script.take(kv.Release)
    assert (release.incarnation, release.epoch) == ("c1", 3)
    assert "no beat" in release.reason
    script.take(kv.StartChild)


def test_a_starting_child_gets_time_for_its_imports_then_is_killed(script):
    script.on(kv.Tick())
    script.start_child()
    script.after(29.9, beats=False)
    script.none_of(kv.KillChild)
    script.after(0.2, beats=False)
    assert "30 s of its start" in script.take(kv.KillChild).why


def test_after_a_pause_of_the_supervisor_itself_the_child_gets_the_chance_to_beat(script):
    script.active()
    script.now += 30
    script.on(kv.Tick())
    script.none_of(kv.KillChild, kv.Renew)
    assert script.frames() == []  # not unleased either: nothing was asked yet
    script.beat()
    script.take(kv.Renew)


def test_a_child_that_hangs_up_and_stays_is_killed(script):
    script.standby()
    script.on(kv.ChildHungUp("c1"))
    script.none_of(kv.KillChild)
    script.after(1)
    assert script.take(kv.KillChild).incarnation == "c1"


def test_the_exit_of_a_holder_is_released_at_once_with_its_status_and_retried_until_told(script):
    script.active()
    script.on(kv.ChildExited("c1", "exited with signal 9"))
    assert script.take(kv.Release) == kv.Release("c1", 3, "child exited with signal 9")
    script.take(kv.StartChild)
    script.fail(kv.Release)
    script.after(0.5)
    script.take(kv.Release)
    script.answer(kv.Release, script.row("released", 3, incarnation="c1"))
    script.after(2)
    script.none_of(kv.Release)


def test_a_release_that_the_overseer_calls_void_is_not_repeated(script):
    script.active()
    script.on(kv.ChildExited("c1", "exited with signal 9"))
    script.fail(kv.Release, "not the holder", denied=True)
    script.after(2)
    script.none_of(kv.Release)


def test_a_grant_to_a_child_that_just_died_is_given_back(script):
    script.standby()
    script.on(kv.ChildExited("c1", "exited with status 1"))
    script.none_of(kv.Release)
    script.answer(kv.WaitLease, script.row("granted", 3, incarnation="c1"))
    assert script.take(kv.Release) == kv.Release("c1", 3, "child is gone")


def test_a_child_that_cannot_start_is_reported_and_not_spun(script):
    script.on(kv.Tick())
    pauses = []
    for _ in range(7):
        script.take(kv.StartChild)
        script.start_child()
        script.on(kv.ChildExited(script.incarnation, "exited with status 1"))
        died = script.now
        while not any(isinstance(action, kv.StartChild) for action in script.actions):
            script.after(0.05)
        pauses.append(round(script.now - died, 2))
    assert pauses == pytest.approx([0, 0.2, 0.5, 1, 2, 5, 5], abs=0.07)
    assert "server1: child exited with status 1; the next child starts in 5 s" in script.said


def test_a_child_that_was_ready_for_a_term_starts_the_backoff_anew(script):
    script.on(kv.Tick())
    for _ in range(3):
        script.start_child()
        script.on(kv.ChildExited(script.incarnation, "exited with status 1"))
        script.after(2, beats=False)
    script.standby()
    script.after(3.1)
    script.on(kv.ChildExited(script.incarnation, "exited with signal 9"))
    script.take(kv.StartChild)


def test_frames_and_answers_of_a_dead_child_mean_nothing(script):
    script.active()
    script.after(0.5)
    script.on(kv.ChildExited("c1", "exited with signal 9"))
    script.answer(kv.Renew, ok=False)
    script.start_child()
    script.none_of(kv.KillChild)
    script.on(kv.ChildActive("c1", 3, 50))
    script.on(kv.ChildHungUp("c1"))
    script.after(1.2)
    script.none_of(kv.KillChild, kv.Activate)
    assert script.hold is None


def test_a_registration_answered_after_its_child_died_names_what_the_next_one_replaces(script):
    script.on(kv.Tick())
    script.start_child()
    script.beat(ready=True)
    script.on(kv.ChildExited("c1", "exited with signal 9"))
    script.answer(kv.Register)
    assert not script.state.registered
    script.start_child()
    script.beat(ready=True)
    assert script.take(kv.Register).replaces == "c1"


# --- the store


def test_an_append_that_hangs_for_ten_seconds_is_told_as_a_store_that_does_not_work(script):
    script.active()
    script.beat(append_age=9.0)
    script.after(0.5)
    script.none_of(kv.Beat)
    script.beat(append_age=10.5, role="READONLY")
    assert script.take(kv.Beat).store_ok is False
    script.answer(kv.Beat)
    script.after(0.5)
    script.answer(kv.Beat)
    script.beat(append_age=0.0, role="ACTIVE")
    script.after(0.5)
    assert script.take(kv.Beat).store_ok is True
    script.answer(kv.Beat)
    script.after(0.6)
    script.none_of(kv.Beat)


# --- planned switchover


def drained(script, request="r1"):
    script.active()
    row = script.row("active", 3, intent=kv.Intent("server2", request))
    script.answer(kv.WaitLease, row)
    return row


def test_an_intent_for_another_server_drains_and_a_confirmed_handoff_ends_the_child(script):
    drained(script)
    assert script.frames() == [("drain", {"to": "server2", "request_id": "r1"})]
    script.on(kv.ChildDrained("c1", 50))
    release = script.take(kv.Release)
    assert (release.epoch, release.handoff, release.refused) == (3, True, False)
    script.after(0.6)
    script.none_of(kv.Renew)
    script.answer(kv.Release, script.row("released", 3))
    assert script.frames() == [("stop", {})]
    script.on(kv.ChildExited("c1", "exited with status 0"))
    script.none_of(kv.Release)
    script.take(kv.StartChild)
    script.start_child()
    script.beat(ready=True)
    assert script.take(kv.Register).replaces == "c1"


def test_older_rows_of_another_overseer_do_not_call_a_drain_off(script):
    row = drained(script)
    older = script.row("active", 3)
    older = replace(older, version=row.version - 1)
    for _ in range(2):
        script.after(0.5)
        script.answer(kv.Renew, older)
    script.on(kv.ChildDrained("c1", 50))
    assert script.take(kv.Release).handoff


def test_a_child_that_handed_over_and_stays_is_killed(script):
    drained(script)
    script.on(kv.ChildDrained("c1", 50))
    script.answer(kv.Release, script.row("released", 3))
    script.after(3.05)
    script.take(kv.KillChild)


@pytest.mark.parametrize("target", ["server1"])
def test_an_intent_for_this_server_does_not_drain_it(script, target):
    script.active()
    script.answer(kv.WaitLease, script.row("active", 3, intent=kv.Intent(target, "r1")))
    assert script.frames() == []


def test_an_unconfirmed_handoff_goes_on_only_after_a_renewal_succeeded(script):
    row = drained(script)
    script.on(kv.ChildDrained("c1", 50))
    script.fail(kv.Release)
    assert script.frames() == []
    script.take(kv.Renew)
    script.fail(kv.Renew)
    assert script.frames() == []
    script.after(0.5)
    script.answer(kv.Renew, row)
    [(kind, fields)] = script.frames()
    assert kind == "resume"
    assert fields["deadline"] == pytest.approx(script.calls[kv.Renew][1] + USABLE)
    script.answer(kv.WaitLease, row)  # the same intent, still in the row, is not tried again
    assert script.frames() == []


def test_an_unconfirmed_handoff_that_was_done_is_seen_by_the_renewal(script):
    drained(script)
    script.on(kv.ChildDrained("c1", 50))
    script.fail(kv.Release)
    script.answer(kv.Renew, script.row("released", 3), ok=False)
    script.take(kv.KillChild)
    assert script.hold is None


def test_an_unconfirmed_handoff_with_no_overseer_left_goes_on_unleased(script):
    drained(script)
    script.on(kv.ChildDrained("c1", 50))
    script.fail(kv.Release)
    script.fail(kv.Renew)
    frames = []
    while script.now < script.hold.deadline + 0.6:
        script.after(0.05)
        frames += script.frames()
        if any(isinstance(action, kv.Renew) for action in script.actions):
            script.fail(kv.Renew)
            frames += script.frames()
    assert [kind for kind, _ in frames] == ["unleased"]
    script.on(kv.ChildDrained("c1", 50))  # crossed on the pipe
    script.none_of(kv.Release)
    script.after(0.5)
    script.answer(kv.Renew)
    assert [kind for kind, _ in script.frames()] == ["lease"]


def test_an_intent_taken_back_before_the_handoff_resumes(script):
    drained(script)
    script.answer(kv.WaitLease, script.row("active", 3))
    script.answer(kv.Renew) if kv.Renew in script.calls else None
    assert [kind for kind, _ in script.frames()] == ["resume"]
    script.on(kv.ChildDrained("c1", 50))
    script.none_of(kv.Release)


def test_a_drain_that_takes_too_long_resumes(script):
    drained(script)
    resumed = []
    for _ in range(220):
        script.after(0.05)
        if any(isinstance(action, kv.Renew) for action in script.actions):
            script.answer(kv.Renew)
            resumed += [kind for kind, _ in script.frames() if kind == "resume"]
    assert resumed == ["resume"]


# --- refused, fenced


def test_a_refusal_is_told_and_the_same_child_registers_again_later_and_later(script):
    script.standby()
    script.beat(log_seq=41)
    pauses = []
    for epoch in (3, 4, 5, 6, 7, 8):
        script.granted(epoch)
        script.answer(kv.Renew)
        script.on(kv.ChildRefused("c1", "the disk is full"))
        assert script.take(kv.Release) == kv.Release("c1", epoch, "the disk is full", refused=True)
        script.answer(kv.Release, script.row("released", epoch))
        script.none_of(kv.KillChild, kv.StartChild)
        told = script.now
        while not any(isinstance(action, kv.Register) for action in script.actions):
            script.after(0.05)
        pauses.append(round(script.now - told, 2))
        script.answer(kv.Register, script.row("released", epoch))
    assert pauses == [0.5, 1, 2, 4, 5, 5]


def test_a_server_whose_log_is_too_short_asks_for_no_more_grants_until_it_is_long_enough(script):
    script.standby()
    script.beat(log_seq=30)
    script.granted(3)
    script.answer(kv.Renew)
    script.on(kv.ChildRefused("c1", "the store went backwards: the log ends at 30, was at 41"))
    script.answer(kv.Release, script.row("released", 3))
    script.after(60)
    script.none_of(kv.Register)
    script.beat(log_seq=41)
    script.take(kv.Register)


def test_a_late_view_of_a_grant_that_was_refused_is_no_new_grant(script):
    script.standby()
    script.granted(3)
    late = script.state.lease
    script.answer(kv.Renew)
    script.on(kv.ChildRefused("c1", "store went backwards"))
    script.answer(kv.Release, script.row("released", 3))
    script.answer(kv.WaitLease, late)
    assert script.frames() == []
    assert script.hold is None


def test_a_grant_of_an_old_number_that_stays_is_new_because_the_lease_store_has_lost_its_memory(script):
    script.standby()
    script.granted(3)
    script.answer(kv.Renew)
    script.on(kv.ChildRefused("c1", "no space left"))
    script.answer(kv.Release, script.row("released", 3))
    # The store is emptied, and counts from 1 again; nobody wrote a fence of epoch 3.
    row, before = script.row("granted", 2), script.now
    passed_on = []
    for _ in range(4):
        script.after(0.5)
        script.answer(kv.Beat, row)
        passed_on += script.frames()
    [(_kind, fields)] = [frame for frame in passed_on if frame[0] == "grant"]
    assert fields["epoch"] == 2
    # From its registration, 0.5 s after the refusal: the row has shown the grant in every answer since.
    assert fields["deadline"] <= before + 0.55 + USABLE


def test_a_refused_child_whose_store_is_bad_does_not_ask_for_more(script):
    script.standby()
    script.granted()
    script.answer(kv.Renew)
    script.on(kv.ChildRefused("c1", "the store refuses to write"))
    script.beat(store_ok=False, log_seq=41)
    script.answer(kv.Release, script.row("released", 3))
    script.after(6)
    script.none_of(kv.Register)
    script.beat(store_ok=True)
    script.take(kv.Register)


def test_a_fenced_child_ends_and_its_successor_is_a_standby_at_once(script):
    script.active()
    script.on(kv.ChildFenced("c1", 4))
    script.none_of(kv.KillChild, kv.Release)
    script.on(kv.ChildExited("c1", "exited with status 0"))
    script.take(kv.StartChild)


def test_a_fenced_child_that_stays_is_killed(script):
    script.active()
    script.on(kv.ChildFenced("c1", 4))
    script.after(1.05)
    script.take(kv.KillChild)
    script.none_of(kv.Renew)


def test_a_child_that_led_is_never_granted_again(script):
    script.active(epoch=3)
    script.after(0.5)
    again = script.row("granted", 4)
    script.answer(kv.WaitLease, again)
    assert script.frames() == []
    script.answer(kv.Renew, again, ok=False)
    script.take(kv.KillChild)
    script.on(kv.ChildExited("c1", "exited with signal 9"))
    assert script.take(kv.Release) == kv.Release("c1", 4, "lost the lease of epoch 3")


# --- stop


def test_stop_ends_the_child_releases_and_quits(script):
    script.active()
    script.on(kv.StopRequested())
    assert script.frames() == [("stop", {})]
    script.none_of(kv.Release)
    script.on(kv.ChildExited("c1", "exited with status 0"))
    assert script.take(kv.Release).reason == "shutdown"
    script.none_of(kv.StartChild, kv.Quit)
    script.answer(kv.Release, script.row("released", 3))
    assert script.take(kv.Quit).error is None


def test_stop_of_a_standby_releases_nothing_and_makes_it_unfit_for_a_grant(script):
    script.standby()
    script.on(kv.StopRequested())
    assert script.take(kv.Beat).report.ready is False
    script.on(kv.ChildExited("c1", "exited with status 0"))
    script.none_of(kv.Release)
    script.take(kv.Quit)


def test_stop_kills_a_child_that_does_not_end_and_never_takes_five_seconds(script):
    script.active()
    began = script.now
    script.on(kv.StopRequested())
    script.after(2.9)
    script.none_of(kv.KillChild)
    script.after(0.15)
    script.take(kv.KillChild)
    script.on(kv.ChildExited("c1", "exited with signal 9"))
    assert script.take(kv.Release).reason == "shutdown"
    while not script.state.done:
        script.after(0.05)  # no overseer answers
    assert script.now - began < 4.5


def test_a_second_stop_does_not_wait(script):
    script.standby()
    script.on(kv.StopRequested())
    script.on(kv.StopRequested())
    script.take(kv.KillChild)


def test_stop_while_a_child_starts_stops_that_child(script):
    script.on(kv.Tick())
    script.on(kv.StopRequested())
    script.none_of(kv.Quit)
    script.start_child()
    assert script.frames() == [("stop", {})]


def test_stop_between_two_children_starts_none(script):
    script.on(kv.Tick())
    for _ in range(3):
        script.start_child()
        script.on(kv.ChildExited(script.incarnation, "exited with status 1"))
        if script.state.child.phase is kv.Phase.ABSENT:
            break
    assert script.state.child.phase is kv.Phase.ABSENT
    script.on(kv.StopRequested())
    script.take(kv.Quit)
