"""Where a figure comes from: a measurement without its machine is an anecdote."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

__all__ = ["describe", "load"]

REPOSITORY = Path(__file__).resolve().parents[1]


def _first(path: str, key: str) -> str:
    for line in Path(path).read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return "unknown"


def _fsync_ms(folder: Path, times: int = 50) -> float:
    """Median of writing 4 KiB to a new file, fsync, and fsync of the folder: what one slot of the log costs."""
    taken = []
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        directory = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for number in range(times):
                began = time.perf_counter()
                with (Path(scratch) / str(number)).open("wb") as file:
                    file.write(b"x" * 4096)
                    file.flush()
                    os.fsync(file.fileno())
                os.fsync(directory)
                taken.append((time.perf_counter() - began) * 1000)
        finally:
            os.close(directory)
    return round(statistics.median(taken), 2)


def _filesystem(folder: Path) -> str:
    """Type of the file system that holds a folder: its longest mount point wins."""
    best = ("", "unknown")
    for line in Path("/proc/mounts").read_text().splitlines():
        _, point, kind = line.split()[:3]
        if str(folder).startswith(point.rstrip("/") + "/") or point == "/":
            best = max(best, (point, kind), key=lambda one: len(one[0]))
    return best[1]


def _commit() -> str:
    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    dirty = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results.jsonl")
    return (git("rev-parse", "--short=12", "HEAD") or "unknown") + ("+changes" if dirty else "")


def describe(folder: Path) -> dict[str, Any]:
    """Return what a reader needs to compare a figure with one of their own.

    Args:
        folder: the one in which workspaces will be made; its disk is measured.
    """
    memory = int(_first("/proc/meminfo", "MemTotal").split()[0]) / 2**20
    return {
        "cpu": _first("/proc/cpuinfo", "model name"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "filesystem": _filesystem(folder),
        "fsync_ms": _fsync_ms(folder),
        "commit": _commit(),
    }


def load() -> float:
    """Load average of the last minute: on a busy machine every figure is worse."""
    return round(os.getloadavg()[0], 2)
