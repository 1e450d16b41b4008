"""One federation in virtual time: built, driven and healed as its seed says; what it promised is checked at the end."""

from __future__ import annotations

import gc
import logging
from pathlib import Path

from fedhelm import tasks
from fedhelm.config.kit import Kit, OverseerAddress, ServerAddress
from fedhelm.config.timing import PROFILES
from fedhelm.persist.log import Log
from fedhelm.persist.record import By, Draft
from fedhelm_overseer.desk import Desk
from fedhelm_server import keeper
from fedhelm_server.checkpoints import Pace
from fedhelm_server.role import Role
from fedhelm_server.runtime import Runtime
from tests.simulation.checks import check_log, check_promises
from tests.simulation.disk import Disk, SharedStore
from tests.simulation.faults import Plan
from tests.simulation.network import Network
from tests.simulation.overseers import LeaseDatabase, Overseer, View
from tests.simulation.servers import Child, Supervisor
from tests.simulation.sites import Admin, Site, SiteDisk
from tests.simulation.world import Machine, World

__all__ = ["Federation", "Outcome", "simulate"]

CLUSTER = "c" * 32
ALPHABET = "234567abcdefghijklmnopqrstuvwxyz"
QUIET_S = 120.0


class Federation:
    """The machines of one seed; mutants override what they break.

    Attributes:
        acks: Receipts of contributions: (key, receipt, digest of what was offered).
    """

    def __init__(self, seed, *, keep=False, kind=None):
        self.seed = seed
        self.world = World(seed, keep=keep)
        rng = self.world.rng
        self.plan = Plan.draw(rng, kind)
        self.timing = PROFILES[self.plan.profile]
        self.root = Path("/nonexistent/store")
        self.net = Network(self.world)
        self.shared = SharedStore()
        self.database = LeaseDatabase(self.world)
        self.overseer_names = [f"overseer{n + 1}" for n in range(self.plan.overseers)]
        self.server_names = [f"server{n + 1}" for n in range(self.plan.servers)]
        self.site_names = [f"site-{n + 1}" for n in range(self.plan.sites)]
        self.machines = {}
        self.disks = {}
        for name in (*self.overseer_names, *self.server_names, *self.site_names, "admin"):
            self.machines[name] = Machine(self.world, name, self.plan.rate(rng, name))
        for name in self.server_names:
            self.disks[name] = Disk(self.world, self.machines[name], self.shared)
        self.pace = Pace(every=rng.choice((24, 64, 256)))
        self.unsteady = self.plan.unsteady
        self.site_disks = {name: SiteDisk() for name in self.site_names}
        self.overseers = dict.fromkeys(self.overseer_names)
        self.supervisors = dict.fromkeys(self.server_names)
        self.sites = dict.fromkeys(self.site_names)
        self.admin = None
        self.acks = []
        self.gones = []
        self.jobs = {}
        self.line_acks = {}
        self.healed_at = None
        self.served_at = None
        self._incarnations = 0
        self._granted = 0
        self._children = []
        self.found()

    # -- what the simulation runs; mutants override these

    def make_desk(self, kit, store, clock):
        return Desk(kit, store, clock)

    def make_view(self, database, overseer):
        return View(database, overseer)

    def make_log(self, slots, blobs):
        return Log(slots, blobs)

    def make_runtime(self, kit, incarnation, store, clock, link):
        return Runtime(kit, incarnation, store, clock, link)

    def step(self, settings, state, event, now):
        return keeper.step(settings, state, event, now)

    def make_child(self, machine, boss, incarnation):
        child = Child(self, machine, boss, incarnation)
        self._children.append(child)
        return child

    def make_site(self, machine, disk):
        return Site(self, machine, disk)

    # -- building

    def kit(self, name, role):
        return Kit(
            root=Path("/nonexistent/kit"), project="poc", cluster=CLUSTER, role=role, name=name, org="nvidia",
            overseers=tuple(OverseerAddress(one, "127.0.0.1", 1) for one in self.overseer_names),
            servers=tuple(ServerAddress(one, "127.0.0.1", 2, 3) for one in self.server_names),
            sites=tuple(self.site_names), timing=self.timing,
        )  # fmt: skip

    def found(self):
        genesis = Draft("genesis", 0, By("provision", "p"), {"cluster": CLUSTER, "project": "poc"})
        log = Log(self.shared.slots)
        log.read_new()
        log.append(genesis)

    def new_incarnation(self):
        self._incarnations += 1
        return f"{self._incarnations:04x}"

    def new_id(self, digits):
        return "".join(self.world.rng.choice(ALPHABET) for _ in range(digits))

    # -- lives of processes

    def start_overseer(self, name):
        if self.overseers[name] is None or self.overseers[name].dead:
            self.overseers[name] = Overseer(self, self.machines[name])

    def start_server(self, name):
        if self.supervisors[name] is None or self.supervisors[name].dead:
            self.supervisors[name] = Supervisor(self, self.machines[name])

    def start_site(self, name):
        if self.sites[name] is None or self.sites[name].dead:
            self.sites[name] = self.make_site(self.machines[name], self.site_disks[name])

    def supervisor_ended(self, supervisor, error):
        """It quit; whoever operates it starts it again after a while."""
        supervisor.kill()
        self.world.call_later(2.0, self.start_server, supervisor.machine.name)

    def children(self):
        return [one.child for one in self.supervisors.values() if one is not None and one.child is not None]

    def leader(self):
        """The child that serves, if its process runs and the log is its own."""
        serving = [
            child
            for child in self.children()
            if child.leads()
            and not child.frozen
            and child.runtime.ledger.is_mine()
            and child.runtime.ledger.closed_reason is None
        ]
        # One that was cut off from the log takes itself for the primary until it can read on.
        return max(serving, key=lambda child: child.runtime.epoch, default=None)

    def primary_name(self):
        leader = self.leader()
        return leader.machine.name if leader else self.server_names[0]

    def lost_loop(self, child, task):
        self.world.fail(f"a loop of {child.name} ended with {task.exception()!r}")

    # -- leases

    def granted(self, row, new):
        """An epoch was given to somebody: nobody else may count on the epoch before any more."""
        if self._granted and new.epoch <= self._granted and not self.database.forgot:
            self.world.fail(f"epoch {new.epoch} was granted after epoch {self._granted}")
        self._granted = max(self._granted, new.epoch)
        if row.holder is None or new.cause != "lease expired" or not self._leases_exclude():
            return  # a switchover that is rolled back takes an epoch from one that does not serve yet
        for child in self.children():
            left = child.runtime.deadline - child.machine.boottime()
            if child.incarnation == row.holder.incarnation and left > 0:
                self.world.fail(
                    f"epoch {new.epoch} was granted {left:.2f} s before {child.name} stopped counting on its"
                )

    def leased(self, supervisor, deadline):
        """A supervisor passes a deadline on to its child."""
        hold, row = supervisor.state.hold, self.database.store._row
        left = deadline - supervisor.machine.boottime()
        if hold is not None and row.epoch > hold.epoch and left > 0 and self._leases_exclude():
            self.world.fail(
                f"{supervisor.name} counts on epoch {hold.epoch} for {left:.2f} s, epoch {row.epoch} is granted"
            )

    def _leases_exclude(self):
        return not (self.plan.skewed or self.database.forgot)

    # -- what was promised to whom

    def followed(self, site, server, epoch, before):
        if epoch < before:
            self.world.fail(f"I6: {site.name} follows epoch {epoch} after epoch {before}")
        self.world.note(site.name, f"follows {server}, epoch {epoch}")

    def acknowledged(self, key, receipt, digest):
        self.acks.append((key, (receipt.seq, receipt.index, receipt.epoch, receipt.superseded), digest))
        self.world.note(key[5], f"receipt of {key[0]} round {key[3]}: {receipt.seq}/{receipt.index}, {receipt.epoch}")

    def thrown_away(self, key):
        """A site forgets a result that has no receipt."""
        self.gones.append(key)
        self.world.note(key[5], f"without a receipt: {key[0]} round {key[3]}")

    def refused(self, site, key, error):
        self.world.note(site.name, f"refused: {key[0]} round {key[3]}: {error!r}")
        self.world.fail(f"a result of {site.name} was refused: {error!r}")

    def submitted(self, item, seq):
        known = self.jobs.setdefault(item["job"], seq)
        self.world.note("admin", f"submitted {item['job']} at {seq}")
        if known != seq:
            self.world.fail(f"job {item['job']} was acknowledged at {known} and at {seq}")

    def lines_acknowledged(self, site, job, number):
        key = (job, site.name)
        self.line_acks[key] = max(number, self.line_acks.get(key, 0))

    # -- the run

    def run(self):
        """Run the whole seed; return what was found."""
        logging.disable(logging.CRITICAL)
        try:
            self._run()
        finally:
            self._end()
        return Outcome(self)

    def _run(self):
        world, plan = self.world, self.plan
        world.note("plan", plan.describe())
        for name in self.overseer_names:
            world.call_later(world.rng.uniform(0, 1.0), self.start_overseer, name)
        for name in self.server_names:
            world.call_later(world.rng.uniform(0, 1.5), self.start_server, name)
        for name in self.site_names:
            world.call_later(world.rng.uniform(0, 1.5), self.start_site, name)
        self.admin = Admin(self, self.machines["admin"])
        for number in range(plan.jobs):
            world.call_later(0.5 + number * world.rng.uniform(0, plan.length / 3), self._submit)
        plan.arm(self)
        world.run_until(plan.start + plan.length)
        self.heal()
        self._watch_service()
        end = world.now + QUIET_S
        while world.now < end and not (self.served_at is not None and self._all_done()):
            world.run_until(world.now + 0.5)
        world.run_until(world.now + 2.0)
        check_promises(self)
        check_log(self)

    def _submit(self):
        job = self.new_id(12)
        sites = {"app": ["@ALL"]}
        config = {"name": "hello", "deploy": sites, "script": "train.py", "options": {}}
        config["workflow"] = [{"type": "fedavg", "rounds": self.world.rng.randint(2, 8), "evaluate": False}]
        item = {
            "job": job, "request_id": job + self.new_id(8), "name": "hello", "submitter": "admin@nvidia.com",
            "bundle": {"owner": f"jobs/{job}/bundle", "digest": "ab" * 32, "size": 3},
            "config": config, "time": "2026-11-22T15:04:05.123Z",
        }  # fmt: skip
        self.jobs_expected = getattr(self, "jobs_expected", 0) + 1
        self.admin.spawn(self.admin.submit(item), "submit")

    def heal(self):
        """Everything works again, and whatever was down is started."""
        self.world.note("nemesis", "heals everything")
        self.healed_at = self.world.now
        self.net.heal()
        for disk in self.disks.values():
            disk.heal()
        self.database.heal()
        self.plan.over = True
        for supervisor in self.supervisors.values():
            if supervisor is not None:
                supervisor.thaw()
                if supervisor.child is not None:
                    supervisor.child.thaw()
        for name in self.overseer_names:
            if self.overseers[name] is not None:
                self.overseers[name].thaw()
            self.start_overseer(name)
        for name in self.server_names:
            self.start_server(name)
        for name in self.site_names:
            self.start_site(name)

    def _watch_service(self):
        if self.served_at is None:
            if self.leader() is not None:
                self.served_at = self.world.now
                self.world.note("probe", f"served by {self.primary_name()}")
            else:
                self.world.call_later(0.1, self._watch_service)

    def _all_done(self):
        leader = self.leader()
        if leader is None or len(self.jobs) < self.plan.jobs:
            return False
        return all(job.end_time for job in leader.runtime.book.jobs.values())

    def _end(self):
        processes = [*self._children, *self.overseers.values(), *self.supervisors.values(), *self.sites.values()]
        for process in (*processes, self.admin):
            if process is not None:
                process.kill()
        tasks._tasks.clear()
        logging.disable(logging.NOTSET)

    def role_of(self, name):
        supervisor = self.supervisors[name]
        child = supervisor.child if supervisor is not None else None
        return child.runtime.role if child is not None else Role.STANDBY


class Outcome:
    """What a seed gave."""

    def __init__(self, federation):
        self.seed = federation.seed
        self.failures = tuple(federation.world.failures)
        self.digest = federation.world.digest()
        self.trace = federation.world.trace
        self.plan = federation.plan.describe()
        self.virtual_s = federation.world.now
        self.steps = federation.world.steps
        self.records = max(federation.shared.slots.slots(), default=0)
        self.facts = federation.facts


def simulate(seed, *, keep=False, kind=None, federation=Federation):
    """Run one seed; ``keep``: with its trace."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        return federation(seed, keep=keep, kind=kind).run()
    finally:
        if enabled:
            gc.enable()
            gc.collect(0)
