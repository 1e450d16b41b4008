"""What the admin library returns: immutable values, parsed once at the boundary. Times are ISO 8601 UTC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedhelm.errors import FedhelmError

__all__ = [
    "Check",
    "Event",
    "Explanation",
    "Failover",
    "Job",
    "JobDetail",
    "Operated",
    "Primary",
    "Revocations",
    "Server",
    "Shutdown",
    "SignedIn",
    "Site",
    "SiteStatus",
    "Status",
    "System",
    "Told",
]


@dataclass(frozen=True)
class SignedIn:
    """Who is signed in, and what the primary said of itself and of the federation at that moment."""

    principal: str
    role: str
    project: str
    server: str
    epoch: int
    standbys: int
    sites_up: int
    sites: int
    jobs_running: int
    capabilities: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Job:
    """One line of the list of jobs; ``duration_s`` runs from the submission until now or the end."""

    job_id: str
    name: str
    status: str
    submit_time: str
    duration_s: float
    submitter: str = ""

    @property
    def finished(self) -> bool:
        """The status will not change any more."""
        return self.status.startswith("FINISHED")

    @property
    def succeeded(self) -> bool:
        """The job ran to its end."""
        return self.status == "FINISHED:COMPLETED"


@dataclass(frozen=True)
class SiteStatus:
    """What one site of a job does: WAITING, TRAINING, DONE, DISCONNECTED or FAILED."""

    name: str
    status: str


@dataclass(frozen=True)
class JobDetail:
    """Everything known of one job. ``round`` counts from 1; 0 before the first one."""

    summary: Job
    round: int
    rounds: int
    sites: tuple[SiteStatus, ...]
    reason: str
    traceback: str
    metrics_json: str

    @property
    def job_id(self) -> str:
        """The job's whole id."""
        return self.summary.job_id

    @property
    def status(self) -> str:
        """The job's status, as in the list."""
        return self.summary.status

    @property
    def finished(self) -> bool:
        """The status will not change any more."""
        return self.summary.finished


@dataclass(frozen=True)
class Primary:
    """The server that leads, as the overseer knows it."""

    name: str
    epoch: int
    host: str
    fed_learn_port: int
    admin_port: int
    ssid: str


@dataclass(frozen=True)
class Server:
    """One server as the overseer sees it.

    ``state`` is a role of the protocol or ``DOWN``; ``epoch`` is the lease's, for its holder alone; ``beat_age_s`` is
    the time since its last sign of life. ``candidate``: it could be granted the lease now; ``note`` says why not.
    ``lag`` counts the records that it has not read yet.
    """

    name: str
    state: str
    epoch: int | None
    log_seq: int | None = None
    beat_age_s: float | None = None
    note: str | None = None
    candidate: bool = False
    lag: int | None = None
    software: str = ""


@dataclass(frozen=True)
class Check:
    """One condition of being granted the lease, and what was found."""

    name: str
    ok: bool
    text: str


@dataclass(frozen=True)
class Explanation:
    """Why a server is or is not a candidate; ``next`` would be granted the lease if the primary died now."""

    name: str
    candidate: bool
    verdict: str
    checks: tuple[Check, ...]
    next: str | None = None


@dataclass(frozen=True)
class System:
    """What admins decided of the whole system.

    ``paused``: nothing is granted but what an admin asks for. ``down``: servers were told to shut down, and none has
    come back since.
    """

    paused: bool = False
    paused_by: str | None = None
    reason: str | None = None
    down: bool = False


@dataclass(frozen=True)
class Failover:
    """One epoch: who led, why it began, when it was granted, and the gap before it in seconds.

    ``by`` is the admin who asked for it, ``jobs`` how many running jobs went on in it, where that is known.
    """

    epoch: int
    name: str
    cause: str
    time: str
    gap_s: float | None
    by: str | None = None
    jobs: int | None = None


@dataclass(frozen=True)
class Event:
    """One event of the overseer's stream; ``id`` grows, and resumes the stream after a break.

    ``text`` is for people, ``data`` has the facts: names, epoch, cause, gap, as far as they belong to the ``kind``.
    """

    id: int
    kind: str
    time: str
    text: str
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Site:
    """A site as the primary sees it, with the jobs that it takes part in."""

    name: str
    connected: bool
    jobs: tuple[str, ...]


@dataclass(frozen=True)
class Status:
    """The primary's own view of itself and of its sites.

    The log is kept from slot ``low_water``; ``checkpoint`` is the slot of the newest checkpoint, 0 for none;
    ``store_free`` are bytes, 0 for unknown.
    """

    server: str
    role: str
    epoch: int
    log_seq: int
    sites: tuple[Site, ...]
    jobs_running: int
    jobs_waiting: int
    low_water: int = 0
    checkpoint: int = 0
    log_version: int = 1
    store_free: float = 0.0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Operated:
    """Which sites were told, which could not be, and which refuse: site -> why."""

    told: tuple[str, ...]
    missed: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Shutdown:
    """What a shutdown came to: sites and servers that went, and those that did not in time or could not be told.

    ``sites_refused``: those of ``sites_left`` that refuse to go, and why.
    """

    sites: tuple[str, ...]
    sites_left: tuple[str, ...]
    servers: tuple[str, ...]
    servers_left: tuple[str, ...]
    sites_refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Nothing is left but the overseers."""
        return not (self.sites_left or self.servers_left)


@dataclass(frozen=True)
class Revocations:
    """A list of revoked certificates that was read: its version, how many, and whose (role and name, newest first).

    ``own``: the reader's own certificate is among them.
    """

    version: int
    certificates: int
    names: tuple[str, ...]
    own: bool = False


@dataclass(frozen=True)
class Told:
    """What one overseer said: ``taken``, or had already; ``error`` is why it did not take it."""

    overseer: str
    taken: bool = False
    error: FedhelmError | None = None
