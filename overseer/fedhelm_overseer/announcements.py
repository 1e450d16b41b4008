"""What people are told: each thing that happened, once, as an event and as a line of the log."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable

from fedhelm.security.revocation import RevocationList
from fedhelm.wire.overseer_api import Intent, PromoteRequest
from fedhelm_overseer.events import EventFeed
from fedhelm_overseer.lease import Holder, LeaseRow, ServerEntry, Term
from fedhelm_overseer.metrics import Metrics

__all__ = ["Announcements"]

_log = logging.getLogger("fedhelm.overseer")

_NAMED = 5


class Announcements:
    """The words for what happened to the lease and its members, and the counters of it.

    Args:
        feed: where the events go.
        metrics: what counts them.
    """

    def __init__(self, feed: EventFeed, metrics: Metrics) -> None:
        self._feed = feed
        self._metrics = metrics

    def granted(self, epoch: int, name: str, cause: str, previous: str | None) -> None:
        """Tell of a grant; ``previous`` held the lease before."""
        text = f"epoch {epoch} granted to {name}: {cause}"
        self._feed.publish("grant", text, epoch=epoch, name=name, previous=previous, cause=cause)
        self._metrics.granted(cause)
        _log.info("%s", text)

    def active(self, term: Term, gap_s: float | None) -> None:
        """Tell that the holder of ``term`` serves; a failover or switchover when another one did before."""
        name, epoch = term.holder.name, term.epoch
        facts = {"epoch": epoch, "name": name, "previous": term.previous, "cause": term.cause, "gap_s": gap_s}
        self._feed.publish("active", f"{name} leads, epoch {epoch}", **facts)
        if term.previous is not None and term.previous != name:
            planned = term.cause == "switchover"
            self._metrics.moved(term.cause)
            text = f"{'switchover' if planned else 'failover'} {term.previous} -> {name}  epoch {epoch}"
            text += "" if gap_s is None else f"  gap {gap_s:.1f} s"
            self._feed.publish("failover", text if planned else f"{text}  ({term.cause})", **facts)
        _log.info("%s leads, epoch %d%s", name, epoch, "" if gap_s is None else f", gap {gap_s:.3f} s")

    def adopted(self, epoch: int, name: str) -> None:
        """Tell that a live writer above the row was taken over."""
        text = f"{name} leads, epoch {epoch}: adopted"
        self._feed.publish("active", text, epoch=epoch, name=name, cause="adopted")
        self._metrics.granted("adopted")
        _log.warning("the row was behind the log: %s", text)

    def released(self, row: LeaseRow, holder: Holder, *, refused: bool) -> None:
        """Tell of a release or refusal that led to ``row``."""
        text = f"{holder.name} {'refused' if refused else 'released'} epoch {row.epoch}: {row.cause}"
        self._feed.publish("release", text, epoch=row.epoch, name=holder.name, cause=row.cause, refused=refused)
        if refused:
            self._metrics.refused()
        _log.info("%s", text)

    def asked(self, admin: str, primary: str, request: PromoteRequest) -> None:
        """Tell who asked for a switchover."""
        text = f"{admin} asked for a switchover {primary} -> {request.target}"
        facts = {"target": request.target, "primary": primary, "admin": admin, "request_id": request.request_id}
        self._feed.publish("promote", text, **facts)
        _log.info("%s", text)

    def given_up(self, intent: Intent) -> None:
        """Tell that the primary did not begin a switchover in time."""
        text = f"switchover to {intent.target} given up"
        self._feed.publish("promote", text, target=intent.target, request_id=intent.request_id)
        _log.warning("%s", text)

    def noticed(self, old: LeaseRow, row: LeaseRow, terms: Iterable[Term], *, refused: bool) -> None:
        """Tell what another overseer did to the row between ``old`` and ``row``; ``terms`` is the history by now."""
        for term in terms:
            if term.epoch > old.epoch:
                if term.cause == "adopted":
                    self.adopted(term.epoch, term.holder.name)
                    continue
                self.granted(term.epoch, term.holder.name, term.cause, term.previous)
            begun = term.epoch > old.epoch or (term.epoch == old.epoch and old.state == "granted")
            if begun and term.active_at is not None:
                self.active(term, term.gap_s)
        released = row.state == "released" and (row.epoch, row.state) != (old.epoch, old.state)
        if released and row.holder is not None:
            self.released(row, row.holder, refused=refused)
        if row.intent is not None and row.intent != old.intent and row.state == "active" and row.holder is not None:
            request = PromoteRequest(target=row.intent.target, request_id=row.intent.request_id)
            self.asked(row.intent_by or "an admin", row.holder.name, request)
        if row.paused != old.paused:
            self.paused(row.paused_by or "an admin", row.pause_reason or "", paused=row.paused)
        if row.shutdown is not None and row.shutdown != old.shutdown:
            self.shut_down("an admin", "", row.shutdown)

    def paused(self, admin: str, reason: str, *, paused: bool) -> None:
        """Tell who paused or resumed failover."""
        text = f"{admin} {'paused' if paused else 'resumed'} failover{f': {reason}' if reason else ''}"
        self._feed.publish("pause" if paused else "resume", text, admin=admin, reason=reason)
        _log.warning("%s", text)

    def shut_down(self, admin: str, reason: str, request_id: str) -> None:
        """Tell who asked for the servers to end."""
        text = f"{admin} asked all servers to end{f': {reason}' if reason else ''}"
        self._feed.publish("shutdown", text, admin=admin, reason=reason, request_id=request_id)
        _log.warning("%s", text)

    def revoked(self, now: RevocationList, added: Collection[str], by: str | None) -> None:
        """Tell of a newer list of revoked certificates; ``by`` is None where another overseer took it."""
        gone = [one for one in now.entries if one.serial in set(added)]
        names = ", ".join(dict.fromkeys(f"{one.role} {one.name}" for one in gone[:_NAMED]))
        names += f" and {len(gone) - _NAMED} more" if len(gone) > _NAMED else ""
        text = f"{by or 'another overseer'} handed over version {now.version} of the list of revoked certificates"
        text += f": {names}" if names else ""
        facts = {"version": now.version, "certificates": len(now.entries), "added": len(gone), "by": by}
        self._feed.publish("revoke", text, **facts)
        _log.warning("%s", text)

    def alarm(self, reason: str) -> None:
        """Tell that nobody leads, and nobody will until somebody does something."""
        self._feed.publish("alarm", f"nobody leads: {reason}", reason=reason)
        _log.error("nobody leads: %s", reason)

    def added(self, entry: ServerEntry, *, moved: bool) -> None:
        """Tell of a server that announced itself; ``moved``: its name was known at another address."""
        where = f"{entry.host}:{entry.fed_learn_port}"
        text = f"{entry.name} {'is now' if moved else 'was added,'} at {where}, by its signed kit"
        self._feed.publish("member_added", text, name=entry.name, host=entry.host, kit=entry.kit_date)
        _log.warning("%s", text)

    def removed(self, name: str, admin: str, reason: str) -> None:
        """Tell of a server that was taken out."""
        text = f"{admin} removed {name}{f': {reason}' if reason else ''}"
        self._feed.publish("member_removed", text, name=name, admin=admin, reason=reason)
        _log.warning("%s", text)

    def moved(self, came: Iterable[str], went: Iterable[str]) -> None:
        """Tell who came up and who went down."""
        for name in came:
            self._feed.publish("member_up", f"{name} is up", name=name)
        for name in went:
            self._feed.publish("member_down", f"{name} is down", name=name)
