"""The whole history of a store: what is in the log, and what compaction moved to ``archive/``."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from bench.federation import now
from fedhelm.errors import Corrupt
from fedhelm.persist.record import Record, decode

__all__ = ["Seen", "Watch", "blob_file", "read_blob", "read_history", "slot_file"]

_POLL = 0.003


def slot_file(store: Path, seq: int) -> Path | None:
    """Return the file of a slot, wherever it is now; None if there is none.

    The archive comes first: what is in the log under a number that was archived is a ghost, written by a server that
    slept while the slot was deleted, and read and acknowledged by nobody.
    """
    name = f"{seq:016d}"
    for path in (store / "archive" / "log" / name, store / "log" / name):
        if path.exists():
            return path
    return None


def _read_slot(store: Path, seq: int) -> bytes | None:
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
        while (data := _read_slot(store, len(found))) is not None:
            found.append(decode(data, len(found)))
        names = (path.name for path in (store / "log").iterdir() if path.name.isdigit())
        highest = max((int(name) for name in names), default=-1)
        if highest < len(found):
            return found
        if _read_slot(store, len(found)) is None:  # else it was appended just now
            raise Corrupt(f"slot {len(found)} is missing, slot {highest} is there")


def blob_file(store: Path, owner: str, name: str) -> Path:
    """Return the file of a chunk (``c-...``) or manifest (``m-...``), wherever it is now.

    Raises:
        FileNotFoundError: it is nowhere.
    """
    for path in (store / "blobs" / owner / name, store / "archive" / "blobs" / owner / name):
        if path.exists():
            return path
    raise FileNotFoundError(f"blob file {owner}/{name}")


def read_blob(store: Path, ref: Any) -> bytes:
    """Return a blob's bytes. Digests are not verified: whoever asks compares the whole."""
    manifest = json.loads(blob_file(store, ref["owner"], f"m-{ref['digest']}").read_bytes())
    return b"".join(blob_file(store, ref["owner"], f"c-{digest}").read_bytes() for digest in manifest["chunks"])


@dataclass(frozen=True)
class Seen:
    """A record, and when it was first seen (boot time)."""

    at: float
    record: Record


class Watch:
    """Reads the log every 3 ms in a thread. A store that is away is an end of the log that does not move."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._seen: list[Seen] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> Self:
        """Begin to read."""
        return self.__enter__()

    def close(self) -> None:
        """Stop reading."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(_POLL):
            try:
                while (data := _read_slot(self._store, len(self._seen))) is not None:
                    self._seen.append(Seen(now(), decode(data, len(self._seen))))
            except (OSError, Corrupt):
                continue  # a planted fault; the check after the trial says what it is

    @property
    def seen(self) -> tuple[Seen, ...]:
        """All records so far."""
        return tuple(self._seen)

    def since(self, seq: int) -> tuple[Seen, ...]:
        """Return the records from slot ``seq`` on."""
        return tuple(self._seen[seq:])

    @property
    def epoch(self) -> int:
        """The highest epoch so far."""
        return self._seen[-1].record.epoch if self._seen else 0
