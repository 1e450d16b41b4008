"""Sites and an admin as docs/ha.md, section 5, wants them: results are kept until their round is closed in the log."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import deque

from fedhelm.errors import FedhelmError, NotPrimary, RoundOver, StoreUnavailable, Unreachable
from fedhelm.v1 import common_pb2 as common
from fedhelm.v1 import fleet_pb2 as fleet
from fedhelm.wire.overseer_api import PromoteRequest
from fedhelm_server.places import sites_owner
from tests.simulation.servers import Submit, Upload
from tests.simulation.world import Process

__all__ = ["Admin", "Site", "SiteDisk", "Stream"]

CALL_S = 2.0
KEEP_ALIVE_S = 10.0


class SiteDisk:
    """What outlives a site's process."""

    def __init__(self):
        self.results = {}
        self.finished = set()
        self.receipts = {}
        self.lines = {}
        self.acknowledged = {}
        self.epoch = 0


class Stream:
    """One site's stream to one child: messages in order, stuck while the way is cut, broken by the keep-alive."""

    def __init__(self, site, server):
        self.site = site
        self.server = server
        self.child = None
        self.closed = False
        self.heard = None
        self.wake = None
        self.ended = asyncio.Event()
        self._queue = deque()
        self._pumping = False
        self._silent = 0

    def opened_by(self, child):
        self.child = child
        self.site.later(KEEP_ALIVE_S / 2, self._ping)

    def carry(self, message):
        self._queue.append(message)
        if not self._pumping:
            self._pumping = True
            self._pump()

    def _pump(self):
        net, world = self.site.sim.net, self.site.world
        if self.closed or not self._queue:
            self._pumping = False
        elif net.reaches(self.server, self.site.machine.name):
            world.call_later(net.delay(self.server, self.site.machine.name), self._deliver)
        else:
            world.call_later(0.2, self._pump)

    def _deliver(self):
        if self.closed or not self._queue:
            self._pumping = False
            return
        message = self._queue.popleft()
        self.site.world.call_soon(self.site.hear, self, message, process=self.site)
        self._pump()

    def _ping(self):
        if self.closed:
            return
        net, child, here = self.site.sim.net, self.child, self.site.machine.name
        answered = net.reaches(here, self.server) and net.reaches(self.server, here)
        if child.dead and answered:
            self._end()
            return
        self._silent = self._silent + 1 if child.dead or child.frozen or not answered else 0
        if self._silent >= 2:
            self._end()
        else:
            self.site.later(KEEP_ALIVE_S / 2, self._ping)

    def broken(self):
        """The child's process has gone: its machine says so, if it can be heard."""
        if not self.closed and self.site.sim.net.reaches(self.server, self.site.machine.name):
            self._end()

    def _end(self):
        self.closed = True
        self.site.world.call_soon(self.ended.set, process=self.site)
        if self.wake is not None and not self.child.dead:
            self.site.world.call_soon(self.wake, process=self.child)


class Site(Process):
    """One run of a site's agent and its job processes."""

    def __init__(self, sim, machine, disk):
        super().__init__(machine, machine.name)
        self.sim = sim
        self.disk = disk
        self.primary = None
        self.training = {}
        self.wanted = {}
        self.streams = []
        self.news = asyncio.Event()
        self.more_lines = asyncio.Event()
        for server in sim.server_names:
            self.spawn(self._stream(server), f"stream to {server}")
        self.spawn(self._offer(), "courier")
        self.spawn(self._push(), "lines")

    def kill(self):
        super().kill()
        for stream in self.streams:
            if not stream.closed:
                stream.closed = True
                child = stream.child
                if child is not None and not child.dead and stream.wake is not None:
                    self.world.call_later(0.01, stream.wake, process=child)

    # -- streams

    async def _stream(self, server):
        rng, retry = self.world.rng, self.sim.timing.retry
        while True:
            stream = Stream(self, server)
            self.streams = [one for one in self.streams if not one.closed]
            try:
                await self.sim.net.ask(self, f"{server}/fleet", (self.name, ("connect", stream)), CALL_S)
            except FedhelmError:
                stream.closed = True
                await asyncio.sleep(retry * rng.uniform(0.5, 1.5))
                continue
            self.streams.append(stream)
            await stream.ended.wait()
            await asyncio.sleep(retry * rng.uniform(0.2, 1.0))

    def hear(self, stream, message):
        """A server speaks on its stream."""
        which = message.WhichOneof("message")
        if which == "announce":
            self.follow(stream.server, message.announce.epoch)
        elif which == "assignment" and self.follow(stream.server, message.assignment.epoch):
            self._obey(message.assignment)

    def follow(self, server, epoch):
        """Whether ``server``, which says that it leads in ``epoch``, is to be believed."""
        if epoch < self.disk.epoch:
            return False
        if epoch > self.disk.epoch or self.primary != server:
            self.sim.followed(self, server, epoch, self.disk.epoch)
            self.disk.epoch, self.primary = epoch, server
            self.news.set()
            self.more_lines.set()
        return True

    def _obey(self, assignment):
        for job in assignment.jobs:
            for closed in job.closed:
                self.drop(job.job, lambda key, closed=closed: (key[2], key[3]) <= (closed.step, closed.round))
            if job.status.startswith("FINISHED"):
                self.drop(job.job, lambda _: True)
                continue
            if job.HasField("task"):
                task = job.task
                key = (job.job, job.attempt, task.step, task.round, task.kind, self.name, task.sequence)
                if key not in self.disk.results and key not in self.training:
                    self.training[key] = self.spawn(self._train(key), "training")

    def drop(self, job, over):
        """Forget the results of rounds that are over, by the log's own word."""
        for key in [key for key in self.disk.results if key[0] == job and over(key)]:
            del self.disk.results[key]
            if key not in self.disk.receipts:
                self.sim.thrown_away(key)

    async def _train(self, key):
        rng = self.world.rng
        await asyncio.sleep(rng.uniform(0.2, 2.5))
        lines = self.disk.lines.setdefault(key[0], [])
        lines.append({"kind": "scalar", "tag": "loss", "value": len(lines), "step": key[3], "time": "-"})
        again = f" {rng.random()}" if rng.random() < self.sim.unsteady else ""
        self.disk.results[key] = f"result {key}{again}".encode() if key[4] == "train" else b""
        del self.training[key]
        if key in self.disk.finished:
            self.sim.world.fail(f"{self.name} trained {key} twice, though it had its result")
        self.disk.finished.add(key)
        self.news.set()
        self.more_lines.set()

    # -- results

    async def _offer(self):
        while True:
            waiting = [key for key in self.disk.results if key not in self.disk.receipts]
            if not waiting:
                await self.news.wait()
                self.news.clear()
                continue
            for key in waiting:
                await self._offer_one(key)

    def _target(self):
        return self.primary or self.world.rng.choice(self.sim.server_names)

    async def _ask(self, body):
        """Ask the primary, or somebody, and follow who answers as one."""
        server = self._target()
        try:
            answer = await self.sim.net.ask(self, f"{server}/fleet", (self.name, body), CALL_S)
        except (NotPrimary, Unreachable):
            if self.primary == server:
                self.primary = None
            raise
        return server, answer

    async def _offer_one(self, key):
        data = self.disk.results.get(key)
        if data is None:
            return
        job, attempt, step, round_, kind, site, sequence = key
        request = fleet.Contribution(
            job=job, attempt=attempt, step=step, round=round_, kind=kind, site=site, sequence=sequence,
            weight=1.0, metrics_json='{"accuracy": 0.5}',
        )  # fmt: skip
        try:
            if kind == "train":
                _, ref = await self._ask(Upload(sites_owner(job, step, round_), data))
                request.blob.CopyFrom(common.BlobRef(owner=ref.owner, digest=ref.digest, size=ref.size))
            server, (epoch, receipt) = await self._ask(request)
        except (NotPrimary, Unreachable, StoreUnavailable):
            await self._retry()
            return
        except RoundOver:
            self.received(key, common.Receipt(gone=True))
            return
        except FedhelmError as error:
            self.sim.refused(self, key, error)
            await self._retry()
            return
        self.follow(server, epoch)
        self.received(key, receipt)

    def received(self, key, receipt):
        """A receipt: the copy stays until the round is closed."""
        if receipt.gone:
            self.disk.results.pop(key, None)
            self.sim.thrown_away(key)
        elif key in self.disk.results:
            self.disk.receipts[key] = receipt
            self.sim.acknowledged(key, receipt, hashlib.sha256(self.disk.results[key]).hexdigest())

    async def _retry(self):
        await asyncio.sleep(self.sim.timing.retry * self.world.rng.uniform(0.5, 1.5))

    # -- lines

    async def _push(self):
        while True:
            job = next((job for job, all_ in self.disk.lines.items() if self._unsent(job) < len(all_)), None)
            if job is None:
                await self.more_lines.wait()
                self.more_lines.clear()
                continue
            first = self._unsent(job)
            lines = [
                fleet.Line(number=first + 1 + index, json=json.dumps(line))
                for index, line in enumerate(self.disk.lines[job][first : first + 5])
            ]
            try:
                server, (epoch, ack) = await self._ask(fleet.LineBatch(job=job, lines=lines))
            except FedhelmError:
                await self._retry()
                continue
            self.follow(server, epoch)
            self.disk.acknowledged[job] = max(ack.acknowledged, self.disk.acknowledged.get(job, 0))
            self.sim.lines_acknowledged(self, job, ack.acknowledged)

    def _unsent(self, job):
        return self.disk.acknowledged.get(job, 0)


class Admin(Process):
    """Submits jobs and asks for switchovers, again and again until it has an answer."""

    def __init__(self, sim, machine):
        super().__init__(machine, machine.name)
        self.sim = sim

    async def submit(self, item):
        rng = self.world.rng
        while True:
            server = rng.choice(self.sim.server_names)
            try:
                _, seq = await self.sim.net.ask(self, f"{server}/fleet", (self.name, Submit(item)), CALL_S)
            except FedhelmError:
                await asyncio.sleep(0.25)
                continue
            self.sim.submitted(item, seq)
            if rng.random() < 0.8:
                return
            # The same once more, as a client would whose answer was lost: it must be the same job.

    async def promote(self, target, request_id):
        overseer = self.world.rng.choice(self.sim.overseer_names)
        body = PromoteRequest(target=target, request_id=request_id)
        try:
            reply = await self.sim.net.ask(self, overseer, ("admin@nvidia.com", "promote", body), 4.0)
        except FedhelmError as error:
            self.world.note(self.name, f"promote {target}: {error}")
        else:
            self.world.note(self.name, f"promote {reply.primary} -> {target}")
