"""The keeper's rules for a dead store, policy `stop`, shutdown, restarts, and what it passes on; times as in
test_keeper."""

from dataclasses import replace

import pytest

from fedhelm_server import keeper_values as kv
from fedhelm_server.keeper_status import trouble
from tests.fakes.server_script import Driven, T


@pytest.fixture
def script():
    return Driven()


def renewing(script, seconds, **row):
    """Let time pass with every renewal and beat answered; return the kinds of actions seen."""
    seen = []
    for _ in range(int(seconds / 0.125)):
        script.after(0.125)
        seen += script.actions
        asked = [type(action) for action in script.actions if isinstance(action, kv.Renew | kv.Beat)]
        for kind in asked:
            script.answer(kind, script.row("active", 3, **row))
            seen += script.actions
    script.actions = seen
    return seen


# --- a store that takes no writes


def test_a_holder_with_a_dead_store_gives_way_after_ten_seconds_to_a_standby_that_can_write(script):
    script.active()
    script.beat(role="READONLY", store_ok=False, reason="no space left")
    renewing(script, 9.5, standby_store_ok=True)
    script.none_of(kv.KillChild, kv.Release)
    assert script.hold is not None
    renewing(script, 1, standby_store_ok=True)
    assert script.take(kv.KillChild).why == "it could not write to the store for 10 s"
    script.none_of(kv.Release)  # not before it was reaped
    script.on(kv.ChildExited("c1", "exited with signal 9"))
    assert script.take(kv.Release).reason == "it could not write to the store for 10 s"
    script.take(kv.StartChild)  # at once: it is no crash


def test_a_holder_with_a_dead_store_keeps_the_lease_when_nobody_else_can_write_either_and_says_so(script):
    script.active()
    script.beat(role="READONLY", store_ok=False)
    renewing(script, 40, standby_store_ok=False)
    script.none_of(kv.KillChild, kv.Release)
    told = [text for text in script.said if "no standby can write either" in text]
    assert told == [
        "server1: it could not write to the store for 10 s; no standby can write either, so epoch 3 stays here"
    ]
    renewing(script, 0.5, standby_store_ok=True)  # one of them can now
    script.take(kv.KillChild)


def test_a_store_that_comes_back_in_time_changes_nothing(script):
    script.active()
    for _ in range(3):
        script.beat(role="READONLY", store_ok=False)
        renewing(script, 9, standby_store_ok=True)
        script.beat(role="ACTIVE", store_ok=True)
        renewing(script, 1, standby_store_ok=True)
        script.none_of(kv.KillChild)


def test_an_append_that_hangs_counts_from_its_beginning(script):
    script.active()
    script.beat(append_age=1.4)  # below T/2
    renewing(script, 12, standby_store_ok=True)
    script.none_of(kv.KillChild)
    script.beat(append_age=9.0, role="READONLY")
    renewing(script, 0.75, standby_store_ok=True)
    script.none_of(kv.KillChild)
    renewing(script, 0.5, standby_store_ok=True)
    script.take(kv.KillChild)


def test_a_promotion_that_hangs_in_the_store_gives_way_too(script):
    script.standby()
    script.granted()
    script.answer(kv.Renew)
    script.beat(role="PROMOTING")
    for _ in range(20):
        script.after(0.5)
        if kv.Renew in script.calls:
            script.answer(kv.Renew, script.row("granted", 3, standby_store_ok=True))
    script.after(0.25)
    assert "did not serve within 10 s" in script.state.child.why
    assert script.state.child.phase is kv.Phase.KILLED


def test_a_standby_whose_store_is_bad_stays_and_says_why(script):
    script.standby()
    script.beat(store_ok=False, reason="another directory is mounted")
    assert script.said[-1] == "server1: standby, not a candidate: another directory is mounted"
    script.after(0.5)
    call = script.take(kv.Beat)
    assert (call.store_ok, call.report.reason) == (False, "another directory is mounted")
    script.answer(kv.Beat)
    script.after(20)
    script.none_of(kv.KillChild)


# --- policy stop


def stopping():
    script = Driven()
    script.settings = replace(script.settings, stop_when_unleased=True)
    return script


def test_with_policy_stop_the_child_is_killed_between_deadline_and_the_end_of_the_lease():
    script = stopping()
    script.active()
    deadline = script.hold.deadline
    while not any(isinstance(action, kv.KillChild) for action in script.actions):
        script.after(0.03125)
        if any(isinstance(action, kv.Renew) for action in script.actions):
            script.fail(kv.Renew)
        assert script.now < deadline + 1
    assert deadline + T.margin / 2 < script.now < deadline + T.margin  # before anybody else is granted
    assert ("unleased", {"since": deadline}) not in script.frames()
    script.on(kv.ChildExited("c1", "exited with signal 9"))
    assert script.take(kv.Release).reason == "its lease was over, and it stops without one"
    script.take(kv.StartChild)


def test_policy_stop_does_not_stop_one_whose_renewals_succeed():
    script = stopping()
    script.active()
    renewing(script, 10)
    script.none_of(kv.KillChild)


# --- shutdown of the system


def test_a_shutdown_from_before_this_supervisor_is_none_of_its_business(script):
    script.standby(kv.Lease(version=1, shutdown="old"))
    script.answer(kv.WaitLease, kv.Lease(version=2, shutdown="old"))
    script.after(5)
    assert script.state.stopping_since is None


def test_a_standby_ends_at_once_with_a_line_and_status_0(script):
    script.standby()
    script.answer(kv.WaitLease, kv.Lease(version=2, shutdown="r7"))
    assert "server1: the system is shut down by an admin (request r7)" in script.said
    assert [kind for kind, _ in script.frames()] == ["stop"]
    script.on(kv.ChildExited("c1", "exited with status 0"))
    assert script.take(kv.Quit).error is None
    script.none_of(kv.StartChild)


def test_the_primary_goes_last_when_no_other_lives(script):
    script.active()
    both = {"server1": "a", "server2": "b"}
    script.answer(kv.WaitLease, script.row("active", 3, shutdown="r7", store_tokens=both))
    renewing(script, 1, shutdown="r7", store_tokens=both)
    assert script.state.stopping_since is None
    assert script.hold is not None
    renewing(script, 0.75, shutdown="r7", store_tokens={"server1": "a"})
    assert script.state.stopping_since is not None


def test_the_primary_does_not_wait_for_more_than_three_seconds(script):
    script.active()
    script.answer(kv.WaitLease, script.row("active", 3, shutdown="r7"))
    renewing(script, 2.75, shutdown="r7")
    assert script.state.stopping_since is None
    renewing(script, 0.5, shutdown="r7")
    script.on(kv.ChildExited("c1", "exited with status 0"))
    assert script.take(kv.Release).reason == "shutdown"
    script.answer(kv.Release, script.row("released", 3))
    assert script.take(kv.Quit).error is None


# --- restart, last words


def test_a_child_that_asks_for_a_restart_is_stopped_released_and_replaced_without_counting(script):
    script.active()
    script.on(kv.ChildWantsRestart("c1", "admin@nvidia.com asked for a restart"))
    assert script.frames() == [("stop", {})]
    script.on(kv.ChildExited("c1", "exited with status 0"))
    assert script.take(kv.Release).reason == "admin@nvidia.com asked for a restart"
    script.take(kv.StartChild)
    assert script.state.failures == 0


def test_a_child_that_asks_for_a_restart_and_stays_is_killed(script):
    script.standby()
    script.on(kv.ChildWantsRestart("c1", "why not"))
    script.after(3.05)
    script.take(kv.KillChild)


def test_the_last_words_of_a_child_are_the_reason_until_another_is_ready(script):
    script.on(kv.Tick())
    script.start_child()
    assert trouble(script.state) is None
    script.on(kv.ChildFailed("c1", "slot 7 of the log is damaged"))
    script.on(kv.ChildExited("c1", "exited with status 1"))
    assert trouble(script.state) == "slot 7 of the log is damaged"
    assert "server1: slot 7 of the log is damaged; the next child starts now" in script.said
    script.start_child()
    assert trouble(script.state) == "slot 7 of the log is damaged"
    script.beat(ready=False, reason="it reads the log")
    assert trouble(script.state) == "slot 7 of the log is damaged"
    script.beat(ready=False, reason="the store cannot be read", store_ok=False)
    assert trouble(script.state) == "the store cannot be read"
    script.beat(ready=True, reason=None, store_ok=True)
    assert trouble(script.state) is None


# --- what is passed on


def test_a_registration_carries_what_the_kit_and_the_software_are():
    script = Driven()
    script.settings = replace(script.settings, about=kv.About((1, 2), "0.3", "signed"))
    script.on(kv.Tick())
    script.start_child()
    script.beat(ready=True)
    assert script.take(kv.Register).about == kv.About((1, 2), "0.3", "signed")


def test_every_beat_says_what_the_software_reads_for_an_overseer_that_was_restarted():
    script = Driven()
    script.settings = replace(script.settings, about=kv.About((1, 2), "0.3", "signed"))
    script.standby()
    script.after(1)
    assert script.take(kv.Beat).about == script.settings.about


def test_the_number_of_running_jobs_is_told_with_the_activation(script):
    script.standby()
    script.granted()
    script.answer(kv.Renew)
    script.on(kv.ChildActive("c1", 3, 42, jobs=2))
    assert script.take(kv.Activate) == kv.Activate("c1", 3, 42, jobs=2)


def test_the_others_tokens_and_who_leads_go_to_the_child_when_they_change(script):
    script.standby()
    row = kv.Lease(version=2, epoch=1, holder="server2", state="active", store_tokens={"server1": "a", "server2": "b"})
    script.answer(kv.WaitLease, row)
    told = {"tokens": {"server2": "b"}, "primary": "server2"}
    assert script.frames() == [("tokens", told)]
    script.after(1)
    assert script.frames() == []
    script.on(kv.ChildExited("c1", "exited with status 1"))
    script.start_child()
    script.beat(ready=True)
    assert script.frames() == [("tokens", told)]  # each child anew


def test_tokens_that_were_told_before_no_overseer_answered_are_taken_back(script):
    script.standby()
    row = kv.Lease(version=2, epoch=1, holder="server2", state="active", store_tokens={"server1": "a", "server2": "b"})
    script.answer(kv.WaitLease, row)
    script.frames()
    script.fail(kv.WaitLease)
    assert script.frames() == [("tokens", {"tokens": {}, "primary": "server2"})]
    script.after(1)
    script.answer(kv.WaitLease, replace(row, version=3, store_tokens={"server2": "c"}))
    assert script.frames() == [("tokens", {"tokens": {"server2": "c"}, "primary": "server2"})]


def test_a_log_version_that_all_read_is_told_to_each_child_once(script):
    script.active()
    renewing(script, 2, log_version=2)
    assert script.frames().count(("log_version", {"version": 2})) == 1
    renewing(script, 2, log_version=1)  # an overseer that was restarted knows less
    assert "log_version" not in [kind for kind, _ in script.frames()]


def test_a_holder_beats_every_t_so_that_an_overseer_started_anew_learns_of_its_store(script):
    script.active()
    beats = [action for action in renewing(script, 12) if isinstance(action, kv.Beat)]
    assert 3 <= len(beats) <= 5


# --- several overseers


def test_an_older_row_from_another_overseer_does_not_call_a_drain_off(script):
    script.active()
    script.answer(kv.WaitLease, script.row("active", 3, intent=kv.Intent("server2", "r1")))
    assert [kind for kind, _ in script.frames()] == ["drain"]
    script.after(0.5)
    old = replace(script.row("active", 3), version=script.state.version - 1)
    script.beat(store_ok=False)
    script.answer(kv.Beat, old) if kv.Beat in script.calls else None
    assert script.hold.stage is kv.Stage.DRAINING


def test_a_row_that_may_be_old_does_not_lengthen_the_first_deadline():
    deadlines = []
    for age in (0.0, 1.0):
        script = Driven()
        script.settings = replace(script.settings, view_age=age)
        script.standby()
        for _ in range(4):
            script.after(0.5)
            script.answer(kv.Beat)
        script.granted()
        deadlines.append(script.hold.deadline)
    assert deadlines[0] - deadlines[1] == pytest.approx(1.0)
