"""What the primary does when the book or the connected sites change: dispatch waiting jobs, keep runners."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from fedhelm.clock import iso
from fedhelm.errors import FedhelmError
from fedhelm.tasks import spawn
from fedhelm_server import decisions
from fedhelm_server.disk_budget import DiskBudget
from fedhelm_server.runners import Runners
from fedhelm_server.runtime import Runtime
from fedhelm_server.scheduler import schedule

__all__ = ["JobControl"]

_log = logging.getLogger("fedhelm.server")


class JobControl:
    """Carries out what the scheduler decides. Holds nothing that is not in the log but the reasons of waiting jobs."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.runners = Runners(runtime)
        self.disk = DiskBudget(runtime.store.blobs)
        self.waits: Mapping[str, str] = {}
        self._look = asyncio.Event()
        runtime.on_change.append(self._changed)
        runtime.holding.on_take.append(self._held)

    def _changed(self, jobs: set[str]) -> None:
        for job in jobs:
            self._runtime.holding.keep(job, self._runtime.book.jobs.get(job))
        self.runners.reconcile(jobs)
        self._look.set()

    def _held(self, item: Mapping[str, Any]) -> None:
        self.runners.hand(item)
        self._runtime.streams.wake_all()

    async def run(self) -> None:
        """Dispatch jobs as soon as their sites are connected, until cancelled."""
        while True:
            await self._look.wait()
            self._look.clear()
            if self._runtime.leads:
                await self._dispatch()

    async def _dispatch(self) -> None:
        runtime = self._runtime
        plan = schedule(
            runtime.book.waiting(), runtime.streams.connected(), runtime.kit.sites, runtime.streams.versions()
        )
        self.waits = plan.waits
        for job, sites in plan.dispatch:
            decide = decisions.dispatch(job, sites, iso(runtime.clock.utcnow()))
            try:
                await runtime.ledger.propose("job_state", decide, key=job)
            except FedhelmError as error:
                _log.warning("job %s could not be dispatched: %s", job, error)
                spawn(self._look_later(), "dispatch again")
                return
            _log.info("job %s is dispatched to %s", job, ", ".join(sites))

    async def _look_later(self) -> None:
        await asyncio.sleep(self._runtime.kit.timing.renew)
        self._look.set()
