"""The last primary, remembered in the admin's kit: a short command goes there first and asks nobody."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from fedhelm.plain_json import parse_plain

__all__ = ["Remembered", "forget", "recall", "remember"]

_NAME = "primary.json"


@dataclass(frozen=True)
class Remembered:
    """A guess, never an authority: whoever uses it checks that the server still leads."""

    server: str
    epoch: int


def recall(run_dir: Path) -> Remembered | None:
    """Return what was remembered, or None (also for a file that does not read)."""
    try:
        value = parse_plain((run_dir / _NAME).read_bytes())
        return Remembered(str(value["server"]), int(value["epoch"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember(run_dir: Path, guess: Remembered) -> None:
    """Store the guess; a kit that cannot be written to remembers nothing, which only costs time."""
    if recall(run_dir) == guess:
        return
    temporary = run_dir / f".{_NAME}.{os.getpid()}"
    with contextlib.suppress(OSError):
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"server": guess.server, "epoch": guess.epoch}))
        temporary.replace(run_dir / _NAME)


def forget(run_dir: Path) -> None:
    """Remove the guess."""
    with contextlib.suppress(OSError):
        (run_dir / _NAME).unlink()
