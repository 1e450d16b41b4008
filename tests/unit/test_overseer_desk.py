"""The overseer's operations on an injected clock and a store in memory, told as scripts."""

from __future__ import annotations

import pytest

from fedhelm.errors import Conflict, NoPrimary, NotFound, Refused, StoreUnavailable
from fedhelm.wire.overseer_api import PromoteRequest
from tests.fakes.overseer_store import MemoryLeaseStore
from tests.support.overseer_world import TIMING, World

T, R = TIMING.lease, TIMING.renew


@pytest.fixture
def world():
    return World()


@pytest.fixture
def led(world):
    world.lead()
    return world


class TestLeading:
    def test_the_first_server_of_the_project_leads(self, led):
        assert led.states() == [("ACTIVE", 1), ("STANDBY", None)]
        primary = led.desk.primary()
        assert (primary.name, primary.epoch, primary.fed_learn_port, primary.ssid) == ("server1", 1, 2, "poc:1")

    def test_nobody_leads_before_the_fence_is_confirmed(self, world):
        world.register("server1", "aa")
        world.register("server2", "bb")
        world.settle()
        assert world.row.state == "granted"
        with pytest.raises(NoPrimary):
            world.desk.primary()

    def test_a_dead_holder_is_not_named_for_ever(self, led):
        led.alive.clear()
        led.clock.advance(T)
        with pytest.raises(NoPrimary):
            led.desk.primary()
        assert [server.state for server in led.desk.servers()] == ["DOWN", "DOWN"]
        assert led.desk.servers()[0].epoch is None

    def test_activation_may_be_repeated_and_is_the_holders_alone(self, led):
        assert led.activate("server1").state == "active"
        with pytest.raises(Refused):
            led.activate("server2")


class TestACrash:
    def test_moves_the_epoch_at_once_and_is_told(self, led):
        led.clock.advance(0.125)
        led.release("server1")
        led.settle()
        assert led.row.holder.name == "server2"
        assert led.states()[0] == ("DOWN", None)
        led.clock.advance(0.25)
        led.activate("server2")
        last = led.desk.history()[-1]
        assert (last.cause, last.previous, last.gap_s) == ("exit status -9", "server1", 0.25)
        assert led.texts()[-1] == "failover server1 -> server2  epoch 2  gap 0.2 s  (exit status -9)"

    def test_brings_the_old_server_back_as_a_standby(self, led):
        led.release("server1")
        led.settle()
        led.activate("server2")
        assert led.register("server1", "cc", replaces="aa").accepted
        led.pass_time(R)
        assert led.states() == [("STANDBY", None), ("ACTIVE", 2)]

    def test_of_a_single_server_gives_it_the_next_epoch(self, led):
        del led.alive["server2"]
        led.pass_time(T + R)
        led.release("server1")
        led.settle()
        assert led.row.state == "released"
        led.register("server1", "cc", replaces="aa")
        led.settle()
        assert (led.row.epoch, led.row.holder.incarnation) == (2, "cc")

    def test_whose_release_was_lost_is_one_when_the_supervisor_registers_its_next_child(self, led):
        led.register("server1", "cc", replaces="aa")
        led.settle()
        assert (led.row.epoch, led.row.holder.name) == (2, "server2")

    def test_a_release_may_be_repeated_and_is_the_holders_alone(self, led):
        first = led.release("server1")
        assert led.release("server1") == first
        with pytest.raises(Refused):
            led.release("server2")


class TestSilence:
    def test_moves_the_epoch_after_a_term(self, led):
        del led.alive["server1"]
        led.pass_time(T - 2 * TIMING.observe)
        assert led.row.epoch == 1
        led.pass_time(3 * TIMING.observe)
        assert (led.row.epoch, led.row.holder.name, led.row.cause) == (2, "server2", "lease expired")
        assert not led.renew("server1", epoch=1, incarnation="aa").held
        led.activate("server2")
        assert led.desk.history()[-1].gap_s == pytest.approx(T, abs=3 * TIMING.observe)
        assert "member_down" in led.kinds()

    def test_of_the_overseers_own_makes_it_wait_a_whole_term_again(self, led):
        led.clock.advance(60)
        led.settle()
        assert led.row.epoch == 1
        assert "member_down" not in led.kinds(), "nobody can have been heard meanwhile"
        led.pass_time(2 * T)
        assert led.row.epoch == 1

    def test_of_the_store_makes_it_wait_a_whole_term_again(self, led):
        led.store.broken = True
        led.clock.advance(60)
        with pytest.raises(StoreUnavailable):
            led.desk.observe()
        with pytest.raises(StoreUnavailable):
            led.beat("server2")  # heard, but what this overseer knows is too old to be an answer
        led.store.broken = False
        led.settle()
        assert led.row.epoch == 1
        assert led.desk.servers()[1].beat_age_s == 0.0

    def test_of_the_store_for_a_moment_does_not_concern_beats(self, led):
        led.store.broken = True
        led.clock.advance(T - 2 * TIMING.observe)
        assert led.beat("server2").epoch == 1

    def test_who_lost_by_expiry_is_not_promoted_for_a_while(self, led):
        del led.alive["server1"]
        led.pass_time(T + R)
        led.activate("server2")
        led.register("server1", "cc")
        led.pass_time(2 * R)
        with pytest.raises(Refused, match="held down for 29 s more"):
            led.desk.promote("admin", PromoteRequest(target="server1", request_id="r1"))
        led.pass_time(30)
        assert led.desk.promote("admin", PromoteRequest(target="server1", request_id="r1")).primary == "server2"


class TestAName:
    def test_that_is_live_refuses_another_incarnation(self, led):
        reply = led.register("server2", "zz")
        assert not reply.accepted
        assert reply.retry_after_s == R
        assert "bb" in reply.message
        assert led.desk.servers()[1].incarnation == "bb"

    def test_that_was_reaped_is_free_at_once(self, led):
        assert led.register("server2", "zz", replaces="bb").accepted

    def test_that_was_silent_for_a_term_is_free(self, led):
        del led.alive["server2"]
        led.pass_time(T + R)
        assert led.register("server2", "zz").accepted

    def test_of_another_incarnation_beats_in_vain(self, led):
        led.alive["server2"] = "other"
        with pytest.raises(NotFound):
            led.beat("server2")

    def test_with_another_clusters_log_is_never_accepted(self, world):
        reply = world.register("server1", "aa", cluster="c2")
        assert not reply.accepted
        assert reply.retry_after_s is None
        assert "c2" in reply.message

    def test_that_the_project_does_not_have_is_refused(self, world):
        with pytest.raises(NotFound, match="server9"):
            world.register("server9", "aa")


class TestARefusal:
    def test_goes_on_to_the_next_and_stops_when_all_refuse(self, led):
        led.release("server1")
        led.settle()
        led.release("server2", "store went backwards", refused=True)
        led.settle()
        assert (led.row.epoch, led.row.state) == (2, "released")
        led.pass_time(2 * R)
        assert (led.row.epoch, led.row.state) == (2, "released")
        assert led.desk.servers()[1].note == "refused: store went backwards"

    def test_is_forgotten_when_the_incarnation_registers_again(self, led):
        led.release("server1")
        del led.alive["server1"]
        led.settle()
        led.release("server2", "store went backwards", refused=True)
        led.settle()
        led.register("server2", "bb")
        led.settle()
        assert (led.row.epoch, led.row.holder.name, led.row.state) == (3, "server2", "granted")


class TestARestart:
    def test_changes_no_primary(self, led):
        led.restart()
        with pytest.raises(NoPrimary):
            led.desk.primary()
        led.pass_time(2 * T)
        assert led.row.epoch == 1
        assert led.desk.primary().name == "server1"
        assert led.states() == [("ACTIVE", 1), ("STANDBY", None)]

    def test_counts_the_term_from_its_start(self, led):
        del led.alive["server1"]
        led.clock.advance(100)
        led.restart()
        led.pass_time(T - 2 * TIMING.observe)
        assert led.row.epoch == 1
        led.pass_time(3 * TIMING.observe)
        assert led.row.epoch == 2

    def test_keeps_the_holders_name_from_a_newcomer_for_a_term(self, led):
        led.restart()
        assert not led.register("server1", "zz").accepted
        assert led.register("server2", "yy").accepted, "it holds nothing, and has not been heard"

    def test_with_an_emptied_store_adopts_the_primary(self, led):
        led.release("server1")
        led.settle()
        led.activate("server2")
        led.register("server1", "cc", replaces="aa")
        led.pass_time(2 * R)
        led.store = MemoryLeaseStore()
        led.restart()
        reply = led.renew("server2")
        assert reply.held
        assert (led.row.epoch, led.row.holder.name, led.row.state, led.row.cause) == (2, "server2", "active", "adopted")
        assert led.desk.primary().ssid == "poc:2"
        with pytest.raises(NotFound):
            led.beat("server1")
        led.register("server1", "cc")
        led.pass_time(2 * T)
        assert led.states() == [("STANDBY", None), ("ACTIVE", 2)]

    def test_with_an_emptied_store_and_a_dead_primary_waits_a_term_and_goes_above_the_log(self, led):
        led.store = MemoryLeaseStore()
        led.restart()
        led.alive.clear()
        led.register("server2", "bb")
        led.settle()
        assert led.row.epoch == 0
        led.pass_time(T + TIMING.observe)
        assert (led.row.epoch, led.row.holder.name) == (2, "server2")

    def test_with_a_restored_store_demotes_a_zombie_and_adopts_the_primary(self, led):
        assert led.renew("server1").held, "the restored row is the zombie's own"
        led.log_epoch, led.roles["server2"] = 6, "ACTIVE"
        assert led.renew("server2", epoch=6).held
        assert (led.row.epoch, led.row.holder.name) == (6, "server2")
        assert not led.renew("server1", epoch=1).held


class TestASwitchover:
    def ask(self, world, target="server2", request_id="r1"):
        return world.desk.promote("admin@nvidia.com", PromoteRequest(target=target, request_id=request_id))

    def hand_over(self, world):
        assert world.renew("server1").lease.intent.target == "server2"
        world.roles["server1"] = "DRAINING"
        world.release("server1", "drained", handoff=True)
        world.settle()

    def test_goes_by_intent_handoff_and_grant(self, led):
        reply = self.ask(led)
        assert (reply.epoch, reply.primary, reply.target) == (1, "server1", "server2")
        self.hand_over(led)
        assert (led.row.epoch, led.row.holder.name, led.row.cause) == (2, "server2", "switchover")
        led.activate("server2")
        assert led.row.intent is None
        assert led.texts()[-1] == "switchover server1 -> server2  epoch 2  gap 0.0 s"

    def test_asked_twice_is_one(self, led):
        first = self.ask(led)
        version = led.row.version
        assert self.ask(led) == first
        assert led.row.version == version
        self.hand_over(led)
        led.activate("server2")
        assert self.ask(led) == first, "also when it is done"
        assert led.row.intent is None
        with pytest.raises(Refused, match="leads already"):
            self.ask(led, request_id="r2")

    def test_is_refused_while_another_is_under_way(self, led):
        self.ask(led)
        with pytest.raises(Conflict, match="under way"):
            self.ask(led, request_id="r2")

    def test_is_refused_before_anything_when_the_target_is_not_fit(self, led):
        led.roles["server2"] = "READONLY"
        led.pass_time(R)
        with pytest.raises(Refused, match="READONLY"):
            self.ask(led)
        del led.alive["server2"]
        led.pass_time(T + R)
        with pytest.raises(Refused, match="down"):
            self.ask(led)
        with pytest.raises(NotFound):
            self.ask(led, target="server9")
        assert led.row.intent is None

    def test_is_refused_while_the_target_says_nothing_though_it_is_not_down_yet(self, led):
        beating = led.alive.pop("server2")
        led.pass_time(1.5)
        with pytest.raises(Refused, match=r"server2 cannot take over: it was last heard \d\.\d s ago"):
            self.ask(led)
        assert led.row.intent is None
        led.alive["server2"] = beating
        led.pass_time(R)
        self.ask(led)

    def test_is_refused_while_the_target_lags(self, led):
        led.positions["server2"] = led.log_seq
        led.log_seq += 500
        led.pass_time(4 * R)
        with pytest.raises(Refused, match="500 records behind"):
            self.ask(led)
        led.positions.clear()
        led.pass_time(R)
        self.ask(led)

    def test_is_not_refused_for_what_the_target_could_not_have_read_yet(self, led):
        led.log_seq += 10
        led.beat("server2")
        led.log_seq += 500
        led.renew("server1")
        self.ask(led)

    def test_is_rolled_back_when_the_target_does_not_serve(self, led):
        self.ask(led)
        self.hand_over(led)
        led.register("server1", "cc", replaces="aa")
        led.pass_time(2 + R)
        assert (led.row.epoch, led.row.holder.name, led.row.holder.incarnation) == (3, "server1", "cc")
        assert led.row.intent is None

    def test_without_a_primary_is_refused(self, world):
        world.register("server2", "bb")
        with pytest.raises(NoPrimary):
            self.ask(world)

    def test_that_is_not_begun_is_forgotten(self, led):
        self.ask(led)
        led.pass_time(4 * T + R)
        assert led.row.intent is None
        assert led.row.epoch == 1


def test_one_reports_active_only_as_the_holder(led):
    led.roles["server2"] = "ACTIVE"
    led.pass_time(R)
    assert led.states() == [("ACTIVE", 1), ("FENCED", None)]


def test_event_ids_rise_across_restarts_and_unknown_ids_get_everything(led):
    last = led.desk.feed.last
    led.restart()
    led.pass_time(R)
    assert [event.kind for event in led.desk.feed.after(last)] == ["member_up", "member_up"]
    assert led.desk.feed.after(last + (9 << 32)) == led.desk.feed.after(0)
