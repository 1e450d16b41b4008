"""``fedhelm server --kit DIR``: run an FL server, that is its supervisor, from its kit."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import os
import socket
import sys
from importlib import metadata
from pathlib import Path

from fedhelm import log
from fedhelm.config.kit import Kit
from fedhelm.config.log_levels import apply_levels
from fedhelm.errors import ExitStatus, PortTaken, StoreUnavailable, WrongStore
from fedhelm.output import CommandParser, guarded
from fedhelm.persist.record import READABLE_VERSIONS
from fedhelm.persist.store import open_store, probe
from fedhelm.process import KIT_MARK, ParticipantLock, child_env, raise_open_files
from fedhelm.provision.launch import PROGRAM, background
from fedhelm.provision.stop import wait_until
from fedhelm.security.audit_start import read_audit_settings
from fedhelm.security.gates import read_policy
from fedhelm.security.kit import open_kit
from fedhelm.tasks import cancel, spawn
from fedhelm.wire.announcement import announcement_of
from fedhelm.wire.overseer_client import OverseerClient
from fedhelm_server import keeper_values as kv
from fedhelm_server.local_settings import LocalSettings, read_settings
from fedhelm_server.supervisor import Supervisor
from fedhelm_server.trust_watch import TrustWatch

__all__ = ["main"]

_FREE_S = 0.3


def main(argv: list[str]) -> int:
    """Run the command; return its exit status."""
    parser = CommandParser(prog="fedhelm server", description="Run an FL server from its start-up kit.")
    parser.add_argument("--kit", type=Path, required=True, help="the server's folder, the one that holds startup/")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--foreground", action="store_true", help="stay in the foreground (default)")
    where.add_argument("--background", action="store_true", help="go to the background, log to log.txt")

    def body() -> int:
        args = parser.parse_args(argv)
        return background(args.kit, "server") if args.background else _foreground(args)

    return guarded(body)


def _foreground(args: argparse.Namespace) -> int:
    kit = open_kit(args.kit, role="server", remember=True)
    settings = read_settings(kit.local)
    read_policy(kit.root)  # here and in the next line: a mistake is told now, rather than by one child after the other
    read_audit_settings(kit.local)
    kit.timing.check(stop_when_unleased=settings.stop_when_unleased)
    if os.environ.get(KIT_MARK) != str(kit.root.resolve()):
        # The mark by which `poc status` finds a participant's processes is read from the environment at exec.
        arguments = [*PROGRAM, "server", "--kit", str(kit.root)]
        os.execve(sys.executable, arguments, child_env(kit.root, "supervisor"))  # noqa: S606  replaces this process
    raise_open_files()  # its child and the runners have it from here
    lock = ParticipantLock(kit.run)
    lock.acquire()
    try:
        log.setup(kit.name, None if _stdout_is(kit.log_file) else kit.log_file)
        apply_levels(kit)
        _check_ports(kit, settings)
        _check_store(kit)
        asyncio.run(_serve(kit, settings))
    finally:
        lock.release()
    return ExitStatus.OK


async def _serve(kit: Kit, settings: LocalSettings) -> None:
    about = kv.About(tuple(sorted(READABLE_VERSIONS)), _software(), announcement_of(kit))
    kept = kv.Settings(kit.name, kit.timing, about, settings.stop_when_unleased)
    trust = TrustWatch(kit)
    async with OverseerClient(kit, announced=trust.announced, check=trust.revocations.check) as overseer:
        supervisor = Supervisor(kit, overseer, settings=kept)

        def tell(version: int) -> None:
            supervisor.tell_child("revocations", version=version)

        watch = spawn(trust.run(overseer, tell, supervisor.warn), "trust")
        try:
            await supervisor.run()
        finally:
            await cancel(watch)


def _check_store(kit: Kit) -> None:
    """Refuse a wrong store now, in words, rather than by one child after the other.

    Raises:
        WrongStore: no genesis, or another cluster's; the hint says how a federation's first start makes the store. Or
            it lets a name be created twice.
    """
    assert kit.store is not None
    try:
        open_store(kit.store, kit.cluster)
    except WrongStore as error:
        if not (kit.store / "log" / f"{0:016d}").exists():
            script = kit.startup / "start.sh"
            error.hint = f"is it mounted? At the federation's very first start, and only then: {script} --found-store"
        raise
    with contextlib.suppress(StoreUnavailable):  # full or read-only: the child waits until it takes writes
        probe(kit.store)


def _software() -> str:
    try:
        return metadata.version("fedhelm")
    except metadata.PackageNotFoundError:
        return ""


def _stdout_is(path: Path) -> bool:
    """Tell whether standard output already goes to ``path``, as it does in the background."""
    try:
        return os.path.samestat(os.fstat(sys.stdout.fileno()), path.stat())
    except (OSError, ValueError):
        return False


def _check_ports(kit: Kit, settings: LocalSettings) -> None:
    """Fail now, in words, rather than by a child that cannot start.

    Raises:
        PortTaken: another program listens where this server is to listen.
    """
    own = kit.own_server
    figures = () if settings.metrics_port is None else (settings.metrics_port,)
    for port in (own.fed_learn_port, own.admin_port, *figures):
        # The child of a supervisor that was just killed needs a moment to be gone.
        if not wait_until(lambda port=port: _is_free(own.host, port), _FREE_S):  # type: ignore[misc]
            raise PortTaken(
                f"{kit.name} cannot listen on {own.host}:{port}: the port is taken",
                hint=f"`ss -ltnp sport = :{port}` shows by whom",
            )


def _is_free(host: str, port: int) -> bool:
    for family, kind, protocol, address in _addresses(host, port):
        with socket.socket(family, kind, protocol) as probe:
            # As the child's listener does: a connection in TIME_WAIT is no obstacle.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    return False
    return True


def _addresses(host: str, port: int) -> list[tuple[int, int, int, tuple[str, int]]]:
    """Resolve; what does not resolve here (a name known outside only) is the child's to judge."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return [(family, kind, protocol, (str(where[0]), port)) for family, kind, protocol, _, where in found]
