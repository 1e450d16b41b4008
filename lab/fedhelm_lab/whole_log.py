"""The whole history of a store in a directory: what is in the log, and what compaction moved to ``archive/``.

A store has an archive if somebody made the folder ``archive`` in it (see ``fedhelm.persist.posix``). Without one, what
a checkpoint covers is gone from the log a while later, and so is any count of single records.
"""

from __future__ import annotations

from pathlib import Path

from fedhelm.errors import Corrupt
from fedhelm.persist.record import Record, decode

__all__ = ["ARCHIVE", "read_history", "read_slot", "slot_file"]

ARCHIVE = "archive"


def slot_file(store: Path, seq: int) -> Path | None:
    """Return the file of a slot, wherever it is now; None if there is none.

    The archive comes first: what is in the log under a number that was archived is a ghost, written by a server that
    slept while the slot was deleted, and read and acknowledged by nobody.
    """
    name = f"{seq:016d}"
    for path in (store / ARCHIVE / "log" / name, store / "log" / name):
        if path.exists():
            return path
    return None


def read_slot(store: Path, seq: int) -> bytes | None:
    """Return the bytes of a slot, wherever it is now; None if there is none."""
    for _ in range(3):  # it may move between the look and the read
        path = slot_file(store, seq)
        if path is None:
            return None
        try:
            return path.read_bytes()
        except FileNotFoundError:
            continue
    return None


def read_history(store: Path) -> list[Record]:
    """Return every record from genesis on.

    Raises:
        Corrupt: a slot is damaged, or missing before others.
    """
    found: list[Record] = []
    while True:
        while (data := read_slot(store, len(found))) is not None:
            found.append(decode(data, len(found)))
        names = (path.name for path in (store / "log").iterdir() if path.name.isdigit())
        highest = max((int(name) for name in names), default=-1)
        if highest < len(found):
            return found
        if read_slot(store, len(found)) is None:  # else it was appended just now
            raise Corrupt(f"slot {len(found)} is missing, slot {highest} is there")
