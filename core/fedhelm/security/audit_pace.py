"""How many refusals of one caller are written: a caller that is denied again and again must not fill the disk. Pure."""

from __future__ import annotations

from typing import Final

from fedhelm.security.audit_lines import Entry, Outcome

__all__ = ["BURST", "PER_SECOND", "Pace"]

BURST: Final = 200
"""Lines of one caller that are written in a row."""

PER_SECOND: Final = 2.0
"""Lines of one caller that are written from then on."""


class Pace:
    """Lets entries pass; of those that do not pass, the number is told. What was allowed always passes."""

    def __init__(self) -> None:
        self._left: dict[str, tuple[float, float]] = {}  # caller -> lines left, and when that was so
        self._skipped: dict[str, tuple[Entry, int]] = {}

    def take(self, entry: Entry, now: float) -> list[Entry]:
        """Return what is to be written now: the entry, unless it is one too many, and what was skipped before.

        Args:
            entry: what was noted.
            now: boot time in seconds.
        """
        if entry.outcome is Outcome.ALLOWED:
            return [*self.skipped(now), entry]
        name = entry.by.name if entry.by is not None else ""
        told = self.skipped(now)
        left = self._refilled(name, now)
        if left < 1:
            first, count = self._skipped.get(name, (entry, 0))
            self._skipped[name] = (first, count + entry.times)
            return told
        self._left[name] = (left - 1, now)
        return [*told, entry]

    def skipped(self, now: float | None = None) -> list[Entry]:
        """Return an entry for each caller whose lines were skipped and who has some left by now; None: for all."""
        told = []
        for name, (first, count) in list(self._skipped.items()):
            left = self._refilled(name, now) if now is not None else BURST
            if left < 1:
                continue
            del self._skipped[name]
            if now is not None:
                self._left[name] = (left - 1, now)
            why = f"more than {PER_SECOND:g} in a second, the first of them: {first.action}"
            told.append(Entry("audit.skipped", Outcome.DENIED, first.by, {"lines": count, "since": first.time}, why))
        return told

    def _refilled(self, name: str, now: float) -> float:
        left, since = self._left.get(name, (float(BURST), now))
        return min(float(BURST), left + max(0.0, now - since) * PER_SECOND)
