"""The rules of docs/ha.md, sections 3.2 to 3.4 and 4, one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedhelm.config.timing import PROFILES
from fedhelm.wire.overseer_api import Intent
from fedhelm_overseer.decide import (
    EXPIRED,
    Adopt,
    DropIntent,
    Grant,
    Seen,
    Server,
    Wait,
    after_primary,
    decide,
    unfit,
)
from fedhelm_overseer.lease import HANDOFF, Holder, LeaseRow

TIMING = PROFILES["default"]
T, R = TIMING.lease, TIMING.renew
ONE, TWO = Server("server1", "aa", 0), Server("server2", "bb", 1)
OLD = replace(ONE, spent=True)
NEW_ONE = Server("server1", "cc", 0)
NEVER = LeaseRow()
HELD = LeaseRow(version=2, epoch=1, holder=ONE.holder, renew_seq=9, state="active")
RELEASED = replace(HELD, state="released", cause="exit status -9")
TO_TWO = Intent(target="server2", request_id="r1")


def seen(*servers, unchanged_since=0.0, version_since=0.0, first_fit_since=0.0, **rest):
    return Seen(
        expected=2,
        servers={server.name: server for server in servers},
        unchanged_since=unchanged_since,
        version_since=version_since,
        first_fit_since=first_fit_since,
        **rest,
    )


def led(server, epoch=1, seq=10):
    """A server whose log carries that epoch's fence."""
    return replace(server, log_epoch=epoch, log_seq=seq)


def granted(action):
    assert isinstance(action, Grant), action
    return action.holder.name, action.epoch


class TestTheFirstGrant:
    def test_is_given_at_once_when_all_servers_are_there_and_the_project_order_decides(self):
        action = decide(NEVER, seen(TWO, ONE), TIMING, now=0.0)
        assert action == Grant(1, ONE.holder, "first grant")

    def test_waits_for_the_others(self):
        assert isinstance(decide(NEVER, seen(TWO), TIMING, now=2 * R - 0.01), Wait)

    def test_does_not_wait_for_them_longer_than_two_renewals(self):
        assert granted(decide(NEVER, seen(TWO), TIMING, now=2 * R)) == ("server2", 1)

    def test_waits_for_servers_that_registered_and_are_not_ready(self):
        assert isinstance(decide(NEVER, seen(replace(ONE, ready=False), TWO), TIMING, now=0.1), Wait)

    def test_is_not_given_at_once_over_a_log_that_is_not_fresh(self):
        servers = seen(replace(ONE, log_seq=7), TWO)
        assert isinstance(decide(NEVER, servers, TIMING, now=T - 0.01), Wait)
        assert granted(decide(NEVER, servers, TIMING, now=T)) == ("server1", 1)

    def test_over_a_log_with_epochs_comes_after_a_whole_term_and_rises_above_them(self):
        servers = seen(led(ONE, epoch=6), led(TWO, epoch=6))
        assert isinstance(decide(NEVER, servers, TIMING, now=T - 0.01), Wait)
        assert granted(decide(NEVER, servers, TIMING, now=T)) == ("server1", 7)

    def test_nobody_registered_is_nothing_to_do(self):
        assert isinstance(decide(NEVER, seen(), TIMING, now=1e6), Wait)


class TestAReleasedLease:
    def test_goes_to_the_standby_at_once(self):
        action = decide(RELEASED, seen(led(OLD), led(TWO)), TIMING, now=0.0)
        assert action == Grant(2, TWO.holder, "exit status -9")

    def test_never_goes_back_to_the_incarnation_that_released_it(self):
        action = decide(RELEASED, seen(led(OLD)), TIMING, now=1e6)
        assert isinstance(action, Wait)
        assert action.alarm

    def test_goes_to_a_new_incarnation_when_nobody_better_is_there(self):
        assert granted(decide(RELEASED, seen(led(NEW_ONE)), TIMING, now=0.0)) == ("server1", 2)

    def test_goes_to_another_server_even_if_the_new_incarnation_has_read_further(self):
        assert granted(decide(RELEASED, seen(led(NEW_ONE, seq=99), led(TWO)), TIMING, now=0.0)) == ("server2", 2)

    def test_is_not_taken_for_released_below_an_epoch_that_a_log_shows(self):
        servers = seen(led(NEW_ONE, epoch=2), led(TWO, epoch=2))
        assert isinstance(decide(RELEASED, servers, TIMING, now=T - 0.01), Wait)
        assert granted(decide(RELEASED, servers, TIMING, now=T)) == ("server2", 3)


class TestAHeldLease:
    @pytest.mark.parametrize("state", ["granted", "active"])
    def test_is_left_alone_while_it_is_renewed(self, state):
        row = replace(HELD, state=state)
        assert isinstance(decide(row, seen(led(ONE), led(TWO), unchanged_since=10.0), TIMING, now=10 + T - 0.01), Wait)

    @pytest.mark.parametrize("state", ["granted", "active"])
    def test_is_given_to_another_after_it_stood_still_for_a_term(self, state):
        row = replace(HELD, state=state)
        action = decide(row, seen(led(ONE), led(TWO), unchanged_since=10.0), TIMING, now=10 + T)
        assert action == Grant(2, TWO.holder, "lease expired", expired=True)

    def test_is_not_given_to_its_own_silent_holder(self):
        assert isinstance(decide(HELD, seen(led(ONE)), TIMING, now=1e6), Wait)

    def test_of_a_single_server_goes_to_its_new_incarnation(self):
        assert granted(decide(HELD, seen(led(NEW_ONE)), TIMING, now=T)) == ("server1", 2)

    def test_is_not_given_up_for_a_promoting_holder_that_renews(self):
        row = replace(HELD, state="granted")
        servers = seen(replace(led(ONE), role="PROMOTING"), led(TWO), unchanged_since=99.5, version_since=0.0)
        assert isinstance(decide(row, servers, TIMING, now=100.0), Wait)

    def test_of_a_server_that_dies_while_it_promotes_is_the_next_epoch_of_another(self):
        row = replace(HELD, epoch=2, state="granted", cause=EXPIRED)
        third = Server("server3", "dd", 2, log_epoch=1, log_seq=10)
        silent = replace(led(ONE), role="PROMOTING", live=False)
        action = decide(row, seen(silent, third, led(TWO)), TIMING, now=T)
        assert action == Grant(3, TWO.holder, EXPIRED, expired=True)


class TestAPause:
    @pytest.mark.parametrize("row", [NEVER, HELD, RELEASED, replace(HELD, state="granted")])
    def test_lets_nothing_be_granted_whatever_is_due_and_says_so(self, row):
        action = decide(replace(row, paused=True), seen(led(OLD, epoch=0), led(TWO, epoch=0)), TIMING, now=1e6)
        assert isinstance(action, Wait)
        assert (action.alarm, action.paused) == (True, True)
        assert "failover is paused" in action.reason

    def test_says_nothing_while_the_primary_is_well(self):
        row = replace(HELD, paused=True)
        action = decide(row, seen(led(ONE), led(TWO), unchanged_since=10.0), TIMING, now=11.0)
        assert action == Wait("the lease is held")

    def test_does_not_keep_a_row_behind_a_living_writer(self):
        writer = replace(led(ONE, epoch=7, seq=120), role="ACTIVE")
        assert decide(replace(NEVER, paused=True), seen(writer), TIMING, now=0.0) == Adopt(7, ONE.holder, 120)

    def test_does_not_repair_epochs_by_a_grant(self):
        action = decide(replace(NEVER, paused=True), seen(led(ONE, epoch=7), led(TWO, epoch=7)), TIMING, now=1e6)
        assert isinstance(action, Wait)
        assert action.paused

    def test_does_not_stop_a_switchover_that_an_admin_asked_for_nor_the_way_back(self):
        handed = replace(RELEASED, cause=HANDOFF, intent=TO_TWO, paused=True)
        assert granted(decide(handed, seen(led(OLD), led(TWO)), TIMING, now=0.0)) == ("server2", 2)
        under_way = LeaseRow(version=4, epoch=2, holder=TWO.holder, state="granted", intent=TO_TWO, paused=True)
        servers = seen(led(NEW_ONE), led(TWO), unchanged_since=9.9, version_since=8.0)
        assert granted(decide(under_way, servers, TIMING, now=10.0)) == ("server1", 3)

    def test_does_not_leave_everybody_out_when_the_target_of_a_switchover_dies_in_it(self):
        died = LeaseRow(version=5, epoch=2, holder=TWO.holder, state="released", cause="exit status -9", paused=True)
        servers = seen(led(NEW_ONE), replace(led(TWO), spent=True))
        assert granted(decide(replace(died, intent=TO_TWO), servers, TIMING, now=0.0)) == ("server1", 3)
        assert isinstance(decide(died, servers, TIMING, now=1e6), Wait)

    def test_stops_the_failover_of_a_primary_that_was_asked_and_died_instead(self):
        row = replace(HELD, intent=TO_TWO, paused=True)
        action = decide(row, seen(led(ONE), led(TWO)), TIMING, now=T)
        assert isinstance(action, Wait)
        assert action.paused
        crashed = replace(RELEASED, intent=TO_TWO, paused=True)
        assert isinstance(decide(crashed, seen(led(OLD), led(TWO)), TIMING, now=0.0), Wait)


class TestAnIncarnationThatWasGrantedInVain:
    row = LeaseRow(version=9, epoch=3, holder=TWO.holder, renew_seq=4, state="active")
    missed = replace(ONE, spent=True, log_epoch=3, log_seq=40)

    def test_is_a_candidate_again_once_it_has_read_a_later_fence_as_a_standby(self):
        assert unfit(self.missed, self.row) is None

    @pytest.mark.parametrize(
        "change",
        [{"log_epoch": 2}, {"role": "FENCED"}, {"role": "PROMOTING"}, {"role": "DRAINING"}],
    )
    def test_is_none_before(self, change):
        assert unfit(replace(self.missed, **change), self.row)

    def test_is_none_as_the_last_holder_or_while_nobody_serves(self):
        own = replace(self.row, holder=ONE.holder, state="released")
        assert "held the lease before" in unfit(self.missed, own)
        assert "held the lease before" in unfit(self.missed, replace(self.row, state="granted"))


class TestIfThePrimaryDied:
    def next_of(self, row, servers):
        action = after_primary(row, servers, TIMING, now=50.0)
        return action.holder.name if isinstance(action, Grant | Adopt) else None

    def test_the_best_standby_would_follow(self):
        third = Server("server3", "dd", 2, log_epoch=1, log_seq=99)
        assert self.next_of(HELD, seen(led(ONE), led(TWO), third, unchanged_since=50.0)) == "server3"

    def test_nobody_would_without_a_standby_or_while_it_is_paused(self):
        assert self.next_of(HELD, seen(led(ONE), unchanged_since=50.0)) is None
        both = seen(led(ONE), led(TWO), unchanged_since=50.0)
        assert self.next_of(replace(HELD, paused=True), both) is None


class TestTheChoice:
    def test_falls_on_the_longest_log(self):
        third = Server("server3", "dd", 2, log_epoch=1, log_seq=50)
        assert granted(decide(RELEASED, seen(led(TWO, seq=49), third), TIMING, now=0.0)) == ("server3", 2)

    def test_falls_on_the_higher_epoch_before_the_longer_log(self):
        row = replace(RELEASED, epoch=3)
        behind, ahead = led(TWO, epoch=2, seq=90), Server("server3", "dd", 2, log_epoch=3, log_seq=50)
        assert granted(decide(row, seen(behind, ahead), TIMING, now=0.0)) == ("server3", 4)

    def test_falls_on_the_order_of_the_project_among_equals(self):
        third = Server("server3", "dd", 2, log_epoch=1, log_seq=10)
        assert granted(decide(RELEASED, seen(third, led(TWO)), TIMING, now=0.0)) == ("server2", 2)

    def test_passes_over_who_lost_the_lease_by_expiry_a_short_time_ago(self):
        third = Server("server3", "dd", 2, log_epoch=1, log_seq=3)
        servers = seen(led(TWO), third, held_down=frozenset({"server2"}))
        assert granted(decide(RELEASED, servers, TIMING, now=0.0)) == ("server3", 2)

    def test_falls_on_who_is_held_down_rather_than_on_nobody(self):
        servers = seen(led(TWO), held_down=frozenset({"server2"}))
        assert granted(decide(RELEASED, servers, TIMING, now=0.0)) == ("server2", 2)

    @pytest.mark.parametrize(
        ("change", "why"),
        [
            ({"live": False}, "down"),
            ({"ready": False}, "not ready"),
            ({"store_ok": False}, "write probe"),
            ({"role": "FENCED"}, "FENCED"),
            ({"role": "ACTIVE"}, "ACTIVE"),
            ({"spent": True}, "held the lease before"),
            ({"refused": "store went backwards"}, "store went backwards"),
        ],
    )
    def test_never_falls_on_an_unfit_server(self, change, why):
        server = replace(TWO, **change)
        assert why in unfit(server, RELEASED)
        action = decide(RELEASED, seen(server), TIMING, now=1e6)
        assert isinstance(action, Wait)
        assert action.alarm
        assert why in action.reason

    def test_may_fall_on_the_same_incarnation_once_it_registered_again_after_a_refusal(self):
        row = replace(RELEASED, cause="store went backwards")
        assert isinstance(decide(row, seen(replace(ONE, refused="store went backwards")), TIMING, now=0.0), Wait)
        assert granted(decide(row, seen(ONE), TIMING, now=0.0)) == ("server1", 2)


class TestAdoption:
    @pytest.mark.parametrize("row", [NEVER, HELD, RELEASED, replace(HELD, holder=TWO.holder, state="granted")])
    @pytest.mark.parametrize("role", ["ACTIVE", "UNLEASED", "READONLY"])
    def test_of_a_live_writer_above_the_row(self, row, role):
        writer = replace(led(ONE, epoch=7, seq=120), role=role)
        assert decide(row, seen(writer, led(TWO, epoch=7)), TIMING, now=1e6) == Adopt(7, ONE.holder, 120)

    def test_of_who_says_that_it_writes_without_a_lease(self):
        writer = replace(led(ONE, epoch=7, seq=120), role="PROMOTING", unleased=True)
        assert decide(NEVER, seen(writer), TIMING, now=0.0) == Adopt(7, ONE.holder, 120)

    def test_not_of_a_dead_one(self):
        writer = replace(led(ONE, epoch=7), role="ACTIVE", live=False)
        assert granted(decide(NEVER, seen(writer, led(TWO, epoch=7)), TIMING, now=T)) == ("server2", 8)

    def test_not_of_one_that_another_log_has_overtaken(self):
        zombie = replace(led(ONE, epoch=6), role="ACTIVE")
        servers = seen(zombie, led(TWO, epoch=7))
        assert isinstance(decide(NEVER, servers, TIMING, now=T - 0.01), Wait)
        assert granted(decide(NEVER, servers, TIMING, now=T)) == ("server2", 8)

    def test_not_while_two_claim_the_epoch(self):
        both = seen(replace(led(ONE, epoch=7), role="ACTIVE"), replace(led(TWO, epoch=7), role="ACTIVE"))
        assert isinstance(decide(NEVER, both, TIMING, now=0.0), Wait)

    def test_not_at_the_rows_own_epoch(self):
        active = replace(led(ONE, epoch=1), role="ACTIVE")
        assert isinstance(decide(HELD, seen(active, led(TWO), unchanged_since=5.0), TIMING, now=6.0), Wait)


class TestARepairOfEpochs:
    """The row was emptied or comes from a backup: nobody may get an epoch that the log has already."""

    @pytest.mark.parametrize("row", [NEVER, HELD, RELEASED, replace(HELD, state="granted")])
    @pytest.mark.parametrize("top", [2, 6, 1_048_583])
    def test_goes_above_row_and_log_after_a_whole_term_and_not_before(self, row, top):
        servers = seen(led(NEW_ONE, epoch=top), led(TWO, epoch=top), unchanged_since=10.0)
        assert isinstance(decide(row, servers, TIMING, now=10.0 + T - 0.01), Wait)
        action = decide(row, servers, TIMING, now=10.0 + T)
        assert action.epoch == top + 1
        assert action.expired

    def test_also_heeds_the_log_of_a_server_that_is_down(self):
        dead = replace(led(ONE, epoch=9), live=False)
        assert granted(decide(RELEASED, seen(dead, led(TWO, epoch=1)), TIMING, now=T)) == ("server2", 10)

    def test_is_none_when_row_and_log_agree(self):
        assert granted(decide(replace(RELEASED, epoch=6), seen(led(TWO, epoch=6)), TIMING, now=0.0)) == ("server2", 7)


class TestASwitchover:
    handed = replace(RELEASED, cause=HANDOFF, intent=TO_TWO)
    under_way = LeaseRow(version=4, epoch=2, holder=TWO.holder, state="granted", cause="switchover", intent=TO_TWO)
    third = Server("server3", "dd", 2, log_epoch=1, log_seq=99)

    def test_prefers_the_target_whatever_the_others_have_read(self):
        action = decide(self.handed, seen(self.third, led(TWO)), TIMING, now=0.0)
        assert action == Grant(2, TWO.holder, "switchover", keep_intent=True)

    def test_prefers_the_target_even_if_it_lost_the_lease_a_short_time_ago(self):
        servers = seen(self.third, led(TWO), held_down=frozenset({"server2"}))
        assert granted(decide(self.handed, servers, TIMING, now=0.0)) == ("server2", 2)

    def test_takes_another_when_the_target_has_become_unfit_and_forgets_the_intent(self):
        action = decide(self.handed, seen(self.third, replace(TWO, live=False)), TIMING, now=0.0)
        assert granted(action) == ("server3", 2)
        assert not action.keep_intent

    def test_is_rolled_back_when_the_target_is_not_active_within_two_seconds(self):
        servers = seen(led(NEW_ONE), led(TWO), unchanged_since=9.9, version_since=8.0)
        assert isinstance(decide(self.under_way, servers, TIMING, now=9.99), Wait)
        action = decide(self.under_way, servers, TIMING, now=10.0)
        assert action == Grant(3, NEW_ONE.holder, "switchover rolled back")

    def test_gives_a_slow_profile_the_time_it_promises(self):
        slow = replace(TIMING, promote=6.0, lease=60.0)
        servers = seen(led(NEW_ONE), led(TWO), unchanged_since=9.9, version_since=8.0)
        assert isinstance(decide(self.under_way, servers, slow, now=13.9), Wait)
        assert granted(decide(self.under_way, servers, slow, now=14.0)) == ("server1", 3)

    def test_is_not_rolled_back_to_nobody(self):
        servers = seen(led(OLD), led(TWO), unchanged_since=9.9, version_since=0.0)
        assert isinstance(decide(self.under_way, servers, TIMING, now=10.0), Wait)

    def test_has_no_deadline_of_two_seconds_without_a_handoff(self):
        row = replace(self.under_way, intent=None)
        servers = seen(led(NEW_ONE), led(TWO), unchanged_since=9.9, version_since=0.0)
        assert isinstance(decide(row, servers, TIMING, now=10.0), Wait)

    def test_asked_of_a_primary_that_dies_goes_to_the_target_as_a_failover(self):
        row = replace(HELD, intent=TO_TWO)
        action = decide(row, seen(led(ONE), self.third, led(TWO)), TIMING, now=T)
        assert action == Grant(2, TWO.holder, "lease expired", expired=True)

    def test_that_the_primary_does_not_begin_is_given_up(self):
        row = replace(HELD, intent=TO_TWO)
        servers = seen(led(ONE), led(TWO), unchanged_since=99.0, version_since=99.0 - 4 * T)
        assert isinstance(decide(row, servers, TIMING, now=98.9), Wait)
        assert decide(row, servers, TIMING, now=99.0) == DropIntent()


def test_every_action_is_a_function_of_its_arguments():
    servers = seen(led(ONE), led(TWO))
    assert decide(RELEASED, servers, TIMING, now=1.0) == decide(RELEASED, servers, TIMING, now=1.0)
    assert Holder("server1", "aa") == ONE.holder
