"""When and how the primary writes a checkpoint, and what follows: compaction and collection.

The state is copied between two appends; everything else happens in threads, while appends go on.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from typing import Any

from fedhelm.errors import FedhelmError
from fedhelm.persist.chain import Tip
from fedhelm.tasks import spawn
from fedhelm_server import decisions
from fedhelm_server.collector import sweep
from fedhelm_server.ledger import Placement
from fedhelm_server.runtime import Runtime
from fedhelm_server.segments import write_segments

__all__ = ["Checkpoints", "Pace", "due", "paced"]

_log = logging.getLogger("fedhelm.server")

LOOK_S = 0.5
EVERY = 256
EVERY_AT_MOST = 4096
AGE_S = 15.0
FEW = 16
SLOW_S = 1.0
FAST_S = 0.25
RETRY_S = 5.0


@dataclass(frozen=True)
class Pace:
    """How many slots a checkpoint should cover; more where writing one takes long."""

    every: int = EVERY


def due(pace: Pace, uncovered: int, age_s: float) -> bool:
    """Tell whether it is time for a checkpoint.

    Args:
        pace: the pace.
        uncovered: slots that no checkpoint covers.
        age_s: seconds since the newest one was seen to be taken.
    """
    return uncovered >= pace.every or (uncovered >= FEW and age_s >= AGE_S * pace.every / EVERY)


def paced(pace: Pace, took_s: float) -> Pace:
    """Return the pace after a checkpoint that took so many seconds to write."""
    if took_s > SLOW_S:
        return replace(pace, every=min(pace.every * 2, EVERY_AT_MOST))
    if took_s < FAST_S:
        return replace(pace, every=max(pace.every // 2, EVERY))
    return pace


class Checkpoints:
    """Writes them while this server leads and the log is of a version that has them."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._pace = Pace()
        self._seen = (-1, runtime.clock.boottime())
        self._retry_at = 0.0
        self._alone = asyncio.Lock()
        runtime.on_lead.append(self._on_lead)

    async def run(self) -> None:
        """Look twice a second, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Write a checkpoint if it is time for one; what fails is tried again at the next look."""
        runtime, book = self._runtime, self._runtime.book
        if book.covered != self._seen[0]:
            self._seen = book.covered, runtime.clock.boottime()
        if runtime.clock.boottime() < self._retry_at:
            return
        if not runtime.leads or runtime.ledger.closed_reason is not None or book.log_version < 2:
            return
        if due(self._pace, book.seq - book.covered, runtime.clock.boottime() - self._seen[1]):
            try:
                await self.write()
            except Exception as error:  # noqa: BLE001 - housekeeping that fails must not end a primary that serves
                level = logging.WARNING if isinstance(error, FedhelmError) else logging.ERROR
                _log.log(level, "no checkpoint at slot %d: %r", book.seq, error)
                self._retry_at = runtime.clock.boottime() + RETRY_S

    async def write(self) -> bool:
        """Write a checkpoint, shorten the log, delete what nobody needs; False if another one came first.

        Raises:
            FedhelmError: a step failed; the next checkpoint does what it left.
        """
        runtime = self._runtime
        async with self._alone:
            began = runtime.clock.boottime()
            position, state = await runtime.ledger.snapshot()
            item = await asyncio.to_thread(self._write, position, state)
            answer = await runtime.ledger.propose("checkpoint", decisions.checkpoint(item))
            self._pace = paced(self._pace, runtime.clock.boottime() - began)
            if not isinstance(answer, Placement) and not answer:
                return False
            await self._clean()
        return True

    def _write(self, position: Tip, state: dict[str, Any]) -> dict[str, Any]:
        log, blobs = self._runtime.store.log, self._runtime.store.blobs
        covered = position.next_seq - 1
        segments = write_segments(log, blobs, covered, state["jobs"])
        blob = log.write_checkpoint_blob(position, state)
        return {"covered": covered, "blob": blob.to_json(), "segments": segments}

    def _on_lead(self) -> None:
        spawn(self._tidy(), "what the last primary left undone")

    async def _tidy(self) -> None:
        try:
            async with self._alone:
                if self._runtime.book.checkpoints:
                    await self._clean()
        except FedhelmError as error:  # the next checkpoint does it
            _log.warning("the log and the blobs could not be cleaned up: %s", error)

    async def _clean(self) -> None:
        runtime = self._runtime
        done = await asyncio.to_thread(runtime.store.log.compact)
        freed = await asyncio.to_thread(sweep, runtime.book, runtime.store.blobs, runtime.kit.run)
        _log.info(
            "checkpoint of slot %d: the log begins with slot %d, %d slots and %d bytes of blobs deleted",
            runtime.book.covered,
            done.low_water,
            done.slots,
            done.freed + freed,
        )
