"""Logging of a participant: status lines to standard output and to its ``log.txt``, UTC stamps, no secrets."""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path

__all__ = ["setup"]


class _Formatter(logging.Formatter):
    converter = time.gmtime  # type: ignore[assignment]
    default_msec_format = "%s.%03dZ"
    default_time_format = "%Y-%m-%dT%H:%M:%S"


def _is_stdout(path: Path) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(sys.stdout.fileno()))
    except (OSError, ValueError):
        return False


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
        root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("fedhelm").setLevel(level)
