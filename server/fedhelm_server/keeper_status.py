"""What an operator is told of a server, from what its keeper knows."""

from __future__ import annotations

from fedhelm_server.keeper_values import Hold, Phase, Stage, State

__all__ = ["status", "trouble"]


def status(state: State) -> str | None:
    """What this server is, in an operator's words; None while it changes."""
    report = state.child.report
    if state.done or state.stopping_since is not None or state.child.phase is not Phase.ALIVE:
        return None
    if state.hold is not None:
        return _holder_status(state.hold)
    if state.refused_since is not None:
        return "waiting: the overseer still sees another run of this server"
    if not report.ready:
        lasting = state.registered or not report.store_ok  # else it is on its way
        return f"not ready: {report.reason}" if report.reason and lasting else None
    if not state.registered or state.child.kill_at is not None:
        return None
    return "standby" if report.store_ok else f"standby, not a candidate: {report.reason or 'its store takes no writes'}"


def _holder_status(hold: Hold) -> str:
    if hold.stage is Stage.PROMOTING:
        return f"promoting, epoch {hold.epoch} ({hold.cause})"
    if hold.stage is not Stage.ACTIVE:
        return f"handing over, epoch {hold.epoch}"
    alarm = ", DEGRADED: no failover" if hold.unleased else ""
    return f"primary, epoch {hold.epoch} ({hold.cause}){alarm}"


def trouble(state: State) -> str | None:
    """Return what keeps this server from being ready, None if nothing does, or nothing is known yet."""
    alive, report = state.child.phase is Phase.ALIVE, state.child.report
    if alive and report.ready:
        return None if state.refused_since is None else "the overseer still sees another run of this server"
    return report.reason if alive and not report.store_ok else state.failure
