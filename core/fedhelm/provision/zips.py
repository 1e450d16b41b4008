"""A kit as one file to hand over: an ordinary zip, or one that AES-256 keeps closed without its password."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyzipper  # type: ignore[import-untyped]  # it has no type information

__all__ = ["write_zip"]


def _entries(folder: Path) -> Iterator[Path]:
    yield folder
    for path in sorted(folder.rglob("*")):
        if not path.is_symlink():
            yield path


def _open(file: Any, password: bytes | None) -> Any:
    if password is None:
        return zipfile.ZipFile(file, "w", compression=zipfile.ZIP_DEFLATED)
    archive = pyzipper.AESZipFile(file, "w", compression=pyzipper.ZIP_DEFLATED, encryption=pyzipper.WZ_AES)
    archive.setpassword(password)
    return archive


def write_zip(folder: Path, target: Path, password: bytes | None = None) -> None:
    """Write ``folder``, under its own name and with the modes of its files, into the new zip ``target``.

    The file is on disk when this returns, readable by its owner alone. Names of files are not encrypted, their
    content is.

    Raises:
        FileExistsError: ``target`` is there already.
    """
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        with _open(file, password) as archive:
            for path in _entries(folder):
                archive.write(path, str(path.relative_to(folder.parent)))
        file.flush()
        os.fsync(file.fileno())
