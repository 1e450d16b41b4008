"""One deadline across all the attempts of a command."""

from __future__ import annotations

from fedhelm.clock import Clock
from fedhelm.errors import DeadlineExceeded

__all__ = ["Deadline"]


class Deadline:
    """A point in boot time, or none; everything that waits asks it how long it may.

    Args:
        clock: the time.
        seconds: from now; None for no limit.
    """

    def __init__(self, clock: Clock, seconds: float | None) -> None:
        self._clock = clock
        self._seconds = seconds
        self._end = None if seconds is None else clock.boottime() + seconds

    def left(self) -> float | None:
        """Seconds left, not below zero; None for no limit."""
        return None if self._end is None else max(0.0, self._end - self._clock.boottime())

    def within(self, limit: float) -> float:
        """Seconds that one attempt may take: ``limit``, or less where less is left."""
        left = self.left()
        return limit if left is None else min(limit, left)

    def check(self, why: str = "") -> None:
        """Do nothing while there is time left.

        Raises:
            DeadlineExceeded: there is none; the message ends with ``why``.
        """
        if self.left() == 0.0:
            tail = f": {why}" if why else ""
            raise DeadlineExceeded(
                f"not done within {self._seconds:g} s{tail}", hint="a longer --timeout; what was asked may still happen"
            )
