"""The lines of one job at this site: numbered without gaps, on disk before they are sent, acknowledged by number.

The file is one JSON object per line; its place in the file is its number. Nothing is sent before it is durable, so a
number never means two things.
"""

from __future__ import annotations

import json
import os
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedhelm.plain_json import parse_plain

__all__ = ["Journal", "Throttle", "batch"]

MAX_BATCH_LINES = 500
MAX_BATCH_SIZE = 1024 * 1024
"""Bounds of one push: lines, and characters of their JSON. A server takes no more."""

LINE_COST = 96
"""Bytes of a line in the log that are not its text, about: a million empty lines are not nothing."""


def batch(lines: Sequence[str]) -> int:
    """Return how many of these lines, from the first, make one push. Pure."""
    count, size = 0, 0
    for line in lines:
        size += len(line)
        if count and (size > MAX_BATCH_SIZE or count >= MAX_BATCH_LINES):
            break
        count += 1
    return count


def _json(line: Mapping[str, Any]) -> str:
    # Lone surrogates, which Python's strings can have, are no UTF-8.
    text = json.dumps(line, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode(errors="replace").decode()


def _entry(raw: bytes) -> tuple[int, str] | None:
    try:
        entry = parse_plain(raw)
        number, line = entry["n"], _json(entry["line"])
    except (ValueError, KeyError, TypeError):
        return None
    return (number, line) if type(number) is int and number > 0 and raw.endswith(b"\n") else None


class Throttle:
    """Which of a script's output lines are streamed, so that one that prints in a loop does not fill the log. Pure.

    Args:
        burst: bytes that may come at once; each line counts with what the log writes around it.
        rate: bytes a second after that.
    """

    def __init__(self, burst: float = 16 * 1024 * 1024.0, rate: float = 256 * 1024.0) -> None:
        self._burst, self._rate = burst, rate
        self._allowance = burst
        self._last: float | None = None
        self._dropped = 0

    def take(self, lines: Sequence[str], now: float) -> list[str]:
        """Return what may be streamed; a note says how many lines before it were not."""
        if self._last is not None:
            self._allowance = min(self._burst, self._allowance + (now - self._last) * self._rate)
        self._last = now
        count = 0
        for line in lines:
            cost = LINE_COST + len(line.encode(errors="replace"))
            if cost > self._allowance:
                break
            self._allowance -= cost
            count += 1
        taken = list(lines[:count])
        if taken and self._dropped:
            taken.insert(0, f"({self._dropped} lines are in the site's log only)")
            self._dropped = 0
        self._dropped += len(lines) - count
        return taken


class Journal:
    """One job's lines. Blocking file calls are short; :meth:`sync` belongs in a thread.

    Args:
        path: the file; made if missing. What a power cut tore off or garbled at its end is cut off: it was not durable,
            hence never sent.
    """

    def __init__(self, path: Path) -> None:
        self._waiting: deque[tuple[int, str]] = deque()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._read()
        self.acknowledged = 0
        self._synced = False
        self._syncing = threading.Lock()

    def _read(self) -> None:
        good, number = 0, 0
        with os.fdopen(os.dup(self._fd), "rb") as file:
            file.seek(0)
            for raw in file:
                entry = _entry(raw)
                if entry is None:
                    break
                good += len(raw)
                number = entry[0]
                self._waiting.append(entry)
        os.ftruncate(self._fd, good)
        self.last = number

    def append(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Number and write lines; they survive this process from now on, and the machine after :meth:`sync`.

        Raises:
            OSError: the disk is full; none of the lines was taken.
        """
        texts = [_json(line) for line in lines]
        data = "".join(f'{{"n":{self.last + 1 + place},"line":{text}}}\n' for place, text in enumerate(texts)).encode()
        end = os.fstat(self._fd).st_size
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError:
            os.ftruncate(self._fd, end)
            raise
        for text in texts:
            self.last += 1
            self._waiting.append((self.last, text))
        self._synced = False

    def sync(self) -> None:
        """Make what was appended durable. May be called by several threads: each returns when it is."""
        with self._syncing:
            if not self._synced:
                self._synced = True  # before: what is appended meanwhile needs another
                try:
                    os.fdatasync(self._fd)
                except OSError:
                    self._synced = False
                    raise

    def acknowledge(self, number: int) -> None:
        """Take note that every line up to ``number`` is in the log; numbers go on above it."""
        self.acknowledged = max(self.acknowledged, number)
        self.last = max(self.last, number)
        while self._waiting and self._waiting[0][0] <= self.acknowledged:
            self._waiting.popleft()

    def rewind(self, number: int) -> None:
        """Take note that the log has lines up to ``number`` only, since an older one was restored: the rest goes again.

        Raises:
            OSError: the file cannot be read.
        """
        self._waiting.clear()
        last = self.last
        self._read()
        self.last = max(self.last, last)
        self.acknowledged = 0
        self.acknowledge(number)

    def next_batch(self) -> list[tuple[int, str]]:
        """Return the next lines to push, oldest first; empty when all are acknowledged."""
        waiting = [self._waiting[place] for place in range(min(len(self._waiting), MAX_BATCH_LINES))]
        return waiting[: batch([text for _, text in waiting])]

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
