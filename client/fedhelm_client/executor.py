"""One job at this site: keeps a job process for as long as the log wants one, hands it tasks, keeps what it answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedhelm.clock import iso
from fedhelm.errors import FedhelmError, Refused
from fedhelm.local.script_protocol import Result, TaskOrder, Welcome
from fedhelm.plain_json import parse_plain
from fedhelm.process import atomic_write
from fedhelm.tasks import cancel, spawn
from fedhelm.v1 import fleet_pb2
from fedhelm_client.admission import Admitted
from fedhelm_client.courier import Courier, Failure
from fedhelm_client.decide import Act, Situation, decide, status_of
from fedhelm_client.door import Door
from fedhelm_client.folders import JobFolder, outbox_dir
from fedhelm_client.job_process import Ended, JobPlan, JobProcess
from fedhelm_client.journal import Journal, Throttle
from fedhelm_client.outbox import ContributionId, Outbox, Saved, id_of, is_closed
from fedhelm_client.outgoing import Outgoing, outgoing_of_job
from fedhelm_client.site import Site
from fedhelm_client.supplies import fetch_model, let_go, prepare

__all__ = ["GRACE_COMPLETED", "GRACE_STOPPED", "JobExecution"]

_log = logging.getLogger("fedhelm.client")

GRACE_COMPLETED = 10.0
"""Seconds that the script of a completed job has to return."""

GRACE_STOPPED = 1.0
"""Seconds between SIGTERM and SIGKILL for the script of a job that was aborted or failed."""


class JobExecution:
    """One job.

    Args:
        site: shared by all jobs.
        assigned: what the log wants.

    Raises:
        BadInput: the job's id cannot be a folder's name, or what an earlier agent left is damaged.
    """

    def __init__(self, site: Site, assigned: fleet_pb2.AssignedJob) -> None:
        self.job = assigned.job
        self._site = site
        self._assigned = assigned
        self._admitted = Admitted(site.trail)
        self._remembered = False
        self._folder = JobFolder.of(site.kit, assigned.job)
        self._folder.make()
        self._outbox_folder = folder = outbox_dir(site.kit) / assigned.job
        self._outbox = Outbox(folder)
        self._outgoing = Outgoing()
        self._journal = Journal(folder / "lines.jsonl")
        self._courier = Courier(
            self.job,
            site.kit.name,
            outbox=self._outbox,
            journal=self._journal,
            links=site.links,
            on_change=self._held_changed,
            on_refused=self._result_refused,
        )
        self._throttle = Throttle()
        self._door: Door | None = None
        self._process: JobProcess | None = None
        self._process_state: str = "none"
        self._failure = self._earlier_failure()
        self._in_hand: ContributionId | None = None
        self._owner = ""
        self._model: Path | None = None
        self._asked_for: ContributionId | None = None
        self._asked: asyncio.Future[TaskOrder | str] | None = None
        self._fetching: tuple[ContributionId, asyncio.Task[None]] | None = None
        self._starter: asyncio.Task[None] | None = None
        self._reporter: asyncio.Task[None] | None = None
        self._stopping = False
        self._patience = True
        self._patience_timer: asyncio.TimerHandle | None = None
        self._ender: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self.update(assigned)
        self._note("outbox", *self._outbox.damaged)

    # -- what the agent asks ------------------------------------------------------------------------------------

    def update(self, assigned: fleet_pb2.AssignedJob) -> None:
        """Take a new assignment, unless it says something else than what was admitted; then the one before stays."""
        if not self._admitted.takes(self._site.kit, assigned, ended=self._finished is not None):
            return
        if self._failure is not None and assigned.attempt > self._failure.attempt:
            self._failure, self._process_state = None, "none"  # the log wants another try
            self._folder.failure.unlink(missing_ok=True)
        self._assigned = assigned
        self._courier.acknowledge(assigned.lines_acknowledged)
        self._asked_for = id_of(assigned.attempt, assigned.task) if assigned.HasField("task") else None
        self._courier.assigned(self._asked_for)
        if self._finished == "COMPLETED" and self._patience_timer is None:
            self._patience_timer = asyncio.get_running_loop().call_later(GRACE_COMPLETED, self._lose_patience)
        self._changed.set()

    @property
    def status(self) -> str:
        """The word for a beat."""
        return status_of(self._situation())

    @property
    def nanny_pid(self) -> int | None:
        """Process id of the nanny, while there is one."""
        return None if self._process is None else self._process.pid

    async def run(self) -> None:
        """Do what the log says until the job is over and nothing of it is left to be brought."""
        self._courier.start()
        self._report()  # what an earlier agent could not report
        try:
            try:
                while (act := await self._next_act()) is not Act.DONE:
                    await self._perform(act)
            except Exception as error:  # noqa: BLE001 - a bug in here must end this job with a reason, not hang it
                _log.exception("job %s: the agent failed", self.job)
                await self._fail(f"the agent of the site failed: {type(error).__name__}: {error}", "")
                await self._stop()
                while self._finished is None:
                    self._changed.clear()
                    await self._changed.wait()
            await self._courier.clear()
            await self._courier.settled()
        finally:
            await self.shut_down()
        await asyncio.to_thread(let_go, self._folder)
        shutil.rmtree(outbox_dir(self._site.kit) / self.job, ignore_errors=True)
        shutil.rmtree(self._site.runtime / self.job, ignore_errors=True)

    async def shut_down(self) -> None:
        """End everything that runs for this job; what is on disk stays."""
        self._stopping = True
        self._outgoing.close()
        await cancel(self._starter, None if self._fetching is None else self._fetching[1])
        if self._patience_timer is not None:
            self._patience_timer.cancel()
        if self._process is not None:
            await self._process.stop(GRACE_STOPPED)
        if self._ender is not None:
            await asyncio.wait({self._ender})
        if self._door is not None:
            await self._door.close()
        await self._courier.stop()
        await cancel(self._reporter)
        self._journal.close()

    # -- decide and perform -------------------------------------------------------------------------------------

    @property
    def _finished(self) -> str | None:
        status = self._assigned.status
        return status.partition(":")[2] or "ABORTED" if status.startswith("FINISHED") else None

    def _open_task(self) -> ContributionId | None:
        if not self._assigned.HasField("task"):
            return None
        task = id_of(self._assigned.attempt, self._assigned.task)
        over = self._outbox.answered(task) or is_closed(task, self._assigned.closed)
        return None if over else task

    def _situation(self) -> Situation:
        return Situation(
            finished=self._finished,
            failed=self._failure is not None,
            process=self._process_state,  # type: ignore[arg-type]
            task=self._open_task(),
            fetching=None if self._fetching is None else self._fetching[0],
            in_hand=self._in_hand,
            asking=self._asked is not None and not self._asked.done(),
            patience=self._patience,
        )

    async def _next_act(self) -> Act:
        while True:
            self._changed.clear()
            await self._remember_end()
            await self._courier.close_rounds(self._assigned.closed)
            if self._asked_for is not None and not is_closed(self._asked_for, self._assigned.closed):
                task, self._asked_for = self._asked_for, None
                await self._courier.reopen(task)
                self._report()  # a log that asks does not know of a failure here
            act = decide(self._situation())
            if act is not Act.WAIT:
                return act
            await self._changed.wait()

    async def _remember_end(self) -> None:
        """Before anything is wound up: an agent that is killed in the middle of that must know that the job is over."""
        if self._finished is None or self._remembered:
            return
        self._remembered = True
        try:
            await asyncio.to_thread(self._site.ended.add, self.job)
        except OSError as error:
            _log.error("job %s: that it ended here cannot be remembered on disk: %s", self.job, error)

    async def _perform(self, act: Act) -> None:
        if act is Act.START:
            self._process_state = "starting"
            self._starter = spawn(self._start(), f"start of {self.job}")
        elif act is Act.HAND_OUT:
            if self._fetching is not None:
                await cancel(self._fetching[1])
            task = self._open_task()
            assert task is not None
            self._fetching = (task, spawn(self._hand_out(task, self._assigned.task), f"task of {self.job}"))
        elif act is Act.END_SCRIPT:
            assert self._asked is not None
            self._asked.set_result(self._assigned.status)
        elif act is Act.STOP:
            await self._stop()
        elif act is Act.RETURNED:
            await self._fail("the script returned before the job ended", "")
        self._held_changed()

    def _held_changed(self) -> None:
        self._site.on_change()

    def _lose_patience(self) -> None:
        self._patience = False
        self._changed.set()

    # -- the job process ----------------------------------------------------------------------------------------

    async def _start(self) -> None:
        try:
            door = self._site.runtime / self.job  # a folder of its own: other jobs' scripts must not see it
            door.mkdir(mode=0o700, exist_ok=True)
            self._outgoing = await asyncio.to_thread(outgoing_of_job, self._site.kit, self._folder)
            plan = await self._prepare(door)
            self._door = Door(door / "door", self)
            self._door.open()
            self._process = JobProcess(self._site.kit.root, self.job, self._take_output, self._process_ended)
            env = {**self._door.env, "TMPDIR": str(self._folder.work / "tmp")}
            await self._process.start(plan, self._folder.plan, self._folder.log, env)
        except (FedhelmError, OSError) as error:
            self._process_state = "over"
            await self._fail(str(error), "")
            return
        if self._process_state == "starting":
            self._process_state = "up"
        _log.info("job %s (%s): job process started", self.job, self._assigned.name)
        self._note("executor", "job process started")  # so that every site has a log among the job's results
        if self._outgoing.told:
            self._note("privacy", f"privacy filters of this site: {', '.join(self._outgoing.told)}")
        self._changed.set()

    async def _prepare(self, door: Path) -> JobPlan:
        assigned = self._assigned
        self._admitted.nothing()
        config, plan = await prepare(self._site, self._folder, assigned, door)
        self._admitted.this(assigned, config)
        newest, self._assigned = self._assigned, assigned
        if newest is not assigned:
            self.update(newest)  # said meanwhile, when there was nothing to compare it with
        return plan

    async def _stop(self) -> None:
        self._stopping = True
        await cancel(self._starter)
        if self._process is not None:
            await self._process.stop(GRACE_STOPPED)
        self._process_state = "over"

    def _process_ended(self, ended: Ended) -> None:
        self._ender = spawn(self._after_end(ended), f"end of {self.job}")

    async def _after_end(self, ended: Ended) -> None:
        if ended.reason and ended.signal is not None:
            self._site.on_stray()
        if self._door is not None:
            await self._door.close()
        _log.info("job %s: job process ended (status %s, signal %s)", self.job, ended.status, ended.signal)
        expected = self._stopping or self._finished is not None
        if not expected and (ended.status != 0 or self._in_hand is not None):
            await self._fail(*self._outgoing.failure(ended))
        self._in_hand = None
        self._process_state = "over"  # only now: the reason is known
        self._changed.set()
        self._held_changed()

    # -- failure ------------------------------------------------------------------------------------------------

    def _earlier_failure(self) -> Failure | None:
        try:
            data = parse_plain(self._folder.failure.read_bytes())
            return Failure(**data)
        except (FileNotFoundError, ValueError, TypeError):
            return None

    async def _fail(self, reason: str, traceback: str) -> None:
        if self._failure is not None:
            return
        task = self._assigned.task if self._assigned.HasField("task") else None
        failure = Failure(
            job=self.job,
            attempt=self._assigned.attempt,
            reason=" ".join(reason.split())[:500],
            traceback=traceback[-16 * 1024 :],
            round=self._in_hand.round if self._in_hand is not None else (task.round if task is not None else 0),
        )
        _log.error("job %s failed here: %s", self.job, failure.reason)
        self._failure = failure
        fields = {name.name: value for name, value in failure.ListFields()}
        with contextlib.suppress(OSError):  # a full disk: it is reported all the same
            await asyncio.to_thread(atomic_write, self._folder.failure, json.dumps(fields).encode())
        self._report()
        self._changed.set()
        self._held_changed()

    def _result_refused(self, reason: str) -> None:
        if self._finished is None:
            spawn(self._fail(reason, ""), f"refusal of {self.job}")

    def _report(self) -> None:
        if self._failure is not None and self._reporter is None:
            self._reporter = spawn(self._report_once(self._failure), f"failure of {self.job}")

    async def _report_once(self, failure: Failure) -> None:
        await self._courier.report(failure)
        self._reporter = None

    # -- the desk behind the script's door ----------------------------------------------------------------------

    def welcome(self) -> Welcome:
        """Return what a script learns when it connects."""
        self._in_hand = None  # what an earlier process of this script had in hand died with it
        config = self._admitted.config
        return Welcome(
            site=self._site.kit.name,
            job=self.job,
            name=config.name,
            members=self._admitted.members or self._site.kit.sites,
            options=config.to_json()["options"],
            workdir=self._folder.work,
        )

    async def next(self) -> TaskOrder | str:
        """Return the next task, or the job's status at its end."""
        self._asked = asyncio.get_running_loop().create_future()
        self._changed.set()
        try:
            return await self._asked
        finally:
            self._asked = None

    async def result(self, result: Result) -> None:
        """Save a result of the task in hand.

        Raises:
            Refused: no such task is open, or the site's privacy policy lets nothing of it leave.
        """
        task = self._in_hand
        if task is None or task.key != result.key:
            raise Refused(f"no task {result.key!r:.80} is open", hint="submit once for each task")
        source = None if result.file is None else self._folder.results / result.file
        saved = Saved(
            id=task,
            file=None,
            owner=self._owner,
            weight=result.weight,
            metrics=result.metrics,
            lines=self._journal.last,
        )
        try:
            saved, source = await asyncio.to_thread(
                self._outgoing.result, saved, source, model=self._model, folder=self._outbox_folder
            )
        except Refused as error:
            if self._stopping:
                raise  # given up with the agent, not refused: the next one runs the task again
            _log.error("job %s: nothing leaves of %s of round %d: %s", self.job, task.kind, task.round, error.hint)
            self._site.trail.result(self.job, task, self._outgoing.told, error)
            await self._fail(error.message, "")
            raise
        self._site.trail.result(self.job, task, saved.filters)
        await self._courier.add_result(saved, source)
        self._in_hand = None
        _log.info("job %s: %s of round %d answered by the script", self.job, task.kind, task.round)
        self._changed.set()
        self._held_changed()

    def lines(self, lines: Sequence[dict[str, Any]]) -> None:
        """Take the script's lines."""
        self._courier.add_lines(self._outgoing.lines(lines))

    def _take_output(self, lines: list[str]) -> None:
        taken = self._throttle.take(lines, self._site.clock.boottime())
        self._courier.add_lines(self._outgoing.lines(self._log_lines("output", taken)))

    def _note(self, tag: str, *lines: str) -> None:
        self._courier.add_lines(self._log_lines(tag, lines))

    def _log_lines(self, tag: str, lines: Sequence[str]) -> list[dict[str, Any]]:
        stamp = iso(self._site.clock.utcnow())
        return [{"kind": "log", "tag": tag, "value": line, "step": None, "time": stamp} for line in lines]

    async def _hand_out(self, task: ContributionId, order: fleet_pb2.Task) -> None:
        try:
            self._outgoing.check_task(task.kind, has_model=order.HasField("model"))
        except Refused as error:
            self._fetching = None
            await self._fail(error.message, "")
            return
        try:
            model = await fetch_model(self._site.links, self._folder, self.job, order)
        except (FedhelmError, OSError) as error:
            await self._fail(f"the model of round {task.round} cannot be fetched: {error}", "")
            return
        finally:
            self._fetching = None
            self._changed.set()
        if self._asked is None or self._asked.done() or self._open_task() != task:
            return
        self._in_hand, self._owner, self._model = task, order.upload_owner, model
        self._asked.set_result(
            TaskOrder(
                key=task.key,
                kind=task.kind,
                round=task.round,
                rounds=order.rounds,
                step=task.step,
                sequence=task.sequence,
                model=model,
                model_sha256=order.model_sha256,
                result_dir=self._folder.results,
            )
        )
        self._held_changed()
