"""The agent of a site: follows whoever leads, and has one execution for each job that the log wants here."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from fedhelm.clock import Clock, SystemClock
from fedhelm.config.kit import Kit
from fedhelm.errors import FedhelmError, NotAuthorised
from fedhelm.ids import new_incarnation
from fedhelm.process import marked_processes, set_non_dumpable, set_subreaper, write_state
from fedhelm.tasks import cancel, spawn
from fedhelm.v1 import fleet_pb2
from fedhelm_client import landlock
from fedhelm_client.ended_jobs import ENDED_FILE, EndedJobs, ended_before
from fedhelm_client.executor import JobExecution
from fedhelm_client.folders import JobFolder, make_runtime_dir, outbox_dir
from fedhelm_client.job_process import end_strays
from fedhelm_client.links import Dial, Links, dial_with_tls
from fedhelm_client.orders import Action, Orders, action_of, check_order
from fedhelm_client.outbox import load_jobs
from fedhelm_client.roster import Ask, ServerWatch
from fedhelm_client.site import Site
from fedhelm_client.site_trail import SiteTrail
from fedhelm_client.site_trust import SiteTrust
from fedhelm_client.supplies import let_go

if TYPE_CHECKING:
    from fedhelm.security.tls import Check
    from fedhelm.wire.overseer_console import OverseerConsoleClient

__all__ = ["Agent", "end_leftovers", "guard_process"]

_log = logging.getLogger("fedhelm.client")

_STOP_SECONDS = 4.0
_VANISHED_SECONDS = 10.0
_MAX_ORDERS = 16


def guard_process() -> None:
    """Make this process the parent of orphans below it, and its memory private; warn where scripts are not shut in."""
    set_subreaper()
    set_non_dumpable()
    if landlock.abi() == 0:
        _log.warning(
            "this kernel has no Landlock: jobs' scripts run as this user and can read the key of this site; "
            "run only scripts you trust, or the agent in a container or as a user of its own"
        )


def end_leftovers(kit: Kit, timeout: float = 10.0) -> None:
    """Kill what an agent that was killed left behind: nannies and job processes that carry this kit's mark.

    Raises:
        FedhelmError: a process cannot be killed.
    """
    deadline = time.monotonic() + timeout
    while left := [one for one in marked_processes(kit.root) if one.mark in ("nanny", "job")]:
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise FedhelmError(f"processes of an earlier run cannot be killed: {[one.pid for one in left]}")
        time.sleep(0.01)


def _overseers(kit: Kit, check: Check) -> OverseerConsoleClient:
    """Return the way a real site asks; connected to nobody before the first call."""
    from fedhelm.wire.overseer_console import OverseerConsoleClient

    return OverseerConsoleClient(kit, check=check)


class Agent:
    """One site.

    Args:
        kit: its start-up kit.
        dial: opens connections; None: mutual TLS with the kit.
        clock: injected by tests.
        ask: asks the overseers for the servers, blocking; injected by tests, and then nobody is asked for the list of
            revoked certificates.
    """

    def __init__(self, kit: Kit, dial: Dial | None = None, clock: Clock | None = None, ask: Ask | None = None) -> None:
        self._kit = kit
        self._trust = SiteTrust(kit)
        self._calls: OverseerConsoleClient | None = None
        if ask is None:
            self._calls = _overseers(kit, self._trust.revocations.check)
            ask = self._calls.servers
        self._jobs: dict[str, JobExecution] = {}
        self._runs: dict[str, asyncio.Task[None]] = {}
        self._vanished: dict[str, asyncio.TimerHandle] = {}
        self._links = Links(
            kit,
            new_incarnation(),
            dial or dial_with_tls(kit),
            held=self._held,
            on_assignment=self._on_assignment,
            on_change=self._on_leader,
            on_order=self._on_order,
        )
        self._watch = ServerWatch(kit, self._links, ask)
        self._trail = SiteTrail(kit)
        self._orders: asyncio.Queue[tuple[fleet_pb2.Order, str]] = asyncio.Queue(_MAX_ORDERS)
        self._stop = asyncio.Event()
        self.ordered: Action | None = None
        """What an admin told this agent to do, once :meth:`run` has returned because of it."""

        self._clock = clock or SystemClock()
        self._site: Site | None = None
        self._told: dict[str, Any] = {}
        self._over: set[str] = set()

    @property
    def links(self) -> Links:
        """The streams to the servers."""
        return self._links

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until ``stop`` is set, or an admin orders so; afterwards no process of any job is left."""
        self._stop = stop
        self._kit.run.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._trail = await asyncio.to_thread(SiteTrail.open, self._kit)
        try:
            await self._run()
        finally:
            await asyncio.to_thread(self._trail.close)

    async def _run(self) -> None:
        orders = await asyncio.to_thread(Orders, self._kit.run / "orders.json")
        await asyncio.to_thread(end_leftovers, self._kit)
        runtime = make_runtime_dir(self._kit)
        self._site = Site(
            kit=self._kit,
            links=self._links,
            runtime=runtime,
            clock=self._clock,
            on_change=self._links.beat_soon,
            on_stray=self._end_strays,
            trail=self._trail,
            revocations=self._trust.revocations,
            ended=await asyncio.to_thread(self._ended_jobs),
        )
        self._on_leader(None, self._links.view.highest)
        self._links.start()
        watch = spawn(self._watch.run(), "servers")
        trust = spawn(self._trust.run(self._calls, self._take_kit, self._publish), "kit")
        obeying = spawn(self._obey(orders), "orders")
        try:
            await self._stop.wait()
        finally:
            await cancel(watch, trust, obeying)
            await self._shut_down()
            shutil.rmtree(runtime, ignore_errors=True)
            (self._kit.run / "runtime").unlink(missing_ok=True)

    def _ended_jobs(self) -> EndedJobs:
        path = self._kit.run / ENDED_FILE
        first = not path.exists()
        ended = EndedJobs(path, self._clock)
        if first:  # of this version: what an agent of before has ended is not run again either
            ended.begin(ended_before(self._kit))
        return ended

    async def _shut_down(self) -> None:
        for handle in self._vanished.values():
            handle.cancel()
        runs = list(self._runs.values())
        for run in runs:
            run.cancel()  # its `finally` ends the job's processes
        if runs:
            await asyncio.wait(runs, timeout=_STOP_SECONDS)
        await asyncio.to_thread(end_leftovers, self._kit)
        await self._links.stop()

    def _take_kit(self, kit: Kit) -> None:
        """Go on with a kit that took the place of the former one; no job notices."""
        if kit.overseers != self._kit.overseers or kit.timing != self._kit.timing:
            _log.warning("the overseers' addresses and the times of the new kit count from the next start on")
        self._kit = kit
        if self._site is not None:
            self._site.kit = kit
        self._watch.take(kit)
        self._links.take(kit)

    def _publish(self) -> None:
        self._on_leader(*self._links.standing)

    # -- what the servers say -----------------------------------------------------------------------------------

    def _on_leader(self, leader: str | None, epoch: int) -> None:
        reason = None if leader is not None else self._trust.trouble or self._links.refusal
        told = {"primary": leader, "epoch": epoch, "reason": reason}
        if told == self._told:
            return
        try:
            write_state(self._kit.run, ready=leader is not None, **told)
        except OSError as error:  # a full disk must not cut the streams
            _log.warning("run/state.json cannot be written: %s", error)
        else:
            self._told = told

    def _on_order(self, order: fleet_pb2.Order) -> None:
        try:
            self._orders.put_nowait((order, self._links.standing[0] or ""))
        except asyncio.QueueFull:
            _log.warning("more than %d orders at once: one to %.20r is not looked at", _MAX_ORDERS, order.action)

    async def _obey(self, orders: Orders) -> None:
        """Look at one order after the other; the first that is obeyed ends this agent."""
        while self.ordered is None:
            order, server = await self._orders.get()
            try:
                if orders.known(order):
                    self._links.answer(server, order.id)
                else:
                    await self._obey_one(orders, order, server)
            except FedhelmError as error:
                _log.warning("%s says %.20r, which is not obeyed: %s", server, order.action, error)
                self._links.answer(server, order.id, f"{error} ({error.hint})" if error.hint else str(error))
            except Exception:  # noqa: BLE001 - a defect met by one order must not make this site deaf to the next
                _log.exception("the order to %.20r cannot be looked at", order.action)
                self._links.answer(server, order.id, f"site {self._kit.name}: the agent failed: see its log.txt")

    async def _obey_one(self, orders: Orders, order: fleet_pb2.Order, server: str) -> None:
        action, admin = action_of(order), None
        now, revocations = self._clock.utcnow(), self._trust.revocations
        try:
            found = await asyncio.to_thread(check_order, self._kit, order, revocations, now)
            admin = found.admin
            await asyncio.to_thread(orders.take, self._kit, found)
        except FedhelmError as error:
            self._trail.order(action or "order", order.id, server, admin=admin, error=error)
            raise
        why = found.order.reason
        _log.info("ordered to %s by %s%s", action, admin, f": {' '.join(why.split())[:200]}" if why else "")
        self._trail.order(found.order.action, order.id, server, admin=admin, reason=why)
        self.ordered = action
        self._stop.set()

    def _on_assignment(self, assignment: fleet_pb2.Assignment) -> None:
        for assigned in assignment.jobs:
            try:
                self._assign(assigned)
            except (FedhelmError, OSError) as error:
                _log.error("job %.80s cannot be taken: %s", assigned.job, error)
            except Exception:  # noqa: BLE001 - a defect met by one job must not cut the stream that all jobs need
                _log.exception("job %.80s cannot be taken", assigned.job)
        self._watch_vanished({assigned.job for assigned in assignment.jobs})
        self._over &= {assigned.job for assigned in assignment.jobs if not assigned.status.startswith("FINISHED")}

    def _assign(self, assigned: fleet_pb2.AssignedJob) -> None:
        execution = self._jobs.get(assigned.job)
        if execution is not None:
            execution.update(assigned)
            return
        if assigned.status.startswith("FINISHED") and not (outbox_dir(self._kit) / assigned.job).is_dir():
            self._links.beat_soon()  # nothing of it is here
            return
        assert self._site is not None
        if not assigned.status.startswith("FINISHED") and assigned.job in self._site.ended:
            self._refuse_ended(assigned)
            return
        execution = self._jobs[assigned.job] = JobExecution(self._site, assigned)
        _log.info("job %s (%s): assigned", assigned.job, assigned.name)
        run = self._runs[assigned.job] = spawn(execution.run(), f"job {assigned.job}")
        run.add_done_callback(lambda _: self._forget(assigned.job))
        self._links.beat_soon()

    def _refuse_ended(self, assigned: fleet_pb2.AssignedJob) -> None:
        """No failure of the job: a primary that took over may not know yet that it ended."""
        assert self._site is not None
        if assigned.job in self._over:
            return
        self._over.add(assigned.job)
        self._links.beat_soon()
        try:
            self._site.ended.check(assigned.job)
        except NotAuthorised as error:
            _log.warning("%s (%s)", error, error.hint)
            self._trail.job(assigned.job, None, error)
        spawn(asyncio.to_thread(let_go, JobFolder.of(self._kit, assigned.job)), f"rest of {assigned.job}")

    def _forget(self, job: str) -> None:
        self._jobs.pop(job, None)
        self._runs.pop(job, None)
        self._links.beat_soon()

    def _watch_vanished(self, present: Iterable[str]) -> None:
        """A job that the log no longer wants here without a word on how it ended: give the server time to say so."""
        for job in set(self._vanished) & set(present):
            self._vanished.pop(job).cancel()
        for job in self._jobs.keys() - set(present) - self._vanished.keys():
            loop = asyncio.get_running_loop()
            self._vanished[job] = loop.call_later(_VANISHED_SECONDS, self._drop, job)
            self._links.beat_soon()

    def _drop(self, job: str) -> None:
        self._vanished.pop(job, None)
        run = self._runs.get(job)
        if run is not None:
            _log.warning("job %s is not in the primary's log any more: ended here", job)
            run.cancel()

    def _held(self) -> list[fleet_pb2.HeldJob]:
        held = dict.fromkeys(load_jobs(outbox_dir(self._kit)), "ENDING")
        held.update(dict.fromkeys(self._over, "ENDED"))
        held.update({job: execution.status for job, execution in self._jobs.items()})
        return [fleet_pb2.HeldJob(job=job, status=status) for job, status in sorted(held.items())]

    def _end_strays(self) -> None:
        nannies = {execution.nanny_pid for execution in self._jobs.values()} - {None}
        spawn(end_strays({pid for pid in nannies if pid is not None}), "strays")
