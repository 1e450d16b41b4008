"""What goes wrong, and when: drawn from the seed, in three kinds of plan.

``benign``: faults of which none may cost the primary its lease. ``single``: one fault that does, whose gap is bounded.
``storm``: many at once, of every sort, where only safety and the return to service after the last heal are asked for.
"""

from __future__ import annotations

__all__ = ["BENIGN", "SINGLE", "STORM", "Plan"]

FIRST = 8.0
"""Seconds in which the federation comes up in peace."""

PROFILES = {"fast": 0.2, "wan": 0.1, "default": 0.7}
"""How often each profile of times is drawn."""

WAN = 2.5
"""How many times longer everything lasts at the times of ``wan``: no fault that is to cost the lease ends before it."""


class Plan:
    """Sizes, times and faults of one seed."""

    def __init__(self, kind, rng):
        self.kind, _, only = kind.partition(":")
        self.only = only.split(",") if only else None
        self.rng = rng
        self.over = False
        self.profile = rng.choices(list(PROFILES), list(PROFILES.values()))[0]
        self.slower = WAN if self.profile == "wan" else 1.0
        self.start = FIRST * self.slower
        self.overseers = rng.choice((1, 1, 2, 3))
        self.servers = rng.choice((2, 2, 3))
        self.sites = rng.choice((2, 3))
        self.jobs = rng.randint(1, 4)
        self.unsteady = rng.choice((0.0, 0.0, 0.3))
        self.skewed = self.kind == "storm" and rng.random() < 0.2
        self.length = rng.uniform(20, 60) * self.slower
        self.faults = []
        self.reached = None

    @classmethod
    def draw(cls, rng, kind=None):
        return cls(kind or rng.choices(("benign", "single", "storm"), (2, 3, 5))[0], rng)

    def rate(self, rng, name):
        spread = 0.1 if self.skewed else 0.0005
        return 1.0 if name == "admin" else rng.uniform(1 - spread, 1 + spread)

    def describe(self):
        skew = ", clocks +-10 %" if self.skewed else ""
        return (
            f"{self.kind}, {self.profile}: {self.overseers} overseers, {self.servers} servers, {self.sites} sites, "
            f"{self.jobs} jobs, {self.length:.0f} s{skew}"
        )

    def arm(self, sim):
        rng = self.rng
        if self.kind == "single":
            for machine in sim.machines.values():
                sim.world.call_later(rng.uniform(3, self.start), step_wall_clock, sim, rng, 0.0, machine)
            sim.world.call_later(
                self.start + rng.uniform(0, 10), self.inject, sim, rng.choice(self.only or list(SINGLE))
            )
            self.length = 35.0 * self.slower
            return
        names = self.only or list(BENIGN if self.kind == "benign" else STORM)
        if self.only is None and rng.random() < 0.7:
            # A few faults that meet again and again find more than a little of everything.
            names = rng.sample(names, rng.randint(2, 8))
        gap = self.slower * (rng.choice((1.0, 3.0, 8.0)) if self.kind == "storm" else rng.uniform(4, 12))
        when = self.start
        while True:
            when += rng.expovariate(1 / gap)
            if when >= self.start + self.length:
                return
            sim.world.call_later(when - sim.world.now, self.inject, sim, rng.choice(names))

    def inject(self, sim, name):
        if self.over:
            return
        duration = self.slower * self.rng.choice((0.3, 1.0, 2.5, 5.0, 15.0)) * self.rng.uniform(0.5, 1.5)
        sim.world.note("nemesis", f"{name} for {duration:.1f} s")
        self.faults.append((sim.world.now, name))
        table = {**BENIGN, **SINGLE, **STORM}
        if self.kind == "single":
            for overseer in sim.overseer_names:  # no wait may depend on it
                step = self.rng.uniform(0, 2.5)
                sim.world.call_later(step, step_wall_clock, sim, self.rng, 0.0, sim.machines[overseer])
            duration = self.slower * self.rng.uniform(12.0, 20.0)
            self.reached = Reach(sim, name)
        table[name](sim, self.rng, duration)


class Reach:
    """How long it takes until another epoch serves."""

    def __init__(self, sim, fault):
        self.sim = sim
        self.fault = fault
        self.since = sim.world.now
        leader = sim.leader()
        self.had_leader = leader is not None
        self.old = leader.runtime.epoch if leader else 0
        self.gap = None
        self._look()

    def _look(self):
        leader = self.sim.leader()
        if leader is not None and leader.runtime.epoch > self.old:
            self.gap = self.sim.world.now - self.since
            self.sim.world.note("probe", f"epoch {leader.runtime.epoch} serves after {self.gap:.2f} s")
        elif self.sim.world.now - self.since < 60:
            self.sim.world.call_later(0.05, self._look)


# -- processes


def _alive(process):
    return process is not None and not process.dead


def _primary(sim, _rng):
    return sim.primary_name()


def _any(sim, rng):
    return rng.choice(sim.server_names)


def _standby(sim, rng):
    others = [name for name in sim.server_names if name != sim.primary_name()]
    return rng.choice(others)


def kill_child(which):
    def fault(sim, rng, duration):
        boss = sim.supervisors[which(sim, rng)]
        if _alive(boss) and boss.child is not None:
            boss.child_ends(boss.child, "exited with signal 9")

    return fault


def kill_machine(which):
    def fault(sim, rng, duration):
        name = which(sim, rng)
        if _alive(sim.supervisors[name]):
            sim.world.note(name, "machine off")
            sim.supervisors[name].kill()
            sim.world.call_later(duration, sim.start_server, name)

    return fault


def freeze(which, what):
    def fault(sim, rng, duration):
        boss = sim.supervisors[which(sim, rng)]
        if not _alive(boss):
            return
        victims = [boss] if "supervisor" in what else []
        victims += [boss.child] if "child" in what and boss.child is not None else []
        for victim in victims:
            victim.freeze()
            sim.world.call_later(duration, victim.thaw)

    return fault


def freeze_in_a_renewal(sim, rng, duration, tries=None):
    """The answer is there when both thaw, long after the lease was over."""
    if tries is None:
        tries = max(2000, int(2 * sim.timing.renew / 0.0005))
    boss = sim.supervisors[_primary(sim, rng)]
    if not _alive(boss):
        return
    if "Renew" in boss.state.in_flight:
        for victim in (boss, boss.child):
            if _alive(victim):
                victim.freeze()
                sim.world.call_later(duration, victim.thaw)
    elif tries:
        sim.world.call_later(0.0005, freeze_in_a_renewal, sim, rng, duration, tries - 1)


def kill_site(sim, rng, duration):
    name = rng.choice(sim.site_names)
    if _alive(sim.sites[name]):
        sim.sites[name].kill()
        sim.world.call_later(duration, sim.start_site, name)


def freeze_site(sim, rng, duration):
    site = sim.sites[rng.choice(sim.site_names)]
    if _alive(site):
        site.freeze()
        sim.world.call_later(duration, site.thaw)


def lose_site_disk(sim, rng, duration):
    """Results that were not acknowledged yet are lost: the site trains again, with other bits."""
    name = rng.choice(sim.site_names)
    if _alive(sim.sites[name]):
        sim.sites[name].kill()
        disk = sim.site_disks[name]
        for key in [key for key in disk.results if key not in disk.receipts]:
            del disk.results[key]
            disk.finished.discard(key)
        sim.world.call_later(duration, sim.start_site, name)


# -- network


def _cut(sim, rng, duration, ways):
    for way in ways:
        sim.net.cut.add(way)
    sim.world.note("nemesis", f"cut {len(ways)} ways")
    sim.world.call_later(duration, sim.net.cut.difference_update, set(ways))


def cut_from_overseers(which, direction="both"):
    def fault(sim, rng, duration):
        name = which(sim, rng)
        there = [(name, one) for one in sim.overseer_names]
        back = [(one, name) for one in sim.overseer_names]
        _cut(sim, rng, duration, {"both": there + back, "there": there, "back": back}[direction])

    return fault


def partition(which):
    def fault(sim, rng, duration):
        name = which(sim, rng)
        others = [one for one in sim.machines if one != name]
        _cut(sim, rng, duration, [(name, one) for one in others] + [(one, name) for one in others])

    return fault


def isolate(which):
    """Cut from everything, the store too."""

    def fault(sim, rng, duration):
        name = which(sim, rng)
        partition(lambda *_: name)(sim, rng, duration)
        hang_disk(lambda *_: name)(sim, rng, duration)

    return fault


def cut_site(sim, rng, duration):
    site, server = rng.choice(sim.site_names), rng.choice(sim.server_names)
    _cut(sim, rng, duration, rng.choice([[(site, server)], [(server, site)], [(site, server), (server, site)]]))


def cut_pairs(sim, rng, duration):
    names = [*sim.overseer_names, *sim.server_names, *sim.site_names, "admin"]
    pairs = [(one, other) for one in names for other in names if one != other]
    _cut(sim, rng, duration, rng.sample(pairs, rng.randint(1, min(12, len(pairs)))))


def lossy(sim, rng, duration):
    names = [*sim.overseer_names, *sim.server_names, *sim.site_names]
    pairs = [(one, other) for one in names for other in names if one != other and rng.random() < 0.4]
    loss = rng.choice((0.05, 0.3, 0.7))
    for pair in pairs:
        sim.net.loss[pair] = loss
    sim.world.call_later(duration, _forget, sim.net.loss, pairs)


def slow_network(limit):
    def fault(sim, rng, duration):
        names = list(sim.machines)
        pairs = [(one, other) for one in names for other in names if one != other and rng.random() < 0.4]
        for pair in pairs:
            sim.net.slow[pair] = rng.uniform(0.01, limit)
        sim.world.call_later(duration, _forget, sim.net.slow, pairs)

    return fault


def _forget(table, pairs):
    for pair in pairs:
        table.pop(pair, None)


def repeat_requests(sim, rng, duration):
    sim.net.repeat = 0.2
    sim.world.call_later(duration, setattr, sim.net, "repeat", 0.0)


# -- store


def _disk(sim, rng, which):
    return sim.disks[which(sim, rng)]


def disk_down(which):
    def fault(sim, rng, duration):
        disk = _disk(sim, rng, which)
        disk.down = True
        sim.world.call_later(duration, setattr, disk, "down", False)

    return fault


def disk_full(sim, rng, duration):
    for disk in sim.disks.values():
        disk.full = True
        sim.world.call_later(duration, setattr, disk, "full", False)


def hang_disk(which):
    def fault(sim, rng, duration):
        disk = _disk(sim, rng, which)
        disk.hung = True
        sim.world.call_later(duration, disk.release)

    return fault


def slow_disk(sim, rng, duration):
    disk = _disk(sim, rng, _any)
    disk.latency = rng.choice((0.05, 0.4, 2.0))
    sim.world.call_later(duration, setattr, disk, "latency", 0.004)


def ambiguous_disk(sim, rng, duration):
    disk = _disk(sim, rng, _any)
    disk.ambiguous = rng.choice((0.1, 0.5))
    sim.world.call_later(duration, setattr, disk, "ambiguous", 0.0)


def ambiguous_disks_and_repeats(sim, rng, duration):
    """What was appended without an answer is asked for again before anybody has read on."""
    sim.net.repeat = 0.7
    sim.world.call_later(duration, setattr, sim.net, "repeat", 0.0)
    for disk in sim.disks.values():
        disk.ambiguous = 0.4
        sim.world.call_later(duration, setattr, disk, "ambiguous", 0.0)


def stalling_disk(sim, rng, duration):
    """A pause between what an append was decided on and its create."""
    disk = _disk(sim, rng, rng.choice((_primary, _any)))
    disk.stall, disk.stall_s = rng.choice((0.1, 0.5)), rng.choice((0.05, 1.0, 6.0))
    sim.world.call_later(duration, setattr, disk, "stall", 0.0)


# -- overseers and their database


def kill_overseer(sim, rng, duration):
    name = rng.choice(sim.overseer_names)
    if _alive(sim.overseers[name]):
        sim.overseers[name].kill()
        sim.world.call_later(duration, sim.start_overseer, name)


def kill_overseers(sim, rng, duration):
    for name in sim.overseer_names:
        if _alive(sim.overseers[name]):
            sim.overseers[name].kill()
            sim.world.call_later(duration * rng.uniform(0.8, 1.2), sim.start_overseer, name)


def freeze_overseer(sim, rng, duration):
    overseer = sim.overseers[rng.choice(sim.overseer_names)]
    if _alive(overseer):
        overseer.freeze()
        sim.world.call_later(duration, overseer.thaw)


def freeze_database(sim, rng, duration):
    sim.database.freeze()
    sim.world.call_later(duration, sim.database.thaw)


def break_database(sim, rng, duration):
    sim.database.store.broken = True
    sim.world.call_later(duration, setattr, sim.database.store, "broken", False)


def stalling_database(sim, rng, duration):
    sim.database.stall, sim.database.stall_s = 0.7, rng.choice((0.02, 0.5, 4.0))
    sim.world.call_later(duration, setattr, sim.database, "stall", 0.0)


def back_up_database(sim, rng, duration):
    sim.database.saved = sim.database.backup()


def restore_database(empty):
    def fault(sim, rng, duration):
        backup = None if empty else getattr(sim.database, "saved", None)
        for name in sim.overseer_names:
            if _alive(sim.overseers[name]):
                sim.overseers[name].kill()
        sim.database.restore(backup)
        pause = rng.uniform(0.2, 2.0)
        for name in sim.overseer_names:
            sim.world.call_later(pause + rng.uniform(0, 0.5), sim.start_overseer, name)

    return fault


def step_wall_clock(sim, rng, duration, machine=None):
    machine = machine or sim.machines[rng.choice(list(sim.machines))]
    machine.wall += rng.choice((-3600.0, 3600.0, 86400.0))


def switch_over(sim, rng, duration):
    target = _standby(sim, rng)
    sim.admin.spawn(sim.admin.promote(target, sim.new_id(20)), "promote")


BENIGN = {
    "kill an overseer": kill_overseer,
    "kill all overseers": kill_overseers,
    "freeze an overseer": freeze_overseer,
    "freeze the lease store": freeze_database,
    "break the lease store": break_database,
    "back the lease store up": back_up_database,
    "empty the lease store": restore_database(empty=True),
    "restore the lease store": restore_database(empty=False),
    "kill a standby's child": kill_child(_standby),
    "standby off": kill_machine(_standby),
    "freeze a standby's child": freeze(_standby, ("child",)),
    "freeze a standby": freeze(_standby, ("child", "supervisor")),
    "partition a standby": partition(_standby),
    "a standby's disk is down": disk_down(_standby),
    "a standby's disk hangs": hang_disk(_standby),
    "kill a site": kill_site,
    "freeze a site": freeze_site,
    "cut a site": cut_site,
    "step a wall clock": step_wall_clock,
    "slow network": slow_network(0.05),
    "repeat requests": repeat_requests,
    "stalling lease store": stalling_database,
}

SINGLE = {
    "kill the child": kill_child(_primary),
    "primary off": kill_machine(_primary),
    "freeze the child": freeze(_primary, ("child",)),
    "freeze the supervisor": freeze(_primary, ("supervisor",)),
    "freeze both in a renewal": freeze_in_a_renewal,
    "freeze both": freeze(_primary, ("child", "supervisor")),
    "cut the primary from the overseers": cut_from_overseers(_primary),
    "cut the primary's words to the overseers": cut_from_overseers(_primary, "there"),
    "cut the overseers' words to the primary": cut_from_overseers(_primary, "back"),
    "partition the primary": partition(_primary),
    "isolate the primary": isolate(_primary),
    "the primary's disk hangs": hang_disk(_primary),
    "the primary's disk is down": disk_down(_primary),
    "switch over": switch_over,
}

STORM = {
    **BENIGN,
    **SINGLE,
    "kill any child": kill_child(_any),
    "any server off": kill_machine(_any),
    "freeze any child": freeze(_any, ("child",)),
    "freeze any supervisor": freeze(_any, ("supervisor",)),
    "cut some": cut_pairs,
    "lossy network": lossy,
    "very slow network": slow_network(1.0),
    "full disk": disk_full,
    "slow disk": slow_disk,
    "ambiguous disk": ambiguous_disk,
    "ambiguous disks and repeats": ambiguous_disks_and_repeats,
    "stalling disk": stalling_disk,
    "lose a site's disk": lose_site_disk,
}
