"""The observer: a thread that looks at the lease row every P, and at once when it is woken."""

from __future__ import annotations

import logging
import threading

from fedhelm.errors import StoreUnavailable
from fedhelm_overseer.decide import Wait
from fedhelm_overseer.desk import Desk

__all__ = ["Observer"]

_log = logging.getLogger("fedhelm.overseer")


class Observer:
    """Runs ``desk.observe`` until it is stopped.

    Args:
        desk: what observes and decides.
        period_s: P.
    """

    def __init__(self, desk: Desk, period_s: float) -> None:
        self._desk = desk
        self._period_s = period_s
        self._woken = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="observer", daemon=True)
        desk.wake = self._woken.set

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread and wait for it."""
        self._stopping = True
        self._woken.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        broken = False
        while not self._stopping:
            self._woken.clear()
            try:
                # What was done may make the next decision due: go on until there is nothing to do.
                while not isinstance(self._desk.observe(), Wait) and not self._stopping:
                    pass
                broken = False
            except StoreUnavailable as error:
                if not broken:
                    _log.error("no decisions are made: %s", error)
                broken = True
            except Exception:  # noqa: BLE001 - the only thread that can grant outlives its mistakes; they are logged
                _log.exception("observing failed")
            self._woken.wait(self._period_s)
