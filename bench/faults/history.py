"""What a store held: blobs wherever they are now, and the log as it grows: each record with the moment it was seen."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from bench.federation import now
from fedhelm.errors import Corrupt
from fedhelm.persist.record import Record, decode
from fedhelm_lab.whole_log import ARCHIVE, read_slot

__all__ = ["Seen", "Watch", "blob_file", "read_blob"]

_POLL = 0.003


def blob_file(store: Path, owner: str, name: str) -> Path:
    """Return the file of a chunk (``c-...``) or manifest (``m-...``), wherever it is now.

    Raises:
        FileNotFoundError: it is nowhere.
    """
    for path in (store / "blobs" / owner / name, store / ARCHIVE / "blobs" / owner / name):
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
                while (data := read_slot(self._store, len(self._seen))) is not None:
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
