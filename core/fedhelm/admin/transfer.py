"""Download a job: file by file, resumable at the byte, checked by digest, visible only when it is complete."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from fedhelm.errors import BadInput, Corrupt, ProtocolError

if TYPE_CHECKING:
    from fedhelm.v1 import admin_pb2

__all__ = ["Meter", "Progress", "Staging", "local_path"]

Progress = Callable[[int, int], None]
"""Is told (bytes done, bytes in all)."""

_BLOCK = 1 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")


def local_path(root: Path, relative: str) -> Path:
    """Return where a file named by the server belongs.

    Raises:
        ProtocolError: the name would lead out of ``root``.
    """
    parts = PurePosixPath(relative).parts
    bad = not parts or "\0" in relative or "\\" in relative or relative.startswith("/") or ".." in parts
    if bad or len(relative) > 1000:
        raise ProtocolError(f"the server names a file {relative!r} outside the download")
    return root.joinpath(*parts)


def _digest(path: Path) -> str:
    hasher = blake3()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            hasher.update(block)
    return hasher.hexdigest()


class Meter:
    """Counts the bytes of a transfer for whoever shows its progress.

    Args:
        total: bytes in all.
        progress: is told after every message; None for nobody.
    """

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total = total
        self._done = total
        self._progress = progress

    def missing(self, size: int) -> None:
        """Say how much is still to come."""
        self._done = self._total - size

    def moved(self, size: int) -> None:
        """Say that so many bytes have passed."""
        self._done += size
        if self._progress is not None:
            self._progress(self._done, self._total)


@dataclass(frozen=True)
class _File:
    entry: Any
    target: Path
    part: Path


class Staging:
    """The folder next to the final one, ``.<job>.part``, where a download grows and is found again after a break.

    A part carries the digest of the file it becomes in its name, so a part of another version is never continued.

    Args:
        folder: where ``<job>`` appears at the end.
        job: its whole id.
    """

    def __init__(self, folder: Path, job: str) -> None:
        self.final = folder / job
        self.root = folder / f".{job}.part"
        if self.final.exists() and not self.final.is_dir():
            raise BadInput(f"{self.final} exists and is not a folder")
        self.root.mkdir(parents=True, exist_ok=True)
        self._whole: set[tuple[str, str]] = set()

    def wanted(self, manifest: admin_pb2.DownloadManifest) -> Iterator[tuple[Any, int]]:
        """Yield (entry, offset to go on at) for each file that is not complete here."""
        for entry in manifest.files:
            file = self._file(entry)
            here = (file.target, local_path(self.final, entry.path))
            if (entry.path, entry.blake3) in self._whole or any(self._complete(path, entry) for path in here):
                self._whole.add((entry.path, entry.blake3))
                continue
            have = file.part.stat().st_size if file.part.exists() else 0
            yield entry, have if have <= entry.size else 0

    def receive(self, entry: Any, offset: int, chunks: Iterator[bytes], moved: Callable[[int], None]) -> None:
        """Append what arrives to the part; when it is whole, check it and give the file its name.

        Raises:
            Corrupt: the digest is wrong; the part is gone, so that the next attempt starts at 0.
        """
        file = self._file(entry)
        file.part.parent.mkdir(parents=True, exist_ok=True)
        with file.part.open("r+b" if offset else "wb") as out:
            out.seek(offset)
            for chunk in chunks:
                out.write(chunk)
                moved(len(chunk))
            out.truncate()
        if file.part.stat().st_size != entry.size or _digest(file.part) != entry.blake3:
            file.part.unlink()
            raise Corrupt(f"{entry.path}: what arrived is not what the server announced")
        file.part.replace(file.target)
        self._whole.add((entry.path, entry.blake3))

    def finish(self, manifest: admin_pb2.DownloadManifest) -> Path:
        """Make the folder appear under its name (or bring an earlier download up to date); return it."""
        for leftover in list(self.root.rglob("*.part")):
            leftover.unlink()
        try:
            if not self.final.exists():
                self.root.rename(self.final)
                return self.final
        except OSError:
            if not self.final.is_dir():
                raise
            # Somebody else made the folder meanwhile: bring that one up to date.
        for entry in manifest.files:
            source, target = local_path(self.root, entry.path), local_path(self.final, entry.path)
            if source.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(source, target)  # noqa: PTH105  one system call, said as what it is
        shutil.rmtree(self.root)
        return self.final

    def _file(self, entry: Any) -> _File:
        target = local_path(self.root, entry.path)
        if not _DIGEST.fullmatch(entry.blake3):  # it becomes part of a file's name
            raise ProtocolError(f"the server gives no digest of {entry.path}")
        return _File(entry, target, target.with_name(f"{target.name}.{entry.blake3[:12]}.part"))

    @staticmethod
    def _complete(path: Path, entry: Any) -> bool:
        return path.is_file() and path.stat().st_size == entry.size and _digest(path) == entry.blake3
