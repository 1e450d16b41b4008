"""A file on the disk as a source of bytes for aggregators."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Self

from fedhelm.errors import BadInput

__all__ = ["FileSource"]


class FileSource:
    """A file read with ``preadv`` into the caller's memory. Not mapped: a file cut short would kill the process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self._fd).st_size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; once is enough, twice is harmless."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` from ``offset`` on.

        Raises:
            BadInput: the file ends before.
        """
        at = 0
        while at < len(view):
            count = os.preadv(self._fd, [view[at:]], offset + at)
            if not count:
                raise BadInput(f"{self._path}: cut off at byte {offset + at}")
            at += count
