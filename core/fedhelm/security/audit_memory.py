"""What a participant remembers of its audit file, apart from it: the last line it wrote, and how many it could not.

So a file that was deleted, cut or exchanged shows at the next start, and to ``fedhelm audit verify``. The memory always
has the same size and is overwritten in place: a full disk does not keep it from being written.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Final

from fedhelm.errors import BadInput
from fedhelm.security.audit_lines import START

__all__ = ["MEMORY_FILE", "Remembered", "read_memory", "write_memory"]

MEMORY_FILE: Final = "audit-last.json"
"""Its name, in the participant's ``run/``."""

_SIZE: Final = 256
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


@dataclasses.dataclass(frozen=True)
class Remembered:
    """Number and digest of the last line, and how many lines are lost without a line that says so."""

    number: int = START[0]
    digest: str = START[1]
    lost: int = 0

    @property
    def last(self) -> tuple[int, str]:
        """The last line, as an audit file knows it."""
        return self.number, self.digest


def read_memory(path: Path) -> Remembered | None:
    """Return what is remembered; None where nothing is.

    Raises:
        BadInput: the file says nothing that makes sense.
        OSError: it cannot be read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    with os.fdopen(fd, "rb") as file:
        raw = file.read(_SIZE)
    if not raw:  # made on a full disk, and never written
        return None
    try:
        body = json.loads(raw)
        found = Remembered(body["number"], body["sha256"], body["lost"])
        whole = all(type(one) is int and one >= 0 for one in (found.number, found.lost))
        good = whole and isinstance(found.digest, str) and _DIGEST.fullmatch(found.digest) is not None
    except (ValueError, RecursionError, KeyError, TypeError):
        good = False
    if not good:
        raise BadInput(f"{path}: it is not what this participant wrote there")
    return found


def write_memory(path: Path, now: Remembered) -> None:
    """Replace what is remembered.

    Raises:
        OSError: it cannot be written.
    """
    body = {"number": now.number, "sha256": now.digest, "lost": now.lost}
    data = json.dumps(body).encode().ljust(_SIZE - 1) + b"\n"
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(path, flags, 0o600)
    except FileNotFoundError:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, flags, 0o600)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
