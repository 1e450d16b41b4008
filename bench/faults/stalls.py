"""How long the machine itself stood still: what a thread notices that does nothing but sleep and sync a small file.

A lease is lost, too, where a whole machine is starved of processor or disk for longer than its times allow. Such a
failover is forgiven only where this saw the machine starve, and only in a quick trial.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import Self

from bench.federation import now

__all__ = ["STARVED", "Stalls", "is_excused"]

STARVED = 1.0
"""Seconds late at which a machine counts as starved: a server's child that is silent for 1.5 s is replaced."""

_EVERY = 0.1
_SYNC_EVERY = 10


def is_excused(starved: float, *, quick: bool) -> bool:
    """Whether the machine is to blame for a failover that no fault called for: it stood still for so many seconds."""
    return quick and starved >= STARVED


class Stalls:
    """Notices how late a step comes that should have taken a tenth of a second.

    Args:
        file: is written and synced once a second, on the disk of the store.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._late: list[tuple[float, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stalls", daemon=True)

    def start(self) -> Self:
        """Begin to look."""
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop looking."""
        self._stop.set()
        self._thread.join()

    def note(self, at: float, late: float) -> None:
        """Take note of one step that ended at ``at`` (boot time) and came ``late`` seconds too late."""
        self._late.append((at, late))

    def longest(self, since: float) -> float:
        """Return the longest delay of a step that ended after ``since`` (boot time), in seconds."""
        return max((late for at, late in self._late if at >= since), default=0.0)

    def _run(self) -> None:
        steps, before = 0, now()
        while not self._stop.wait(_EVERY):
            steps += 1
            if steps % _SYNC_EVERY == 0:
                self._sync()
            at = now()
            self.note(at, at - before - _EVERY)
            before = at

    def _sync(self) -> None:
        with contextlib.suppress(OSError), self._file.open("wb") as file:  # a full disk is another matter
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())
