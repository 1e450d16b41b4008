"""The files of one audit record: one that has grown large is set aside whole, and the next goes on with its chain.

``audit.jsonl`` is written. ``audit-<number of its last line>.jsonl`` beside it are older ones, which nobody writes any
more. The first line of a file that goes on is :data:`CONTINUED`, so that it can also be examined without them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from fedhelm.security.audit_lines import Line, Report, read_lines

__all__ = ["AUDIT_FILE", "delete_oldest", "older_files", "open_files", "read_files", "set_aside"]

AUDIT_FILE: Final = "audit.jsonl"
"""Name of the file that is written, in the participant's folder beside ``log.txt``."""

_OLDER = re.compile(r"(?P<stem>.+)-(?P<number>\d{12})(?P<suffix>\.[^.]+)")


def older_files(path: Path) -> list[Path]:
    """Return the files that were set aside from ``path``, the oldest first.

    Raises:
        OSError: the folder cannot be read.
    """
    found = []
    for one in path.parent.iterdir():
        match = _OLDER.fullmatch(one.name)
        if match is not None and (match["stem"], match["suffix"]) == (path.stem, path.suffix) and one.is_file():
            found.append((match["number"], one))
    return [one for _, one in sorted(found)]


def set_aside(path: Path, fd: int, last: int) -> None:
    """Give the file a name of its own, so that a new one can be made at ``path``.

    Args:
        path: the file that is written.
        fd: its descriptor; where ``path`` is another file by now, or gone, nothing is done.
        last: the number of its last line.

    Raises:
        OSError: it cannot be renamed, or a file of that name is there.
    """
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(fd), path.lstat()):
            target = path.with_name(f"{path.stem}-{last:012d}{path.suffix}")
            if target.exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
            path.rename(target)


def delete_oldest(path: Path, keep: int) -> list[Path]:
    """Delete all but the newest ``keep`` of the files that were set aside; return those that were deleted.

    Raises:
        OSError: one of them cannot be deleted.
    """
    older = older_files(path)
    gone = older[: max(0, len(older) - keep)]
    for one in gone:
        one.unlink()
    return gone


@contextlib.contextmanager
def open_files(path: Path) -> Iterator[list[BinaryIO]]:
    """Open the files of a record to read, the oldest first: ``path`` and, if it is an ``audit.jsonl``, the older ones.

    Raises:
        OSError: one cannot be opened.
    """
    with contextlib.ExitStack() as stack:
        newest = stack.enter_context(path.open("rb"))
        files: list[BinaryIO] = []
        for one in older_files(path) if path.name == AUDIT_FILE else []:
            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                file = stack.enter_context(one.open("rb"))
                # It may have been set aside since it was opened: it is read once.
                if not os.path.samestat(os.fstat(file.fileno()), os.fstat(newest.fileno())):
                    files.append(file)
        yield [*files, newest]


def read_files(files: Sequence[BinaryIO], report: Report) -> Iterator[Line]:
    """Yield the lines that fit, up to the first that does not; ``report`` tells how it went, ``report.file`` where."""
    for file in files:
        report.file = file.name
        yield from read_lines(file, report)
        if report.problem is not None:
            return
