"""Random histories of two overseers on one lease row.

Safety: an epoch has one holder, epochs rise, and while a holder's lease may live, it is given to nobody, whatever the
overseers read late, and however their clocks drift. Progress: once everything is well, somebody leads.
"""

from __future__ import annotations

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fedhelm.config.timing import PROFILES, RHO
from fedhelm.wire.overseer_api import BeatRequest, Intent, RegisterRequest
from fedhelm_overseer.board import Board
from fedhelm_overseer.decide import Adopt, DropIntent, Grant, decide
from fedhelm_overseer.lease import Holder
from tests.fakes.overseer_store import MemoryLeaseStore

TIMING = PROFILES["default"]
NAMES = ("server1", "server2", "server3")
AT = "2026-11-22T15:00:00.000Z"
names = st.sampled_from(NAMES)
observers = st.integers(0, 1)


class TwoOverseers(RuleBasedStateMachine):
    """Each overseer has its own board and its own, possibly stale, reading of the row."""

    def __init__(self):
        super().__init__()
        self.now = 100.0
        self.store = MemoryLeaseStore()
        self.boards = [Board(NAMES, TIMING, self.now, ()) for _ in range(2)]
        self.readings = [self.store.read()] * 2
        self.incarnations = dict.fromkeys(NAMES, 0)
        self.log = 0
        self.holders = {}
        self.highest = 0
        self.changed_at = self.now
        self.requests = 0

    def clock(self, which):
        """Boot time of one overseer's machine: one is as fast, the other as slow as is allowed for."""
        return self.now * (1 + (RHO, -RHO)[which])

    def note(self, row):
        if row is not None:
            self.changed_at = self.now
        if row is not None and row.epoch and row.holder:
            assert self.holders.setdefault(row.epoch, row.holder) == row.holder, "two holders of one epoch"
        if row is not None:
            assert row.epoch >= self.highest, "the epoch went back"
            self.highest = row.epoch

    def register(self, name):
        holder = Holder(name, str(self.incarnations[name]))
        member = self.store.register(holder)
        request = RegisterRequest(incarnation=holder.incarnation, log_epoch=self.log, log_seq=self.log, ready=True)
        for which, board in enumerate(self.boards):
            board.registered(member, request, self.clock(which))

    @rule(seconds=st.sampled_from([0.01, 0.2, 0.5, 1.0, 3.0, 30.0]))
    def time_passes(self, seconds):
        self.now += seconds

    @rule(name=names)
    def a_new_child_registers(self, name):
        self.incarnations[name] += 1
        self.register(name)

    @rule(name=names, hears=observers, role=st.sampled_from(["STANDBY", "ACTIVE", "FENCED"]), ready=st.booleans())
    def a_server_beats(self, name, hears, role, ready):
        beat = BeatRequest(
            incarnation=str(self.incarnations[name]), role=role, log_epoch=self.log, log_seq=self.log, ready=ready
        )
        if self.boards[hears].knows(Holder(name, beat.incarnation)):
            self.boards[hears].beat(name, beat, self.clock(hears))

    @rule(which=observers)
    def an_overseer_reads(self, which):
        self.readings[which] = self.store.read()
        self.boards[which].sync(NAMES, self.store.members(), self.clock(which))
        self.boards[which].saw_row(self.readings[which], self.clock(which))
        self.boards[which].observed(self.clock(which))

    @rule(which=observers)
    def an_overseer_decides_on_what_it_read(self, which):
        row = self.readings[which]
        now = self.clock(which)
        action = decide(row, self.boards[which].seen(now), TIMING, now)
        if isinstance(action, Grant):
            assert action.epoch > row.epoch
            assert action.holder != row.holder or row.state == "released"
            assert self.boards[which].knows(action.holder)
            assert not row.paused or row.intent is not None, "granted while paused"
            new = self.store.grant(row, action.epoch, action.holder, action.cause, AT, keep_intent=action.keep_intent)
            if new is not None:
                self.check_grant(row, action)
            self.note(new)
        elif isinstance(action, Adopt):
            self.note(self.store.adopt(row, action.epoch, action.holder, action.log_seq, AT))
        elif isinstance(action, DropIntent):
            self.store.set_intent(row, None)

    def check_grant(self, row, action):
        member = next(one for one in self.store.members() if one.name == action.holder.name)
        assert member.refused is None
        if row.state in {"granted", "active"} and action.cause != "switchover rolled back":
            # It renewed or was granted at changed_at; it counts its own lease as over before this time has passed.
            assert self.now - self.changed_at >= TIMING.lease * (1 - RHO) > TIMING.holder_lease

    @rule()
    def the_holder_renews(self):
        row = self.store.read()
        if row.holder:
            self.note(self.store.renew(row.epoch, row.holder, self.log))

    @rule()
    def the_holder_fences_and_activates(self):
        row = self.store.read()
        if row.holder and row.state == "granted":
            self.log = max(self.log, row.epoch)
            self.note(self.store.activate(row.epoch, row.holder, self.log, AT, None))

    @rule(refused=st.booleans(), cause=st.sampled_from(["crash", "handoff"]))
    def the_holder_releases(self, refused, cause):
        row = self.store.read()
        if row.holder:
            self.note(self.store.release(row.epoch, row.holder, cause, refused=refused))

    @rule(towards=names, request=st.sampled_from(["r1", "r2"]))
    def an_admin_asks_for_a_switchover(self, towards, request):
        row = self.store.read()
        if row.state == "active":
            self.store.set_intent(row, Intent(target=towards, request_id=request))

    @rule(paused=st.booleans())
    def an_admin_pauses_or_resumes(self, paused):
        self.requests += 1
        self.store.set_paused(self.store.read(), paused, "admin", request_id=f"p{self.requests}", at=AT)

    @rule()
    def everything_heals_and_somebody_leads(self):
        """All servers come back, nobody is cut off, and nothing is paused: the lease is held within a bounded time."""
        self.an_admin_pauses_or_resumes(paused=False)
        for name in NAMES:
            self.a_new_child_registers(name)
        limit = self.now + 6 * TIMING.lease  # the longest of all waits is that for a switchover nobody began
        while self.now < limit:
            self.now += TIMING.observe
            for which in range(2):
                for name in NAMES:
                    self.a_server_beats(name, which, "STANDBY", ready=True)
                self.an_overseer_reads(which)
                self.an_overseer_decides_on_what_it_read(which)
            row = self.store.read()
            if row.state == "granted" and row.holder.incarnation == str(self.incarnations[row.holder.name]):
                self.the_holder_fences_and_activates()
                return
        raise AssertionError(f"nobody leads: {row}")

    @invariant()
    def history_rises_and_agrees_with_the_grants(self):
        epochs = [term.epoch for term in self.store.history()]
        assert epochs == sorted(set(epochs))
        assert {term.epoch: term.holder for term in self.store.history()} == self.holders

    @invariant()
    def an_intent_outlives_no_grant_but_its_own(self):
        row = self.store.read()
        if row.state == "granted" and row.intent is not None:
            assert row.holder.name == row.intent.target


TestTwoOverseers = TwoOverseers.TestCase
TestTwoOverseers.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_the_search_reaches_failovers():
    """The machine's rules can in fact move the lease: a search that never grants would prove nothing."""
    machine = TwoOverseers()
    for name in NAMES:
        machine.a_new_child_registers(name)
    machine.an_overseer_reads(0)
    machine.an_overseer_decides_on_what_it_read(0)
    machine.the_holder_fences_and_activates()
    machine.the_holder_releases(refused=False, cause="crash")
    for name in NAMES:
        if Holder(name, "1") != machine.holders[1]:
            machine.register(name)
    machine.an_overseer_reads(1)
    machine.an_overseer_decides_on_what_it_read(1)
    assert [term.holder.name for term in machine.store.history()][:1] == ["server1"]
    assert len(machine.holders) == 2
    assert replace(machine.store.read(), version=0).state == "granted"
