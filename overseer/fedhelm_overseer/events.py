"""From threads to streams: a bell that wakes coroutines, and the feed of events that people follow."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

from fedhelm.clock import Clock, iso
from fedhelm.wire.overseer_api import Event, EventKind

__all__ = ["Bell", "EventFeed"]

_KEPT = 1000
_PING_S = 5.0


class Bell:
    """Wakes every coroutine that waits, from any thread. Before ``attach`` a ring wakes nobody."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._turn = asyncio.Event()
        self.closed = False

    def attach(self) -> None:
        """Belong to the running loop, in which all waiting is done."""
        self._loop = asyncio.get_running_loop()

    def ring(self) -> None:
        """Wake the waiting; what they look at must have changed before."""
        if self._loop is not None:
            # The loop may be closed already when the last thread rings.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._wake)

    def close(self) -> None:
        """Wake the waiting for good; call it in the loop."""
        self.closed = True
        self._wake()

    def turn(self) -> asyncio.Event:
        """Return the present turn. Take it *before* looking at the state, then wait for it: no ring is missed."""
        return self._turn

    async def wait(self, turn: asyncio.Event, timeout_s: float) -> bool:
        """Wait until the bell rings after ``turn`` was taken; return False after ``timeout_s`` seconds."""
        if self.closed:
            return True
        try:
            async with asyncio.timeout(timeout_s):
                await turn.wait()
        except TimeoutError:
            return False
        return True

    def _wake(self) -> None:
        turn, self._turn = self._turn, asyncio.Event()
        turn.set()


class EventFeed:
    """The last events, and streams of the new ones.

    Ids rise within one start of an overseer and from start to start, so that a stream resumes across a restart: it then
    gets what the new process has seen. What is older stands in the history.

    Args:
        start: the number of this start.
        clock: for the stamps.
    """

    def __init__(self, start: int, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: deque[Event] = deque(maxlen=_KEPT)
        self._last = start << 32
        self.bell = Bell()

    def publish(self, kind: EventKind, text: str, **data: Any) -> None:
        """Append an event; from any thread."""
        with self._lock:
            self._last += 1
            stamp = iso(self._clock.utcnow())
            self._kept.append(Event(id=self._last, time=stamp, kind=kind, text=text, data=data))
        self.bell.ring()

    @property
    def last(self) -> int:
        """Id of the newest event."""
        return self._last

    def after(self, last: int) -> list[Event]:
        """Return what is kept after the id ``last``; everything if that id was never given out."""
        with self._lock:
            if last > self._last:
                return list(self._kept)
            return [event for event in self._kept if event.id > last]

    def latest(self, count: int) -> list[Event]:
        """Return at most so many of the newest events, oldest first."""
        with self._lock:
            return list(self._kept)[-count:] if count > 0 else []

    async def stream(self, after: int | None, left: Callable[[], float] = lambda: math.inf) -> AsyncIterator[bytes]:
        """Yield server-sent events after ``after`` (None: from now on), and a comment after 5 s of silence.

        Args:
            after: id of an event.
            left: for how many seconds more the caller may be told anything; asked before anything is. The stream ends
                once it is 0.
        """
        last = self.last if after is None else after
        yield b": fedhelm\n\n"
        while not self.bell.closed and (until := left()) > 0:
            turn = self.bell.turn()
            events = self.after(last)
            for event in events:
                last = event.id
                yield f"id: {event.id}\nevent: {event.kind}\ndata: {event.model_dump_json()}\n\n".encode()
            if not events and not await self.bell.wait(turn, min(_PING_S, until)) and until > _PING_S:
                yield b": ping\n\n"
