"""A job's runner as a coroutine of the child: the real workflow and book; aggregation is a hash over the results."""

from __future__ import annotations

import asyncio
import hashlib

from fedhelm.errors import BadInput, Conflict, StoreUnavailable
from fedhelm.learning.registry import workflow_of
from fedhelm.learning.workflow import CloseRound, Fail, Finish, OpenRound, Wait
from fedhelm.persist.blobs import BlobWriter
from fedhelm_server import runners
from fedhelm_server.job_book import JobBook, finished
from fedhelm_server.places import model_owner
from fedhelm_server.step_views import step_view

__all__ = ["VirtualRunners", "aggregate", "fold"]


def aggregate(before, digests):
    """What stands for the weighted average: every reader of the log can compute it again."""
    return hashlib.sha256(repr((before, sorted(digests.items()))).encode()).hexdigest()


def fold(book, log):
    """Read on and fold; return the book, which is another one when the log began from a checkpoint."""
    batch = log.read_new()
    if batch.base is not None:
        book = JobBook.restore(batch.base.state)
    for record in batch.records:
        book.apply(record)
    return book


class VirtualRunners(runners.Runners):
    """The real bookkeeping of runners, whose processes are coroutines here."""

    def __init__(self, child):
        super().__init__(child.runtime)
        self._child = child

    def reconcile(self, changed):
        before, runners.RunnerProcess = runners.RunnerProcess, self._make
        try:
            super().reconcile(changed)
        finally:
            runners.RunnerProcess = before

    def _make(self, runtime, job):
        return VirtualRunner(runtime, job, self._child)


class _Channel:
    """From the child to its runner."""

    def __init__(self):
        self.frames = asyncio.Queue()

    def post(self, kind, /, **fields):
        self.frames.put_nowait({"type": kind, **fields})

    def close(self):
        pass


class VirtualRunner(runners.RunnerProcess):
    """The real supervision of one runner; the runner itself is `_drive`."""

    def __init__(self, runtime, job, child):
        self._child = child
        self._channel = None
        super().__init__(runtime, job)

    async def _run_once(self):
        await asyncio.sleep(self._child.world.rng.uniform(0.05, 0.3))  # imports
        self._channel = _Channel()
        try:
            await self._drive(self._channel)
        finally:
            self._channel = None
        return ""

    async def _drive(self, channel):
        child = self._child
        log = child.sim.make_log(child.disk.slots(child), child.disk.blobs())
        book, since = JobBook(), None
        while True:
            try:
                book = await child.loop.run_in_executor(None, fold, book, log)
            except StoreUnavailable:
                await self._wait(channel, 0.5)
                continue
            job = book.jobs[self.job]
            if finished(job.status):
                return
            if job.status == "DISPATCHED":
                await self._ask(channel, "job_state", {})
                continue
            key = None if job.open is None else (job.open.step, job.open.round, job.open.kind)
            if since is None or since[0] != key:
                since = (key, child.machine.boottime())
            action = workflow_of(job.config["workflow"][0]).decide(
                step_view(job, 0, child.machine.boottime() - since[1])
            )
            try:
                await self._act(channel, action, job)
            except StoreUnavailable:
                await self._wait(channel, 0.5)

    async def _act(self, channel, action, job):
        match action:
            case OpenRound(round=number, rounds=rounds, kind=kind, deadline_s=deadline):
                model = job.model
                members = [site for site in sorted(job.sites) if site not in job.failed]
                body = {"attempt": job.attempt, "step": 0, "round": number, "rounds": rounds, "kind": kind}
                body |= {"members": members, "deadline_s": deadline}
                body |= {"model": model["model"] if model else None}
                body |= {"model_sha256": model["model_sha256"] if model else None}
                await self._ask(channel, "round_open", body)
            case CloseRound():
                await self._ask(channel, "round_close", await self._closing(job))
            case Wait(wake_in_s=wake):
                await self._wait(channel, wake)
            case Finish():
                await self._ask(channel, "job_done", {"status": "FINISHED:COMPLETED", "reason": ""})
            case Fail(reason=reason):
                await self._ask(channel, "job_done", {"status": "FINISHED:FAILED", "reason": reason})

    async def _closing(self, job):
        open_ = job.open
        items = {site: open_.contributions[site].item for site in sorted(open_.contributions)}
        body = {"attempt": job.attempt, "step": 0, "round": open_.round, "kind": open_.kind, "members": sorted(items)}
        body |= {"weights": {}, "metrics": {}, "site_metrics": {}}
        body |= {"model": None, "model_sha256": None, "model_blake3": None}
        if open_.kind == "train":
            text = aggregate(open_.model_sha256, {site: item["blob"]["digest"] for site, item in items.items()})
            owner = model_owner(self.job, 0, open_.round)
            ref = await self._child.loop.run_in_executor(None, self._write, owner, text.encode())
            body |= {"model": ref.to_json(), "model_sha256": text, "model_blake3": text}
        return body

    def _write(self, owner, data):
        writer = BlobWriter(self._child.disk.blobs(), owner)
        writer.write(data)
        return writer.finish()

    async def _ask(self, channel, kind, body):
        frame = {"type": "propose", "id": 1, "kind": kind, "body": body}
        answers = _Channel()
        await self._on_proposal(frame, answers)
        told = answers.frames.get_nowait()
        if told["type"] == "rejected":
            if told["code"] == BadInput.code:
                raise BadInput(told["reason"])
            if told["code"] != Conflict.code:
                await self._wait(channel, 0.5)

    async def _wait(self, channel, seconds):
        try:
            async with asyncio.timeout(seconds):
                await channel.frames.get()
                while not channel.frames.empty():
                    channel.frames.get_nowait()
        except TimeoutError:
            pass
