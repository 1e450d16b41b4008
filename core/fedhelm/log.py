"""Logging of a participant: status lines to standard output and to its ``log.txt``, UTC stamps, no secrets.

A thread writes them. A disk that is slow for a second would otherwise hold the event loop that wrote the line: a server
then misses its beat, and is replaced, for a line of text.
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import queue
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

__all__ = ["setup"]

WAITING: Final = 10_000
"""Lines that may wait for the disk; what comes after them is counted, and lost."""

FLUSH_S: Final = 2.0
"""How long the end of a process waits for its last lines."""


class _Formatter(logging.Formatter):
    converter = time.gmtime  # type: ignore[assignment]
    default_msec_format = "%s.%03dZ"
    default_time_format = "%Y-%m-%dT%H:%M:%S"


def _is_stdout(path: Path) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(sys.stdout.fileno()))
    except (OSError, ValueError):
        return False


class _InThread(logging.handlers.QueueHandler):
    """Hands each line to a thread, which writes it with these handlers; closing writes what still waits."""

    def __init__(self, handlers: Sequence[logging.Handler]) -> None:
        self._lines: queue.Queue[logging.LogRecord | None] = queue.Queue(WAITING)
        super().__init__(self._lines)
        self._handlers = tuple(handlers)
        self._lost = 0
        self._idle = threading.Condition()
        self._busy = 0
        self._closed = False
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def enqueue(self, record: logging.LogRecord) -> None:
        """Put a line in the row (called with the handler's lock)."""
        if self._lost:
            lost = logging.makeLogRecord({**record.__dict__, "msg": f"{self._lost} lines were lost: the disk is slow"})
            if not self._put(lost):
                self._lost += 1
                return
            self._lost = 0
        if not self._put(record):
            self._lost += 1

    def _put(self, record: logging.LogRecord) -> bool:
        with self._idle:
            try:
                self._lines.put_nowait(record)
            except queue.Full:
                return False
            self._busy += 1
            return True

    def _write(self) -> None:
        while (record := self._lines.get()) is not None:
            for handler in self._handlers:
                handler.handle(record)
            with self._idle:
                self._busy -= 1
                self._idle.notify_all()

    def flush(self) -> None:
        """Wait until all lines are written, but not for long."""
        with self._idle:
            self._idle.wait_for(lambda: self._busy == 0, FLUSH_S)

    def close(self) -> None:
        """Write what waits, and end."""
        if self._closed:
            return
        self._closed = True
        self.flush()
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(None)
        self._thread.join(FLUSH_S)
        if not self._thread.is_alive():
            for handler in self._handlers:
                handler.close()
        super().close()


def setup(name: str, log_file: Path | None = None, *, stdout: bool = True, level: int = logging.INFO) -> None:
    """Send the logs of this process to standard output and, if given, to ``log_file``.

    Args:
        name: stands in every line, so that logs of several participants can be read together.
        log_file: is appended to, unless standard output is that file already.
        stdout: also write to standard output.
        level: least level of Fedhelm's own loggers; libraries write from WARNING.
    """
    formatter = _Formatter(f"%(asctime)s {name} %(levelname)s %(message)s")
    handlers: list[logging.Handler] = []
    if stdout and log_file is not None and _is_stdout(log_file):
        log_file = None  # a process in the background: its output is the log file already
    if stdout:
        handlers.append(logging.StreamHandler(sys.stdout))
    if log_file is not None:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(log_file, encoding="utf-8"))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    for handler in handlers:
        handler.setFormatter(formatter)
    root.addHandler(_InThread(handlers))
    root.setLevel(logging.WARNING)
    logging.getLogger("fedhelm").setLevel(level)
