"""Read the signed folder of a kit that was handed over, from its folder or its zip, without trusting a name in it."""

from __future__ import annotations

import stat
import struct
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final, cast

import pyzipper  # type: ignore[import-untyped]  # it has no type information

from fedhelm.errors import KitError, NotFound
from fedhelm.file_names import Spellings

__all__ = ["MAX_BYTES", "MAX_FILES", "read_startup"]

MAX_FILES: Final = 1000
MAX_BYTES: Final = 32 * 1024 * 1024
"""Largest kit that is read: the files of ``startup/`` together."""

_METHODS: Final = (pyzipper.ZIP_STORED, pyzipper.ZIP_DEFLATED)

_BROKEN: Final = (
    pyzipper.BadZipFile,
    OSError,
    EOFError,
    ValueError,
    KeyError,
    IndexError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    struct.error,
    zlib.error,
)


def read_startup(source: Path, password: str | None = None) -> dict[str, bytes]:
    """Return name -> content of every file of ``startup/``; nothing is verified yet, and nothing written.

    Args:
        source: a kit's zip, or its unpacked folder (the one that holds ``startup/``).
        password: of the zip.

    Raises:
        NotFound: there is nothing at ``source``.
        KitError: no kit, damaged, too large, with names that no kit has, or the password is missing or wrong.
    """
    try:
        if source.is_dir():
            return _from_folder(source)
        if source.is_file():
            return _from_zip(source, password)
    except PermissionError as error:
        raise KitError(f"{error.filename}: {error.strerror}") from error
    raise NotFound(f"{source}: no such file or folder")


def _from_folder(source: Path) -> dict[str, bytes]:
    startup = source / "startup"
    if not startup.is_dir():
        raise KitError(
            f"{source} is no kit: it has no startup folder", hint="give the participant's folder, or its zip"
        )
    entries = sorted(startup.iterdir())
    for entry in entries:
        if entry.is_symlink() or not entry.is_file():
            raise KitError(f"{entry} is not a plain file")
    return _collect(source, [(entry.name, entry.open) for entry in entries], "rb")


def _from_zip(source: Path, password: str | None) -> dict[str, bytes]:
    try:
        with pyzipper.AESZipFile(source) as archive:
            return _from_archive(source, archive, password)
    except _BROKEN as error:
        if "password" in str(error).lower():
            raise KitError(f"{source} does not open with this password") from error
        raise KitError(f"{source}: not a zip of a kit, or damaged") from error


def _from_archive(source: Path, archive: Any, password: str | None) -> dict[str, bytes]:
    infos = archive.infolist()
    if len(infos) > MAX_FILES:
        raise KitError(f"{source}: {len(infos)} entries, a kit has at most {MAX_FILES}")
    wanted = _startup_entries(source, infos)
    for info in wanted:
        if info.compress_type not in _METHODS:  # LZMA would take as much memory as the archive asks for
            raise KitError(f"{source}: {info.filename!r} is packed in a way that no kit is")
    if any(info.flag_bits & 1 for info in wanted) and not password:
        raise KitError(f"{source} is encrypted", hint="give its password")
    secret = password.encode() if password else None

    def opener(info: Any) -> Callable[[str], IO[bytes]]:
        return lambda mode: cast("IO[bytes]", archive.open(info, mode, pwd=secret))

    return _collect(source, [(PurePosixPath(info.filename).name, opener(info)) for info in wanted], "r")


def _startup_entries(source: Path, infos: list[Any]) -> list[Any]:
    """Return the files of the one folder ``startup`` at the top or one level below it."""
    found, places = [], set()
    for info in infos:
        name = PurePosixPath(info.filename)
        kind = stat.S_IFMT(info.external_attr >> 16)
        strange = name.is_absolute() or ".." in name.parts or "\\" in info.filename or "\0" in info.filename
        if strange or kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise KitError(f"{source}: {info.filename!r} has no place in a kit")
        if not info.is_dir() and name.parent.name == "startup" and len(name.parts) <= 3:
            places.add(name.parent)
            found.append(info)
    if len(places) != 1:
        raise KitError(f"{source}: {len(places)} folders called startup, a kit has one")
    return found


def _collect(source: Path, entries: list[tuple[str, Callable[[str], IO[bytes]]]], mode: str) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    left, spellings = MAX_BYTES, Spellings()
    for name, opened in entries:
        if name in files:
            raise KitError(f"{source}: {name} is there twice")
        if (other := spellings.add(name)) is not None:
            raise KitError(f"{source}: {other!r} and {name!r} are one name on some file systems, which no kit has")
        with opened(mode) as file:
            files[name] = file.read(left + 1)  # whatever size the archive says
        left -= len(files[name])
        if left < 0 or len(files) > MAX_FILES:
            raise KitError(f"{source}: more than {MAX_BYTES} bytes or {MAX_FILES} files, which is no kit")
    return files
