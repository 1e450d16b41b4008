"""The runner processes of a primary: one per running job, started from the log, restarted when they crash."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Mapping
from typing import Any

from fedhelm.clock import iso
from fedhelm.errors import BadInput, FedhelmError, NotPrimary, StoreUnavailable
from fedhelm.local.channel import Channel
from fedhelm.local.frames import Frame
from fedhelm.process import child_env
from fedhelm.tasks import spawn
from fedhelm_server import decisions
from fedhelm_server.job_book import finished
from fedhelm_server.ledger import Answer, Placement
from fedhelm_server.places import job_folder
from fedhelm_server.runtime import Runtime

__all__ = ["RunnerProcess", "Runners"]

_log = logging.getLogger("fedhelm.server")

MAX_CRASHES = 3
STORE_RETRY_S = 0.2
START_RETRY_S = 1.0
_STDERR_TAIL = 16 * 1024


class RunnerProcess:
    """One job's runner and what is said to it."""

    def __init__(self, runtime: Runtime, job: str) -> None:
        self._runtime = runtime
        self._saying = asyncio.Lock()
        self.job = job
        self.crashes = 0
        self._rounds_at_crash = -1
        self._channel: Channel | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._stopped = False
        self._task = spawn(self._supervise(), f"runner of {job}")

    @property
    def ended(self) -> bool:
        """Whether nobody looks after this runner any more."""
        return self._task.done()

    def poke(self) -> None:
        """Tell the runner that the log has something new for it."""
        if self._channel is not None:
            self._channel.post("poke")

    def hand(self, item: Mapping[str, Any]) -> None:
        """Give the runner a contribution that is not in the log."""
        if self._channel is not None:
            self._channel.post("held", item=item)

    async def stop(self) -> None:
        """End the process."""
        self._stopped = True
        if self._channel is not None:
            self._channel.close()
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _supervise(self) -> None:
        while not self._stopped:
            try:
                stderr = await self._run_once()
            except OSError as error:  # no process, no file: this machine's trouble, not the job's
                _log.error("the runner of job %s cannot be started: %s", self.job, error)
                await asyncio.sleep(START_RETRY_S)
                continue
            job = self._runtime.book.jobs.get(self.job)
            if self._stopped or job is None or finished(job.status) or not self._runtime.leads:
                return
            if len(job.closed) > self._rounds_at_crash:
                self.crashes = 0  # it got further since: only crashes at the same place count
            self._rounds_at_crash = len(job.closed)
            self.crashes += 1
            _log.warning("the runner of job %s died (%d of %d)", self.job, self.crashes, MAX_CRASHES)
            if self.crashes >= MAX_CRASHES:
                await self._give_up(stderr)
                return

    async def _give_up(self, stderr: str) -> None:
        last = stderr.strip().splitlines()[-1:] or ["no message"]
        reason = f"its runner on {self._runtime.kit.name} died {MAX_CRASHES} times: {last[0]}"
        now = iso(self._runtime.clock.utcnow())
        decide = decisions.finish(self.job, "FINISHED:FAILED", reason, stderr[-_STDERR_TAIL:], now)
        await self._propose("job_done", decide)

    async def _run_once(self) -> str:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "fedhelm_server.runner", "--kit", str(self._runtime.kit.root)]
        command += ["--job", self.job, "--control-fd", str(theirs.fileno()), "--parent-pid", str(os.getpid())]
        folder = job_folder(self._runtime.kit.run, self.job)
        await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
        errors = folder / "runner.err"
        with theirs, errors.open("wb") as stderr:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                pass_fds=[theirs.fileno()],
                env=child_env(self._runtime.kit.root, "runner"),
                stdin=asyncio.subprocess.DEVNULL,
                stderr=stderr,
            )
        self._channel = await Channel.from_socket(ours)
        for item in self._runtime.holding.of(self.job).values():
            self.hand(item)
        said = set[asyncio.Task[None]]()
        try:
            while (frame := await self._channel.receive()) is not None:
                task = spawn(self._on_frame(frame, self._channel), f"runner frame of {self.job}")
                said.add(task)
                task.add_done_callback(said.discard)
        finally:
            self._channel.close()
            self._channel = None
        await self._process.wait()
        # The next runner counts its lines from those in the log: what this one said has to be there before.
        await asyncio.gather(*said, return_exceptions=True)
        text = (await asyncio.to_thread(errors.read_bytes)).decode(errors="replace")
        if text:
            _log.warning("runner of job %s: %s", self.job, text[-2000:].rstrip())
        return text

    async def _on_frame(self, frame: Frame, channel: Channel) -> None:
        if frame["type"] == "log":
            for line in frame["lines"]:
                # The controller's status, for those who read log.txt.
                _log.info("job %s: %s", self.job, line["value"].removeprefix(f"job {self.job} "))
            decide = decisions.own_lines(self.job, self._runtime.kit.name, frame["first"], frame["lines"])
            async with self._saying:  # one after the other, in their order
                with contextlib.suppress(NotPrimary):
                    await self._propose("metrics", decide)
        elif frame["type"] == "propose":
            await self._on_proposal(frame, channel)

    async def _on_proposal(self, frame: Frame, channel: Channel) -> None:
        body: dict[str, Any] = {**frame["body"], "job": self.job, "time": iso(self._runtime.clock.utcnow())}
        match frame["kind"]:
            case "round_open":
                decide = decisions.round_open(body)
            case "round_close":
                decide = decisions.round_close(body, lambda: self._runtime.holding.of(self.job))
            case "job_state":
                decide = decisions.running(self.job, body["time"])
            case "job_done":
                said = (body["status"], body["reason"], body.get("traceback", ""), body["time"])
                decide = decisions.finish(self.job, *said, provenance=body.get("provenance"))
            case kind:
                reason = f"a runner may not propose {kind}"
                channel.post("rejected", id=frame["id"], code=BadInput.code, reason=reason)
                return
        try:
            await self._propose(frame["kind"], decide)
        except Exception as error:  # noqa: BLE001 - a runner that waits for an answer must get one
            code = error.code if isinstance(error, FedhelmError) else FedhelmError.code
            channel.post("rejected", id=frame["id"], code=code, reason=str(error))
        else:
            channel.post("committed", id=frame["id"], seq=self._runtime.book.seq)

    async def _propose(self, kind: str, decide: decisions.Decision) -> Placement | Answer | None:
        while True:
            try:
                return await self._runtime.ledger.propose(kind, decide)  # type: ignore[no-any-return]
            except StoreUnavailable:
                await asyncio.sleep(STORE_RETRY_S)  # the job waits for the store; nothing is lost meanwhile


class Runners:
    """Keeps one runner for each running job while this server leads."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._runners: dict[str, RunnerProcess] = {}

    def reconcile(self, changed: set[str]) -> None:
        """Start the runners that are missing, end those of jobs that have ended, poke those whose job changed."""
        if not self._runtime.leads:
            return
        running = {job.job for job in self._runtime.book.running()}
        looked_after = {job for job, runner in self._runners.items() if not runner.ended}
        for job in running - looked_after:
            self._runners[job] = RunnerProcess(self._runtime, job)
        for job in set(self._runners) - running:
            runner = self._runners.pop(job)
            runner.poke()  # it sees that the job has ended and returns; `stop` is for one that does not
            spawn(self._end(runner), f"end of the runner of {job}")
        for job in changed & set(self._runners):
            self._runners[job].poke()

    def hand(self, item: Mapping[str, Any]) -> None:
        """Give a contribution that is not in the log to its job's runner."""
        if item["job"] in self._runners:
            self._runners[item["job"]].hand(item)

    async def _end(self, runner: RunnerProcess) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(runner._task), 5)  # noqa: SLF001 - the two are one thing
        await runner.stop()

    async def stop(self) -> None:
        """End every runner."""
        runners, self._runners = list(self._runners.values()), {}
        await asyncio.gather(*(runner.stop() for runner in runners))
