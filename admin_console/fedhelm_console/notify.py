"""Events above the prompt: at most four lines a second, but every failover."""

from __future__ import annotations

import collections
import queue
import threading
from collections.abc import Callable, Iterable

from fedhelm.admin.models import Event
from fedhelm.clock import Clock
from fedhelm.errors import FedhelmError

__all__ = ["Notifier"]

_LINES = 4
_ALWAYS = ("failover", "promote")
_WINDOW = 1.0
_KEPT = 50


class Notifier:
    """Reads a stream of events and shows them.

    Args:
        stream: opens the stream; it ends when the session is closed.
        write: prints one line; called from this object's own thread.
        line: an event's text.
        happened: is told of every event, also of those that are not shown.
        clock: the time.
    """

    def __init__(
        self,
        stream: Callable[[], Iterable[Event]],
        write: Callable[[str], None],
        *,
        line: Callable[[Event], str],
        happened: Callable[[Event], None],
        clock: Clock,
    ) -> None:
        self._stream = stream
        self._write = write
        self._line = line
        self._happened = happened
        self._clock = clock
        self._queue: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self.recent: collections.deque[Event] = collections.deque(maxlen=_KEPT)

    def start(self) -> None:
        """Start both threads; they end with the process, or when the stream ends."""
        threading.Thread(target=self._read, name="events", daemon=True).start()
        threading.Thread(target=self._show, name="event lines", daemon=True).start()

    def _read(self) -> None:
        try:
            for event in self._stream():
                self.recent.append(event)
                self._queue.put(event)
                self._happened(event)
        except FedhelmError as error:
            self._write(f"events stopped: {error}")
        finally:
            self._queue.put(None)

    def _show(self) -> None:
        while (event := self._queue.get()) is not None:
            if not self._window(event):
                return

    def _window(self, first: Event) -> bool:
        """Show up to four lines, hold the rest back for a second; False when the stream has ended."""
        end = self._clock.boottime() + _WINDOW
        shown = held = 0
        event: Event | None = first
        more = True
        while event is not None:
            if shown < _LINES or event.kind in _ALWAYS:
                self._write(self._line(event))
                shown += 1
            else:
                held += 1
            left = end - self._clock.boottime()
            if left <= 0:
                break
            try:
                event = self._queue.get(timeout=left)
            except queue.Empty:
                break
            more = event is not None
        if held:
            self._write(f"... {held} more (events)")
        return more
