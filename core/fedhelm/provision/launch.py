"""Start a participant in the background and see how it is: for ``start.sh``, ``stop_fl.sh`` and the POC.

Run as ``python -P -m fedhelm.provision.launch start|stop KIT`` by a kit's scripts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from fedhelm.config.kit import Kit, read_kit
from fedhelm.errors import AlreadyRunning, DeadlineExceeded, ExitStatus, FedhelmError, KitError, UsageError, error_class
from fedhelm.output import CommandParser, emit, guarded
from fedhelm.process import ParticipantLock, child_env, read_state
from fedhelm.provision.stop import Home, stop_all, wait_until
from fedhelm.security.kit import open_kit

__all__ = [
    "COMMANDS",
    "PROGRAM",
    "Launched",
    "background",
    "is_ready",
    "last_error",
    "log_tail",
    "main",
    "obstacle",
    "role_command",
    "spawn",
    "start_all",
]

COMMANDS: Mapping[str, str] = MappingProxyType({"overseer": "overseer", "server": "server", "site": "client"})
"""Role -> the subcommand of ``fedhelm`` that plays it."""

PROGRAM = (sys.executable, "-P", "-m", "fedhelm.cli")
"""How a participant's process is started: this interpreter, and nothing from the working directory."""

_MARKS = {"overseer": "overseer", "server": "supervisor", "site": "agent"}

LOCK_TIMEOUT = 30.0  # seconds from spawning a process to its lock; imports on a loaded machine
SETTLE = 1.0  # seconds a locked participant gets to become ready, or to die of a taken port, before we report

PATIENCE = 10.0  # seconds for which a participant may say why it is not ready, before nobody waits for it any more

_ERROR_LINE = re.compile(r"error\[([A-Z_]+)\]: (.*?)(?: \(hint: (.*)\))?")

_spawned: list[subprocess.Popen[bytes]] = []  # kept, so that none is a ResourceWarning; reaped at the next start


def role_command(kit: Kit) -> str:
    """Return the subcommand that plays this kit's role.

    Raises:
        KitError: an admin's kit: there is nothing to start.
    """
    try:
        return COMMANDS[kit.role]
    except KeyError:
        raise KitError(f"{kit.root} is the kit of a {kit.role}: there is nothing to start") from None


def is_ready(run_dir: Path) -> bool:
    """Tell whether the process that holds the lock says that it is ready."""
    state = read_state(run_dir)
    pid = ParticipantLock.holder(run_dir)
    return bool(pid is not None and state and state.get("pid") == pid and state.get("ready") is True)


def obstacle(run_dir: Path) -> str | None:
    """Return why a participant that runs says that it is not ready; None where it does not say."""
    state = read_state(run_dir) or {}
    reason, pid = state.get("reason"), ParticipantLock.holder(run_dir)
    waits = pid is not None and state.get("pid") == pid and state.get("ready") is not True
    return reason if waits and isinstance(reason, str) else None


def log_tail(log_file: Path, lines: int = 5, offset: int = 0) -> list[str]:
    """Return the last non-empty lines of a log, at most 64 KiB of it, written after byte ``offset``."""
    try:
        with log_file.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(min(offset, size), size - 65536))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return []
    return [line for line in text.splitlines() if line.strip()][-lines:]


def last_error(log_file: Path, offset: int = 0) -> FedhelmError | None:
    """Return the last ``error[CODE]: ...`` line that a process wrote to its log, as an exception."""
    for line in reversed(log_tail(log_file, 1000, offset)):
        if match := _ERROR_LINE.fullmatch(line):
            return error_class(match[1])(match[2], hint=match[3])
    return None


@dataclasses.dataclass(frozen=True)
class Launched:
    """A participant's process as it was started. ``offset`` is where its part of the log begins (bytes)."""

    kit: Kit
    process: subprocess.Popen[bytes]
    offset: int

    @property
    def locked(self) -> bool:
        """Whether the process has its kit's lock: from now on it *is* the participant."""
        return ParticipantLock.holder(self.kit.run) == self.process.pid

    @property
    def exited(self) -> bool:
        """Whether it ended."""
        return self.process.poll() is not None

    def death(self) -> FedhelmError:
        """Return what it died of, as it said in its log; call it when :attr:`exited`."""
        log, name = self.kit.log_file, self.kit.name
        error = last_error(log, self.offset)
        if error is not None:
            message = error.message if name in error.message else f"{name}: {error.message}"
            return type(error)(message, hint=error.hint or f"see {log}")
        last = log_tail(log, 1, self.offset)
        code = self.process.returncode
        how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
        return FedhelmError(f"{name} {how}{': ' + last[0] if last else ''}", hint=f"see {log}")


def spawn(kit: Kit, program: Sequence[str] = PROGRAM) -> Launched:
    """Start the participant's process: own session, no standard input, output appended to ``log.txt``.

    Args:
        kit: whose process.
        program: is called with the role's subcommand and ``--kit DIR``.

    Raises:
        AlreadyRunning: a process holds the kit's lock.
        KitError: an admin's kit, or ``log.txt`` cannot be written.
    """
    command = role_command(kit)
    pid = ParticipantLock.holder(kit.run)
    if pid is not None:
        raise AlreadyRunning(f"{kit.name} is running already, pid {pid}", hint=f"{kit.startup}/stop_fl.sh stops it")
    _spawned[:] = [one for one in _spawned if one.poll() is None]
    try:
        with open(kit.log_file, "ab", opener=_private) as log:
            offset = log.tell()
            process = subprocess.Popen(
                [*program, command, "--kit", str(kit.root)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=kit.root,
                env=child_env(kit.root, _MARKS[kit.role]),
                start_new_session=True,
            )
    except OSError as error:
        raise KitError(f"{kit.log_file}: {error.strerror}") from error
    _spawned.append(process)
    return Launched(kit, process, offset)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def background(kit_root: Path, command: str | None = None) -> int:
    """Start one participant in the background and print one line: its name, pid and log, or what it died of.

    Args:
        kit_root: the participant's folder.
        command: the role's subcommand that the caller is; another role's kit is refused.

    Returns:
        The exit status: 0 once the process holds its lock.
    """
    return guarded(lambda: _background(kit_root, command))


def _background(kit_root: Path, command: str | None) -> int:
    kit = read_kit(kit_root)
    if command is not None and role_command(kit) != command:
        raise KitError(f"{kit.root} is the kit of a {kit.role}, not of a {command}")
    launched = spawn(kit)
    if not wait_until(lambda: launched.locked or launched.exited, LOCK_TIMEOUT):
        raise DeadlineExceeded(
            f"{kit.name}, pid {launched.process.pid}, did not start within {LOCK_TIMEOUT:g} s",
            hint=f"see {kit.log_file}",
        )
    wait_until(lambda: is_ready(kit.run) or launched.exited, SETTLE)
    if launched.exited:
        raise launched.death()
    state = "ready" if is_ready(kit.run) else "started"
    return emit(None, human=f"{kit.name} {state}, pid {launched.process.pid}, log {kit.log_file}")


def _died(launched: Launched) -> bool:
    # Two starts at the same time: the loser exits, and the participant runs all the same.
    return launched.exited and ParticipantLock.holder(launched.kit.run) is None


class _Refusals:
    """Who says for how long that it cannot become ready, and why."""

    def __init__(self, kits: Sequence[Kit], patience: float) -> None:
        # A server whose former run may be alive waits for two terms of the lease by itself.
        self._kits = {kit.name: (kit, max(patience, 3 * kit.timing.lease)) for kit in kits}
        self._offsets = {kit.name: _size(kit.log_file) for kit in kits}
        self._since: dict[str, float] = {}

    def first(self) -> FedhelmError | None:
        """Return the first that will not go away by itself, as far as one can tell."""
        now = time.monotonic()
        for name, (kit, patience) in self._kits.items():
            if obstacle(kit.run) is None:
                self._since.pop(name, None)
            elif now - self._since.setdefault(name, now) >= patience and (refusal := self._told(kit)) is not None:
                return refusal
        return None

    def _told(self, kit: Kit) -> FedhelmError | None:
        """Return the error in its log. Without one it may only need longer; an overseer needs its lease store."""
        error = last_error(kit.log_file, self._offsets[kit.name])
        if error is not None:
            return type(error)(f"{kit.name} is not ready: {error.message}", hint=error.hint or f"see {kit.log_file}")
        if kit.role == "overseer":
            return DeadlineExceeded(f"{kit.name} is not ready: {obstacle(kit.run)}", hint=f"see {kit.log_file}")
        return None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def start_all(
    kits: Iterable[Kit], timeout: float, program: Sequence[str] = PROGRAM, *, patience: float = PATIENCE
) -> list[str]:
    """Start what is not running, all at once, and wait until all of them are ready.

    Args:
        kits: of participants with a process.
        timeout: seconds.
        program: see :func:`spawn`.
        patience: seconds for which one may say why it is not ready; three terms of the lease if they are longer.

    Returns:
        The names of those that were started now.

    Raises:
        FedhelmError: one died, or refuses for longer than ``patience``; the error is its own.
        DeadlineExceeded: some are not ready in time; names them, and the last lines of their logs.
    """
    kits = list(kits)
    refusals = _Refusals(kits, patience)
    refusal: FedhelmError | None = None
    started: list[Launched] = []
    for kit in kits:
        with contextlib.suppress(AlreadyRunning):
            started.append(spawn(kit, program))

    def settled() -> bool:
        nonlocal refusal
        refusal = refusals.first()
        return refusal is not None or any(map(_died, started)) or all(is_ready(kit.run) for kit in kits)

    wait_until(settled, timeout)
    for one in started:
        if _died(one):
            raise one.death()
    if refusal is not None:
        raise refusal
    late = [kit for kit in kits if not is_ready(kit.run)]
    if late:
        shown = "; ".join(f"{kit.name}: {' | '.join(log_tail(kit.log_file, 3)) or 'no log'}" for kit in late)
        names = ", ".join(kit.name for kit in late)
        raise DeadlineExceeded(f"not ready after {timeout:g} s: {names}", hint=f"last log lines: {shown}")
    return [one.kit.name for one in started]


def _stop(kit_root: Path) -> int:
    root = kit_root.resolve()
    if not (root / "startup").is_dir():
        raise KitError(f"{root} is no kit: it has no startup folder", hint="give the participant's folder")
    stopped = stop_all([Home(root, "", root.name)])
    return emit(None, human=f"{root.name} stopped" if stopped else f"{root.name} is not running")


def _found_store(kit_root: Path) -> None:
    """Found the shared store of a new federation; where it was founded already, nothing changes."""
    from fedhelm.persist import init_store

    kit = open_kit(kit_root)
    if kit.role != "server" or kit.store is None:
        raise UsageError(f"--found-store belongs to a server's start.sh, and {kit.name} is a {kit.role}")
    init_store(kit.store, kit.cluster, kit.project)


def _foreground(kit_root: Path) -> int:
    kit = read_kit(kit_root)
    arguments = [*PROGRAM, role_command(kit), "--kit", str(kit.root)]
    os.execve(sys.executable, arguments, child_env(kit.root, _MARKS[kit.role]))  # noqa: S606  replaces this process


def main(argv: list[str]) -> int:
    """What ``start.sh`` and ``stop_fl.sh`` run; returns the exit status."""
    parser = CommandParser(prog="start.sh / stop_fl.sh", description="Start or stop the participant of one kit.")
    parser.add_argument("action", choices=("start", "stop", "found-store"))
    parser.add_argument("kit", type=Path)
    parser.add_argument("--foreground", action="store_true", help="stay in the foreground (start)")
    parser.add_argument(
        "--found-store",
        action="store_true",
        help="a server's very first start: make the shared store that is not there",
    )

    def body() -> int:
        args = parser.parse_args(argv)
        if args.action == "stop":
            if args.foreground or args.found_store:
                raise UsageError("--foreground and --found-store belong to start.sh")
            return _stop(args.kit)
        if args.action == "found-store" or args.found_store:
            _found_store(args.kit)
        if args.action == "found-store":
            return ExitStatus.OK
        return _foreground(args.kit) if args.foreground else _background(args.kit, None)

    return guarded(body)


if __name__ == "__main__":
    os.umask(0o077)  # as `fedhelm overseer` and the others do
    sys.exit(main(sys.argv[1:]))
