"""News above the prompt: at most four lines a second, but every failover."""

from __future__ import annotations

import collections
import queue
import threading
from collections.abc import Callable, Iterable

from fedhelm.admin.models import Event
from fedhelm.clock import Clock
from fedhelm.errors import FedhelmError
from fedhelm_console.news import Item, News

__all__ = ["Notifier"]

_LINES = 4
_WINDOW = 1.0
_KEPT = 50


class Notifier:
    """Reads a stream of events and shows what they mean.

    Args:
        stream: opens the stream; it ends when the session is closed.
        write: shows one item; called from this object's own thread.
        more: says that so many items are not shown.
        happened: is told of every event, also of those that are not shown.
        clock: the time.
    """

    def __init__(
        self,
        stream: Callable[[], Iterable[Event]],
        write: Callable[[Item], None],
        *,
        more: Callable[[str], None],
        happened: Callable[[Event], None],
        clock: Clock,
    ) -> None:
        self._stream = stream
        self._write = write
        self._more = more
        self._happened = happened
        self._clock = clock
        self._queue: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._news = News()
        self._window_ends = float("-inf")
        self._shown = self._held = 0
        self.recent: collections.deque[Event] = collections.deque(maxlen=_KEPT)

    def start(self, news: News | None = None) -> None:
        """Start both threads; they end with the process, or when the stream ends.

        Args:
            news: what is known already.
        """
        self._news = news or News()
        threading.Thread(target=self._read, name="events", daemon=True).start()
        threading.Thread(target=self._show, name="event lines", daemon=True).start()

    def _read(self) -> None:
        try:
            for event in self._stream():
                self.recent.append(event)
                self._queue.put(event)
                self._happened(event)
        except FedhelmError as error:
            self._more(f"events stopped: {error}")
        finally:
            self._queue.put(None)

    def _show(self) -> None:
        while True:
            wake = self._wake()
            try:
                event = self._queue.get(timeout=None if wake is None else max(0.0, wake - self._clock.boottime()))
            except queue.Empty:
                self._news, items = self._news.due(self._clock.boottime())
            else:
                if event is None:
                    self._end_window()
                    return
                self._news, items = self._news.hear(event, self._clock.boottime())
            for item in items:
                self._tell(item)
            if self._clock.boottime() >= self._window_ends:
                self._end_window()

    def _wake(self) -> float | None:
        moments = [self._news.next_due, self._window_ends if self._held else None]
        return min((one for one in moments if one is not None), default=None)

    def _tell(self, item: Item) -> None:
        """Show an item, or count it where four were shown within a second already."""
        now = self._clock.boottime()
        if now >= self._window_ends:
            self._end_window()
            self._window_ends = now + _WINDOW
        if self._shown < _LINES or item.moved:
            self._shown += 1
            self._write(item)
        else:
            self._held += 1

    def _end_window(self) -> None:
        held, self._held, self._shown = self._held, 0, 0
        if held:
            self._more(f"... {held} more (events)")
