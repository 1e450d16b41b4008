"""Passphrases and passwords: from a file or from the terminal, never from the command line."""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fedhelm.errors import BadInput, FedhelmError, WorkspaceExists

__all__ = ["LEAST", "ROOT_LEAST", "FreshPasswords", "ask_secret", "read_secret", "writing_passwords"]

_MAX_BYTES = 4096
LEAST: Final = 8
"""Characters that a password or passphrase has at least."""

ROOT_LEAST: Final = 12
"""Characters that a new passphrase of the root key has at least: whoever has the file may guess for ever."""


def read_secret(path: Path, what: str, *, least: int = LEAST) -> bytes:
    """Return the first line of a file, without its end.

    Args:
        path: the file; a pipe such as ``/dev/fd/63`` will do.
        what: how messages call it; no message repeats what is in it.
        least: how many characters it has to have.

    Raises:
        BadInput: it cannot be read, can be read by others, or holds less characters.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            line = file.readline(_MAX_BYTES).rstrip(b"\r\n")
    except OSError as error:
        raise BadInput(f"{path}: {what} cannot be read: {error.strerror}") from error
    if stat.S_ISREG(mode) and mode & 0o077:
        raise BadInput(f"{path}: {what} can be read by others", hint=f"chmod 600 {path}")
    return _checked(line, f"{path}: {what}", least)


def ask_secret(what: str, *, twice: bool = False, least: int = LEAST, option: str = "") -> bytes:
    """Ask for it on the terminal, where nothing that is typed is shown.

    Args:
        what: what is asked for.
        twice: it is a new one, which a typing error would lose.
        least: how many characters it has to have.
        option: the one that names a file in place of asking; for the hint.

    Raises:
        BadInput: there is no terminal, less characters, or the second was another.
    """
    if not sys.stdin.isatty():
        hint = f"{option} FILE names a file that holds it" if option else "name a file that holds it"
        raise BadInput(f"{what} is needed, and there is no terminal to ask on", hint=hint)
    try:
        first = getpass.getpass(f"{what}: ", sys.stderr)
        if twice and getpass.getpass("once more: ", sys.stderr) != first:
            raise BadInput(f"{what}: the second was another")
    except EOFError:
        raise BadInput(f"{what} is needed") from None
    return _checked(first.encode(), what, least)


def _checked(secret: bytes, what: str, least: int) -> bytes:
    if len(secret) < least:
        raise BadInput(f"{what} has less than {least} characters in its first line")
    if b"\0" in secret:
        raise BadInput(f"{what} is not text")
    return secret


class FreshPasswords:
    """A password for each name that is asked for, made when it is, and on disk before anything is encrypted with it.

    Args:
        path: a line ``NAME PASSWORD`` for each; a new file, 0600.

    Raises:
        WorkspaceExists: the file is there already.
        FedhelmError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._made: dict[str, bytes] = {}
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            raise WorkspaceExists(
                f"{path} exists already", hint="passwords are never overwritten: name another file"
            ) from None
        except OSError as error:
            raise FedhelmError(f"{path}: {error.strerror}") from error

    def __call__(self, name: str) -> bytes:
        """Return the password of this name: 120 random bits."""
        if name not in self._made:
            password = secrets.token_urlsafe(15)
            line = f"{name} {password}\n".encode()
            if os.write(self._file, line) != len(line):
                raise FedhelmError(f"{self._path}: a line could not be written whole")
            os.fsync(self._file)
            self._made[name] = password.encode()
        return self._made[name]

    def close(self) -> None:
        """Close the file. It stays once it has a password, however the run ended: a zip may need it."""
        os.close(self._file)
        if not self._made:
            self._path.unlink(missing_ok=True)


@contextlib.contextmanager
def writing_passwords(path: Path | None) -> Iterator[FreshPasswords | None]:
    """Make passwords into a file for as long as this lasts; None: no file, no passwords.

    Raises:
        WorkspaceExists: the file is there already.
        FedhelmError: it cannot be written.
    """
    if path is None:
        yield None
        return
    made = FreshPasswords(path)
    try:
        yield made
    finally:
        made.close()
