"""Protobuf and overseer models to the values of ``fedhelm.admin.models``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fedhelm.admin.models import (
    Check,
    Event,
    Explanation,
    Failover,
    Job,
    JobDetail,
    Operated,
    Primary,
    Server,
    SignedIn,
    Site,
    SiteStatus,
    Status,
    System,
    Told,
)

if TYPE_CHECKING:
    from fedhelm.v1 import admin_pb2

__all__ = [
    "detail",
    "event",
    "explanation",
    "failover",
    "job",
    "operated",
    "primary",
    "server",
    "signed_in",
    "status",
    "system",
    "told",
]


def signed_in(reply: admin_pb2.LoginReply) -> SignedIn:
    """Read the answer to a login."""
    return SignedIn(
        principal=reply.principal,
        role=reply.role,
        project=reply.project,
        server=reply.server,
        epoch=reply.epoch,
        standbys=reply.standbys,
        sites_up=reply.sites_up,
        sites=reply.sites,
        jobs_running=reply.jobs_running,
        capabilities=frozenset(reply.capabilities),
    )


def job(message: admin_pb2.JobSummary) -> Job:
    """Read one line of the list of jobs."""
    return Job(
        job_id=message.job,
        name=message.name,
        status=message.status,
        submit_time=message.submit_time,
        duration_s=round(message.duration_s, 3),
        submitter=message.submitter,
    )


def detail(message: admin_pb2.JobDetail) -> JobDetail:
    """Read everything known of one job."""
    return JobDetail(
        summary=job(message.summary),
        round=message.round,
        rounds=message.rounds,
        sites=tuple(SiteStatus(site.name, site.status) for site in message.sites),
        reason=message.reason,
        traceback=message.traceback,
        metrics_json=message.metrics_json,
    )


def status(message: admin_pb2.StatusReply) -> Status:
    """Read the primary's view of itself."""
    return Status(
        server=message.server,
        role=message.role,
        epoch=message.epoch,
        log_seq=message.log_seq,
        sites=tuple(Site(site.name, site.connected, tuple(site.jobs)) for site in message.sites),
        jobs_running=message.jobs_running,
        jobs_waiting=message.jobs_waiting,
        low_water=message.low_water,
        checkpoint=message.checkpoint,
        log_version=message.log_version or 1,
        store_free=message.store_free,
        warnings=tuple(message.warnings),
    )


def operated(message: admin_pb2.OperateReply) -> Operated:
    """Read which sites were told, and which refuse."""
    refused = {one.site: one.reason for one in message.refused}
    return Operated(tuple(message.sites), tuple(message.disconnected), refused)


def primary(view: Any) -> Primary:
    """Read the overseer's ``PrimaryView``."""
    return Primary(view.name, view.epoch, view.host, view.fed_learn_port, view.admin_port, view.ssid)


def server(view: Any) -> Server:
    """Read the overseer's ``ServerView``."""
    return Server(
        name=view.name,
        state=view.state,
        epoch=view.epoch,
        log_seq=view.log_seq,
        beat_age_s=view.beat_age_s,
        note=view.note,
        candidate=view.candidate,
        lag=view.lag,
        software=view.software,
    )


def explanation(view: Any) -> Explanation:
    """Read the overseer's ``ExplainView``."""
    checks = tuple(Check(one.name, one.ok, one.text) for one in view.checks)
    return Explanation(view.name, view.candidate, view.verdict, checks, view.next)


def system(view: Any) -> System:
    """Read the overseer's ``SystemView``."""
    return System(view.paused, view.paused_by, view.reason, view.down)


def failover(entry: Any) -> Failover:
    """Read the overseer's ``HistoryEntry``."""
    return Failover(entry.epoch, entry.holder, entry.cause, entry.granted_at, entry.gap_s, entry.by, entry.jobs)


def event(body: Any) -> Event:
    """Read the overseer's ``Event``."""
    return Event(body.id, body.kind, body.time, body.text, body.data)


def told(said: Any) -> Told:
    """Read the client's ``HandedOver``."""
    return Told(said.overseer, said.view is not None and said.view.taken, said.error)
