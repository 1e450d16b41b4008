"""Low-water marks: the slots below the newest one count no more, whether they are there or not.

Marks are numbered from 1, created exclusively, never changed and never deleted. Each is higher than the one before. So
a writer that was paused, however long, finds them one by one with a failed open at the end, and cannot miss one.
"""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass
from typing import Any

from fedhelm.errors import BadInput, Corrupt, SlotTaken, StoreUnavailable
from fedhelm.persist.base import LogStore
from fedhelm.persist.record import canonical

__all__ = ["Mark", "Marks", "decode_mark"]


@dataclass(frozen=True)
class Mark:
    """One mark.

    Attributes:
        number: From 1; 0 is "no mark yet".
        low_water: The first slot that is kept: the one after those that the older of two checkpoints covers.
        checkpoint: The slot of the newer checkpoint's record, where a reader starts.
    """

    number: int = 0
    low_water: int = 0
    checkpoint: int = 0

    def encode(self) -> bytes:
        """Return the bytes of the file: a line of canonical JSON with its own hash."""
        fields: dict[str, Any] = {
            "checkpoint": self.checkpoint,
            "low_water": self.low_water,
            "number": self.number,
        }
        return canonical({**fields, "sha256": hashlib.sha256(canonical(fields)).hexdigest()}) + b"\n"


def decode_mark(data: bytes, number: int) -> Mark:
    """Return mark ``number`` from its bytes.

    Raises:
        Corrupt: these bytes are not what a writer of this mark wrote; the message names it.
    """
    try:
        value = json.loads(data)
        mark = Mark(number, value["low_water"], value["checkpoint"])
        good = mark.encode() == data and 0 < mark.low_water <= mark.checkpoint
    except (ValueError, TypeError, KeyError, RecursionError, BadInput):
        good = False
    if not good:
        raise Corrupt(f"mark {number} is damaged")
    return mark


class Marks:
    """The newest mark that was seen. It never goes back. May be used by several threads."""

    def __init__(self, store: LogStore) -> None:
        self._store = store
        self._current = Mark()
        self._lock = threading.Lock()

    @property
    def current(self) -> Mark:
        """The newest mark seen."""
        return self._current

    @property
    def low_water(self) -> int:
        """The first slot that counts, as far as was seen."""
        return self._current.low_water

    def find(self) -> Mark:
        """Look by a listing, as who starts does, and then as `look`; raises what `look` raises."""
        highest = self._store.highest_mark()
        if highest > self._current.number:
            data = self._store.read_mark(highest)
            if data is None:
                raise StoreUnavailable(f"mark {highest} is listed, and cannot be read yet")
            self._see(decode_mark(data, highest))
        return self.look()

    def look(self) -> Mark:
        """Return the newest mark now: one failed read where there is nothing new.

        Raises:
            Corrupt: a mark is damaged, or lower than the one before.
            StoreUnavailable: the store cannot be read.
        """
        while True:
            number = self._current.number + 1
            data = self._store.read_mark(number)
            if data is None:
                return self._current
            self._see(decode_mark(data, number))

    def advance(self, low_water: int, checkpoint: int) -> bool:
        """Create the next mark; return False if somebody else did meanwhile, whose mark is then `current`.

        Raises:
            StoreUnavailable: no answer; it may or may not have been created.
        """
        mark = Mark(self._current.number + 1, low_water, checkpoint)
        if low_water <= self._current.low_water:
            raise ValueError(f"low water {low_water} is not above {self._current.low_water}")
        try:
            self._store.create_mark(mark.number, mark.encode())
        except SlotTaken:
            # Mine, if the store's first answer was lost; the same contents are as good.
            self.look()
            return False
        self._see(mark)
        return True

    def _see(self, mark: Mark) -> None:
        with self._lock:
            if mark.number <= self._current.number:
                return
            if mark.low_water <= self._current.low_water:
                raise Corrupt(f"mark {mark.number} ({mark.low_water}) is not above the one before")
            self._current = mark
