"""The one writer of an audit file: it only appends, and notices when the file is not where and as it left it."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import mmap
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, Self

from fedhelm.clock import Clock, SystemClock, iso
from fedhelm.errors import AlreadyRunning, BadInput
from fedhelm.process import fsync_dir
from fedhelm.security.audit_files import delete_oldest, older_files, set_aside
from fedhelm.security.audit_lines import (
    START,
    Entry,
    Line,
    continued_entry,
    encode,
    missing_entry,
    parse_line,
    torn_entry,
    unsure_entry,
)
from fedhelm.security.audit_memory import Remembered, read_memory, write_memory

__all__ = ["MAX_BYTES", "RESERVE", "AuditFile", "NotWritten"]

_log = logging.getLogger("fedhelm.audit")

MAX_BYTES: Final = 64 * 1024 * 1024
"""Size from which on a file is set aside before the next line: some 150,000 lines."""

RESERVE: Final = 1024 * 1024
"""Bytes that have to be free before a command acts, so that its line fits: some 2,500 lines."""

_WINDOW: Final = 64 * 1024


class NotWritten(OSError):
    """Not all that was to be written was.

    Attributes:
        lines: lines that are in the file all the same.
        taken: how many of the entries that were given are among them; they must not be given again.
    """

    def __init__(self, cause: OSError, lines: Sequence[Line] = (), taken: int = 0) -> None:
        super().__init__(cause.errno, cause.strerror or str(cause))
        self.lines, self.taken = list(lines), taken


class AuditFile:
    """An open audit file. A line that a killed writer left unfinished stays, and is noted by a line of its own.

    Args:
        path: the file; made with mode 0600 if it is not there.
        clock: for the time of lines that bring none.
        sync: whether lines are on the disk (fsync) when `append` returns; otherwise the system writes them in its time.
        max_bytes: from this size on the file is set aside, and a new one goes on with its chain.
        keep: so many files that were set aside are kept, older ones are deleted; None: all of them.
        memory: where the last line is remembered, apart from the file; None: nowhere.

    Attributes:
        lost: how many lines earlier writers could not write, without a line that says so.

    Raises:
        AlreadyRunning: another process writes it.
        OSError: it cannot be opened or read.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Clock | None = None,
        sync: bool = True,
        max_bytes: int = MAX_BYTES,
        keep: int | None = None,
        memory: Path | None = None,
    ) -> None:
        self.path = path
        self._clock, self._sync = clock or SystemClock(), sync
        self._max_bytes, self._keep, self._memory = max_bytes, keep, memory
        self._last = START
        self._size = 0
        self._prefix = b""
        self._torn = True
        self._stuck = False
        self._forgetful = False
        # What has to be said before anything else, and the line that each of them comes after at the least.
        self._first: list[tuple[Entry, tuple[int, str]]] = []
        self._told: list[Line] = []  # written, but not returned yet
        known = self._recall()
        self.lost = known.lost
        self._fd = self._open()
        try:
            self._go_on(known.last, f"{path.name} ends before the last line that was written")
            self._write_first()
        except NotWritten as error:  # a full disk keeps nobody from starting
            _log.error("%s cannot be written: %s", path, error.strerror)
        except BaseException:
            os.close(self._fd)
            raise
        self.remember(self.lost)

    @property
    def last(self) -> tuple[int, str]:
        """Number and sha256 of the last line, whether or not it is still there."""
        return max([self._last, *(after for _, after in self._first)], key=lambda one: one[0])

    def append(self, entries: Sequence[Entry]) -> list[Line]:
        """Write entries, all in one go; return the lines that were written since the last time.

        Raises:
            NotWritten: the disk is full or broken; says what is written all the same.
            OSError: the file cannot be opened or read; nothing is written.
        """
        lines: list[Line] = []
        before = 0
        try:
            self._settle()
            self._write_first()
            if os.fstat(self._fd).st_size >= self._max_bytes:
                self._begin_anew()
            fresh = self._last[0] > 0 and os.fstat(self._fd).st_size == 0
            goes_on = [continued_entry(*self._last)] if fresh else []
            lines, before = self._encoded([*goes_on, *entries]), len(goes_on)
            self._write(lines)
        except NotWritten as error:
            error.taken = max(0, len(error.lines) - before) if lines else 0
            error.lines = self._taken()
            raise
        self.remember()
        return self._taken()

    def check(self) -> None:
        """Look whether the next lines can be written.

        Raises:
            OSError: they cannot; or less than :data:`RESERVE` bytes are free, so that soon they cannot.
        """
        self._settle()
        disk = os.fstatvfs(self._fd)
        if disk.f_blocks and disk.f_bavail * disk.f_frsize < RESERVE:
            raise OSError(errno.ENOSPC, f"less than {RESERVE >> 20} MiB is free")

    def remember(self, lost: int = 0) -> None:
        """Keep in mind, apart from the file, which line is the last, and how many are lost without one that says so."""
        if self._memory is None:
            return
        try:
            write_memory(self._memory, Remembered(*self.last, lost))
        except OSError as error:
            if not self._forgetful:
                _log.warning("%s cannot be written: %s", self._memory, error.strerror or error)
            self._forgetful = True
        else:
            self._forgetful = False

    def close(self) -> None:
        """Close the file; another process may write it then."""
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- where the file is --------------------------------------------------------------------------------------------

    def _recall(self) -> Remembered:
        try:
            found = read_memory(self._memory) if self._memory is not None else None
        except (BadInput, OSError) as error:
            _log.error("what was remembered of %s is of no use: %s", self.path, error)
            found = None
        return found or Remembered()

    def _open(self, more_flags: int = 0) -> int:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(self.path, flags | more_flags, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_size == 0:
                fsync_dir(self.path.parent)
        except BlockingIOError:
            os.close(fd)
            raise AlreadyRunning(f"{self.path} is being written by another process") from None
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _settle(self) -> None:
        """See that the file is where and as it was left; go on in the one that is in its place."""
        why = self._displaced()
        if why is not None:
            self._move(why)
        elif self._torn:
            self._recover()

    def _displaced(self) -> str | None:
        if not self.path.is_symlink() and not self.path.exists():
            return f"{self.path.name} was moved or deleted while it was being written"
        if not self._in_place():
            return f"another file was put in the place of {self.path.name} while it was being written"
        cut = os.fstat(self._fd).st_size < self._size
        return f"{self.path.name} was cut while it was being written" if cut else None

    def _move(self, why: str) -> None:
        known = self.last
        if not self._in_place():
            try:
                new = self._open()
            except AlreadyRunning as error:
                raise OSError(errno.EAGAIN, error.message) from None
            os.close(self._fd)
            self._fd = new
        _log.error("%s: %s", self.path, why)
        self._go_on(known, why)

    def _in_place(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._fd), self.path.lstat())
        except FileNotFoundError:
            return False

    def _go_on(self, known: tuple[int, str], why: str) -> None:
        """Find the last line that is there; if lines that were written are not, the next one says so."""
        self._last, self._first, self._torn = _last_before(self.path), [], True
        found, _, _ = _find_last(self._fd)
        if found != START:
            self._last = found
        if known not in (START, self._last) and not _holds(self.path, known[1]):
            self._first = [(missing_entry(known, self._last[0], why), known)]
        self._recover()

    def _begin_anew(self) -> None:
        """Set the file aside and write to a new one from now on; where that fails, go on writing to the old one."""
        try:
            set_aside(self.path, self._fd, self._last[0])
            new = self._open(os.O_EXCL)
        except (OSError, AlreadyRunning) as error:
            if not self._stuck:
                _log.error("%s has grown large, and no new one can be begun: %s", self.path, error)
            self._stuck = True
            return
        os.close(self._fd)
        self._fd, self._size, self._stuck = new, 0, False
        try:
            for one in [] if self._keep is None else delete_oldest(self.path, self._keep):
                _log.info("%s deleted: %d newer ones are kept", one, self._keep)
        except OSError as error:
            _log.warning("an old audit file cannot be deleted: %s", error)

    # -- what is in it ------------------------------------------------------------------------------------------------

    def _encoded(self, entries: Iterable[Entry], after: tuple[int, str] | None = None) -> list[Line]:
        now, lines = iso(self._clock.utcnow()), []
        number, digest = self._last if after is None or after[0] <= self._last[0] else after
        for entry in entries:
            lines.append(encode(entry, number + 1, digest, now))
            number, digest = lines[-1].number, lines[-1].digest
        return lines

    def _taken(self) -> list[Line]:
        told, self._told = self._told, []
        return told

    def _write_first(self) -> None:
        while self._first:
            entry, after = self._first[0]
            try:
                self._write(self._encoded([entry], after))
            except NotWritten as error:
                del self._first[: len(error.lines)]
                raise
            del self._first[0]

    def _write(self, lines: Sequence[Line]) -> None:
        """Write lines, all in one go.

        Raises:
            NotWritten: with those of the lines that are in the file.
        """
        data = memoryview(self._prefix + b"".join(line.raw + b"\n" for line in lines))
        done, self._torn = 0, True  # until all of it is there
        try:
            while done < len(data):
                done += os.write(self._fd, data[done:])
        except OSError as error:
            whole = self._whole(lines, done)
            self._have(whole)
            raise NotWritten(error, whole) from error
        finally:
            self._size += done
        self._prefix, self._torn = b"", False
        self._have(lines)
        try:
            if self._sync:
                os.fsync(self._fd)
        except OSError as error:
            self._first.append((unsure_entry(lines[0].number, lines[-1].number), START))
            raise NotWritten(error, lines) from error

    def _whole(self, lines: Sequence[Line], done: int) -> list[Line]:
        """Return the lines that are in the first ``done`` bytes of a write; one that only lacks its end counts."""
        whole, end = [], len(self._prefix)
        for line in lines:
            end += len(line.raw) + 1
            if done < end - 1:
                break
            whole.append(line)
        return whole

    def _have(self, lines: Sequence[Line]) -> None:
        if lines:
            self._last = (lines[-1].number, lines[-1].digest)
            self._told += lines

    def _recover(self) -> None:
        """Note what stands behind the last whole line."""
        _, left, ended = _find_last(self._fd)
        self._size = os.fstat(self._fd).st_size
        if not left:
            self._prefix, self._torn = b"" if ended else b"\n", False
            return
        self._prefix = b"" if left.endswith(b"\n") else b"\n"
        unfinished = left + self._prefix
        self._write(self._encoded([torn_entry(len(unfinished), hashlib.sha256(unfinished).hexdigest())]))
        _log.warning("%s: %d bytes of a line that was not finished", self.path, len(left))


def _last_before(path: Path) -> tuple[int, str]:
    """Return number and digest of the last line of the file that was set aside last; START where there is none."""
    older = older_files(path)
    if not older:
        return START
    with older[-1].open("rb") as file:
        return _find_last(file.fileno())[0]


def _holds(path: Path, digest: str) -> bool:
    """Tell whether the line with this digest is in the file, or in the one that was set aside last."""
    for one in (path, *older_files(path)[-1:]):
        with one.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                continue
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                if data.rfind(b',"sha256":"%s"}' % digest.encode()) >= 0:
                    return True
    return False


def _find_last(fd: int) -> tuple[tuple[int, str], bytes, bool]:
    """Return number and digest of the last whole line, the bytes behind it, and whether it has its own end."""
    size = os.fstat(fd).st_size
    window = _WINDOW
    while True:
        start = max(0, size - window)
        data = os.pread(fd, size - start, start)
        end = len(data)
        while end > 0:
            begin = data.rfind(b"\n", 0, end) + 1
            if begin == 0 and start > 0:
                break
            line = parse_line(data[begin:end])
            if isinstance(line, Line):
                return (line.number, line.digest), data[end + 1 :], end < len(data)
            end = begin - 1
        if start == 0:
            return START, data, True
        window *= 4
