"""The child of a server's supervisor: opens the store, serves both ports, follows its supervisor's frames."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import fedhelm.wire  # before grpc, which reads the environment that this sets when it is imported

# isort: split
import grpc.aio

from fedhelm.clock import SystemClock
from fedhelm.config.kit import Kit
from fedhelm.config.log_levels import apply_levels
from fedhelm.errors import FedhelmError, PortTaken
from fedhelm.local.channel import Channel, open_fd
from fedhelm.log import setup
from fedhelm.persist.store import open_store
from fedhelm.process import die_with_parent, set_non_dumpable
from fedhelm.security.kit import open_kit
from fedhelm.security.reloading import ReloadingKit, watch_kit
from fedhelm.tasks import cancel, spawn
from fedhelm.v1 import admin_pb2, fleet_pb2
from fedhelm.wire.chain import ServiceHandlers
from fedhelm.wire.server_certificate import ServerCertificate
from fedhelm.wire.serving import new_server
from fedhelm_server.admin_service import AdminService
from fedhelm_server.callers import Callers
from fedhelm_server.checkpoints import Checkpoints
from fedhelm_server.fleet_service import FleetService
from fedhelm_server.job_control import JobControl
from fedhelm_server.local_settings import read_settings
from fedhelm_server.runtime import Runtime

__all__ = ["main", "serve"]

assert fedhelm.wire.TLS_1_3_ONLY

_log = logging.getLogger("fedhelm.server")


def _listen(server: grpc.aio.Server, kit: Kit, port: int, certificate: ServerCertificate) -> None:
    address = f"{kit.own_server.host}:{port}"
    try:
        bound = server.add_secure_port(address, certificate.credentials())
    except RuntimeError:
        bound = 0
    if bound != port:
        raise PortTaken(f"{kit.name}: port {port} on {kit.own_server.host} is in use", hint="stop what holds it")


async def serve(kit: Kit, incarnation: str, control_fd: int) -> None:
    """Run until the supervisor says stop or goes away, or a foreign fence ends this child's time.

    Raises:
        FedhelmError: the store is not the right one, or damaged, or a port is taken.
    """
    link = await open_fd(control_fd)
    try:
        await _serve(kit, incarnation, link)
    except FedhelmError as error:
        with contextlib.suppress(ConnectionError):
            await link.send("failed", reason=str(error))
        raise
    finally:
        link.close()


async def _serve(kit: Kit, incarnation: str, link: Channel) -> None:
    callers = Callers.of(kit)
    try:
        await _serve_ports(kit, incarnation, link, callers)
    finally:
        await asyncio.to_thread(callers.close)


async def _serve_ports(kit: Kit, incarnation: str, link: Channel, callers: Callers) -> None:
    assert kit.store is not None
    settings = read_settings(kit.local)
    store = open_store(kit.store, kit.cluster)
    runtime = Runtime(kit, incarnation, store, SystemClock(), link, settings=settings, callers=callers)
    control = JobControl(runtime)
    checkpoints = Checkpoints(runtime)
    services = {
        kit.own_server.fed_learn_port: (
            fleet_pb2.DESCRIPTOR.services_by_name["Fleet"],
            FleetService(runtime, control.disk),
        ),
        kit.own_server.admin_port: (admin_pb2.DESCRIPTOR.services_by_name["Admin"], AdminService(runtime, control)),
    }
    certificate = ServerCertificate(kit)
    callers.on_kit += [certificate.take, runtime.take_kit]
    servers = []
    for port, (service, implementation) in services.items():
        handlers = ServiceHandlers(
            service,
            implementation,
            project=kit.project,
            epoch=lambda: runtime.epoch,
            policy=callers.policy,
            trail=callers.trail,
            revocations=callers.revocations,
        )
        callers.services.append(handlers)
        server = new_server([handlers])
        _listen(server, kit, port, certificate)
        servers.append(server)
    for server in servers:
        await server.start()
    _log.info("%s listens on %s", kit.name, ", ".join(str(port) for port in services))
    async with _figures(runtime, settings.metrics_port):
        await _work(runtime, control, checkpoints, servers)


def _figures(runtime: Runtime, port: int | None) -> contextlib.AbstractAsyncContextManager[int | None]:
    if port is None:
        return contextlib.nullcontext()
    from fedhelm_server.metrics import serve_metrics

    return serve_metrics(runtime, port)


async def _work(
    runtime: Runtime, control: JobControl, checkpoints: Checkpoints, servers: Sequence[grpc.aio.Server]
) -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, runtime.stopping.set)
    loops = [
        spawn(runtime.serve_link(), "supervisor link"),
        spawn(runtime.beat(), "beat"),
        spawn(runtime.ledger.run(), "ledger"),
        spawn(runtime.follow_log(), "log"),
        spawn(runtime.watch_store(), "store"),
        spawn(runtime.tokens.run(), "store tokens"),
        spawn(control.run(), "dispatch"),
        spawn(control.disk.run(), "disk"),
        spawn(checkpoints.run(), "checkpoints"),
        spawn(watch_kit(ReloadingKit(runtime.kit), runtime.callers.take), "kit"),
        spawn(runtime.callers.watch_own_policy(), "policy"),
    ]
    for loop in loops:
        # A loop that ends has failed: this child is no use any more, and its supervisor starts another.
        loop.add_done_callback(lambda _: runtime.stopping.set())
    await runtime.stopping.wait()
    failures = [loop.exception() for loop in loops if loop.done() and not loop.cancelled()]
    runtime.streams.end_all()
    await control.runners.stop()
    await asyncio.gather(*(server.stop(0.2) for server in servers))
    await cancel(*loops)
    for failure in failures:
        if isinstance(failure, FedhelmError):
            raise failure  # a damaged record, above all: its slot is the last word of this child's log


def main(argv: list[str]) -> int:
    """Run a child; the supervisor's own command, not for people."""
    parent = os.getppid()
    parser = argparse.ArgumentParser(prog="fedhelm_server.child")
    parser.add_argument("--kit", type=Path, required=True)
    parser.add_argument("--incarnation", required=True)
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--parent-pid", type=int)
    options = parser.parse_args(argv)
    die_with_parent(options.parent_pid or parent)
    set_non_dumpable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at a foreground server is its supervisor's business
    try:
        kit = open_kit(options.kit, "server")
        setup(kit.name)
        apply_levels(kit)
        asyncio.run(serve(kit, options.incarnation, options.control_fd))
    except FedhelmError as error:
        hint = f" (hint: {error.hint})" if error.hint else ""
        sys.stderr.write(f"error[{error.code}]: {error}{hint}\n")
        return int(error.exit_status)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
