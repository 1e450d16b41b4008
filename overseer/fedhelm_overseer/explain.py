"""Why a server is or is not a candidate, in an operator's words; what would happen is what ``decide`` itself says."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedhelm.config.timing import Timing
from fedhelm.wire.overseer_api import Check, ExplainView
from fedhelm_overseer.decide import Adopt, Grant, Seen, Server, after_primary, rank, unfit
from fedhelm_overseer.lease import LeaseRow

__all__ = ["Subject", "explain", "successor"]


@dataclass(frozen=True, slots=True)
class Subject:
    """A server of the project and what the board knows of it beyond ``Seen``. Ages in seconds."""

    name: str
    server: Server | None
    age: float | None = None
    note: str | None = None
    behind: int = 0
    log_versions: tuple[int, ...] = ()
    hold_down_left: float = 0.0


def successor(row: LeaseRow, seen: Seen, timing: Timing, now: float) -> str | None:
    """Name the server that would be granted the lease if the primary died now; None if nobody could."""
    action = after_primary(row, seen, timing, now)
    return action.holder.name if isinstance(action, Grant | Adopt) else None


def explain(
    subject: Subject, row: LeaseRow, seen: Seen, timing: Timing, now: float, *, heard: bool, all_read: int
) -> ExplainView:
    """Return the findings on one server.

    Args:
        subject: the server.
        row: the lease row.
        seen: the observations.
        timing: the project's times.
        now: boot time.
        heard: the row's holder renewed within T.
        all_read: the highest version of the log that all servers read.
    """
    following = successor(row, seen, timing, now)
    server = subject.server
    if server is None:
        told = "it has not registered with this overseer"
        findings: tuple[Check, ...] = (Check(name="heard", ok=False, text=told),)
        verdict = f"{subject.name} cannot be granted the lease: {told}."
    else:
        findings = _checks(subject, server, row, timing, all_read)
        verdict = _verdict(server, row, seen, following, heard=heard)
    return ExplainView(
        name=subject.name,
        candidate=server is not None and unfit(server, row) is None,
        verdict=verdict,
        checks=(*findings, _paused(row), _holder(row, heard=heard)),
        next=following,
    )


def _checks(subject: Subject, server: Server, row: LeaseRow, timing: Timing, all_read: int) -> tuple[Check, ...]:
    held = server.holder == row.holder and row.state in {"granted", "active"}
    spent = server.spent and (unfit(server, row) or "").startswith("this incarnation")
    left, versions = subject.hold_down_left, ", ".join(map(str, subject.log_versions)) or "unknown"
    findings = (
        ("heard", server.live, _heard(subject, timing)),
        ("role", held or server.role == "STANDBY", f"it is {server.role}"),
        (
            "ready",
            server.ready,
            "it reads the log" if server.ready else f"not ready: {subject.note or 'no reason given'}",
        ),
        (
            "store",
            server.store_ok,
            "its write probe of the store succeeds"
            if server.store_ok
            else f"its write probe of the store fails{f': {subject.note}' if subject.note else ''}",
        ),
        (
            "log",
            subject.behind == 0,
            f"epoch {server.log_epoch}, slot {server.log_seq}"
            + (f", {subject.behind} records behind: promote_sp would be refused" if subject.behind else ""),
        ),
        ("log_versions", all_read in (subject.log_versions or (1,)), f"reads versions {versions}; all read {all_read}"),
        (
            "refused",
            server.refused is None,
            f"it refused: {server.refused}" if server.refused else "it refused nothing",
        ),
        (
            "incarnation",
            not spent,
            f"incarnation {server.incarnation}" + (" held the lease before: it has to come back as a new one" * spent),
        ),
        (
            "hold_down",
            left <= 0,
            f"it let its lease run out: not preferred for {math.ceil(left)} s more, and promote_sp would be refused"
            if left > 0
            else "not held down",
        ),
    )
    return tuple(Check(name=name, ok=ok, text=text) for name, ok, text in findings)


def _heard(subject: Subject, timing: Timing) -> str:
    if subject.age is None:
        return "not heard since this overseer started"
    return f"heard {subject.age:.1f} s ago" + (
        "" if subject.age < timing.lease else f"; {timing.lease:g} s make it down"
    )


def _paused(row: LeaseRow) -> Check:
    if not row.paused:
        return Check(name="paused", ok=True, text="failover is not paused")
    by = f" by {row.paused_by}" if row.paused_by else ""
    reason = f" ({row.pause_reason})" if row.pause_reason else ""
    return Check(name="paused", ok=False, text=f"failover was paused{by}{reason}: only promote_sp moves the lease")


def _holder(row: LeaseRow, *, heard: bool) -> Check:
    if row.holder is None:
        return Check(name="holder", ok=False, text="the lease was never granted")
    if row.state == "released":
        return Check(name="holder", ok=False, text=f"{row.holder.name} gave epoch {row.epoch} back: {row.cause}")
    told = "renews" if heard else "does not renew"
    return Check(name="holder", ok=heard, text=f"{row.holder.name} holds epoch {row.epoch} ({row.state}) and {told}")


def _verdict(server: Server, row: LeaseRow, seen: Seen, following: str | None, *, heard: bool) -> str:
    name = server.name
    why_not = unfit(server, row)
    if server.holder == row.holder and row.state in {"granted", "active"}:
        if heard:
            return f"{name} {'leads' if row.state == 'active' else 'was granted the lease'}, epoch {row.epoch}."
        return f"{name} holds epoch {row.epoch} and does not renew."
    if why_not is not None:
        return f"{name} cannot be granted the lease: {why_not}."
    if row.paused and following != name:
        return f"{name} could lead, but failover is paused{f' by {row.paused_by}' if row.paused_by else ''}."
    rival = seen.servers.get(following or "")
    if rival is None or rival.name == name:
        return f"{name} is a candidate{', and is next if the primary dies' if rival else ''}."
    return f"{name} is a candidate; {rival.name} comes first: {_better(rival, server, row, seen)}."


def _better(rival: Server, server: Server, row: LeaseRow, seen: Seen) -> str:
    """Say by which rule ``rival`` comes before ``server``."""
    rules = (
        "promote_sp asked for it",
        f"{server.name} just lost the lease",
        "its log has a higher epoch",
        "its log is longer",
        "it comes first in the project",
    )
    pairs = zip(rules, rank(rival, row, seen), rank(server, row, seen), strict=True)
    return next((rule for rule, theirs, ours in pairs if theirs != ours), rules[-1])
