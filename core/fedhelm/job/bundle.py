"""A job's folder as one archive, and back. The same folder gives the same bytes; a hostile archive gives an error.

The archive is an uncompressed tar of regular files, sorted by path, with fixed owners, modes and times. Reading one
accepts nothing else: no folders, links or devices, no path that leaves the target, nothing twice (not even where upper
case and the form of accents do not count), nothing that packing leaves out, and within caps.
"""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from fedhelm.errors import BadInput, Conflict
from fedhelm.file_names import Spellings

__all__ = [
    "MAX_BYTES",
    "MAX_FILES",
    "copy_member",
    "index",
    "left_behind",
    "members",
    "pack",
    "read_member",
    "unpack",
    "wrong_path",
]

MAX_FILES: Final = 10_000
MAX_BYTES: Final = 16 * 1024**3
_MAX_PATH: Final = 1024
_MAX_PART: Final = 255
_MAX_DEPTH: Final = 32
_MAX_IN_MEMORY: Final = 1024 * 1024
_COPY: Final = 1024 * 1024


def wrong_path(path: str) -> str | None:
    """Say what is wrong with a path inside a bundle; None: nothing."""
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts):
        return "is not a plain relative path"
    if any(ord(char) < 32 or char in "\\\x7f" for char in path):
        return "has a control character or a backslash"
    try:
        encoded = path.encode()
    except UnicodeEncodeError:
        return "is not UTF-8"
    if len(encoded) > _MAX_PATH or len(parts) > _MAX_DEPTH or any(len(part.encode()) > _MAX_PART for part in parts):
        return "is too long or too deep"
    return None


class _Caps:
    """Counts files and bytes as they come."""

    def __init__(self) -> None:
        self._files: set[str] = set()
        self._folders: set[str] = set()
        self._spellings = Spellings()
        self._bytes = 0

    def add(self, path: str, size: int) -> str | None:
        """Take one file; say what is wrong: with its path, or a cap that is reached."""
        wrong = wrong_path(path)
        if wrong is not None:
            return f"{path!r} {wrong}"
        parents = {path[:at] for at, char in enumerate(path) if char == "/"}
        if path in self._files or path in self._folders or parents & self._files:
            return f"{path!r} is there twice"
        for name in (*sorted(parents - self._folders), path):
            if (other := self._spellings.add(name)) is not None:
                return f"{other!r} and {name!r} are one name on some file systems: rename one of them"
        self._files.add(path)
        self._folders |= parents
        self._bytes += size
        if len(self._files) > MAX_FILES:
            return f"more than {MAX_FILES} files"
        return f"more than {MAX_BYTES} bytes" if self._bytes > MAX_BYTES else None


def _left_out(name: str) -> bool:
    return name.startswith(".") or name == "__pycache__" or name.endswith(".pyc")


def _walk(folder: Path, root: Path, prefix: str, above: tuple[Path, ...]) -> Iterator[tuple[str, Path]]:
    """Yield (path in the bundle, real file). ``above`` are the real folders on the way, to see a link's circle."""
    for entry in sorted(os.scandir(folder), key=lambda one: one.name):
        if _left_out(entry.name):
            continue
        path = f"{prefix}{entry.name}"
        real = Path(entry.path)
        if entry.is_symlink():
            try:
                real = real.resolve(strict=True)
            except (OSError, RuntimeError):
                raise BadInput(f"{entry.path}: the link leads nowhere (to {Path(entry.path).readlink()})") from None
            if not real.is_relative_to(root):
                raise BadInput(f"{entry.path}: the link leads out of the job folder, to {real}")
        mode = real.lstat().st_mode
        if stat.S_ISDIR(mode):
            if real in above:
                raise BadInput(f"{entry.path}: the link leads to a folder that holds it")
            yield from _walk(real, root, f"{path}/", (*above, real))
        elif stat.S_ISREG(mode):
            yield path, real
        else:
            raise BadInput(f"{entry.path}: neither a file nor a folder")


def left_behind(folder: Path) -> Iterator[str]:
    """Yield the paths in a job folder that `pack` would leave behind, the first of each branch, sorted in each folder.

    Raises:
        OSError: a folder cannot be read.
    """
    for entry in sorted(os.scandir(folder), key=lambda one: one.name):
        if _left_out(entry.name):
            yield entry.name
        elif entry.is_dir(follow_symlinks=False):  # what a link shows is in the folder, or `pack` refuses it
            yield from (f"{entry.name}/{path}" for path in left_behind(Path(entry.path)))


def members(folder: Path) -> list[tuple[str, Path]]:
    """List what `pack` would take, sorted: path in the bundle, and the real file.

    Hidden entries, ``__pycache__`` and compiled files stay behind. A link inside the folder counts as what it shows.

    Raises:
        BadInput: no such folder; a link that leads out of it, nowhere, or in circles; something that is no file; too
            much of anything. Names the path.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such job folder", hint="fedhelm examples copies some to begin with")
    root = folder.resolve()
    caps = _Caps()
    found: list[tuple[str, Path]] = []
    for path, real in _walk(root, root, "", (root,)):
        wrong = caps.add(path, real.lstat().st_size)
        if wrong is not None:
            raise BadInput(f"{folder}: {wrong}")
        found.append((path, real))
    return sorted(found)


def pack(folder: Path, target: Path) -> None:
    """Write the bundle of a job folder to ``target``, which must not be inside it.

    Raises:
        BadInput: as `members`.
        OSError: something cannot be read or written.
    """
    found = members(folder)
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
        for path, real in found:
            # NOFOLLOW: what became a link since it was listed is not followed out of the folder
            with open(os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as content:  # noqa: PTH123 - a descriptor, not a path
                header = tarfile.TarInfo(path)  # owner, group and time are 0, the mode is 0644
                header.size = os.fstat(content.fileno()).st_size
                archive.addfile(header, content)


@contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(path, "r:") as archive:
            yield archive
    except (BadInput, OSError):
        raise
    except Exception as error:  # noqa: BLE001 - tarfile meets hostile bytes with more than its own error classes
        raise BadInput(f"{path.name}: not a bundle: {error}") from None


def _checked(archive: tarfile.TarFile, path: Path) -> Iterator[tarfile.TarInfo]:
    """Yield the members of an archive, each after its own checks."""
    caps = _Caps()
    size = path.stat().st_size
    for member in archive:
        wrong = None
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
            wrong = f"{member.name!r} is not a regular file"
        elif member.size < 0 or member.offset_data + member.size > size:
            wrong = f"{member.name!r} is cut off"
        elif any(map(_left_out, member.name.split("/"))):
            wrong = f"{member.name!r} is hidden or byte code, which no bundle has"
        else:
            wrong = caps.add(member.name, member.size)
        if wrong is not None:
            raise BadInput(f"{path.name}: not a bundle: {wrong}")
        yield member


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    content = archive.extractfile(member)
    with place.open("xb") as out:
        if content is not None:
            shutil.copyfileobj(content, out, _COPY)
        if out.tell() != member.size:
            raise BadInput(f"{member.name!r} is cut off")


def unpack(archive: Path, target: Path) -> None:
    """Unpack a bundle into the new folder ``target``, whole or not at all.

    Raises:
        BadInput: the archive is damaged or hostile; nothing is left of it.
        Conflict: ``target`` is there and not empty.
        OSError: the disk refused.
    """
    if target.exists() and any(target.iterdir()):
        raise Conflict(f"{target} is there already")
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        with _opened(archive) as opened:
            for member in _checked(opened, archive):
                _extract(opened, member, scratch / member.name)
        scratch.rename(target)
    except BaseException:  # whatever ended it, Ctrl-C too, half a job must not stay
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def index(archive: Path) -> dict[str, tuple[int, int]]:
    """Return where each file of a bundle is: its path, and the offset and size of its content in the archive.

    Raises:
        BadInput: the archive is damaged or hostile.
    """
    with _opened(archive) as opened:
        return {member.name: (member.offset_data, member.size) for member in _checked(opened, archive)}


def copy_member(archive: Path, name: str, sink: Callable[[bytes], object]) -> int:
    """Give one file of a bundle to ``sink``, piece by piece, after checking every member; return its bytes.

    Raises:
        BadInput: the archive is damaged or hostile, or has no such file.
    """
    with _opened(archive) as opened:
        found = {member.name: member for member in _checked(opened, archive)}.get(name)
        content = None if found is None else opened.extractfile(found)
        if found is None or content is None:
            raise BadInput(f"{archive.name}: no {name} in the bundle")
        while piece := content.read(_COPY):
            sink(piece)
        return found.size


def read_member(archive: Path, name: str, limit: int = _MAX_IN_MEMORY) -> bytes:
    """Return one file of a bundle, of at most ``limit`` bytes, after checking every member.

    Raises:
        BadInput: the archive is damaged or hostile, has no such file, or that is larger.
    """
    size = index(archive).get(name, (0, 0))[1]
    if size > limit:
        raise BadInput(f"{name}: {size} bytes, more than {limit}")
    content = bytearray()
    copy_member(archive, name, content.extend)
    return bytes(content)
