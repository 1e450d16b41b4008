"""Keep the view fresh in the background: on request, and now and then; only what has changed is drawn."""

from __future__ import annotations

import threading
from collections.abc import Callable

from fedhelm_console.view import View

__all__ = ["Refresher"]

_EVERY = 10.0


class Refresher:
    """Rebuilds the view when it is kicked, and swaps it whole. Kicks while it works are answered by one more round.

    Args:
        collect: makes a view from the one before.
        changed: is told after a swap; called from this object's thread.
    """

    def __init__(self, collect: Callable[[View], View], changed: Callable[[], None]) -> None:
        self._collect = collect
        self._changed = changed
        self._kicked = threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="refresh", daemon=True)
        self.view = View()

    def start(self) -> None:
        """Start the thread, and with a first round."""
        self._kicked.set()
        self._thread.start()

    def kick(self) -> None:
        """Ask for a new view; returns at once."""
        self._kicked.set()

    def stop(self) -> None:
        """End the thread; does not wait for a round that hangs."""
        self._stopped = True
        self._kicked.set()
        self._thread.join(timeout=0.5)

    def _run(self) -> None:
        while True:
            # Overseers that are away send no events: what a look now and then finds is all there is.
            self._kicked.wait(_EVERY)
            self._kicked.clear()
            if self._stopped:
                return
            view = self._collect(self.view)
            if view != self.view:
                self.view = view
                self._changed()
