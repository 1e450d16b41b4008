"""The tree of processes below this one, and its end. The caller is a subreaper, so nothing escapes from the tree."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Collection, Mapping
from pathlib import Path

__all__ = ["below", "descendants", "end_all", "process_table"]


def process_table() -> dict[int, int]:
    """Return the parent of every process of the machine."""
    table: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                stat = (entry / "stat").read_bytes()
                table[int(entry.name)] = int(stat.rpartition(b")")[2].split()[1])
    return table


def below(root: int, table: Mapping[int, int]) -> list[int]:
    """Return the processes below ``root``, those nearer to it first. Pure."""
    children: dict[int, list[int]] = {}
    for pid, parent in table.items():
        children.setdefault(parent, []).append(pid)
    found = list(children.get(root, ()))
    for pid in found:
        found.extend(children.get(pid, ()))
    return found


def descendants(keep: Collection[int] = ()) -> list[int]:
    """Return the processes below this one, zombies included, without ``keep`` and what is below those."""
    table = process_table()
    kept = set(keep)
    for pid in keep:
        kept.update(below(pid, table))
    return [pid for pid in below(os.getpid(), table) if pid not in kept]


def _reap(pids: Collection[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def end_all(keep: Collection[int] = (), timeout: float = 10.0) -> list[int]:
    """Kill and reap everything below this process, but ``keep`` and what is below those.

    Stopped processes die too (SIGKILL), those that fork meanwhile are found on the next pass, orphans come to this
    process because it is a subreaper.

    Args:
        keep: children to leave alone.
        timeout: seconds; a process in an uninterruptible wait is not gone before that wait ends.

    Returns:
        What is left after the time-out: normally nothing.
    """
    deadline = time.monotonic() + timeout
    pause = 0.001
    while left := descendants(keep):
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        _reap(left)
        if time.monotonic() > deadline:
            return left
        time.sleep(pause)  # the kernel needs a moment; there is no handle that covers a whole tree
        pause = min(0.02, pause * 2)
    return []
