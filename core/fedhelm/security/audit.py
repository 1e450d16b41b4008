"""The audit file of a participant: who asked for what, and what became of it. Only ever appended to, by one writer.

:class:`AuditFile` writes, and returns when the lines are on the disk. :class:`AuditTrail` does that in a thread of
its own, so that no caller waits for a disk; it hands every written line on, for instance to syslog.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Self

from fedhelm.clock import Clock, SystemClock, iso
from fedhelm.errors import AlreadyRunning
from fedhelm.process import fsync_dir
from fedhelm.security.audit_files import AUDIT_FILE, delete_oldest, older_files, set_aside
from fedhelm.security.audit_lines import START, Entry, Line, Outcome, continued_entry, encode, parse_line, torn_entry
from fedhelm.security.audit_pace import Pace

__all__ = ["AUDIT_FILE", "MAX_BYTES", "MAX_WAITING", "AuditFile", "AuditTrail", "Sink"]

_log = logging.getLogger("fedhelm.audit")

MAX_BYTES: Final = 64 * 1024 * 1024
"""Size from which on a file is set aside before the next line: some 150,000 lines."""

MAX_WAITING: Final = 4096
"""Entries that may wait for the disk; more are counted, and the count is written."""

RETRY_S: Final = 5.0
"""How long a disk or a receiver that failed is left alone, in seconds."""

_BATCH: Final = 256
_WINDOW: Final = 64 * 1024

Sink = Callable[[Line], None]
"""Takes each line that was written; may raise OSError, and is then left alone for a while."""


class AuditFile:
    """An open audit file. A line that a killed writer left unfinished stays, and is noted by a line of its own.

    Args:
        path: the file; made with mode 0600 if it is not there.
        clock: for the time of lines that bring none.
        sync: whether lines are on the disk (fsync) when `append` returns; otherwise the system writes them in its time.
        max_bytes: from this size on the file is set aside, and a new one goes on with its chain.
        keep: so many files that were set aside are kept, older ones are deleted; None: all of them.

    Raises:
        AlreadyRunning: another process writes it.
        OSError: it cannot be opened, read or written.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Clock | None = None,
        sync: bool = True,
        max_bytes: int = MAX_BYTES,
        keep: int | None = None,
    ) -> None:
        self.path = path
        self._clock, self._sync = clock or SystemClock(), sync
        self._max_bytes, self._keep = max_bytes, keep
        self._last = START
        self._prefix = b""
        self._torn = True
        self._stuck = False
        self._fd = self._open()
        try:
            self._last = _last_before(path)
            self._recover()
        except BaseException:
            os.close(self._fd)
            raise

    @property
    def last(self) -> tuple[int, str]:
        """Number and sha256 of the last line."""
        return self._last

    def append(self, entries: Sequence[Entry]) -> list[Line]:
        """Write entries, all in one go; return their lines once they are written.

        Raises:
            OSError: the disk is full or broken; what was half written is noted when a later call succeeds.
        """
        if self._torn:
            self._recover()
        if os.fstat(self._fd).st_size >= self._max_bytes:
            self._begin_anew()
        lines: list[Line] = []
        now = iso(self._clock.utcnow())
        number, digest = self._last
        goes_on = [continued_entry(number, digest)] if number > 0 and os.fstat(self._fd).st_size == 0 else []
        for entry in (*goes_on, *entries):
            line = encode(entry, number + 1, digest, now)
            number, digest = line.number, line.digest
            lines.append(line)
        self._write(b"".join(line.raw + b"\n" for line in lines))
        self._last = (number, digest)
        return lines

    def close(self) -> None:
        """Close the file; another process may write it then."""
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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
        self._fd, self._stuck = new, False
        try:
            for one in [] if self._keep is None else delete_oldest(self.path, self._keep):
                _log.info("%s deleted: %d newer ones are kept", one, self._keep)
        except OSError as error:
            _log.warning("an old audit file cannot be deleted: %s", error)

    def _write(self, data: bytes) -> None:
        self._torn = True  # until all of it is there
        view = memoryview(self._prefix + data)
        while view:
            view = view[os.write(self._fd, view) :]
        if self._sync:
            os.fsync(self._fd)
        self._prefix, self._torn = b"", False

    def _recover(self) -> None:
        """Find the last whole line, and note what stands behind it."""
        found, left, ended = _find_last(self._fd)
        self._last = self._last if found == START else found
        if not left:
            self._prefix, self._torn = b"" if ended else b"\n", False
            return
        self._prefix = b"" if left.endswith(b"\n") else b"\n"
        unfinished = left + self._prefix
        entry = torn_entry(len(unfinished), hashlib.sha256(unfinished).hexdigest())
        note = encode(entry, self._last[0] + 1, self._last[1], iso(self._clock.utcnow()))
        self._write(note.raw + b"\n")
        self._last = (note.number, note.digest)
        _log.warning("%s: %d bytes of a line that was not finished", self.path, len(left))


def _last_before(path: Path) -> tuple[int, str]:
    """Return number and digest of the last line of the file that was set aside last; START where there is none."""
    older = older_files(path)
    if not older:
        return START
    with older[-1].open("rb") as file:
        return _find_last(file.fileno())[0]


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


class AuditTrail:
    """Writes entries in a thread of its own and hands each written line to the sinks.

    The disk may fail or be slow: nobody waits for it. Up to :data:`MAX_WAITING` entries wait; of what came on top of
    them the number is written. The same in a row is written once, with its count; of a caller's refusals only so many
    as :mod:`fedhelm.security.audit_pace` lets pass.

    Args:
        file: where to write; closed by `close`.
        sinks: where lines go besides, such as :class:`fedhelm.security.syslog.SyslogSink`.
        clock: for the time of entries.
        on_close: called when the last line was handed on; for what the sinks hold.
    """

    def __init__(
        self,
        file: AuditFile,
        sinks: Sequence[Sink] = (),
        *,
        clock: Clock | None = None,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self._file, self._clock, self._on_close = file, clock or SystemClock(), on_close
        self._sinks = [_Guarded(sink) for sink in sinks]
        self._waiting: deque[Entry] = deque()
        self._pace = Pace()
        self._lost = 0
        self._busy = False
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    def note(self, entry: Entry) -> None:
        """Have an entry written soon. Does not wait, and raises nothing."""
        stamped = entry if entry.time else dataclasses.replace(entry, time=iso(self._clock.utcnow()))
        with self._changed:
            for one in self._pace.take(stamped, self._clock.boottime()):
                if len(self._waiting) >= MAX_WAITING or self._closing:
                    self._lost += 1
                else:
                    self._waiting.append(one)
            self._changed.notify_all()

    def flush(self, timeout: float) -> bool:
        """Wait until all that was noted is written and handed on; False if it is not after ``timeout`` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._busy, timeout)

    def close(self, timeout: float = 5.0) -> None:
        """Write what waits, for at most ``timeout`` seconds, and close the file."""
        with self._changed:
            self._waiting.extend(self._pace.skipped())
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout)
        if not self._thread.is_alive():
            self._file.close()
            self._on_close()

    def _run(self) -> None:
        while (batch := self._next()) is not None:
            if self._append(batch):
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()

    def _next(self) -> list[Entry] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            if not self._waiting:
                return None
            batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
            self._busy = True
            lost, self._lost = self._lost, 0
        return _merged(batch) + ([_lost_entry("audit.lost", lost)] if lost else [])

    def _append(self, batch: list[Entry]) -> bool:
        """Write a batch; if that fails, put it back and wait a while. Returns whether it was written."""
        try:
            lines = self._file.append(batch)
        except OSError as error:
            _log.error("%s cannot be written: %s", self._file.path, error.strerror or error)
            with self._changed:
                if self._closing:
                    self._waiting.clear()
                    return True
                self._waiting.extendleft(reversed(batch))
                self._changed.wait_for(lambda: self._closing, RETRY_S)
            return False
        for sink in self._sinks:
            if lost := sink.take(lines, self._clock.boottime()):
                self.note(_lost_entry("audit.not_handed_on", lost))
        return True


class _Guarded:
    """A sink that is left alone for a while after it failed, and what it did not get."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._lost = 0
        self._until = 0.0

    def take(self, lines: Sequence[Line], now: float) -> int:
        """Hand lines on; return how many were lost before, once it works again."""
        if now < self._until:
            self._lost += len(lines)
            return 0
        for place, line in enumerate(lines):
            try:
                self._sink(line)
            except OSError as error:
                _log.warning("audit lines cannot be handed on: %s", error)
                self._until = now + RETRY_S
                self._lost += len(lines) - place
                return 0
        lost, self._lost = self._lost, 0
        return lost


def _lost_entry(action: str, count: int) -> Entry:
    return Entry(action, Outcome.FAILED, object={"lines": count})


def _merged(batch: Sequence[Entry]) -> list[Entry]:
    """Return a batch in which the same in a row stands once, with its count and its first time."""
    merged: list[Entry] = []
    for entry in batch:
        last = merged[-1] if merged else None
        if last is not None and dataclasses.replace(entry, time=last.time, times=last.times) == last:
            merged[-1] = dataclasses.replace(last, times=last.times + entry.times)
        else:
            merged.append(entry)
    return merged
