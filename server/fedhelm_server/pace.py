"""How fast this server's appends are, and how long it leaves the next slot free when it must not starve a rival."""

from __future__ import annotations

import statistics
from collections import deque
from typing import Final

__all__ = ["Pace"]

_LEAST_S: Final = 0.05
_MEDIANS: Final = 4
_KEPT: Final = 31


class Pace:
    """The durations of the last appends, in seconds."""

    def __init__(self) -> None:
        self._took: deque[float] = deque(maxlen=_KEPT)

    def took(self, seconds: float) -> None:
        """Take note of an append."""
        self._took.append(seconds)

    @property
    def pause(self) -> float:
        """Seconds to leave the next slot free: a fence needs a few tries to read on and append (docs/ha.md, 4)."""
        return max(_LEAST_S, _MEDIANS * statistics.median(self._took)) if self._took else _LEAST_S
