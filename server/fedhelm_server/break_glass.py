"""Break-glass: an operator makes a standby lead while no overseer is left (docs/ha.md, section 4).

The command leaves a file beside the supervisor, which takes it away and asks its keeper. The fence in the log is what
makes it safe: whoever led before cannot write after it, whatever he believes.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from fedhelm.process import atomic_write

__all__ = ["Request", "leave", "take", "withdraw"]

_FILE = "break-glass.json"
_MAX_BYTES = 10_000


@dataclass(frozen=True)
class Request:
    """What an operator asked for: ``by`` is the account, ``reason`` goes into the fence."""

    by: str
    reason: str

    @property
    def cause(self) -> str:
        """The fence's cause."""
        return f"break-glass by {self.by}" + (f": {self.reason}" if self.reason else "")


def leave(run: Path, request: Request) -> None:
    """Leave a request for the supervisor that uses this run folder."""
    atomic_write(run / _FILE, json.dumps(asdict(request)).encode())


def take(run: Path) -> Request | None:
    """Take a request away, if there is one; one that cannot be read is none."""
    path = run / _FILE
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES)
        path.unlink()
        value = json.loads(data)
        return Request(str(value["by"]), str(value["reason"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def withdraw(run: Path) -> bool:
    """Take a request back; return whether it was still there."""
    with suppress(OSError):
        (run / _FILE).unlink()
        return True
    return False
