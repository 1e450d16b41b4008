"""What the log says of those whom TLS refused: who never got as far as a request, and from where. Pure."""

from __future__ import annotations

import ssl
from typing import Final

__all__ = ["EVERY_S", "MOST", "Refusals", "reason_of"]

EVERY_S: Final = 60.0
"""Seconds between two lines about one address."""

MOST: Final = 256
"""Addresses that have lines of their own in that time; all others share one."""

_OTHERS: Final = "other addresses"


class Refusals:
    """Counts refused handshakes, and says when a line is due: somebody who knocks for ever must not fill the log."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[float, int]] = {}  # address -> when there was a line, and how many came since

    def take(self, address: str, reason: str, now: float) -> str | None:
        """Return the line that is due; None: none is.

        Args:
            address: who was refused.
            reason: why.
            now: boot time in seconds.
        """
        if address not in self._told and len(self._told) >= MOST:
            self._told = {who: told for who, told in self._told.items() if now - told[0] < EVERY_S}
            if len(self._told) >= MOST:
                address = _OTHERS
        since, more = self._told.get(address, (float("-inf"), 0))
        if now - since < EVERY_S:
            self._told[address] = (since, more + 1)
            return None
        self._told[address] = (now, 0)
        return f"TLS refused {address}: {reason}" + (f"; and {more} more since the line before" if more else "")


def reason_of(error: ssl.SSLError) -> str:
    """Return in a few words why a handshake failed."""
    verified = getattr(error, "verify_message", None)
    return str(verified or (error.reason or "handshake failed").lower().replace("_", " "))
