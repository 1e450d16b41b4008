"""One question to several overseers at once, and which answer counts; the caller's threads do the asking.

A good answer counts at once. That nobody leads counts when nobody knows better within a moment: an overseer that has
just started says so, too. A certificate that is not accepted is told when no other overseer answers.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Sequence

from fedhelm.config.kit import OverseerAddress
from fedhelm.errors import BadCertificate, FedhelmError, NoPrimary, Unreachable
from fedhelm.wire.overseer_answers import unreachable, who

__all__ = ["Race", "Said"]

_HEDGE = 0.3
"""Seconds after which the next overseer is asked, too."""

Said = bytes | FedhelmError | tuple[str, str]
"""An answer's body, the error that it carries, or who did not answer and why."""


class Race:
    """One question to several overseers: who is asked next, what they said, which answer counts.

    Args:
        order: whom to ask.
        timeout: seconds for everything; None: no limit but ``each``.
        each: seconds for one overseer.
    """

    def __init__(self, order: Sequence[OverseerAddress], timeout: float | None, each: float) -> None:
        self._order = order
        self._end = None if timeout is None else time.monotonic() + timeout
        self._each = each
        self._asked = 0
        self._said: dict[int, Said] = {}
        self._next_at = 0.0
        self._over_at: dict[int, float] = {}
        self.answers: queue.SimpleQueue[tuple[int, Said]] = queue.SimpleQueue()
        self.limits: dict[int, float] = {}
        self.winner: int | None = None

    def next_to_ask(self) -> int | None:
        """Return whose turn it is; None when the race is over."""
        if self.winner is not None or self._asked == len(self._order):
            return None
        now = time.monotonic()
        limit = self._each if self._end is None else min(self._each, self._end - now)
        if limit <= 0 and self._asked:
            return None
        place, self._asked = self._asked, self._asked + 1
        self.limits[place] = max(limit, 0.001)
        self._over_at[place], self._next_at = now + max(limit, 0.0), now + _HEDGE
        return place

    def wait(self) -> None:
        """Wait until the next one is to be asked, or the race is over."""
        while self.winner is None and self._waiting():
            now = time.monotonic()
            until = max(self._over_at[place] for place in self._waiting())
            if self._asked < len(self._order) or self._weak():
                until = min(until, self._next_at)
            try:
                # A little more than the limit: the thread itself says best what went wrong.
                place, said = self.answers.get(timeout=max(0.0, until - now) + 0.05)
            except queue.Empty:
                return
            self._said[place] = said
            if isinstance(said, bytes) or (
                isinstance(said, FedhelmError) and not isinstance(said, NoPrimary | BadCertificate | Unreachable)
            ):
                self.winner = place

    def _weak(self) -> bool:
        """Whether there is an answer for want of a better one: nobody waits long for that."""
        return any(isinstance(said, NoPrimary) for said in self._said.values())

    def _waiting(self) -> list[int]:
        return [place for place in range(self._asked) if place not in self._said]

    def result(self) -> bytes:
        """Return the answer that counts, or raise what there is instead."""
        said = None if self.winner is None else self._said[self.winner]
        if isinstance(said, bytes):
            return said
        if isinstance(said, FedhelmError):
            raise said
        for kind in (NoPrimary, BadCertificate, FedhelmError):
            for one in self._said.values():
                if isinstance(one, kind):
                    raise one
        raise unreachable([self._failure(place, one) for place, one in enumerate(self._order)])

    def _failure(self, place: int, address: OverseerAddress) -> tuple[str, str]:
        said = self._said.get(place)
        if isinstance(said, tuple):
            return said
        return who(address), "no answer in time" if place < self._asked else "not asked, the time is over"
