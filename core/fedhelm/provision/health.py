"""Tell whether the participant of a kit is up and ready: what the health check of a container or a watchdog asks.

Run as ``python -P -m fedhelm.provision.health KIT [--alive]``, on the same machine and with the same view of processes
as the participant (inside its container). It reads what the participant itself keeps in ``run/``: the lock that the
kernel takes away when its process ends, and ``state.json``. It needs no key and no network.

Ready means: an overseer serves, a server leads or follows, a site is connected to the primary. A site whose servers are
away is *alive*, not ready.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fedhelm.config.kit import ADMIN_ROLES, read_kit
from fedhelm.errors import ExitStatus, KitError, Unreachable
from fedhelm.output import CommandParser, emit, guarded
from fedhelm.process import ParticipantLock, read_state

__all__ = ["UNHEALTHY", "check", "main"]

UNHEALTHY = ExitStatus.FAILED
"""The only exit status but 0: container engines reserve all others."""


def _stopped(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False  # no such file system, or gone by now: the lock tells the latter
    return stat.rpartition(")")[2].split()[0] in ("T", "t")


def check(kit_root: Path, *, alive: bool = False) -> str:
    """Return one line about a participant that is up and, unless ``alive`` is enough, ready.

    Raises:
        KitError: ``kit_root`` is no kit of a participant with a process.
        Unreachable: it is not up, or not ready; the message is its own reason, if it gives one.
    """
    kit = read_kit(kit_root)
    name = kit.name
    if kit.role in ADMIN_ROLES:
        raise KitError(f"{kit.root} is the kit of a {kit.role}: nothing of it runs")
    pid = ParticipantLock.holder(kit.run)
    if pid is None:
        raise Unreachable(f"{name} is not running")
    if _stopped(pid):
        raise Unreachable(f"{name} is stopped (pid {pid}): it answers nobody", hint=f"kill -CONT {pid}")
    state = read_state(kit.run) or {}
    if alive:
        return f"{name} is alive, pid {pid}"
    if state.get("pid") != pid:
        raise Unreachable(f"{name} is starting, pid {pid}")
    if state.get("ready") is not True:
        reason = state.get("reason")
        raise Unreachable(f"{name} is not ready{': ' + reason if isinstance(reason, str) and reason else ''}")
    return f"{name} is ready, pid {pid}"


def main(argv: list[str]) -> int:
    """Print one line; return 0 if the participant is well and 1 in every other case."""
    parser = CommandParser(prog="fedhelm.provision.health", description="Is the participant of this kit up and ready?")
    parser.add_argument("kit", type=Path, help="the participant's folder, the one that holds startup/")
    parser.add_argument("--alive", action="store_true", help="up is enough: it need not be connected")

    def body() -> int:
        args = parser.parse_args(argv)
        return emit(None, human=check(args.kit, alive=args.alive))

    return ExitStatus.OK if guarded(body) == ExitStatus.OK else UNHEALTHY


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
