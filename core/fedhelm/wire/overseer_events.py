"""Which events are news to somebody who followed another overseer before; no I/O.

Each overseer numbers and stamps its own events, and several tell of the same thing a moment apart.
"""

from __future__ import annotations

from collections import deque
from datetime import datetime

from fedhelm.wire.overseer_api import Event

__all__ = ["Heard"]

_APART = 5.0
"""Seconds by which two overseers may differ on when something happened."""
_KEPT = 50


class Heard:
    """What was heard so far.

    Args:
        since: ISO time from which on events are news.
    """

    def __init__(self, since: str) -> None:
        self._newest = since
        self._last: deque[Event] = deque(maxlen=_KEPT)

    def note(self, event: Event) -> None:
        """Take an event that was passed on."""
        self._newest = max(self._newest, event.time)
        self._last.append(event)

    def knows(self, event: Event) -> bool:
        """Whether another overseer's event is older than what was heard, or tells of the same thing."""
        return event.time <= self._newest or any(_same(event, one) for one in self._last)


def _same(one: Event, other: Event) -> bool:
    if one.kind != other.kind or any(one.data.get(key) != other.data.get(key) for key in ("name", "epoch", "admin")):
        return False
    try:
        apart = datetime.fromisoformat(one.time) - datetime.fromisoformat(other.time)
    except ValueError:
        return False
    return abs(apart.total_seconds()) < _APART
