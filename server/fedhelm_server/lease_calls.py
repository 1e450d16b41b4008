"""What a supervisor asks of the overseers, and the keeper's values as the bodies of those calls and back."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from types import MappingProxyType
from typing import Any, Protocol, cast

from fedhelm.wire import overseer_api as api
from fedhelm_server import keeper_values as kv

__all__ = ["CALLS", "LeaseCalls"]

_MAX_REASON = 2000


class LeaseCalls(Protocol):
    """What a supervisor asks of the overseers (``fedhelm.wire.overseer_client.OverseerClient``)."""

    async def register(self, request: api.RegisterRequest) -> api.RegisterReply:
        """Announce an incarnation."""
        ...

    async def beat(self, request: api.BeatRequest) -> api.LeaseView:
        """Send a sign of life."""
        ...

    async def renew(self, request: api.RenewRequest) -> api.RenewReply:
        """Renew the lease."""
        ...

    async def activate(self, request: api.ActivateRequest) -> api.LeaseView:
        """Tell that the fence is in the log."""
        ...

    async def release(self, request: api.ReleaseRequest) -> api.LeaseView:
        """Give the lease back."""
        ...

    async def wait_lease(self, after: int, wait_s: float) -> api.LeaseView:
        """Wait for a change of the lease row."""
        ...


def _lease(view: api.LeaseView) -> kv.Lease:
    intent = kv.Intent(view.intent.target, view.intent.request_id) if view.intent is not None else None
    return kv.Lease(
        version=view.version,
        epoch=view.epoch,
        holder=view.holder,
        incarnation=view.incarnation,
        state=view.state,
        intent=intent,
        log_seq=view.log_seq,
        cause=view.cause,
        shutdown=view.shutdown,
        log_version=view.log_version,
        store_tokens=dict(view.store_tokens),
        standby_store_ok=view.standby_store_ok,
    )


def _reason(report: kv.Report) -> str | None:
    wanting = report.reason if not (report.ready and report.store_ok) else None
    return wanting[:_MAX_REASON] if wanting else None


async def _register(overseer: LeaseCalls, call: kv.Register, sent_at: float) -> kv.Answered:
    report = call.report
    request = api.RegisterRequest(
        incarnation=call.incarnation,
        replaces=call.replaces,
        cluster=report.cluster,
        log_epoch=report.log_epoch,
        log_seq=report.log_seq,
        unleased=call.unleased,
        store_ok=call.store_ok,
        ready=report.ready,
        role=cast("api.Role", report.role),
        reason=_reason(report),
        store_token=report.store_token,
        log_versions=call.about.log_versions,
        software=call.about.software,
        announcement=call.about.announcement,
    )
    reply = await overseer.register(request)
    return kv.Answered(call, sent_at, _lease(reply.lease), reply.accepted, reply.retry_after_s, reply.message or "")


async def _beat(overseer: LeaseCalls, call: kv.Beat, sent_at: float) -> kv.Answered:
    report = call.report
    request = api.BeatRequest(
        incarnation=call.incarnation,
        role=cast("api.Role", report.role),
        log_epoch=report.log_epoch,
        log_seq=report.log_seq,
        ready=report.ready,
        store_ok=call.store_ok,
        unleased=call.unleased,
        reason=_reason(report),
        store_token=report.store_token,
        leaving=call.leaving,
        log_versions=call.about.log_versions,
        software=call.about.software,
    )
    return kv.Answered(call, sent_at, _lease(await overseer.beat(request)))


async def _renew(overseer: LeaseCalls, call: kv.Renew, sent_at: float) -> kv.Answered:
    request = api.RenewRequest(
        epoch=call.epoch,
        incarnation=call.incarnation,
        log_epoch=call.report.log_epoch,
        log_seq=call.report.log_seq,
        role=cast("api.Role", call.report.role),
    )
    reply = await overseer.renew(request)
    return kv.Answered(call, sent_at, _lease(reply.lease), reply.held)


async def _activate(overseer: LeaseCalls, call: kv.Activate, sent_at: float) -> kv.Answered:
    request = api.ActivateRequest(epoch=call.epoch, incarnation=call.incarnation, log_seq=call.log_seq, jobs=call.jobs)
    return kv.Answered(call, sent_at, _lease(await overseer.activate(request)))


async def _release(overseer: LeaseCalls, call: kv.Release, sent_at: float) -> kv.Answered:
    request = api.ReleaseRequest(
        epoch=call.epoch,
        incarnation=call.incarnation,
        reason=call.reason[:_MAX_REASON],
        refused=call.refused,
        handoff=call.handoff,
    )
    return kv.Answered(call, sent_at, _lease(await overseer.release(request)))


async def _wait_lease(overseer: LeaseCalls, call: kv.WaitLease, sent_at: float) -> kv.Answered:
    return kv.Answered(call, sent_at, _lease(await overseer.wait_lease(call.after, call.wait)))


_Call = Callable[[LeaseCalls, Any, float], Coroutine[Any, Any, kv.Answered]]

CALLS: Mapping[type[kv.OverseerCall], _Call] = MappingProxyType(
    {
        kv.Register: _register,
        kv.Beat: _beat,
        kv.Renew: _renew,
        kv.Activate: _activate,
        kv.Release: _release,
        kv.WaitLease: _wait_lease,
    }
)
"""Kind of call -> makes it; takes the overseers, the call, and the boot time at which it is sent."""
