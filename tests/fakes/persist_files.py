"""A disk that counts its fsyncs and fails at the step it is told to."""

from __future__ import annotations

import os
from pathlib import Path

from fedhelm.persist.base import BytesLike
from fedhelm.persist.files import Files


class Killed(BaseException):
    """The process is gone."""


class FaultyFiles(Files):
    """The real disk, with failures.

    Attributes:
        fail: Step ("write", "link", "linked", "unlink", "sync_directory") to the errno it raises. "linked" fails after the link
            was made, as a lost reply of a network filesystem does.
        late: Whether listings are from before anything was there.
        kill_at: Number of the step, from 0, at which the process dies instead of doing it: `Killed`. Later ones work.
        steps: What was done, in order, as (step, file name).
    """

    def __init__(self) -> None:
        self.fail: dict[str, int] = {}
        self.late = False
        self.kill_at: int | None = None
        self.steps: list[tuple[str, str]] = []

    def write(self, path: Path, data: BytesLike) -> None:
        self.steps.append(("write", path.name))
        if "write" in self.fail:
            # As a full disk does: the file is there, and part of the data.
            path.write_bytes(bytes(memoryview(data)[: len(data) // 2]))
        self._maybe("write")
        super().write(path, data)

    def link(self, source: Path, target: Path) -> None:
        self.steps.append(("link", target.name))
        self._maybe("link")
        super().link(source, target)
        self._maybe("linked")

    def unlink(self, path: Path) -> None:
        self.steps.append(("unlink", path.name))
        self._maybe("unlink")
        super().unlink(path)

    def names(self, path: Path) -> list[str]:
        return [] if self.late else super().names(path)

    def sync_directory(self, path: Path) -> None:
        self.steps.append(("sync_directory", path.name))
        self._maybe("sync_directory")
        super().sync_directory(path)

    def fsyncs(self) -> int:
        """How many fsyncs the steps so far cost."""
        return sum(step in {"write", "sync_directory"} for step, _ in self.steps)

    def _maybe(self, step: str) -> None:
        if self.kill_at is not None and self.kill_at == len(self.steps) - 1:
            self.kill_at = None
            raise Killed
        if step in self.fail:
            raise OSError(self.fail[step], os.strerror(self.fail[step]))
