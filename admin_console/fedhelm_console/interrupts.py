"""Ctrl-C at the prompt: one interrupt for each command, however often the keys are hit.

Python raises ``KeyboardInterrupt`` wherever the main thread happens to be. A second one, while the first is still being
dealt with or while the prompt is being drawn, would break what cleans up. So it is raised only while a command runs,
and then once; again after a second, for a command that does not let go.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from fedhelm.clock import Clock

__all__ = ["Interrupts"]

_AGAIN_S = 1.0


class Interrupts:
    """The console's handler of SIGINT. Use from the main thread.

    Args:
        clock: tells when a further Ctrl-C counts again.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._armed = False
        self._raised: float | None = None

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle SIGINT for the time of the block; the handler before it is put back afterwards."""
        before = signal.signal(signal.SIGINT, self._handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Let Ctrl-C raise ``KeyboardInterrupt`` in the block."""
        self._raised = None
        self._armed = True
        try:
            yield
        finally:
            self._armed = False

    def _handle(self, _: int, __: FrameType | None) -> None:
        now = self._clock.boottime()
        if self._armed and (self._raised is None or now - self._raised > _AGAIN_S):
            self._raised = now
            raise KeyboardInterrupt
