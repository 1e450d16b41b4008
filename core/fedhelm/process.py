"""What every long-lived process needs of Linux: parents, locks, readiness, and finding one's own processes."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import resource
import select
import signal
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fedhelm.errors import AlreadyRunning

__all__ = [
    "KIT_MARK",
    "OPEN_FILES",
    "ROLE_MARK",
    "MarkedProcess",
    "ParticipantLock",
    "atomic_write",
    "child_env",
    "die_with_parent",
    "fsync_dir",
    "marked_processes",
    "open_files",
    "raise_open_files",
    "read_state",
    "set_non_dumpable",
    "set_subreaper",
    "write_state",
]

KIT_MARK = "FEDHELM_KIT"
ROLE_MARK = "FEDHELM_PROCESS"

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent dies; exit now if it is dead already.

    The signal fires when the *thread* that spawned this process ends, so parents spawn from their main thread.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)


OPEN_FILES: Final = 65536
"""Open files that a participant wants to be allowed, if the machine lets it."""


def raise_open_files() -> int:
    """Allow this process, and those that it starts, up to :data:`OPEN_FILES` open files; return how many it has now.

    A session or a unit often allows 1,024, of which as many connections take every one that the store needs; the hard
    limit, which nobody but root can raise, is mostly far above.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if open_files() < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return open_files()


def open_files() -> int:
    """Return how many open files this process may have; where there is no limit, :data:`OPEN_FILES`."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return OPEN_FILES if soft == resource.RLIM_INFINITY else soft


def set_subreaper() -> None:
    """Become the parent of orphaned descendants, so that none escapes to init."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def set_non_dumpable() -> None:
    """Forbid other processes of the same user to read this one's memory."""
    _prctl(_PR_SET_DUMPABLE, 0)


def fsync_dir(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def atomic_write(path: Path, data: bytes, mode: int = 0o600, *, sync: bool = True) -> None:
    """Replace ``path`` with ``data``: readers see the old file or the new one; durable when ``sync``."""
    # Of this thread, not of this process: two of them may write the same file.
    temporary = path.with_name(f".{path.name}.{threading.get_native_id()}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if sync:
        fsync_dir(path.parent)


class ParticipantLock:
    """At most one process runs a kit: an advisory lock on ``run/pid``, released by the kernel on any death."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / "pid"
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take the lock and write this process's id into the file.

        Raises:
            AlreadyRunning: another process holds it; the message names its id.
        """
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        # An observer (`holder`) may hold a shared lock for a moment: only a live owner's id is a refusal.
        for _ in range(40):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                pid = os.pread(fd, 32, 0).decode(errors="replace").strip()
                if pid.isdigit() and Path(f"/proc/{pid}").exists():
                    break
                select.select([], [], [], 0.025)
        else:
            pid = "unknown"
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            where = self._path.parent.parent
            raise AlreadyRunning(
                f"{where.name} is running already, pid {pid}", hint=f"stop it with {where}/startup/stop_fl.sh"
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._fd = fd

    def release(self) -> None:
        """Give the lock back."""
        if self._fd is not None:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = None

    @staticmethod
    def holder(run_dir: Path) -> int | None:
        """Return the id of the process that holds the lock, or None."""
        try:
            fd = os.open(run_dir / "pid", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            try:
                # A shared lock: two observers do not take each other for the holder.
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                text = os.read(fd, 32).decode(errors="replace").strip()
                return int(text) if text.isdigit() else None
            return None
        finally:
            os.close(fd)


def write_state(run_dir: Path, ready: bool, **extra: Any) -> None:
    """Say in ``run/state.json`` whether this process is ready; valid only while its pid holds the lock."""
    data = json.dumps({"pid": os.getpid(), "ready": ready, **extra}).encode()
    atomic_write(run_dir / "state.json", data, sync=False)


def read_state(run_dir: Path) -> dict[str, Any] | None:
    """Return what the participant last wrote, or None."""
    try:
        value = json.loads((run_dir / "state.json").read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def child_env(kit_root: Path, mark: str, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for a process of this kit: marked, so that it can be found whatever becomes of it."""
    env = dict(os.environ if base is None else base)
    env[KIT_MARK] = str(kit_root.resolve())
    env[ROLE_MARK] = mark
    # Children run the same code as their parent also when it is not installed.
    env["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
    env["PYTHONUNBUFFERED"] = "1"
    return env


@dataclass(frozen=True)
class MarkedProcess:
    """A live process that carries this kit's mark."""

    pid: int
    mark: str
    ppid: int


def _mark(pid: int, kit: bytes) -> str | None:
    """Return the mark of a process of this kit, None for any other."""
    try:
        pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except PermissionError:
        # A process that made itself non-dumpable shows its environment to root only; its command line names the kit.
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if kit not in words or b"--kit" not in words:
            return None
        module = next((word for word in words if word.startswith(b"fedhelm_")), b"")
        return module.rpartition(b".")[2].decode(errors="replace")
    env = dict(pair.split(b"=", 1) for pair in pairs if b"=" in pair)
    if env.get(KIT_MARK.encode()) != kit:
        return None
    return env.get(ROLE_MARK.encode(), b"").decode(errors="replace")


def _process(pid: int, kit: bytes) -> MarkedProcess | None:
    try:
        mark = _mark(pid, kit)
        stat = Path(f"/proc/{pid}/stat").read_text() if mark is not None else ""
    except OSError:
        return None
    if mark is None:
        return None
    state, ppid = stat.rpartition(")")[2].split()[:2]
    return None if state in "ZX" else MarkedProcess(pid, mark, int(ppid))


def marked_processes(kit_root: Path) -> list[MarkedProcess]:
    """Return every live process that was started for this kit, the caller excluded (zombies are not alive)."""
    kit = str(kit_root.resolve()).encode()
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    found = (_process(pid, kit) for pid in pids if pid != os.getpid())
    return [process for process in found if process is not None]
