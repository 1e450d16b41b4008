"""The calls that run now, by the serial number of the caller's certificate: those of a revoked one have to end."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable

from fedhelm.errors import FedhelmError

__all__ = ["LiveCall", "LiveCalls"]


class LiveCall:
    """One call that runs in the task which made this.

    Attributes:
        serial: of the caller's certificate.
        error: why somebody ended it; None while nobody did.
    """

    def __init__(self, serial: str) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.serial, self._task = serial, task
        self.error: FedhelmError | None = None

    def end(self, error: FedhelmError) -> None:
        """Have the call end with this error, wherever its handler waits."""
        if self.error is None:
            self.error = error
            self._task.cancel()

    def meant(self, error: BaseException) -> BaseException:
        """Return the reason of an end: what `end` was told, where the task was cancelled or dropped for that."""
        if self.error is None or not isinstance(error, asyncio.CancelledError | GeneratorExit):
            return error
        if isinstance(error, asyncio.CancelledError):
            self._task.uncancel()
        return self.error


class LiveCalls:
    """All calls of a service. Used in the event loop's thread alone."""

    def __init__(self) -> None:
        self._calls: defaultdict[str, set[LiveCall]] = defaultdict(set)

    def __len__(self) -> int:
        return sum(map(len, self._calls.values()))

    def begin(self, serial: str) -> LiveCall:
        """Take note of a call that runs in this task."""
        call = LiveCall(serial)
        self._calls[serial].add(call)
        return call

    def over(self, call: LiveCall) -> None:
        """Forget a call that has ended; once more does no harm."""
        calls = self._calls.get(call.serial, set())
        calls.discard(call)
        if not calls:
            self._calls.pop(call.serial, None)

    def end(self, serial: str, error: Callable[[], FedhelmError]) -> int:
        """End the calls of this certificate, each with an error of its own; return how many there were."""
        calls = list(self._calls.get(serial, ()))
        for call in calls:
            call.end(error())
        return len(calls)
