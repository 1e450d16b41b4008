"""The audit file of a participant: who asked for what, and what became of it.

:class:`AuditTrail` writes it in a thread of its own, so that no event loop waits for a disk. What only looks, and what
machines ask of one another, is noted and goes on. What a person commands is not answered before its line is written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Final

from fedhelm.clock import Clock, SystemClock, iso
from fedhelm.errors import AuditUnavailable
from fedhelm.security.audit_files import AUDIT_FILE
from fedhelm.security.audit_lines import LOST, Entry, Line, lost_entry
from fedhelm.security.audit_pace import Pace
from fedhelm.security.audit_writer import MAX_BYTES, AuditFile, NotWritten

__all__ = ["AUDIT_FILE", "MAX_BYTES", "MAX_WAITING", "AuditFigures", "AuditFile", "AuditTrail", "Sink"]

_log = logging.getLogger("fedhelm.audit")

MAX_WAITING: Final = 4096
"""Entries that may wait for the disk; more are counted, and the count is written."""

RETRY_S: Final = 5.0
"""How long a disk or a receiver that failed is left alone, in seconds."""

NOT_HANDED_ON: Final = "audit.not_handed_on"
"""Action of the line that says how many lines a receiver did not get."""

_BATCH: Final = 256

Sink = Callable[[Line], None]
"""Takes each line that was written; may raise OSError, and is then left alone for a while."""


@dataclasses.dataclass(frozen=True)
class AuditFigures:
    """How a trail does.

    Attributes:
        problem: why lines cannot be written at the moment; None: they can.
        waiting: entries that wait for the disk.
        lost: entries that were lost since the start, which the file says or will say.
        not_handed_on: lines that the receiver did not get since the start, as far as is known.
    """

    problem: str | None = None
    waiting: int = 0
    lost: int = 0
    not_handed_on: int = 0


@dataclasses.dataclass
class _Item:
    """An entry that waits, and who waits for it; without an entry, somebody who asks whether lines can be written."""

    entry: Entry | None
    told: list[Future[None]] = dataclasses.field(default_factory=list)

    def end(self, problem: str | None) -> None:
        for one in self.told:
            if problem is None:
                one.set_result(None)
            else:
                one.set_exception(AuditUnavailable(problem))
        self.told = []


def _future() -> Future[None]:
    future: Future[None] = Future()
    future.set_running_or_notify_cancel()  # whoever stops waiting does not take it away from the thread
    return future


class AuditTrail:
    """Writes entries in a thread of its own and hands each written line to the sinks.

    The disk may fail or be slow: nobody waits for it but who asks to. Up to :data:`MAX_WAITING` entries wait; of what
    came on top of them the number is written. The same in a row is written once, with its count; of what a caller is
    noted for only so much as :mod:`fedhelm.security.audit_pace` lets pass.

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
        self._waiting: deque[_Item] = deque()
        self._pace = Pace()
        self._lost = self._all_lost = file.lost
        self._problem: str | None = None
        self._failed = False  # the last attempt did: the disk is left alone for a while
        self._at_work = False
        self._in_hand = 0
        self._since = 0.0
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    def note(self, entry: Entry) -> None:
        """Have an entry written soon. Does not wait, and raises nothing."""
        stamped = self._stamped(entry)
        with self._changed:
            for one in self._pace.take(stamped, self._clock.boottime()):
                self._add(_Item(one))

    def write(self, entry: Entry) -> Future[None]:
        """Have an entry written; the future ends once it is on the disk, or with AuditUnavailable when that failed.

        It is tried again all the same. There is no pace: a command has its line, however many there are.
        """
        future = _future()
        with self._changed:
            self._add(_Item(self._stamped(entry), [future]))
        return future

    def ready(self) -> Future[None]:
        """Ask whether the next line can be written; the future ends, or ends with AuditUnavailable."""
        future = _future()
        with self._changed:
            self._add(_Item(None, [future]))
        return future

    @property
    def figures(self) -> AuditFigures:
        """How it does; any thread."""
        with self._changed:
            missed = sum(sink.all_lost for sink in self._sinks)
            stuck = self._at_work and self._clock.boottime() - self._since > RETRY_S
            problem = self._problem or ("the disk does not answer" if stuck else None)
            return AuditFigures(problem, len(self._waiting) + self._in_hand, self._all_lost, missed)

    def flush(self, timeout: float) -> bool:
        """Wait until all that was noted is written and handed on; False if it is not after ``timeout`` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not (self._waiting or self._at_work or self._lost), timeout)

    def close(self, timeout: float = 5.0) -> None:
        """Write what waits, for at most ``timeout`` seconds, and close the file. What is lost then is remembered."""
        with self._changed:
            if self._closing:
                return
            for one in self._pace.skipped():
                self._add(_Item(one))
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout)
        if self._thread.is_alive():
            with self._changed:
                left = self._unwritten() + self._in_hand
            _log.error("%s: the disk does not answer; up to %d lines are lost", self._file.path, left)
            return
        self._file.close()
        self._on_close()

    def _stamped(self, entry: Entry) -> Entry:
        return entry if entry.time else replace(entry, time=iso(self._clock.utcnow()))

    def _add(self, item: _Item) -> None:
        refused = "the participant ends" if self._closing else None
        if item.entry is not None and len(self._waiting) >= MAX_WAITING:
            refused = refused or "too many lines wait for the disk"
        if refused is not None:
            item.end(refused)
            if item.entry is not None:
                self._lose(item.entry.times)
            return
        if self._problem is not None:  # nobody waits for a disk that is known to fail
            item.end(self._problem)
        if item.entry is not None or item.told:
            self._waiting.append(item)
            self._changed.notify_all()

    def _lose(self, count: int) -> None:
        self._lost += count
        self._all_lost += count

    def _unwritten(self) -> int:
        return self._lost + sum(item.entry.times for item in self._waiting if item.entry is not None)

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while (batch := self._next()) is not None:
            self._take(*batch)
        for sink in self._sinks:
            if sink.lost and not self._failed:
                with contextlib.suppress(OSError):
                    self._file.append([self._stamped(lost_entry(NOT_HANDED_ON, sink.lost))])

    def _next(self) -> tuple[list[_Item], int] | None:
        """Return what is to be written, and how many are lost; now and then nothing, while there is a problem."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closing or (not self._failed and bool(self._waiting or self._lost)),
                None if self._problem is None else RETRY_S,
            )
            if self._closing and not self._waiting and not self._lost:
                return None
            batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
            self._at_work, self._in_hand, self._since = True, len(batch), self._clock.boottime()
            lost, self._lost = self._lost, 0
        return _merged(batch), lost

    def _take(self, batch: list[_Item], lost: int) -> None:
        last = _Item(self._stamped(lost_entry(LOST, lost))) if lost else None
        left, problem, lines = self._append([*batch, last] if last is not None else batch)
        if problem != self._problem and problem is not None:
            _log.error("%s cannot be written: %s", self._file.path, problem)
        elif problem is None and self._problem is not None:
            _log.warning("%s can be written again", self._file.path)
        with self._changed:
            self._problem, self._failed, self._in_hand = problem, bool(left), 0
            if last is not None and last in left:
                left.remove(last)
                self._lost += lost
            self._waiting.extendleft(reversed(left))
            unwritten = self._give_up() if self._failed and self._closing else self._unwritten()
        if problem is not None:
            self._file.remember(unwritten)  # not under the lock: nobody who notes something waits for this disk
        self._hand_on(lines)
        with self._changed:
            self._at_work = False
            self._changed.notify_all()

    def _append(self, items: list[_Item]) -> tuple[list[_Item], str | None, list[Line]]:
        """Write; return what is not written, why, and the lines that are."""
        given = [item for item in items if item.entry is not None]
        entries = [item.entry for item in given if item.entry is not None]
        taken, lines, problem = 0, [], None
        try:
            lines = self._file.append(entries) if entries else []
            taken = len(given)
        except NotWritten as error:
            taken, lines, problem = error.taken, error.lines, _said(error)
        except OSError as error:
            problem = _said(error)
        for item in given:
            item.end(problem)
        if problem is None:
            try:
                self._file.check()
            except OSError as error:
                problem = _said(error)
        for item in items:
            item.end(problem)
        return given[taken:], problem, lines

    def _give_up(self) -> int:
        count = self._unwritten()
        for item in self._waiting:
            item.end("the participant ends")
        self._waiting.clear()
        self._lost = 0
        _log.error("%s: %d lines were not written; the next start says so in it", self._file.path, count)
        return count

    def _hand_on(self, lines: list[Line]) -> None:
        for sink in self._sinks:
            if lines:
                sink.take(lines, self._clock.boottime())
            with self._changed:
                if sink.lost and sink.works and not self._closing:
                    self._add(_Item(self._stamped(lost_entry(NOT_HANDED_ON, sink.lost))))
                    sink.lost = 0


class _Guarded:
    """A sink that is left alone for a while after it failed, and what it did not get."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._until = 0.0
        self.works = True
        self.lost = 0
        self.all_lost = 0

    def take(self, lines: Sequence[Line], now: float) -> None:
        """Hand lines on."""
        if now < self._until:
            self._miss(len(lines))
            return
        for place, line in enumerate(lines):
            try:
                self._sink(line)
            except OSError as error:
                _log.warning("audit lines cannot be handed on: %s", error)
                self._until = now + RETRY_S
                self._miss(len(lines) - place)
                return
        self.works = True

    def _miss(self, count: int) -> None:
        self.works = False
        self.lost += count
        self.all_lost += count


def _said(error: OSError) -> str:
    return error.strerror or str(error)


def _merged(batch: Sequence[_Item]) -> list[_Item]:
    """Return a batch in which the same in a row stands once, with its count and its first time."""
    merged: list[_Item] = []
    for item in batch:
        last, entry = merged[-1].entry if merged else None, item.entry
        if last is not None and entry is not None and replace(entry, time=last.time, times=last.times) == last:
            merged[-1] = _Item(replace(last, times=last.times + entry.times), merged[-1].told + item.told)
        else:
            merged.append(item)
    return merged
