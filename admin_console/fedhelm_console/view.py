"""What the prompt knows of the federation: an immutable value, rebuilt whole and swapped."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from fedhelm.errors import FedhelmError, NoPrimary, Unreachable

if TYPE_CHECKING:
    from fedhelm.admin.models import Job, Primary, Server, Status
    from fedhelm.admin.session import Session

__all__ = ["View", "collect"]

RECENT = 50
LIMIT = 3.0


@dataclass(frozen=True)
class View:
    """Who leads, who stands by, which sites are up, the newest jobs.

    ``mode`` is ``up``, ``electing`` (nobody leads just now), ``down`` (an admin shut the system down) or ``none``
    (nobody answers). ``role`` is the primary's own word. ``paused``: nobody takes over by itself. ``sites`` are those
    that whoever is signed in may see, of the project's ``all_sites``.
    """

    mode: Literal["up", "electing", "down", "none"] = "none"
    server: str | None = None
    epoch: int | None = None
    servers: tuple[Server, ...] = ()
    sites_up: int = 0
    sites: int = 0
    running: int = 0
    waiting: int = 0
    jobs: tuple[Job, ...] = ()
    role: str = "ACTIVE"
    paused: bool = False
    site_names: tuple[str, ...] = ()
    all_sites: int = 0

    @property
    def sees_all_sites(self) -> bool:
        """Whether the sites that may be seen are all that the project has."""
        return self.sites >= self.all_sites

    @property
    def standbys(self) -> tuple[Server, ...]:
        """The servers that are ready to take over."""
        return tuple(server for server in self.servers if server.state == "STANDBY" and server.name != self.server)


def _overseer(session: Session, before: View) -> View:
    """Take over what the overseer says."""
    try:
        primary: Primary | None = session.primary()
    except NoPrimary:
        primary = None
    except Unreachable:
        # Without an overseer the servers still serve: the connection in use says who leads.
        signed_in = session.signed_in
        if signed_in is None:
            return replace(before, mode="none", servers=())
        return replace(before, mode="up", server=signed_in.server, epoch=signed_in.epoch, servers=())
    # Without what changes with each look: a view that is like the one before is not drawn again.
    servers = tuple(replace(one, beat_age_s=None, log_seq=None, lag=None) for one in session.servers())
    before = replace(before, servers=servers)
    with contextlib.suppress(FedhelmError):
        system = session.system()
        before = replace(before, paused=system.paused)
        if primary is None and system.down:
            return replace(before, mode="down")
    if primary is None:
        return replace(before, mode="electing")
    return replace(before, mode="up", server=primary.name, epoch=primary.epoch)


def collect(session: Session, before: View) -> View:
    """Ask for everything and return the new view; what cannot be had stays as it was.

    Only looks: a primary that does not answer in a few seconds is not waited for.
    """
    try:
        view = _overseer(session, before)
    except FedhelmError:
        return before
    if view.mode != "up":
        return view
    try:
        status: Status = session.check_status(timeout=LIMIT)
        jobs = tuple(session.jobs(limit=RECENT, timeout=LIMIT))
    except Unreachable:
        return replace(view, mode="none")
    except FedhelmError:
        return view
    return replace(
        view,
        server=status.server,
        epoch=max(status.epoch, view.epoch or 0),
        role=status.role,
        site_names=tuple(site.name for site in status.sites),
        sites_up=sum(site.connected for site in status.sites),
        sites=len(status.sites),
        running=status.jobs_running,
        waiting=status.jobs_waiting,
        jobs=jobs,
    )
