"""Time as a dependency: deadlines in boot time, stamps in UTC."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol

__all__ = ["Clock", "SystemClock", "iso"]


class Clock(Protocol):
    """What decisions may know of time. Tests inject their own."""

    def boottime(self) -> float:
        """Seconds since boot, suspend included (``CLOCK_BOOTTIME``). The only clock that deadlines use."""
        ...

    def utcnow(self) -> datetime:
        """Wall clock in UTC, for stamps that people read. Never compared."""
        ...


class SystemClock:
    """The machine's clocks. Linux only: ``CLOCK_BOOTTIME`` goes on during suspend, MONOTONIC does not."""

    def boottime(self) -> float:
        """Seconds since boot, suspend included."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def utcnow(self) -> datetime:
        """Wall clock in UTC."""
        return datetime.now(UTC)


def iso(moment: datetime) -> str:
    """Format as ISO 8601 UTC with milliseconds, ``2026-11-22T15:04:05.123Z``."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
