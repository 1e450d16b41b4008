"""A clock that stands where it is put."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta


class FixedClock:
    def __init__(self, now: datetime | None = None) -> None:
        self.now = now or datetime(2026, 1, 1, tzinfo=UTC)

    def boottime(self) -> float:
        return self.now.timestamp()

    def utcnow(self) -> datetime:
        return self.now

    def shift(self, **parts: float) -> None:
        self.now += timedelta(**parts)
