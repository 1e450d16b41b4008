"""The long streams of the sites: what each holds, and what it is to be told next."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import islice

from fedhelm.ids import JOB_ID
from fedhelm.v1 import fleet_pb2 as fleet

__all__ = ["MAX_HELD", "SiteStream", "Streams"]

MAX_HELD = 1000
"""Jobs that one site may say it holds."""

MAX_STATUS = 32


class SiteStream:
    """One connected site. `wake` makes its sender look at the book again; several wakes become one message."""

    def __init__(
        self, site: str, incarnation: str, version: int = 1, org: str = "", *, takes_code: bool = True
    ) -> None:
        self.site = site
        self.org = org
        """The site's organisation, as its certificate says it; empty where that is not known."""
        self.takes_code = takes_code
        """Whether it takes jobs that bring their own code; a site that does not say may."""
        self.answers_orders = False
        """Whether it says what it made of an order."""
        self.version = version
        """Of the wire, as agreed with this site."""
        self.incarnation = incarnation
        self.held: dict[str, str] = {}
        self.over = False
        """A newer stream of the site took its place, or this server stops."""
        self.announced: int | None = None
        self.last: fleet.Assignment | None = None
        self._dirty = asyncio.Event()
        self._dirty.set()

    def hold(self, jobs: Iterator[fleet.HeldJob] | list[fleet.HeldJob]) -> None:
        """Take note of what the site says it has, but not of what is no job's id or too much: admins are shown it."""
        named = (held for held in jobs if JOB_ID.fullmatch(held.job))
        self.held = {held.job: held.status[:MAX_STATUS] for held in islice(named, MAX_HELD)}
        self.wake()

    def wake(self) -> None:
        """Have the sender look again."""
        self._dirty.set()

    def end(self) -> None:
        """Have the sender end the stream."""
        self.over = True
        self.wake()

    async def wait(self) -> None:
        """Wait for the next wake."""
        await self._dirty.wait()
        self._dirty.clear()


class Streams:
    """The streams of this server, at most one for each site: a site's newest one replaces its older."""

    def __init__(self) -> None:
        self._streams: dict[str, SiteStream] = {}
        self._orgs: dict[str, str] = {}

    def open(self, stream: SiteStream) -> None:
        """Add a stream; the site's older one ends."""
        old = self._streams.get(stream.site)
        if old is not None:
            old.end()
        self._streams[stream.site] = stream
        self._orgs[stream.site] = stream.org

    def org_of(self, site: str) -> str | None:
        """Return a site's organisation, also of one that is away by now; None: it has never been connected."""
        return self._orgs.get(site) or None

    def takes_code(self, site: str) -> bool:
        """Tell whether a site takes jobs that bring their own code, as far as is known here; itself it knows."""
        stream = self._streams.get(site)
        return stream is None or stream.takes_code

    def close(self, stream: SiteStream) -> bool:
        """Remove a stream; tell whether the site is disconnected now."""
        if self._streams.get(stream.site) is stream:
            del self._streams[stream.site]
            return True
        return False

    def get(self, site: str) -> SiteStream | None:
        """Return the site's stream, or None."""
        return self._streams.get(site)

    def versions(self) -> dict[str, int]:
        """Return the wire version of each connected site."""
        return {site: stream.version for site, stream in self._streams.items()}

    def answering(self) -> frozenset[str]:
        """Return the connected sites that say what they made of an order."""
        return frozenset(site for site, stream in self._streams.items() if stream.answers_orders)

    def connected(self) -> frozenset[str]:
        """Return the names of the connected sites."""
        return frozenset(self._streams)

    def wake_all(self) -> None:
        """Have every sender look again."""
        for stream in self._streams.values():
            stream.wake()

    def end_all(self) -> None:
        """End every stream: a call that is left open when gRPC stops is torn off, with a warning in the log."""
        for stream in self._streams.values():
            stream.end()
