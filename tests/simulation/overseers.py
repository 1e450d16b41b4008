"""Overseers: the real desk, board and `decide` over one lease store in memory that freezes, fails and loses its memory.

The desk is synchronous; its lock lets one call at a time come to the store. Here that is a queue: a call that waits for
a store that has stopped holds up all that come after it, but not the beats and views, which need no store.
"""

from __future__ import annotations

import copy
from collections import deque

from fedhelm.errors import FedhelmError, StoreUnavailable
from fedhelm_overseer.decide import Wait
from tests.fakes.overseer_store import MemoryLeaseStore
from tests.simulation.world import Dead, Process

__all__ = ["LeaseDatabase", "Overseer", "View"]

WITHOUT_STORE = frozenset({"beat", "wait_lease"})
UNKEPT = frozenset({"_lock"})


class LeaseDatabase:
    """The lease store that all overseers share."""

    def __init__(self, world, store=None):
        self.world = world
        self.store = store or MemoryLeaseStore()
        self.frozen = False
        self.latency = 0.002
        self.stall = 0.0
        self.stall_s = 0.0
        self._waiting = []
        self.forgot = False

    def heal(self):
        self.store.broken = False
        self.latency, self.stall = 0.002, 0.0
        self.thaw()

    def freeze(self):
        self.frozen = True

    def thaw(self):
        self.frozen = False
        waiting, self._waiting = self._waiting, []
        for callback, process in waiting:
            self.world.call_soon(callback, process=process)

    def when_it_answers(self, callback, process):
        if self.frozen:
            self._waiting.append((callback, process))
        else:
            self.world.call_later(self.world.rng.uniform(0, self.latency), callback, process=process)

    def backup(self):
        return {key: copy.copy(value) for key, value in vars(self.store).items() if key not in UNKEPT}

    def restore(self, backup):
        """Go back to an older copy; None: to an empty database."""
        self.forgot = True
        fresh = backup if backup is not None else vars(type(self.store)())
        for key, value in fresh.items():
            if key not in UNKEPT:
                setattr(self.store, key, copy.copy(value))


class View:
    """One overseer's connection: decisions may stand still between what they were decided on and their write."""

    DECISIONS = frozenset({"grant", "adopt"})

    def __init__(self, database, process):
        self._database = database
        self._process = process

    def compare_and_set(self, name, args, kwargs):
        return getattr(self._database.store, name)(*args, **kwargs)

    def __getattr__(self, name):
        def call(*args, **kwargs):
            database = self._database
            if name in self.DECISIONS and database.stall and database.world.rng.random() < database.stall:
                database.world.pause(database.world.rng.uniform(0, database.stall_s), self._process)
            result = self.compare_and_set(name, args, kwargs)
            if name in self.DECISIONS:
                if result is not None:
                    self._process.sim.granted(args[0], result)
                database.world.note(self._process.name, f"{name} {args[1]} {args[2].name}: {result is not None}")
            return result

        return call


class Overseer(Process):
    """One run of one overseer: from its start until it is killed."""

    def __init__(self, sim, machine):
        super().__init__(machine, machine.name)
        self.sim = sim
        self.kit = sim.kit(machine.name, "overseer")
        self.desk = None
        self._queue = deque()
        self._busy = False
        self._waiters = []
        self._observing = False
        sim.net.serve(machine.name, self.handle)
        self.later(self.world.rng.uniform(0.05, 0.3), self._start)

    def kill(self):
        super().kill()
        if self.desk is not None:
            self.world.note(self.name, "killed")
        self.sim.net.serve(self.machine.name, None)

    def _start(self):
        database = self.sim.database
        if database.frozen or database.store.broken:
            self.later(0.5, self._start)
            return
        self.desk = self.sim.make_desk(self.kit, self.sim.make_view(database, self), self.machine)
        self.desk.wake = self._wake
        self.world.note(self.name, "serves")
        self._tick()

    # -- the observer

    def _tick(self):
        self._observe()
        self.later(self.kit.timing.observe / self.machine.rate, self._tick)

    def _wake(self):
        self.world.call_soon(self._observe, process=self)

    def _observe(self):
        if not self._observing:
            self._observing = True
            self._enqueue(self._observe_once, None)

    def _observe_once(self):
        self._observing = False
        try:
            for _ in range(4):
                if isinstance(self.desk.observe(), Wait):
                    return
        except StoreUnavailable:
            return

    # -- requests

    def handle(self, request, reply):
        """A request (server, method, body) has arrived."""
        if self.dead:
            return
        self.world.call_soon(self._handle, request, reply, process=self)

    def _handle(self, request, reply):
        name, method, body = request
        if self.desk is None:
            reply(None, StoreUnavailable("the overseer starts"))
        elif method == "wait_lease":
            self._wait_lease(body, reply)
        elif method in WITHOUT_STORE:
            self._do(getattr(self.desk, method), name, body, reply)
        else:
            self._enqueue(lambda: self._do(getattr(self.desk, method), name, body, reply), reply)

    def _do(self, operation, name, body, reply):
        try:
            result = operation(name, body)
        except FedhelmError as error:
            reply(None, error)
        else:
            reply(result)
        self._ring()

    def _wait_lease(self, body, reply):
        after, wait = body
        view = self.desk.lease()
        if view.version != after:
            reply(view)
            return
        self._waiters.append((after, reply))
        self.later(wait / self.machine.rate, self._give_up_waiting, (after, reply))

    def _give_up_waiting(self, waiter):
        if waiter in self._waiters:
            self._waiters.remove(waiter)
            waiter[1](self.desk.lease())

    def _ring(self):
        if self._waiters and self.desk is not None:
            view = self.desk.lease()
            due = [one for one in self._waiters if one[0] != view.version]
            if due:
                self._waiters = [one for one in self._waiters if one[0] == view.version]
                for _, reply in due:
                    reply(view)

    # -- the turn

    def _enqueue(self, work, reply):
        self._queue.append(work)
        if not self._busy:
            self._next()

    def _next(self):
        if self._queue:
            self._busy = True
            self.sim.database.when_it_answers(self._work, self)
        else:
            self._busy = False

    def _work(self):
        if self.sim.database.frozen:  # it stopped meanwhile
            self.sim.database.when_it_answers(self._work, self)
            return
        work = self._queue.popleft()
        try:
            work()
        except Dead:
            return
        except StoreUnavailable:
            pass
        self._ring()
        self._next()
