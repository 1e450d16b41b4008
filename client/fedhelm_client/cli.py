"""``fedhelm client --kit DIR``: run the site of a start-up kit."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from fedhelm.config.kit import Kit
from fedhelm.errors import ExitStatus
from fedhelm.output import CommandParser, guarded
from fedhelm.process import KIT_MARK, ROLE_MARK, ParticipantLock, raise_open_files

if TYPE_CHECKING:
    from fedhelm_client.orders import Action

__all__ = ["main"]


def _parser() -> CommandParser:
    parser = CommandParser(prog="fedhelm client", description="Run a site: follow the primary, run its jobs' scripts.")
    parser.add_argument("--kit", type=Path, required=True, metavar="DIR", help="the site's folder, with startup/ in it")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--foreground", action="store_true", help="stay in the foreground (default)")
    where.add_argument("--background", action="store_true", help="go to the background; the log is DIR/log.txt")
    return parser


def main(argv: list[str]) -> int:
    """Run the command; return its exit status."""

    def body() -> int:
        arguments = _parser().parse_args(argv)
        if arguments.background:
            from fedhelm.provision.launch import background

            return background(arguments.kit, "client")
        return _foreground(arguments.kit)

    return guarded(body)


def _foreground(root: Path) -> int:
    from fedhelm.config.log_levels import apply_levels
    from fedhelm.config.site_settings import read_site_settings
    from fedhelm.log import setup
    from fedhelm.security.audit_start import read_audit_settings
    from fedhelm.security.gates import read_policy
    from fedhelm.security.kit import open_kit
    from fedhelm_client.outgoing import check_privacy

    kit = open_kit(root, role="site", remember=True)
    read_policy(kit.root)  # here, as the next ones: a mistake in a file of its own keeps a site from starting
    read_audit_settings(kit.local)
    read_site_settings(kit.local)
    check_privacy(kit)
    raise_open_files()
    lock = ParticipantLock(kit.run)
    lock.acquire()
    try:
        os.umask(0o077)  # what a site and its scripts write is nobody else's; a script may change it for what is
        # In the background standard output *is* the log file.
        setup(kit.name, None if _writes_to(kit.log_file) else kit.log_file)
        apply_levels(kit)
        os.environ[KIT_MARK] = str(kit.root)
        os.environ.setdefault(ROLE_MARK, "agent")
        ordered = asyncio.run(_serve(kit))
    finally:
        lock.release()
    if ordered == "restart":
        _begin_anew()
    return ExitStatus.OK


def _begin_anew() -> NoReturn:
    """Become a new agent in the same process, so that whoever started this one sees no end."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass  # adopted and dead: the new agent would not know of them
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - this program itself, as it was started


def _writes_to(path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(1), path.stat())
    except OSError:
        return False


async def _serve(kit: Kit) -> Action | None:
    from fedhelm_client.agent import Agent, guard_process

    guard_process()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    agent = Agent(kit)
    await agent.run(stop)
    return agent.ordered
