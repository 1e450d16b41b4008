"""A server's figures for Prometheus, over HTTPS; whoever asks shows a certificate of the project.

They are read from the child when they are asked for. Counters begin anew with each child, but for what its supervisor
counts: renewals and fences.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Final

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from fedhelm.config.kit import Kit
from fedhelm.errors import FedhelmError, PortTaken
from fedhelm.security.audit import AuditFigures
from fedhelm.security.audit_start import entry_of
from fedhelm.security.identity import principal_from_der
from fedhelm.security.policy import check_permission, check_role
from fedhelm.security.tls import refresh_server, server_context
from fedhelm_server.callers import Callers
from fedhelm_server.role import Role
from fedhelm_server.runtime import Runtime

__all__ = ["PERMISSION", "exposition", "make_registry", "serve_metrics"]

_log = logging.getLogger("fedhelm.server")

PERMISSION: Final = check_permission("overseer.health")
"""What a caller's role must have to read figures, here as at an overseer."""

_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_MAX_HEAD: Final = 8192
_LIMIT_S: Final = 5.0
"""For a handshake, for a request, and for its answer."""


class _Figures(Collector):
    """What a child is asked for at each scrape."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def collect(self) -> Iterator[Metric]:
        """Yield the figures of now."""
        runtime = self._runtime
        yield from self._lease()
        log = runtime.store.log
        yield _gauge("fedhelm_log_position", "Last slot of the log that was read.", runtime.book.seq)
        yield _gauge("fedhelm_log_low_water", "First slot that the log still keeps.", log.low_water)
        yield _gauge(
            "fedhelm_log_checkpoint", "Slot of the newest checkpoint, -1 without one.", _or(log.checkpoint, -1)
        )
        yield _gauge("fedhelm_log_version", "Version of the records that are written.", runtime.book.log_version)
        yield _gauge("fedhelm_store_ok", "1 while the store takes writes.", float(runtime.health.ok))
        yield _gauge("fedhelm_sites_connected", "Sites with an open stream.", len(runtime.streams.connected()))
        jobs = GaugeMetricFamily("fedhelm_jobs", "Jobs in the log, by status.", labels=["status"])
        for status, count in sorted(Counter(job.status for job in runtime.book.jobs.values()).items()):
            jobs.add_metric([status], count)
        yield jobs
        if runtime.callers.trail is not None:
            yield from _audit(runtime.callers.trail.figures)

    def _lease(self) -> Iterator[Metric]:
        runtime, told = self._runtime, self._runtime.figures
        yield _gauge("fedhelm_epoch", "Highest epoch in the log.", runtime.epoch)
        role = GaugeMetricFamily("fedhelm_role", "1 for the role that the server has.", labels=["role"])
        for one in Role:
            role.add_metric([str(one)], float(one is runtime.role))
        yield role
        left = max(0.0, runtime.deadline - runtime.clock.boottime()) if runtime.leads else 0.0
        yield _gauge("fedhelm_lease_left_seconds", "How long the lease may still be used; 0 without one.", left)
        renewals = CounterMetricFamily("fedhelm_lease_renewals", "Renewals of the lease.", labels=["result"])
        renewals.add_metric(["ok"], told.get("renewals", 0))
        renewals.add_metric(["failed"], told.get("failures", 0))
        yield renewals
        yield _counter("fedhelm_fenced", "Children that a newer primary's fence ended.", told.get("fenced", 0))
        for name, member in (("unleased", Role.UNLEASED), ("readonly", Role.READONLY)):
            yield _counter(f"fedhelm_{name}_seconds", f"Time spent as {member}.", runtime.seconds_as(member))


def _audit(told: AuditFigures) -> Iterator[Metric]:
    yield _gauge("fedhelm_audit_ok", "1 while lines of the audit file can be written.", float(told.problem is None))
    yield _gauge("fedhelm_audit_waiting", "Lines that wait for the audit file's disk.", told.waiting)
    yield _counter("fedhelm_audit_lost", "Audit lines that were lost; their number is written.", told.lost)
    text = "Audit lines that the syslog receiver did not get, as far as is known."
    yield _counter("fedhelm_audit_not_handed_on", text, told.not_handed_on)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


def make_registry(runtime: Runtime) -> CollectorRegistry:
    """Return the figures of ``runtime``; from now on its appends are timed."""
    registry = CollectorRegistry()
    registry.register(_Figures(runtime))
    text = "Time of one append to the log, which carries up to 512 items."
    runtime.on_append.append(Histogram("fedhelm_append_seconds", text, buckets=_BUCKETS, registry=registry).observe)
    return registry


def exposition(registry: CollectorRegistry) -> bytes:
    """Return the figures in Prometheus's text format."""
    return generate_latest(registry)


@contextlib.asynccontextmanager
async def serve_metrics(runtime: Runtime, port: int) -> AsyncIterator[int]:
    """Answer ``GET /metrics`` at the server's own host while the context is open; yield the port.

    Raises:
        PortTaken: another program listens there.
    """
    kit, registry = runtime.kit, make_registry(runtime)
    endpoint = _Endpoint(kit, registry, runtime.callers)
    host, context = kit.own_server.host, server_context(kit)
    try:
        server = await asyncio.start_server(
            endpoint.answer, host, port, ssl=context, ssl_handshake_timeout=_LIMIT_S, limit=_MAX_HEAD
        )
    except OSError as error:
        raise PortTaken(f"{kit.name}: port {port} on {host} cannot be used for metrics: {error.strerror}") from None
    runtime.callers.on_kit.append(partial(refresh_server, context))
    async with server:
        bound: int = server.sockets[0].getsockname()[1]
        _log.info("%s shows its figures at https://%s:%d/metrics", kit.name, host, bound)
        yield bound


class _Endpoint:
    """One request a connection."""

    def __init__(self, kit: Kit, registry: CollectorRegistry, callers: Callers) -> None:
        self._kit = kit
        self._registry = registry
        self._callers = callers

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        try:
            async with asyncio.timeout(_LIMIT_S):
                head = await reader.readuntil(b"\r\n\r\n")
                status, kind, body = self._respond(head, writer)
                lines = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\nconnection: close"
                writer.write(lines.encode() + b"\r\n\r\n" + body)
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a caller that does not ask, or does not listen, gets nothing
        finally:
            writer.close()

    def _respond(self, head: bytes, writer: asyncio.StreamWriter) -> tuple[str, str, bytes]:
        plain = "text/plain; charset=utf-8"
        tls = writer.get_extra_info("ssl_object")
        principal = None
        try:
            principal = principal_from_der(tls.getpeercert(binary_form=True), self._kit.project)
            if self._callers.revocations is not None:
                self._callers.revocations.check(principal.serial)
            check_role(principal, PERMISSION)
        except FedhelmError as error:
            if self._callers.trail is not None:
                self._callers.trail.note(entry_of("GET /metrics", principal, {}, error))
            return "403 Forbidden", plain, f"{error.message}\n".encode()
        method, path, *_ = (*head.split(b" ", 2), b"", b"")
        if (method, path.partition(b"?")[0]) != (b"GET", b"/metrics"):
            return "404 Not Found", plain, b"GET /metrics is all there is\n"
        return "200 OK", CONTENT_TYPE_LATEST, exposition(self._registry)
