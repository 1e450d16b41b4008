"""A clock that stands where it is put, and one that goes wrong by so much."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from fedhelm.clock import SystemClock


class FixedClock:
    def __init__(self, now: datetime | None = None) -> None:
        self.now = now or datetime(2026, 1, 1, tzinfo=UTC)

    def boottime(self) -> float:
        return self.now.timestamp()

    def utcnow(self) -> datetime:
        return self.now

    def shift(self, **parts: float) -> None:
        self.now += timedelta(**parts)


class ShiftedClock(SystemClock):
    """The machine's own, whose wall clock is ahead, or whose boot time."""

    def __init__(self, **ahead: float) -> None:
        self.ahead = timedelta(**ahead)
        self.boot = 0.0

    def boottime(self) -> float:
        return super().boottime() + self.boot

    def utcnow(self) -> datetime:
        return super().utcnow() + self.ahead
