"""Servers: the real keeper in a supervisor, the real runtime, ledger, job control and fleet service in its children."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import NamedTuple

from fedhelm.errors import FedhelmError, NotFound, Refused, Unreachable
from fedhelm.persist.blobs import BlobWriter
from fedhelm.persist.record import READABLE_VERSIONS
from fedhelm.persist.store import Store
from fedhelm.v1 import fleet_pb2 as fleet
from fedhelm_server import decisions
from fedhelm_server import keeper_values as kv
from fedhelm_server.checkpoints import Checkpoints
from fedhelm_server.child_link import event_of
from fedhelm_server.fleet_service import FleetService
from fedhelm_server.job_control import JobControl
from fedhelm_server.lease_calls import CALLS
from fedhelm_server.ledger import Placement
from fedhelm_server.role import Role
from fedhelm_server.streams import SiteStream
from tests.simulation.network import answer
from tests.simulation.runners import VirtualRunners
from tests.simulation.world import Process, settle

__all__ = ["Child", "Submit", "Supervisor", "Upload"]

TICK_S = 0.2

INSTEAD = {"probe": "_probe", "leave_token": "_leave_token", "check_tokens": "_check_tokens"}
"""What the product does to the store's directory itself, of which there is none here."""


class Submit(NamedTuple):
    """A job, as an admin submits it."""

    item: dict


class Upload(NamedTuple):
    """A site's result: owner and bytes."""

    owner: str
    data: bytes


class _Pipe:
    """The child's end of the pipe to its supervisor."""

    def __init__(self, child):
        self._child = child
        self._frames = asyncio.Queue()

    def put(self, frame):
        self._frames.put_nowait(frame)

    async def receive(self):
        return await self._frames.get()

    async def send(self, kind, /, **fields):
        self.post(kind, **fields)

    def post(self, kind, /, **fields):
        child = self._child
        if not child.dead:
            child.world.call_later(0.0001, child.boss.frame, child, {"type": kind, **fields}, process=child.boss)

    def close(self):
        pass


class Child(Process):
    """One incarnation of the FL server."""

    def __init__(self, sim, machine, boss, incarnation):
        super().__init__(machine, f"{machine.name}/{incarnation}")
        self.sim = sim
        self.boss = boss
        self.incarnation = incarnation
        self.disk = sim.disks[machine.name]
        self.pipe = _Pipe(self)
        kit = sim.kit(machine.name, "server")
        log = sim.make_log(self.disk.slots(self), self.disk.blobs())
        store = Store(sim.root, kit.cluster, kit.project, log, self.disk.blobs())
        before = asyncio._get_running_loop()
        asyncio._set_running_loop(self.loop)
        try:
            self.runtime = sim.make_runtime(kit, incarnation, store, machine, self.pipe)
            self.control = JobControl(self.runtime)
            self.control.runners = VirtualRunners(self)
            self.checkpoints = Checkpoints(self.runtime)
            self.checkpoints._pace = sim.pace
            self.fleet = FleetService(self.runtime)
        finally:
            asyncio._set_running_loop(before)
        self.streams = {}
        self.said = None
        self.spawn(self._main(), "main")

    async def _main(self):
        runtime = self.runtime
        loops = [
            self.spawn(loop, name)
            for name, loop in (
                ("link", runtime.serve_link()),
                ("beat", runtime.beat()),
                ("ledger", runtime.ledger.run()),
                ("log", runtime.follow_log()),
                ("store", runtime.watch_store()),
                ("tokens", runtime.tokens.run()),
                ("dispatch", self.control.run()),
                ("checkpoints", self.checkpoints.run()),
            )
        ]
        for loop in loops:
            loop.add_done_callback(lambda _: runtime.stopping.set())
        self.sim.net.serve(f"{self.machine.name}/fleet", self.handle)
        await runtime.stopping.wait()
        for loop in loops:
            if loop.done() and not loop.cancelled() and loop.exception() is not None:
                self.sim.lost_loop(self, loop)
        await asyncio.sleep(0.05)
        self.world.call_soon(self.boss.child_ends, self, "exited with status 0")

    def kill(self):
        if self.dead:
            return
        super().kill()
        if self.sim.net.handlers.get(f"{self.machine.name}/fleet") == self.handle:
            self.sim.net.serve(f"{self.machine.name}/fleet", None)
        for stream in list(self.streams.values()):
            stream.broken()

    def in_thread(self, func, args):
        """A worker thread waits for the disk before and after."""
        future = self.loop.create_future()
        inner = getattr(func, "args", ())
        told = getattr(inner[0], "__name__", "") if inner else ""
        if told in INSTEAD:
            func, args = getattr(self, INSTEAD[told]), inner[1:]
        self.disk.when_it_answers(self, self._in_disk, future, func, args)
        return future

    def _probe(self, root):
        self.disk.require(write=True)

    def _leave_token(self, root, name, incarnation):
        self.disk.require(write=True)
        self.disk.shared.tokens.add(f"{name}~{incarnation}")
        return f"{name}~{incarnation}"

    def _check_tokens(self, root, tokens):
        self.disk.require()
        return [f"{name}'s token is missing" for name, token in tokens.items() if token not in self.disk.shared.tokens]

    def _in_disk(self, future, func, args):
        if self.disk.hung:
            self.disk.when_it_answers(self, self._in_disk, future, func, args)
            return
        try:
            result, error = func(*args), None
        except Exception as caught:  # noqa: BLE001 - it belongs to whoever waits for the thread
            result, error = None, caught
        self.disk.when_it_answers(self, settle, future, result, error)

    # -- what sites and admins ask

    def handle(self, request, reply):
        if not self.dead:
            self.later(0.0002, self._handle, request, reply)

    def _handle(self, request, reply):
        name, body = request
        if isinstance(body, tuple) and body[0] == "connect":
            self._connect(name, body[1], reply)
            return
        self.spawn(answer(self._serve(name, body), reply), "call")

    async def _serve(self, name, body):
        call = SimpleNamespace(principal=SimpleNamespace(name=name))
        match body:
            case fleet.Contribution():
                receipt = await self.fleet.contribute(body, call)
                return self.runtime.epoch, receipt
            case fleet.LineBatch():
                return self.runtime.epoch, await self.fleet.push_lines(body, call)
            case Upload(owner, data):
                await self.runtime.check_leads()
                self.fleet._check_upload(owner, name)
                return await self.loop.run_in_executor(None, self._write, owner, data)
            case Submit(item):
                await self.runtime.check_leads()
                decide = decisions.submit(item)
                result = await self.runtime.ledger.propose("job_submitted", decide, key=item["job"])
                seq = result.seq if isinstance(result, Placement) else int(result)
                return self.runtime.epoch, seq
        raise AssertionError(body)

    def _write(self, owner, data):
        writer = BlobWriter(self.disk.blobs(), owner)
        writer.write(data)
        return writer.finish()

    def _connect(self, site, stream, reply):
        if not self.runtime.ready:
            reply(None, Unreachable("not serving yet"))
            return
        stream.opened_by(self)
        self.streams[site] = stream
        reply(None)
        self.spawn(self._feed(site, stream), "stream")

    async def _feed(self, site, stream):
        """What `FleetService.connect` does with a stream, without its protocol."""
        runtime = self.runtime
        inner = SiteStream(site, "i")
        inner.hold([])
        runtime.streams.open(inner)
        runtime.site_changed(site, connected=True)
        try:
            while not inner.over and not stream.closed:
                if stream.heard is not None:
                    inner.hold(stream.heard)
                    stream.heard = None
                for message in self.fleet._next(inner):
                    stream.carry(message)
                waiting = asyncio.ensure_future(inner.wait())
                stream.wake = inner.wake
                await waiting
        finally:
            if runtime.streams.close(inner):
                runtime.site_changed(site, connected=False)

    def leads(self):
        return not self.dead and self.runtime.role in (Role.ACTIVE, Role.UNLEASED)


class Supervisor(Process):
    """One run of a supervisor: the keeper and what `fedhelm_server.supervisor` does around it."""

    def __init__(self, sim, machine):
        super().__init__(machine, f"{machine.name}/sup")
        self.sim = sim
        view_age = 2 * sim.timing.observe + sim.timing.request if len(sim.overseer_names) > 1 else 0.0
        about = kv.About(log_versions=tuple(sorted(READABLE_VERSIONS)), software="simulated")
        self.settings = kv.Settings(machine.name, sim.timing, about=about, view_age=view_age)
        self.state = kv.State()
        self.child = None
        self._events = []
        self._feeding = False
        self._tick()

    def kill(self):
        """PDEATHSIG takes the child along."""
        if self.child is not None:
            self.child.kill()
        super().kill()

    def _tick(self):
        self.feed(kv.Tick())
        self.later(TICK_S * self.world.rng.uniform(0.9, 1.1), self._tick)

    def feed(self, event):
        self._events.append(event)
        if self._feeding:
            return
        self._feeding = True
        try:
            while self._events and not self.dead:
                event = self._events.pop(0)
                self.state, actions = self.sim.step(self.settings, self.state, event, self.machine.boottime())
                for action in actions:
                    self._perform(action)
        finally:
            self._feeding = False

    def _perform(self, action):
        match action:
            case kv.Say(text):
                self.world.note(self.name, text)
            case kv.StartChild():
                self.later(self.world.rng.uniform(0.05, 0.6), self._start_child)
            case kv.KillChild(incarnation, why):
                self.world.note(self.name, f"kills {incarnation}: {why}")
                if self.child is not None:
                    self.child_ends(self.child, "exited with signal 9")
            case kv.SendToChild(kind, fields):
                if "deadline" in fields:
                    self.sim.leased(self, fields["deadline"])
                if self.child is not None:
                    frame = {"type": kind, **fields}
                    self.world.call_later(0.0001, self.child.pipe.put, frame, process=self.child)
            case kv.Quit(error):
                self.world.note(self.name, f"ends: {error}")
                self.sim.supervisor_ended(self, error)
            case _:
                self.spawn(self._call(action), type(action).__name__)

    def _start_child(self):
        incarnation = self.sim.new_incarnation()
        self.child = self.sim.make_child(self.machine, self, incarnation)
        self.world.note(self.child.name, "started")
        self.feed(kv.ChildStarted(incarnation))

    def frame(self, child, frame):
        if child is self.child:
            event = event_of(child.incarnation, frame)
            if event is not None:
                self.feed(event)

    def child_ends(self, child, how):
        """A child's process is gone; its supervisor hears of it when it can."""
        if child.dead and child is not self.child:
            return
        child.kill()
        self.world.note(child.name, how)
        self.world.call_later(0.002, self._reap, child, how, process=self)

    def _reap(self, child, how):
        if child is self.child:
            self.child = None
            self.feed(kv.ChildExited(child.incarnation, how))

    async def _call(self, call):
        sent_at = self.machine.boottime()
        try:
            event = await CALLS[type(call)](_Overseers(self, call), call, sent_at)
        except (NotFound, Refused) as error:
            event = kv.Failed(call, error.message, denied=True)
        except FedhelmError as error:
            event = kv.Failed(call, error.message)
        self.feed(event)


class _Overseers:
    """All overseers at once, the first good answer wins (docs/decisions/0013); a denial counts when nobody is better."""

    def __init__(self, boss, call):
        self._boss = boss
        request = boss.sim.timing.request
        if isinstance(call, kv.WaitLease):
            self._limit = request + call.wait + 1.0
        else:
            self._limit = request if isinstance(call, kv.Beat | kv.Renew) else request + 3.0

    def __getattr__(self, method):
        async def ask(*body):
            return await self._ask(method, body if len(body) > 1 else body[0])

        return ask

    async def _ask(self, method, body):
        boss = self._boss
        request = (boss.machine.name, method, body)
        calls = [boss.sim.net.call(boss, name, request, self._limit) for name in boss.sim.overseer_names]
        refused = denied = None
        for future in asyncio.as_completed(calls) if len(calls) > 1 else calls:
            try:
                result = await future
            except FedhelmError as error:
                if denied is None or isinstance(error, NotFound | Refused):
                    denied = error
            else:
                if getattr(result, "accepted", True) and getattr(result, "held", True):
                    return result
                refused = refused or result
        if refused is not None:
            return refused
        raise denied
