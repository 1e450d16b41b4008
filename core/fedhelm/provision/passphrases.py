"""Passphrases and passwords: from a file or from the terminal, never from the command line."""

from __future__ import annotations

import getpass
import os
import stat
import sys
from pathlib import Path

from fedhelm.errors import BadInput

__all__ = ["ask_secret", "read_secret"]

_MAX_BYTES = 4096
_LEAST = 8


def read_secret(path: Path, what: str) -> bytes:
    """Return the first line of a file, without its end.

    Args:
        path: the file; a pipe such as ``/dev/fd/63`` will do.
        what: how messages call it; no message repeats what is in it.

    Raises:
        BadInput: it cannot be read, can be read by others, or holds less than 8 characters.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            line = file.readline(_MAX_BYTES).rstrip(b"\r\n")
    except OSError as error:
        raise BadInput(f"{path}: {what} cannot be read: {error.strerror}") from error
    if stat.S_ISREG(mode) and mode & 0o077:
        raise BadInput(f"{path}: {what} can be read by others", hint=f"chmod 600 {path}")
    return _checked(line, f"{path}: {what}")


def ask_secret(what: str, *, twice: bool = False) -> bytes:
    """Ask for it on the terminal, where nothing that is typed is shown.

    Args:
        what: what is asked for.
        twice: it is a new one, which a typing error would lose.

    Raises:
        BadInput: there is no terminal, less than 8 characters, or the second was another.
    """
    if not sys.stdin.isatty():
        raise BadInput(f"{what} is needed, and there is no terminal to ask on", hint="name a file that holds it")
    try:
        first = getpass.getpass(f"{what}: ", sys.stderr)
        if twice and getpass.getpass("once more: ", sys.stderr) != first:
            raise BadInput(f"{what}: the second was another")
    except EOFError:
        raise BadInput(f"{what} is needed") from None
    return _checked(first.encode(), what)


def _checked(secret: bytes, what: str) -> bytes:
    if len(secret) < _LEAST:
        raise BadInput(f"{what} has less than {_LEAST} characters in its first line")
    if b"\0" in secret:
        raise BadInput(f"{what} is not text")
    return secret
