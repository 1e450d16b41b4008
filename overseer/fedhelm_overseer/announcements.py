"""What people are told: each thing that happened, once, as an event and as a line of the log."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from fedhelm.wire.overseer_api import Intent, PromoteRequest
from fedhelm_overseer.decide import Adopt, Grant
from fedhelm_overseer.events import EventFeed
from fedhelm_overseer.lease import Holder, LeaseRow, Term

__all__ = ["Announcements"]

_log = logging.getLogger("fedhelm.overseer")


class Announcements:
    """The words for what happened to the lease and its members.

    Args:
        feed: where the events go.
    """

    def __init__(self, feed: EventFeed) -> None:
        self._feed = feed

    def granted(self, grant: Grant, row: LeaseRow) -> None:
        """Tell of a grant that replaced ``row``."""
        name, previous = grant.holder.name, row.holder.name if row.holder else None
        text = f"epoch {grant.epoch} granted to {name}: {grant.cause}"
        self._feed.publish("grant", text, epoch=grant.epoch, name=name, previous=previous, cause=grant.cause)
        _log.info("%s", text)

    def active(self, term: Term, gap_s: float | None) -> None:
        """Tell that the holder of ``term`` serves; a failover or switchover when another one did before."""
        name, epoch = term.holder.name, term.epoch
        facts = {"epoch": epoch, "name": name, "previous": term.previous, "cause": term.cause, "gap_s": gap_s}
        self._feed.publish("active", f"{name} leads, epoch {epoch}", **facts)
        if term.previous is not None and term.previous != name:
            planned = term.cause == "switchover"
            text = f"{'switchover' if planned else 'failover'} {term.previous} -> {name}  epoch {epoch}"
            text += "" if gap_s is None else f"  gap {gap_s:.1f} s"
            self._feed.publish("failover", text if planned else f"{text}  ({term.cause})", **facts)
        _log.info("%s leads, epoch %d%s", name, epoch, "" if gap_s is None else f", gap {gap_s:.3f} s")

    def adopted(self, adoption: Adopt) -> None:
        """Tell that a live writer above the row was taken over."""
        name, epoch = adoption.holder.name, adoption.epoch
        text = f"{name} leads, epoch {epoch}: adopted"
        self._feed.publish("active", text, epoch=epoch, name=name, cause="adopted")
        _log.warning("the row was behind the log: %s", text)

    def released(self, row: LeaseRow, holder: Holder, *, refused: bool) -> None:
        """Tell of a release or refusal that led to ``row``."""
        text = f"{holder.name} {'refused' if refused else 'released'} epoch {row.epoch}: {row.cause}"
        self._feed.publish("release", text, epoch=row.epoch, name=holder.name, cause=row.cause, refused=refused)
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

    def moved(self, came: Iterable[str], went: Iterable[str]) -> None:
        """Tell who came up and who went down."""
        for name in came:
            self._feed.publish("member_up", f"{name} is up", name=name)
        for name in went:
            self._feed.publish("member_down", f"{name} is down", name=name)
