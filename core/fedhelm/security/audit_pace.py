"""How many lines of one caller are written: whoever asks again and again must not fill the disk. Pure.

It is for what is noted: logins, connections, refusals, failures. A command has its line, however many there are.
"""

from __future__ import annotations

from typing import Final

from fedhelm.security.audit_lines import Entry, Outcome

__all__ = ["BURST", "PER_SECOND", "Pace"]

BURST: Final = 200
"""Lines of one caller that are written in a row."""

PER_SECOND: Final = 2.0
"""Lines of one caller that are written from then on."""


_Caller = tuple[str, bool]
"""Name, and whether it was allowed: refusals without end must not hide that somebody logged in."""


class Pace:
    """Lets entries pass; of those that do not pass, the number is told. What a participant does itself passes."""

    def __init__(self) -> None:
        self._left: dict[_Caller, tuple[float, float]] = {}  # lines left, and when that was so
        self._skipped: dict[_Caller, tuple[Entry, int]] = {}

    def take(self, entry: Entry, now: float) -> list[Entry]:
        """Return what is to be written now: the entry, unless it is one too many, and what was skipped before.

        Args:
            entry: what was noted.
            now: boot time in seconds.
        """
        told, allowed = self.skipped(now), entry.outcome is Outcome.ALLOWED
        if entry.by is None and allowed:
            return [*told, entry]
        caller = (entry.by.name if entry.by is not None else "", allowed)
        left = self._refilled(caller, now)
        if left < 1:
            first, count = self._skipped.get(caller, (entry, 0))
            self._skipped[caller] = (first, count + entry.times)
            return told
        self._left[caller] = (left - 1, now)
        return [*told, entry]

    def skipped(self, now: float | None = None) -> list[Entry]:
        """Return an entry for each caller whose lines were skipped and who has some left by now; None: for all."""
        told = []
        for caller, (first, count) in list(self._skipped.items()):
            left = self._refilled(caller, now) if now is not None else BURST
            if left < 1:
                continue
            del self._skipped[caller]
            if now is not None:
                self._left[caller] = (left - 1, now)
            why = f"more than {PER_SECOND:g} in a second, the first of them: {first.action}"
            outcome = Outcome.ALLOWED if caller[1] else Outcome.DENIED
            told.append(Entry("audit.skipped", outcome, first.by, {"lines": count, "since": first.time}, why))
        return told

    def _refilled(self, caller: _Caller, now: float) -> float:
        left, since = self._left.get(caller, (float(BURST), now))
        return min(float(BURST), left + max(0.0, now - since) * PER_SECOND)
