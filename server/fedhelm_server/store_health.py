"""Can this server use the store? What fails is known by its error; what hangs, by the time it takes.

A call of the store cannot be broken off (docs/ha.md, section 4): a thread waits for it, and the event loop looks on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from fedhelm.clock import Clock
from fedhelm.config.timing import Timing
from fedhelm.errors import FedhelmError, WrongStore
from fedhelm.persist.store import probe
from fedhelm_server.ledger import Ledger

__all__ = ["PROBE_S", "StoreHealth"]

_log = logging.getLogger("fedhelm.server")

PROBE_S = 5.0
"""After so long without an append the store is tried: a standby must know whether it could write."""


class StoreHealth:
    """What is known of the store.

    Args:
        name: this server.
        root: the store.
        timing: C, past which an append is an alarm; half of T, past which the store counts as lost.
        clock: boot time.
        ledger: its appends are watched; ``ledger.store_ok`` is False after one that failed.
    """

    def __init__(self, name: str, root: Path, timing: Timing, clock: Clock, ledger: Ledger) -> None:
        self.trouble: str | None = None
        """Why the store cannot be used."""
        self._name = name
        self._root = root
        self._timing = timing
        self._clock = clock
        self._ledger = ledger
        self._proven: float | None = None
        self._wrong: str | None = None
        self._reading_since: float | None = None
        self._probing_since: float | None = None
        self._alarmed = False

    @property
    def ok(self) -> bool:
        """Whether the store can be read and written, as far as is known."""
        return self._ledger.store_ok and self.trouble is None

    @property
    def proven(self) -> bool:
        """Whether it was tried, and found to create names exclusively; an append alone does not show that."""
        return self._proven is not None

    @property
    def wrong(self) -> str | None:
        """Why the store cannot hold a log at all, until a later try says otherwise: nothing may be appended."""
        return self._wrong

    def appended(self) -> None:
        """Take note that an append succeeded."""
        if self._proven is not None:
            self._proven = self._clock.boottime()

    def lost(self, why: str) -> None:
        """Take note that the store cannot be used; the first reason stays until it can."""
        self._ledger.store_ok = False
        self._say(why)

    def _say(self, why: str) -> None:
        if self.trouble is None:  # later ones differ in the names of files
            _log.warning("%s: %s", self._name, why)
            self.trouble = why

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Time what reads the log."""
        first = self._reading_since is None
        if first:
            self._reading_since = self._clock.boottime()
        try:
            yield
        finally:
            if first:
                self._reading_since = None

    def look(self, *, ready: bool) -> None:
        """Notice what hangs, and what does no more; ``ready``: the log was read once, which may take long."""
        append = self._ledger.append_age or 0.0
        alarm = append > self._timing.commit_alarm
        if alarm and not self._alarmed:
            _log.warning("%s: an append to the store takes longer than %g s", self._name, self._timing.commit_alarm)
        self._alarmed = alarm
        writing = max(append, self._age(self._probing_since))
        reading = self._age(self._reading_since) if ready else 0.0
        limit = self._timing.lease / 2
        if max(writing, reading) > limit:
            self._say(f"{'reading' if reading > writing else 'writing to'} the store takes longer than {limit:g} s")
        elif self._ledger.store_ok and self._wrong is None:
            self.trouble = None

    def _age(self, since: float | None) -> float:
        return 0.0 if since is None else self._clock.boottime() - since

    async def probe_if_due(self) -> None:
        """Try the store before it is used, when it was lost, and when nothing was written for `PROBE_S`."""
        known = self._proven is not None and self._wrong is None and self._ledger.store_ok
        if known and self._age(self._proven) < PROBE_S:
            return
        self._probing_since = self._clock.boottime()
        try:
            await asyncio.to_thread(probe, self._root)
        except WrongStore as error:
            if self._wrong is None:
                _log.error("%s: %s", self._name, error)
            self._wrong = self.trouble = str(error)
        except FedhelmError as error:
            self.lost(f"the store takes no writes: {error}")
        else:
            self._ledger.store_ok, self._wrong = True, None
            self._proven = self._clock.boottime()
        finally:
            self._probing_since = None
