"""The steps of the disk that durability rests on."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedhelm.errors import StoreUnavailable
from fedhelm.persist.base import BytesLike

__all__ = ["Files", "create_exclusively", "make_directory", "naming", "read_file"]


class Files:
    """Write, link, unlink, list and sync; the seam at which tests make one of them fail."""

    def write(self, path: Path, data: BytesLike) -> None:
        """Make the new file ``path`` (mode 0600) with ``data``, fsynced.

        Raises:
            OSError: as the system says.
        """
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            view = memoryview(data).cast("B")
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def link(self, source: Path, target: Path) -> None:
        """Give ``source`` the second name ``target``.

        Raises:
            FileExistsError: ``target`` is taken.
            OSError: as the system says.
        """
        os.link(source, target)

    def unlink(self, path: Path) -> None:
        """Take the name ``path`` away.

        Raises:
            FileNotFoundError: there is none.
            OSError: as the system says.
        """
        path.unlink()

    def names(self, path: Path) -> list[str]:
        """Return the names in ``path``.

        Raises:
            OSError: as the system says.
        """
        return [one.name for one in path.iterdir()]

    def sync_directory(self, path: Path) -> None:
        """Make the names in ``path`` durable.

        Raises:
            OSError: as the system says.
        """
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn any OSError into StoreUnavailable that names ``path``: full, read-only, broken, gone or not mounted."""
    try:
        yield
    except OSError as error:
        raise StoreUnavailable(f"store: {path}: {error.strerror or error}") from error


def create_exclusively(files: Files, temporary: Path, target: Path, data: BytesLike) -> bool:
    """Create ``target`` with ``data`` unless it exists: the whole file or nothing, never half of it.

    The name is durable only after its directory is synced.

    Args:
        files: The disk.
        temporary: A directory on the same filesystem.
        target: The name to make.
        data: The contents, fsynced before the name appears.

    Returns:
        False if the name was taken.

    Raises:
        StoreUnavailable: the system refused; the name was not made, as far as one can know.
    """
    scratch = temporary / f"{target.name}.{secrets.token_hex(8)}"
    with naming(target):
        try:
            files.write(scratch, data)
            try:
                files.link(scratch, target)
            except FileExistsError:
                return False
        finally:
            # A scratch file that stays is litter, not an error of this call, which may have succeeded.
            with suppress(OSError):
                scratch.unlink()
    return True


def read_file(path: Path, limit: int) -> bytes | None:
    """Return the first ``limit`` bytes of a file, None if there is no such file.

    Raises:
        StoreUnavailable: it cannot be read.
    """
    with naming(path):
        try:
            file = path.open("rb", buffering=0)
        except FileNotFoundError:
            return None
        with file:
            parts = list[bytes]()
            while limit > 0 and (part := file.read(min(limit, 1 << 20))):
                parts.append(part)
                limit -= len(part)
    return b"".join(parts)


def make_directory(path: Path) -> bool:
    """Make ``path`` (mode 0700) in a parent that exists; return False if it was there.

    Raises:
        OSError: as the system says.
    """
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        return False
    return True
