"""The overseer's figures for Prometheus, in a registry of their own."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from fedhelm.security.audit import AuditFigures
from fedhelm.wire.overseer_api import LeaseState
from fedhelm_overseer.decide import EXPIRED

__all__ = ["CONTENT_TYPE", "Facts", "Metrics", "audit_figures", "cause_kind"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_KINDS = (
    (re.compile(re.escape(EXPIRED)), "expired"),
    (re.compile(r"switchover rolled back"), "rolled_back"),
    (re.compile(r"switchover"), "switchover"),
    (re.compile(r"adopted"), "adopted"),
    (re.compile(r"first grant"), "first"),
    (re.compile(r"log at epoch \d+"), "epoch_repair"),
)


def cause_kind(cause: str | None) -> str:
    """Return the kind of a grant's cause, one of a few words; ``released`` for what a server said when it let go."""
    return next((kind for pattern, kind in _KINDS if pattern.fullmatch(cause or "")), "released")


@dataclass(frozen=True, slots=True)
class Facts:
    """The figures of the moment. Times in seconds; None where they are not known."""

    epoch: int
    state: LeaseState
    paused: bool
    since_renewal: float | None
    lease_left: float | None
    up: int
    servers: int
    refused: int
    unleased_s: float
    fenced: int
    revocations: int


class Metrics:
    """Counts what happens, and writes it down as text together with the ``Facts``. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._registry = CollectorRegistry()

        def gauge(name: str, told: str, *labels: str) -> Gauge:
            return Gauge(f"fedhelm_overseer_{name}", told, labels, registry=self._registry)

        def counter(name: str, told: str, *labels: str) -> Counter:
            return Counter(f"fedhelm_overseer_{name}", told, labels, registry=self._registry)

        self._epoch = gauge("epoch", "Epoch of the lease row.")
        self._state = gauge("lease_state", "1 for the state the lease row is in, 0 for the others.", "state")
        self._since = gauge("seconds_since_renewal", "Seconds since the holder renewed; NaN if none was seen.")
        self._left = gauge(
            "lease_left_seconds", "Seconds until the lease runs out unless renewed; NaN if nobody holds it."
        )
        self._paused = gauge("failover_paused", "1 while an admin has paused failover.")
        self._up = gauge("servers_up", "Servers heard within T.")
        self._servers = gauge("servers", "Servers that the project has.")
        self._refusing = gauge("servers_refusing", "Servers that refused a grant and did not register again.")
        self._revocations = gauge("revocations_version", "Version of the list of revoked certificates; 0 for none.")
        self._latency = gauge("store_seconds", "Seconds that the last reading of the lease store took.")
        self._unleased = counter("unleased_seconds", "Seconds for which servers reported to write without a lease.")
        self._fenced = counter("fenced", "Times that a server reported a foreign fence.")
        self._written = (0.0, 0)
        self._alarm = gauge("alarm", "1 while nobody leads and nobody may be granted the lease.")
        self._renewals = counter("renewals", "Renewals that this overseer wrote.")
        self._grants = counter("grants", "Grants that this overseer saw, by kind of cause.", "cause")
        self._failovers = counter("failovers", "Times that another server took over, by kind of cause.", "cause")
        self._refusals = counter("refusals", "Grants that a server gave back because it could not promote.")
        self._failures = counter("store_failures", "Readings of the lease store that failed.")

    def renewed(self) -> None:
        """Count a renewal."""
        self._renewals.inc()

    def granted(self, cause: str | None) -> None:
        """Count a grant."""
        self._grants.labels(cause_kind(cause)).inc()

    def moved(self, cause: str | None) -> None:
        """Count a change of the primary."""
        self._failovers.labels(cause_kind(cause)).inc()

    def refused(self) -> None:
        """Count a refusal."""
        self._refusals.inc()

    def store_took(self, seconds: float) -> None:
        """Take note of how long the store took to answer."""
        self._latency.set(seconds)

    def store_failed(self) -> None:
        """Count a failure of the store."""
        self._failures.inc()

    def alarm(self, *, raised: bool) -> None:
        """Take note of an alarm that is raised or over."""
        self._alarm.set(raised)

    def render(self, facts: Facts) -> bytes:
        """Return everything in Prometheus' text format."""
        with self._lock:
            self._epoch.set(facts.epoch)
            for state in get_args(LeaseState):
                self._state.labels(state).set(state == facts.state)
            self._since.set(_or_nan(facts.since_renewal))
            self._left.set(_or_nan(facts.lease_left))
            self._paused.set(facts.paused)
            self._up.set(facts.up)
            self._servers.set(facts.servers)
            self._refusing.set(facts.refused)
            self._revocations.set(facts.revocations)
            unleased_s, fenced = self._written
            self._unleased.inc(facts.unleased_s - unleased_s)
            self._fenced.inc(facts.fenced - fenced)
            self._written = (facts.unleased_s, facts.fenced)
            return generate_latest(self._registry)


def audit_figures(told: AuditFigures) -> bytes:
    """Return how the audit file does, in Prometheus' text format."""
    rows = (
        ("ok", "gauge", "1 while lines of the audit file can be written.", int(told.problem is None)),
        ("waiting", "gauge", "Lines that wait for the audit file's disk.", told.waiting),
        ("lost_total", "counter", "Audit lines that were lost; their number is written.", told.lost),
        (
            "not_handed_on_total",
            "counter",
            "Lines that the syslog receiver did not get, as is known.",
            told.not_handed_on,
        ),
    )
    name = "fedhelm_overseer_audit_"
    lines = (f"# HELP {name}{of} {text}\n# TYPE {name}{of} {kind}\n{name}{of} {n}\n" for of, kind, text, n in rows)
    return "".join(lines).encode()


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
