"""Stop participants, and leave no process of theirs behind."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fedhelm.errors import DeadlineExceeded, Refused
from fedhelm.process import ParticipantLock, marked_processes, read_state

__all__ = ["Home", "Runs", "live_processes", "stop_all", "wait_until"]

STOP_GRACE = 8.0  # seconds between SIGTERM and SIGKILL
KILL_TIMEOUT = 10.0  # seconds that killed processes may take to be gone

_POLL = 0.02


class Runs(Protocol):
    """What stopping needs to know of a participant; a ``Kit`` is one, and so is a :class:`Home`."""

    @property
    def root(self) -> Path:
        """The participant's folder."""
        ...

    @property
    def role(self) -> str:
        """Its role; overseers are stopped last."""
        ...

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def run(self) -> Path:
        """Where it keeps its lock."""
        ...


@dataclass(frozen=True)
class Home:
    """A participant's folder, whatever became of the kit in it: a damaged kit must be stoppable."""

    root: Path
    role: str
    name: str

    @property
    def run(self) -> Path:
        """Where it keeps its lock."""
        return self.root / "run"


def wait_until(condition: Callable[[], bool], timeout: float) -> bool:
    """Look at ``condition`` again and again until it holds (True), or ``timeout`` seconds are over (False)."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL)
    return True


def _send(pid: int, number: signal.Signals, still: Callable[[], bool]) -> None:
    """Signal ``pid`` if it still is the process that was meant; a pid that was given away is left alone."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        with contextlib.suppress(ProcessLookupError):  # no pidfd in this kernel: a tiny race remains
            if still():
                os.kill(pid, number)
        return
    try:
        if still():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, number)
    finally:
        os.close(handle)


def live_processes(kit: Runs) -> list[int]:
    """Return every live process of the kit, its main process first."""
    pids = {process.pid for process in marked_processes(kit.root)}
    holder = ParticipantLock.holder(kit.run)
    ordered = sorted(pids - {holder})
    return ordered if holder is None else [holder, *ordered]


def _elsewhere(kit: Runs) -> bool:
    """Tell whether the lock is held where other process ids count: in a container that has this folder mounted.

    The id in the lock's file then is that of some other process here, which must never be signalled.
    """
    pid = ParticipantLock.holder(kit.run)
    if pid is None or pid == os.getpid():
        return False
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        words = []
    if any(word == b"--kit" or word.startswith(b"--kit=") for word in words):  # also one that was started by hand
        return False
    ours = {process.pid for process in marked_processes(kit.root)}
    return pid not in ours and ParticipantLock.holder(kit.run) == pid


def _signal_all(kit: Runs, number: signal.Signals) -> None:
    for pid in live_processes(kit):
        _send(pid, number, lambda pid=pid: pid in live_processes(kit))  # type: ignore[misc]


def _terminate(kits: list[Runs], grace: float) -> None:
    """Ask with SIGTERM, kill what is left after ``grace`` seconds. Stopped processes are woken to hear it."""
    for kit in kits:
        holder = ParticipantLock.holder(kit.run)
        if holder is None:
            continue
        _send(holder, signal.SIGTERM, lambda kit=kit, pid=holder: ParticipantLock.holder(kit.run) == pid)  # type: ignore[misc]
        _signal_all(kit, signal.SIGCONT)
    wait_until(lambda: all(ParticipantLock.holder(kit.run) is None for kit in kits), grace)
    # A main process takes its children along; give the kernel's death signals a moment before killing one by one.
    wait_until(lambda: not any(live_processes(kit) for kit in kits), 0.5)

    def all_gone() -> bool:
        left = [kit for kit in kits if live_processes(kit)]
        for kit in left:
            _signal_all(kit, signal.SIGKILL)
        return not left

    if not wait_until(all_gone, KILL_TIMEOUT):
        pids = {kit.name: left for kit in kits if (left := live_processes(kit))}
        raise DeadlineExceeded(f"processes that cannot be killed: {pids}")


def stop_all(kits: Iterable[Runs], grace: float = STOP_GRACE) -> list[str]:
    """Stop participants and every process of theirs: overseers last, so that servers can release their lease.

    Returns:
        The names of those of which a process was alive.

    Raises:
        DeadlineExceeded: a process survives SIGKILL (in uninterruptible sleep); the message names it.
        Refused: one runs in a container, whose processes cannot be told from here; nothing was stopped.
    """
    kits = list(kits)
    for kit in kits:
        if _elsewhere(kit):
            raise Refused(
                f"{kit.name} runs in a container: its process cannot be signalled from here",
                hint=f"{kit.root}/startup/docker.sh --stop",
            )
    alive = [kit.name for kit in kits if live_processes(kit)]
    # Asked once: a primary that falls back to a standby meanwhile must not be passed over by both turns.
    turns = [(kit, _turn(kit)) for kit in kits]
    for turn in range(3):
        _terminate([kit for kit, its in turns if its == turn], grace)
    for kit in kits:
        _remove_runtime(kit)
    return alive


def _remove_runtime(kit: Runs) -> None:
    """Remove the folder of sockets that an agent that was killed could not remove itself."""
    note = kit.run / "runtime"
    if note.is_symlink():
        folder = note.readlink()
        if folder.name.startswith("fh-") and folder.is_dir() and folder.stat().st_uid == os.getuid():
            shutil.rmtree(folder, ignore_errors=True)
        note.unlink(missing_ok=True)


def _turn(kit: Runs) -> int:
    """The primary goes after the standbys: its lease is then free, not granted to one that is about to stop."""
    if kit.role == "overseer":
        return 2
    state = read_state(kit.run) or {}
    return 0 if kit.role != "server" or state.get("role") in (None, "STANDBY") else 1
