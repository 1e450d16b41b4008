"""Servers as an overseer hears them: its real desk on an injected clock and a store in memory."""

from __future__ import annotations

from pathlib import Path

from fedhelm.config.kit import Kit, OverseerAddress, ServerAddress
from fedhelm.config.timing import PROFILES
from fedhelm.wire.overseer_api import ActivateRequest, BeatRequest, RegisterRequest, ReleaseRequest, RenewRequest
from fedhelm_overseer.decide import Wait
from fedhelm_overseer.desk import Desk
from tests.fakes.overseer_clock import FakeClock
from tests.fakes.overseer_store import MemoryLeaseStore

TIMING = PROFILES["default"]
KIT = Kit(
    root=Path("/nowhere"),
    project="poc",
    cluster="c1",
    role="overseer",
    name="overseer",
    org="nvidia",
    overseers=(OverseerAddress("overseer", "127.0.0.1", 1),),
    servers=(ServerAddress("server1", "127.0.0.1", 2, 3), ServerAddress("server2", "127.0.0.1", 4, 5)),
    sites=("site-1",),
    timing=TIMING,
)


class World:
    """Servers as the overseer hears them. ``alive`` ones beat or renew every R while time passes."""

    def __init__(self):
        self.clock = FakeClock()
        self.store = MemoryLeaseStore()
        self.restart()
        self.others = []
        self.alive = {}
        self.roles = {}
        self.log_epoch = 0
        self.log_seq = 0
        self.positions = {}

    def restart(self):
        self.desk = Desk(KIT, self.store, self.clock)

    def register(self, name, incarnation, *, replaces=None, ready=True, cluster="c1", role="STANDBY"):
        reply = self.desk.register(
            name,
            RegisterRequest(
                incarnation=incarnation,
                replaces=replaces,
                cluster=cluster,
                log_epoch=self.log_epoch,
                log_seq=self.log_seq,
                ready=ready,
                role=role,
            ),
        )
        if reply.accepted:
            self.alive[name] = incarnation
            self.roles[name] = role
        return reply

    def beat(self, name):
        return self.desk.beat(
            name,
            BeatRequest(
                incarnation=self.alive[name],
                role=self.roles[name],
                log_epoch=self.log_epoch,
                log_seq=self.positions.get(name, self.log_seq),
                ready=True,
            ),
        )

    def beat_as(self, name, incarnation, role="STANDBY", **rest):
        """A beat with what a test wants to say."""
        beat = {"log_epoch": self.log_epoch, "log_seq": self.log_seq, "ready": True} | rest
        return self.desk.beat(name, BeatRequest(incarnation=incarnation, role=role, **beat))

    def second(self):
        """Another overseer on the same store, which observes as time passes and hears no server by itself."""
        self.others.append(Desk(KIT, self.store, self.clock))
        return self.others[-1]

    def renew(self, name, epoch=None, role=None, incarnation=None):
        return self.desk.renew(
            name,
            RenewRequest(
                epoch=self.log_epoch if epoch is None else epoch,
                incarnation=incarnation or self.alive[name],
                log_epoch=self.log_epoch,
                log_seq=self.log_seq,
                role=role or self.roles[name],
            ),
        )

    def activate(self, name, jobs=0):
        row = self.row
        self.log_epoch, self.log_seq = row.epoch, self.log_seq + 1
        self.roles[name] = "ACTIVE"
        return self.desk.activate(
            name, ActivateRequest(epoch=row.epoch, incarnation=self.alive[name], log_seq=self.log_seq, jobs=jobs)
        )

    def release(self, name, reason="exit status -9", **rest):
        return self.desk.release(
            name, ReleaseRequest(epoch=self.row.epoch, incarnation=self.alive[name], reason=reason, **rest)
        )

    def settle(self):
        for desk in (self.desk, *self.others):
            while not isinstance(desk.observe(), Wait):
                pass

    def pass_time(self, seconds):
        """Let time pass in steps of P; the observer observes, the living beat and renew."""
        until = self.clock.now + seconds
        while self.clock.now < until:
            self.clock.advance(TIMING.observe)
            for name, incarnation in list(self.alive.items()):
                row = self.row
                holder = row.holder and (row.holder.name, row.holder.incarnation) == (name, incarnation)
                if holder and row.state == "active":
                    self.renew(name)
                else:
                    self.beat(name)
            self.settle()

    def lead(self):
        """server1 leads epoch 1, server2 stands by."""
        self.register("server1", "aa")
        self.register("server2", "bb")
        self.settle()
        self.activate("server1")
        self.pass_time(2 * TIMING.renew)

    @property
    def row(self):
        return self.store.read()

    def states(self):
        return [(server.state, server.epoch) for server in self.desk.servers()]

    def kinds(self):
        return [event.kind for event in self.desk.feed.after(0)]

    def texts(self):
        return [event.text for event in self.desk.feed.after(0)]
