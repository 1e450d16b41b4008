"""``fedhelm overseer --kit DIR``: run one overseer from its kit."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from fedhelm.errors import ExitStatus
from fedhelm.output import CommandParser, guarded
from fedhelm.process import KIT_MARK, ParticipantLock, child_env, raise_open_files, write_state

__all__ = ["main"]


def main(argv: list[str]) -> int:
    """Run the command; return its exit status."""
    parser = CommandParser(prog="fedhelm overseer", description="Run an overseer from its start-up kit.")
    parser.add_argument("--kit", type=Path, required=True, metavar="DIR", help="the folder that holds startup/")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--foreground", action="store_true", help="stay in the foreground (the default)")
    where.add_argument("--background", action="store_true", help="start in the background, output in log.txt")

    def body() -> int:
        args = parser.parse_args(argv)
        if args.background:
            from fedhelm.provision.launch import background

            return background(args.kit, "overseer")
        return _foreground(args.kit)

    return guarded(body)


def _foreground(root: Path) -> int:
    root = root.resolve()
    if os.environ.get(KIT_MARK) != str(root):
        # The mark by which every process of a kit is found must be there from the first instant of the process.
        command = [sys.executable, "-m", "fedhelm.cli", "overseer", "--kit", str(root)]
        sys.stdout.flush()
        os.execve(sys.executable, command, child_env(root, "overseer"))  # noqa: S606 - replaces this process by itself
    raise_open_files()
    import asyncio

    from fedhelm import log
    from fedhelm.config.log_levels import apply_levels
    from fedhelm.security.kit import open_kit

    kit = open_kit(root, role="overseer", remember=True)
    log.setup(kit.name, None if _goes_to(kit.log_file) else kit.log_file)
    apply_levels(kit)
    raise_open_files()
    lock = ParticipantLock(kit.run)
    lock.acquire()
    try:
        write_state(kit.run, ready=False)
        from fedhelm_overseer.listener import listen

        address = kit.own_overseer
        listen(address.host, address.port).close()  # a taken port is said now, while `start.sh` still looks
        from fedhelm_overseer.service import Service

        listener = listen(address.host, address.port)
        service = Service(
            kit,
            listener,
            opened=lambda: _ready(kit.name, kit.run, address.port),
            waiting=lambda error: write_state(kit.run, ready=False, reason=str(error)),
        )
        asyncio.run(service.run(signals=True))
    finally:
        lock.release()
    return ExitStatus.OK


def _ready(name: str, run: Path, port: int) -> None:
    import logging

    write_state(run, ready=True)
    logging.getLogger("fedhelm.overseer").info("%s serves at port %d", name, port)


def _goes_to(log_file: Path) -> bool:
    """Tell whether standard output is the log already (started in the background)."""
    try:
        return os.path.samestat(os.fstat(sys.stdout.fileno()), log_file.stat())
    except (OSError, ValueError):
        return False
