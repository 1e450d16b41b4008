"""A clock that moves when a test says so."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta


class FakeClock:
    def __init__(self, now=1000.0):
        self.now = now

    def advance(self, seconds):
        self.now += seconds

    def boottime(self):
        return self.now

    def utcnow(self):
        return datetime(2026, 11, 22, tzinfo=UTC) + timedelta(seconds=self.now)
