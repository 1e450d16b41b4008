"""What admins ask of an overseer, on an injected clock and a store in memory, told as scripts."""

from __future__ import annotations

import pytest

from fedhelm.errors import Conflict, NoPrimary, NotFound, Refused
from fedhelm.wire.overseer_api import OperateRequest, PromoteRequest
from tests.support.overseer_world import TIMING, World

T, R = TIMING.lease, TIMING.renew
ADMIN = "admin@nvidia.com"


def ask(request_id="r1", reason=""):
    return OperateRequest(request_id=request_id, reason=reason)


@pytest.fixture
def led():
    world = World()
    world.lead()
    return world


class TestTheListOfServers:
    def note(self, world):
        return next(one.note for one in world.desk.servers() if one.name == "server2")

    def test_says_why_a_standby_is_no_candidate_and_repeats_its_own_reason(self, led):
        assert self.note(led) is None
        led.beat_as("server2", led.alive["server2"], ready=False, reason="it reads the log")
        assert self.note(led) == "not a candidate: it is not ready (it reads the log)"
        led.beat_as("server2", led.alive["server2"], ready=False, reason=None)
        assert self.note(led).startswith("not a candidate: it is not ready")
        with pytest.raises(Refused, match="it is not ready"):
            led.desk.promote(ADMIN, PromoteRequest(target="server2", request_id="r1"))
        led.beat("server2")
        assert self.note(led) is None

    def test_says_that_a_candidate_would_be_refused_a_switchover(self, led):
        led.positions["server2"] = led.log_seq
        led.log_seq += 7
        led.pass_time(2 * T)
        with pytest.raises(Refused, match="server2 cannot take over: it is 7 records behind"):
            led.desk.promote(ADMIN, PromoteRequest(target="server2", request_id="r1"))
        assert self.note(led) == "promote_sp would be refused: it is 7 records behind"


class TestAPause:
    def test_of_a_well_federation_changes_nothing_else(self, led):
        view = led.desk.admins.pause(ADMIN, ask(reason="new switches"))
        assert (view.paused, view.paused_by, view.reason) == (True, ADMIN, "new switches")
        led.pass_time(2 * T)
        assert led.row.epoch == 1
        assert led.desk.primary().name == "server1"
        assert led.texts()[-1] == "admin@nvidia.com paused failover: new switches"
        assert "alarm" not in led.kinds()

    def test_keeps_a_crashed_primary_unreplaced_and_raises_one_alarm(self, led):
        led.desk.admins.pause(ADMIN, ask())
        led.release("server1")
        led.alive.pop("server1")
        led.pass_time(3 * T)
        assert (led.row.epoch, led.row.state) == (1, "released")
        assert led.kinds().count("alarm") == 1
        explained = led.desk.admins.explain("server2")
        assert explained.candidate
        assert explained.next is None
        assert explained.verdict == "server2 could lead, but failover is paused by admin@nvidia.com."
        assert not next(check for check in explained.checks if check.name == "paused").ok

    def test_keeps_a_silent_primary_unreplaced(self, led):
        led.desk.admins.pause(ADMIN, ask())
        del led.alive["server1"]
        led.pass_time(3 * T)
        assert (led.row.epoch, led.row.holder.name) == (1, "server1")
        assert led.kinds().count("alarm") == 1

    def test_is_named_to_who_asks_for_the_primary(self, led):
        led.desk.admins.pause(ADMIN, ask())
        led.release("server1")
        with pytest.raises(NoPrimary, match=r"paused by admin@nvidia\.com"):
            led.desk.primary()

    def test_is_over_at_once_when_resumed(self, led):
        led.desk.admins.pause(ADMIN, ask())
        led.release("server1")
        led.settle()
        woken = []
        led.desk.wake = lambda: woken.append(True)
        view = led.desk.admins.resume("other@nvidia.com", ask("r2"))
        assert (view.paused, view.paused_by, view.reason) == (False, None, None)
        assert woken
        led.settle()
        assert (led.row.epoch, led.row.holder.name) == (2, "server2")
        assert "other@nvidia.com resumed failover" in led.texts()

    def test_asked_twice_is_one_also_after_it_was_resumed(self, led):
        led.desk.admins.pause(ADMIN, ask())
        led.desk.admins.pause(ADMIN, ask())
        assert led.kinds().count("pause") == 1
        led.desk.admins.resume(ADMIN, ask("r2"))
        assert not led.desk.admins.pause(ADMIN, ask()).paused, "an answer that was lost, asked for again"
        assert not led.row.paused

    def test_does_not_take_the_id_of_something_else(self, led):
        led.desk.admins.pause(ADMIN, ask())
        with pytest.raises(Conflict, match="used for another pause"):
            led.desk.admins.resume(ADMIN, ask())
        with pytest.raises(Conflict, match="used for another pause"):
            led.desk.admins.shutdown(ADMIN, ask())

    def test_obeys_a_switchover(self, led):
        led.desk.admins.pause(ADMIN, ask())
        led.desk.promote(ADMIN, PromoteRequest(target="server2", request_id="r2"))
        led.release("server1", "drained", handoff=True)
        led.settle()
        led.activate("server2")
        assert (led.row.epoch, led.row.holder.name) == (2, "server2")
        assert led.row.paused
        assert led.desk.history()[-1].by == ADMIN

    def test_outlives_the_overseer(self, led):
        led.desk.admins.pause(ADMIN, ask(reason="why"))
        led.restart()
        view = led.desk.admins.system()
        assert (view.paused, view.paused_by, view.reason) == (True, ADMIN, "why")


class TestAnAlarm:
    def test_is_raised_once_when_all_refuse(self, led):
        led.release("server1")
        led.settle()
        led.release("server2", "the log has epoch 9", refused=True)
        del led.alive["server1"]
        led.pass_time(T - R)
        assert "alarm" not in led.kinds()
        led.pass_time(3 * T)
        assert led.kinds().count("alarm") == 1
        told = next(event for event in led.desk.feed.after(0) if event.kind == "alarm")
        assert "nobody may be granted the lease" in told.text
        assert "server2: it refused: the log has epoch 9" in told.text

    def test_is_not_raised_for_the_moment_that_a_single_server_takes_to_come_back(self, led):
        del led.alive["server2"]
        led.pass_time(T + R)
        led.release("server1")
        del led.alive["server1"]
        led.pass_time(2 * R)
        led.register("server1", "cc", replaces="aa")
        led.settle()
        assert led.row.epoch == 2
        assert "alarm" not in led.kinds()


class TestAShutdown:
    def test_is_in_the_row_for_every_server_to_see(self, led):
        view = led.desk.admins.shutdown(ADMIN, ask("s1", "the week-end"))
        assert (view.shutdown, view.down) == ("s1", False)
        assert led.beat("server2").shutdown == "s1"
        assert led.renew("server1").lease.shutdown == "s1"
        assert "admin@nvidia.com asked all servers to end: the week-end" in led.texts()

    def test_is_done_when_no_server_is_heard_any_more_without_an_alarm(self, led):
        led.desk.admins.shutdown(ADMIN, ask("s1"))
        led.release("server1")
        led.alive.clear()
        led.pass_time(4 * T)
        assert led.desk.admins.system().down
        assert "alarm" not in led.kinds()

    def test_is_over_when_a_server_is_started(self, led):
        led.desk.admins.shutdown(ADMIN, ask("s1"))
        del led.alive["server2"]
        led.pass_time(T + R)
        led.release("server1")
        del led.alive["server1"]
        led.pass_time(2 * T)
        led.register("server1", "cc")
        led.settle()
        view = led.desk.admins.system()
        assert (view.shutdown, view.down) == ("s1", False)
        assert (led.row.epoch, led.row.holder.incarnation) == (2, "cc")

    def test_that_is_over_is_not_told_again_by_an_overseer_that_is_restarted(self, led):
        led.desk.admins.shutdown(ADMIN, ask("s1"))
        led.release("server1")
        led.alive.clear()
        led.pass_time(4 * T)
        led.restart()
        led.pass_time(2 * T)
        assert led.desk.admins.system().down
        led.register("server1", "cc")
        led.settle()
        led.activate("server1")
        led.alive.clear()
        led.restart()
        led.pass_time(4 * T)
        assert not led.desk.admins.system().down

    def test_asked_twice_is_one(self, led):
        led.desk.admins.shutdown(ADMIN, ask("s1"))
        version = led.row.version
        led.desk.admins.shutdown(ADMIN, ask("s1"))
        assert led.row.version == version
        assert led.kinds().count("shutdown") == 1


class TestARemoval:
    def gone(self, led, name="server2"):
        del led.alive[name]
        led.pass_time(T + R)

    def test_takes_a_server_that_is_down_out_of_every_list(self, led):
        self.gone(led)
        led.desk.admins.remove(ADMIN, "server2", ask(reason="scrapped"))
        assert [server.name for server in led.desk.servers()] == ["server1"]
        with pytest.raises(Refused, match="server2 was removed at"):
            led.beat_as("server2", "bb")
        reply = led.register("server2", "zz")
        assert not reply.accepted
        assert "server2 was removed at" in reply.message
        assert led.texts()[-1] == "admin@nvidia.com removed server2: scrapped"

    def test_is_refused_while_the_server_lives_or_holds_the_lease(self, led):
        with pytest.raises(Refused, match="server2 was heard"):
            led.desk.admins.remove(ADMIN, "server2", ask())
        with pytest.raises(Refused, match="server1 holds the lease, epoch 1"):
            led.desk.admins.remove(ADMIN, "server1", ask())
        with pytest.raises(NotFound):
            led.desk.admins.remove(ADMIN, "server9", ask())
        assert len(led.desk.servers()) == 2

    def test_is_refused_by_an_overseer_that_cannot_know_yet(self, led):
        self.gone(led)
        led.restart()
        with pytest.raises(Refused, match="only just started"):
            led.desk.admins.remove(ADMIN, "server2", ask())
        led.pass_time(T)
        led.desk.admins.remove(ADMIN, "server2", ask())

    def test_never_takes_the_only_server(self, led):
        led.desk.admins.pause(ADMIN, ask("p"))
        self.gone(led)
        led.desk.admins.remove(ADMIN, "server2", ask())
        led.release("server1")
        self.gone(led, "server1")
        with pytest.raises(Refused, match="only server"):
            led.desk.admins.remove(ADMIN, "server1", ask("r2"))

    def test_asked_twice_is_one(self, led):
        self.gone(led)
        led.desk.admins.remove(ADMIN, "server2", ask())
        led.desk.admins.remove(ADMIN, "server2", ask())
        assert led.kinds().count("member_removed") == 1

    def test_reaches_the_other_overseers_and_their_next_start(self, led):
        other = led.second()
        self.gone(led)
        led.desk.admins.remove(ADMIN, "server2", ask())
        led.pass_time(T + R)
        assert [server.name for server in other.servers()] == ["server1"]
        led.restart()
        assert [server.name for server in led.desk.servers()] == ["server1"]

    def test_makes_the_servers_left_all_there_are_for_a_first_grant(self):
        world = World()
        world.pass_time(T)
        world.desk.admins.remove(ADMIN, "server2", ask())
        world.register("server1", "aa")
        world.settle()
        assert (world.row.epoch, world.row.holder.name) == (1, "server1")


class TestAnExplanation:
    def of(self, world, name):
        view = world.desk.admins.explain(name)
        return view, {check.name: check for check in view.checks}

    def test_of_the_primary(self, led):
        view, checks = self.of(led, "server1")
        assert view.verdict == "server1 leads, epoch 1."
        assert not view.candidate
        assert view.next == "server2"
        assert checks["holder"].text == "server1 holds epoch 1 (active) and renews"
        assert all(check.ok for check in view.checks)

    def test_of_the_standby_that_is_next(self, led):
        view, checks = self.of(led, "server2")
        assert view.verdict == "server2 is a candidate, and is next if the primary dies."
        assert view.candidate
        assert checks["heard"].text == "heard 0.0 s ago"
        assert checks["log"].text == "epoch 1, slot 1"

    def test_of_a_server_that_never_came(self):
        view, checks = self.of(World(), "server2")
        assert view.verdict == "server2 cannot be granted the lease: it has not registered with this overseer."
        assert (view.candidate, view.next) == (False, None)
        assert not checks["holder"].ok
        with pytest.raises(NotFound):
            World().desk.admins.explain("server9")

    def test_of_a_server_that_is_down(self, led):
        del led.alive["server2"]
        led.pass_time(2 * T)
        view, checks = self.of(led, "server2")
        assert view.verdict == "server2 cannot be granted the lease: it is down."
        assert view.next is None
        assert checks["heard"].text == "heard 6.0 s ago; 3 s make it down"

    def test_of_a_bad_store_gives_the_servers_own_words(self, led):
        led.beat_as("server2", "bb", store_ok=False, reason="No space left on device")
        view, checks = self.of(led, "server2")
        assert view.verdict == "server2 cannot be granted the lease: its write probe of the store fails."
        assert checks["store"].text == "its write probe of the store fails: No space left on device"
        assert (
            led.desk.servers()[1].note
            == "not a candidate: its write probe of the store fails (No space left on device)"
        )

    def test_of_a_refusal(self, led):
        led.release("server1")
        led.settle()
        led.release("server2", "store went backwards", refused=True)
        view, checks = self.of(led, "server2")
        assert view.verdict == "server2 cannot be granted the lease: it refused: store went backwards."
        assert not checks["refused"].ok

    def test_of_the_hold_down_counts_the_seconds(self, led):
        del led.alive["server1"]
        led.pass_time(T + R)
        led.activate("server2")
        led.register("server1", "cc")
        led.pass_time(10)
        view, checks = self.of(led, "server1")
        assert view.candidate, "it is granted if nobody else can lead"
        assert view.next == "server1"
        assert not checks["hold_down"].ok
        assert "not preferred for 20 s more" in checks["hold_down"].text
        with pytest.raises(Refused, match="held down for 20 s more"):
            led.desk.promote(ADMIN, PromoteRequest(target="server1", request_id="r1"))

    def test_of_a_silent_primary(self, led):
        del led.alive["server1"]
        led.desk.admins.pause(ADMIN, ask())
        led.pass_time(2 * T)
        view, checks = self.of(led, "server1")
        assert view.verdict == "server1 holds epoch 1 and does not renew."
        assert not checks["holder"].ok

    def test_changes_nothing(self, led):
        before, kinds = led.row, led.kinds()
        led.desk.admins.explain("server1")
        led.desk.admins.explain("server2")
        assert (led.row, led.kinds()) == (before, kinds)


def figures(world):
    lines = world.desk.metrics().decode().splitlines()
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}


def test_figures_follow_what_happens(led):
    before = figures(led)
    assert before["fedhelm_overseer_epoch"] == 1
    assert before['fedhelm_overseer_lease_state{state="active"}'] == 1
    assert before['fedhelm_overseer_grants_total{cause="first"}'] == 1
    assert before["fedhelm_overseer_servers_up"] == 2
    assert before["fedhelm_overseer_renewals_total"] > 0
    assert 0 <= before["fedhelm_overseer_seconds_since_renewal"] < R
    assert before["fedhelm_overseer_lease_left_seconds"] == T - before["fedhelm_overseer_seconds_since_renewal"]
    led.desk.admins.pause(ADMIN, ask())
    del led.alive["server1"]
    led.pass_time(2 * T)
    paused = figures(led)
    assert paused["fedhelm_overseer_failover_paused"] == 1
    assert paused["fedhelm_overseer_alarm"] == 1
    assert paused["fedhelm_overseer_lease_left_seconds"] < 0
    led.desk.admins.resume(ADMIN, ask("r2"))
    led.settle()
    led.activate("server2")
    led.pass_time(R)
    after = figures(led)
    assert after["fedhelm_overseer_epoch"] == 2
    assert after['fedhelm_overseer_failovers_total{cause="expired"}'] == 1
    assert (after["fedhelm_overseer_alarm"], after["fedhelm_overseer_failover_paused"]) == (0, 0)
    assert after["fedhelm_overseer_servers_up"] == 1
    led.release("server2", "cannot", refused=True)
    assert figures(led)["fedhelm_overseer_servers_refusing"] == 1
    assert figures(led)["fedhelm_overseer_refusals_total"] == 1


def test_what_writes_without_a_lease_or_was_fenced_is_counted(led):
    led.beat_as("server2", "bb", role="FENCED")
    led.beat_as("server2", "bb", role="FENCED")
    led.beat_as("server2", "bb", unleased=True)
    led.clock.advance(0.5)
    led.beat_as("server2", "bb")
    led.clock.advance(0.5)
    led.beat_as("server2", "bb")
    assert figures(led)["fedhelm_overseer_fenced_total"] == 1
    assert figures(led)["fedhelm_overseer_unleased_seconds_total"] == 0.5
