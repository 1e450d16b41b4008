"""What every job of one site shares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedhelm.clock import Clock
from fedhelm.config.kit import Kit
from fedhelm.security.kept_revocations import KeptRevocations
from fedhelm_client.ended_jobs import EndedJobs
from fedhelm_client.links import Links
from fedhelm_client.site_trail import SiteTrail

__all__ = ["Site"]


@dataclass
class Site:
    """What every job of one site shares.

    Attributes:
        kit: the site's; another one once that took its place.
        links: to the servers.
        runtime: folder for sockets.
        clock: boot time for the throttle, UTC for stamps.
        on_change: what this site holds has changed.
        on_stray: a nanny was killed: end what it left.
        trail: the site's audit file.
        revocations: the list of revoked certificates in force here.
        ended: the jobs that ended here.
    """

    kit: Kit
    links: Links
    runtime: Path
    clock: Clock
    on_change: Callable[[], None]
    on_stray: Callable[[], None]
    trail: SiteTrail
    revocations: KeptRevocations
    ended: EndedJobs
