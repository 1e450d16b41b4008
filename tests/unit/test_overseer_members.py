"""Servers that announce themselves, are replaced, and are told apart; several overseers on one store."""

from __future__ import annotations

import dataclasses

import pytest

from fedhelm.errors import NotFound
from fedhelm.security.pki import CertificateAuthority
from fedhelm.wire.announcement import announcement_of
from fedhelm.wire.overseer_api import (
    BeatRequest,
    OperateRequest,
    PromoteRequest,
    RegisterRequest,
    ReleaseRequest,
    RenewRequest,
)
from fedhelm_overseer.desk import Desk
from fedhelm_overseer.lease import Holder, LeaseRow
from tests.fakes.overseer_clock import FakeClock
from tests.fakes.overseer_store import MemoryLeaseStore
from tests.support.kits import make_kits
from tests.support.overseer_world import TIMING, World

T, R = TIMING.lease, TIMING.renew


@pytest.fixture(scope="module")
def authority():
    return CertificateAuthority.create("poc")


@pytest.fixture(scope="module")
def kits(tmp_path_factory, authority):
    return make_kits(tmp_path_factory.mktemp("kits"), servers=2, authority=authority)


@pytest.fixture(scope="module")
def later(tmp_path_factory, authority, kits):
    """Kits of the same project signed afterwards: a third server, and all at other ports."""
    cluster = kits["overseer"].cluster
    return make_kits(tmp_path_factory.mktemp("later"), servers=3, base_port=19443, authority=authority, cluster=cluster)


class Office:
    """An overseer of ``kits`` and the replies that servers get."""

    def __init__(self, kits):
        self.kits = kits
        self.clock = FakeClock(1e9)  # its stamps are later than those of the kits
        self.store = MemoryLeaseStore()
        self.desk = Desk(kits["overseer"], self.store, self.clock)

    def register(self, kit, incarnation="aa", *, shown=True, ready=True):
        announcement = announcement_of(kit) if shown else None
        request = RegisterRequest(incarnation=incarnation, announcement=announcement, ready=ready)
        return self.desk.register(kit.name, request)

    def ports(self):
        return {server.name: server.fed_learn_port for server in self.desk.servers()}

    def pass_time(self, seconds):
        for _ in range(round(seconds / self.kits["overseer"].timing.observe)):
            self.clock.advance(self.kits["overseer"].timing.observe)
            self.desk.observe()

    def kinds(self):
        return [event.kind for event in self.desk.feed.after(0)]


@pytest.fixture
def office(kits):
    return Office(kits)


class TestANewServer:
    def test_is_added_with_the_addresses_of_its_kit(self, office, later):
        assert office.register(later["server3"]).accepted
        assert list(office.ports()) == ["server1", "server2", "server3"]
        assert office.ports()["server3"] == later["server3"].own_server.fed_learn_port
        assert office.desk.servers()[2].host == "127.0.0.1"
        assert office.kinds().count("member_added") == 1

    def test_is_written_down_once_and_known_to_the_next_overseer(self, office, later):
        office.register(later["server3"])
        office.register(later["server3"])
        assert office.kinds().count("member_added") == 1
        again = Desk(office.kits["overseer"], office.store, office.clock)
        assert [server.name for server in again.servers()] == ["server1", "server2", "server3"]

    def test_may_lead_and_is_named_as_the_primary_with_its_address(self, office, later):
        office.register(later["server3"])
        office.pass_time(4 * R)
        row = office.store.read()
        assert row.holder == Holder("server3", "aa")
        office.store.activate(1, row.holder, 1, "now", None)
        office.desk.observe()
        assert office.desk.primary().fed_learn_port == later["server3"].own_server.fed_learn_port

    def test_that_shows_no_kit_is_not_of_the_project(self, office, later):
        with pytest.raises(NotFound, match="server3"):
            office.register(later["server3"], shown=False)

    def test_of_another_root_is_refused_and_never_written_down(self, office, tmp_path):
        stranger = make_kits(tmp_path, servers=3, cluster=office.kits["overseer"].cluster)["server3"]
        reply = office.register(stranger)
        assert not reply.accepted
        assert reply.retry_after_s is None
        assert "not signed by this project's root" in reply.message
        assert office.store.servers() == ()

    def test_that_shows_another_ones_kit_is_refused(self, office, later):
        request = RegisterRequest(incarnation="aa", announcement=announcement_of(later["server2"]))
        reply = office.desk.register("server3", request)
        assert not reply.accepted
        assert "its name is server2, not server3" in reply.message
        assert len(office.ports()) == 2


class TestAReplacedServer:
    def test_is_where_its_later_kit_says(self, office, kits, later):
        assert office.register(kits["server2"], "old").accepted
        office.pass_time(T)
        assert office.register(later["server2"], "new").accepted
        assert office.ports() == {
            "server1": kits["server1"].own_server.fed_learn_port,
            "server2": later["server2"].own_server.fed_learn_port,
        }

    def test_waits_until_the_old_machine_is_silent_and_moves_nothing_before(self, office, kits, later):
        office.register(kits["server2"], "old")
        reply = office.register(later["server2"], "new")
        assert not reply.accepted
        assert reply.retry_after_s == kits["overseer"].timing.renew
        assert "server2 is live already, as incarnation old" in reply.message
        assert office.ports()["server2"] == kits["server2"].own_server.fed_learn_port

    def test_keeps_the_old_machine_out_when_that_comes_back(self, office, kits, later):
        office.register(later["server2"], "new")
        office.pass_time(T)
        reply = office.register(kits["server2"], "old")
        assert not reply.accepted
        assert reply.retry_after_s is None
        assert "by a kit signed at" in reply.message
        assert office.ports()["server2"] == later["server2"].own_server.fed_learn_port

    def test_with_the_same_addresses_is_nothing_new(self, office, kits):
        office.register(kits["server2"])
        assert office.store.servers() == ()
        assert "member_added" not in office.kinds()


class TestARemovedServer:
    def remove(self, office, name):
        office.pass_time(T)
        office.desk.admins.remove("admin@nvidia.com", name, OperateRequest(request_id="r1"))

    def test_stays_out_with_its_kit_and_comes_back_with_a_newer_one(self, office, kits, later):
        office.register(later["server3"], ready=False)
        self.remove(office, "server3")
        reply = office.register(later["server3"], "bb")
        assert not reply.accepted
        assert "server3 was removed at" in reply.message
        assert "signed before" in reply.message
        # A kit that was signed after the removal: here, the removal is moved to before the kit.
        office.store._servers["server3"] = dataclasses.replace(
            office.store._servers["server3"], removed_at="2020-01-01T00:00:00.000Z"
        )
        office.pass_time(T)
        assert office.register(later["server3"], "bb").accepted
        assert list(office.ports()) == ["server1", "server2", "server3"]

    def test_of_the_overseers_own_kit_stays_out_too(self, office, kits):
        office.register(kits["server2"], ready=False)
        self.remove(office, "server2")
        assert list(office.ports()) == ["server1"]
        assert "was removed" in office.register(kits["server2"], "bb").message


class TestTwoOverseers:
    """The second hears no server itself: it knows what the store says, and tells it as its own news."""

    @pytest.fixture
    def pair(self):
        world = World()
        world.other = world.second()
        world.lead()
        return world

    def told(self, world):
        return [event.text for event in world.other.feed.after(0)]

    def test_both_name_the_primary(self, pair):
        assert pair.other.primary() == pair.desk.primary()

    def test_both_tell_of_a_failover_once(self, pair):
        pair.release("server1")
        pair.settle()
        pair.activate("server2")
        pair.pass_time(R)
        assert self.told(pair) == [
            "epoch 1 granted to server1: first grant",
            "server1 leads, epoch 1",
            "epoch 2 granted to server2: exit status -9",
            "server2 leads, epoch 2",
            "failover server1 -> server2  epoch 2  gap 0.0 s  (exit status -9)",
        ]

    def test_both_tell_what_admins_do(self, pair):
        pair.desk.admins.pause("admin@nvidia.com", OperateRequest(request_id="p1", reason="why"))
        pair.settle()
        pair.desk.admins.resume("admin@nvidia.com", OperateRequest(request_id="p2"))
        pair.settle()
        pair.desk.admins.shutdown("admin@nvidia.com", OperateRequest(request_id="s1"))
        pair.settle()
        kinds = [event.kind for event in pair.other.feed.after(0)]
        assert kinds[-3:] == ["pause", "resume", "shutdown"]
        assert pair.other.admins.system().shutdown == "s1"

    def test_one_that_hears_the_servers_grants_when_the_other_is_deaf(self, pair):
        del pair.alive["server1"]
        pair.pass_time(T + R)
        assert (pair.row.epoch, pair.row.holder.name) == (2, "server2")

    def test_both_hold_down_who_lost_by_expiry(self, pair):
        del pair.alive["server1"]
        pair.pass_time(T + R)
        pair.activate("server2")
        pair.register("server1", "cc")
        pair.pass_time(R)
        seen = {check.name: check for check in pair.other.admins.explain("server1").checks}
        assert not seen["hold_down"].ok

    def test_a_refusal_told_to_one_counts_at_both(self, pair):
        pair.others.clear()
        other = pair.second()
        for name, incarnation in (("server1", "aa"), ("server2", "bb")):
            request = RegisterRequest(incarnation=incarnation, ready=True, log_epoch=1, log_seq=1)
            assert other.register(name, request).accepted
        pair.release("server1")
        pair.settle()
        pair.release("server2", "store went backwards", refused=True)
        other.observe()
        assert pair.row.state == "released"
        assert other.servers()[1].note == "refused: store went backwards"

    def test_what_one_heard_through_a_renewal_is_told_by_it_too(self, pair):
        pair.others.clear()  # the other does not look by itself: it answers renewals, as both do
        pair.desk.admins.pause("admin@nvidia.com", OperateRequest(request_id="p1", reason="why"))
        renewal = RenewRequest(epoch=1, incarnation="aa", log_epoch=1, log_seq=1, role="ACTIVE")
        assert pair.other.renew("server1", renewal).lease.paused
        assert self.told(pair)[-1] == "admin@nvidia.com paused failover: why"

    def test_a_handoff_told_to_the_one_that_did_not_see_the_intent_yet_is_a_switchover(self, pair):
        pair.desk.promote("admin@nvidia.com", PromoteRequest(target="server2", request_id="r1"))
        release = ReleaseRequest(epoch=1, incarnation="aa", reason="drained", handoff=True)
        pair.other.release("server1", release)
        pair.settle()
        assert (pair.row.epoch, pair.row.holder.name, pair.row.cause) == (2, "server2", "switchover")
        assert pair.store.history()[-1].by == "admin@nvidia.com"

    def test_an_incarnation_that_registered_with_one_is_known_to_the_other_once_the_old_one_is_silent(self, pair):
        other = pair.other
        other.register("server2", RegisterRequest(incarnation="bb", ready=True))
        pair.register("server2", "cc", replaces="bb")
        beat = BeatRequest(incarnation="cc", role="STANDBY", log_epoch=1, log_seq=1, ready=True)
        with pytest.raises(NotFound):
            other.beat("server2", beat)
        pair.pass_time(2 * T + R)
        other.beat("server2", beat)
        assert other.servers()[1].candidate

    def test_a_second_machine_with_one_name_is_refused_by_both(self, pair):
        for desk in (pair.desk, pair.other):
            desk.register("server2", RegisterRequest(incarnation="bb", ready=True))
            reply = desk.register("server2", RegisterRequest(incarnation="zz", ready=True))
            assert not reply.accepted
            assert "server2 is live already, as incarnation bb" in reply.message


class TestAStoreFromABackup:
    """The row is older than the log. No epoch of the log is ever granted again."""

    def world(self, epochs=4):
        world = World()
        world.lead()
        for number in range(2, epochs + 1):
            leader = world.row.holder.name
            follower = "server2" if leader == "server1" else "server1"
            world.release(leader)
            world.settle()
            world.activate(follower)
            world.register(leader, f"{leader}-{number}", replaces=world.alive[leader])
            world.pass_time(R)
        return world

    def restore(self, world, row):
        world.store = MemoryLeaseStore()
        world.store._row = row
        world.restart()

    OLD = LeaseRow(version=3, epoch=2, holder=Holder("server2", "bb"), renew_seq=7, state="released", cause="x")

    @pytest.mark.parametrize("row", [LeaseRow(), OLD, dataclasses.replace(OLD, state="active")])
    def test_the_living_primary_is_adopted_with_its_epoch(self, row):
        world = self.world()
        leader = world.row.holder.name
        self.restore(world, row)
        assert world.renew(leader).held
        assert (world.row.epoch, world.row.holder.name, world.row.cause) == (4, leader, "adopted")
        world.register("server1" if leader == "server2" else "server2", "again")
        world.pass_time(2 * T)
        assert world.row.epoch == 4

    @pytest.mark.parametrize("row", [LeaseRow(), OLD, dataclasses.replace(OLD, state="active")])
    def test_a_dead_primary_is_replaced_after_a_term_above_the_log(self, row):
        world = self.world()
        leader = world.row.holder.name
        follower = "server2" if leader == "server1" else "server1"
        self.restore(world, row)
        world.alive.clear()
        world.register(follower, "fresh")
        world.settle()
        assert world.row.epoch == row.epoch, "not at once, whatever the row says"
        world.pass_time(T + TIMING.observe)
        assert (world.row.epoch, world.row.holder.name, world.row.cause) == (5, follower, "log at epoch 4")

    def test_also_while_the_primary_has_not_been_heard_yet(self):
        world = self.world()
        leader = world.row.holder.name
        follower = "server2" if leader == "server1" else "server1"
        self.restore(world, self.OLD)
        held = world.alive.pop(leader)
        world.register(follower, "fresh")
        world.pass_time(T - 2 * TIMING.observe)
        assert world.row.epoch == 2
        world.alive[leader] = held
        assert world.renew(leader).held
        assert (world.row.epoch, world.row.cause) == (4, "adopted")


class TestTheLeaseAsServersSeeIt:
    def register(self, world, name, incarnation, versions, token):
        request = RegisterRequest(
            incarnation=incarnation, ready=True, log_versions=versions, store_token=token, software="0.3"
        )
        return world.desk.register(name, request).lease

    def test_log_version_is_what_all_registered_servers_read(self):
        world = World()
        assert self.register(world, "server1", "aa", (1, 2), "t1").log_version == 2
        assert self.register(world, "server2", "bb", (1,), "t2").log_version == 1
        world.clock.advance(T)
        assert self.register(world, "server2", "cc", (1, 2), "t3").log_version == 2
        assert world.desk.servers()[1].log_versions == (1, 2)
        assert world.desk.servers()[1].software == "0.3"

    def test_an_overseer_that_was_restarted_learns_them_from_the_beats(self):
        world = World()
        self.register(world, "server1", "aa", (1, 2), "t1")
        self.register(world, "server2", "bb", (1, 2), "t2")
        world.restart()
        for name, incarnation in (("server1", "aa"), ("server2", "bb")):
            told = {"log_versions": (1, 2), "store_token": f"{name}~1", "software": "0.3"}
            view = world.beat_as(name, incarnation, **told)
        assert view.log_version == 2
        assert view.store_tokens == {"server1": "server1~1", "server2": "server2~1"}
        assert [one.software for one in world.desk.servers()] == ["0.3", "0.3"]

    def test_log_version_is_1_while_a_registered_server_has_not_said_what_it_reads(self):
        world = World()
        self.register(world, "server1", "aa", (1, 2), "t1")
        self.register(world, "server2", "bb", (1, 2), "t2")
        world.restart()
        assert self.register(world, "server1", "aa", (1, 2), "t1").log_version == 1
        assert self.register(world, "server2", "bb", (1, 2), "t2").log_version == 2

    def test_tokens_are_those_of_the_living(self):
        world = World()
        self.register(world, "server1", "aa", (1,), "t1")
        assert self.register(world, "server2", "bb", (1,), "t2").store_tokens == {"server1": "t1", "server2": "t2"}
        world.alive, world.roles = {"server2": "bb"}, {"server2": "STANDBY"}
        world.pass_time(T)
        assert world.beat_as("server2", "bb", store_token="t9").store_tokens == {"server2": "t9"}
        assert world.beat_as("server2", "bb").store_tokens == {"server2": "t9"}

    def test_a_standby_with_a_good_store_is_told_to_the_primary(self):
        world = World()
        world.lead()
        assert world.renew("server1").lease.standby_store_ok
        world.beat_as("server2", "bb", store_ok=False)
        assert not world.renew("server1").lease.standby_store_ok
        world.beat_as("server2", "bb")
        assert world.renew("server1").lease.standby_store_ok
        world.clock.advance(T)
        assert not world.renew("server1").lease.standby_store_ok, "nobody has been heard"

    def test_versions_of_the_row_do_not_move_with_these(self):
        world = World()
        world.lead()
        before = world.desk.lease().version
        world.beat_as("server2", "bb", store_ok=False, store_token="new")
        assert world.desk.lease().version == before


def test_a_server_that_missed_its_grant_is_a_candidate_again_after_the_next_fence():
    world = World()
    world.lead()
    world.release("server1")
    world.settle()
    assert world.row.holder.name == "server2"
    # server2 is not told: it neither promotes nor renews, and its term passes. server1 has come back meanwhile.
    world.register("server1", "cc", replaces="aa")
    world.pass_time(T + R)
    assert (world.row.epoch, world.row.holder.incarnation) == (3, "cc")
    assert "held the lease before" in world.desk.servers()[1].note
    world.activate("server1")
    world.beat("server2")
    assert world.desk.servers()[1].candidate
    assert world.desk.admins.explain("server1").next == "server2"


def test_history_says_who_asked_and_how_many_jobs_went_on():
    world = World()
    world.lead()
    world.release("server1")
    world.settle()
    world.activate("server2", jobs=3)
    last = world.desk.history()[-1]
    assert (last.epoch, last.by, last.jobs) == (2, None, 3)
