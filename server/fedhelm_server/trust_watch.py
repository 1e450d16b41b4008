"""What a server's supervisor keeps up to date while it runs: the kit in use, and the list of revoked certificates.

An overseer names the version of its list in every answer, and a change of it ends the long poll that every supervisor
has open. So a new list is fetched at once, verified, on disk, and the child told. An overseer that has an older list
than this server, because it lost its disk, is given this one: the root signed it, so nobody has to trust the server.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Protocol

from fedhelm.config.kit import Kit
from fedhelm.errors import BadCertificate, FedhelmError, KitError, Refused
from fedhelm.security.kept_revocations import KeptRevocations
from fedhelm.security.pki import load_certificate, serial_of
from fedhelm.security.reloading import ReloadingKit, watch_kit
from fedhelm.security.tls import read_credentials

__all__ = ["RevocationCalls", "TrustWatch"]

_log = logging.getLogger("fedhelm.supervisor")

_CLOCK_S: Final = 30.0
"""Between two looks whether this server's certificate has expired."""

_PAUSE_S: Final = 1.0
"""Between two tries to get a list, or to hand it over; and the least time between two lists."""


class RevocationCalls(Protocol):
    """What is asked of the overseers (:class:`fedhelm.wire.overseer_client.OverseerClient`)."""

    @property
    def revocations_version(self) -> int:
        """The highest version that one of them has."""

    @property
    def revocations_lowest(self) -> int:
        """The lowest version that one of them has; 0 where none has said."""

    async def revocations(self, after: int = 0) -> bytes:
        """Return the newest list; empty if it is no newer than ``after``."""
        ...

    async def revoke(self, data: bytes) -> object:
        """Hand a list to all of them."""
        ...

    def reconnect(self, kit: Kit | None = None) -> None:
        """Let calls that begin now open new connections."""


class TrustWatch:
    """One server's.

    Args:
        kit: the one that it starts with, verified.

    Attributes:
        revocations: The list in force; its file is written by this process alone.
    """

    def __init__(self, kit: Kit) -> None:
        self.revocations = KeptRevocations(kit)
        if self.revocations.problem is not None:
            _log.error("%s", self.revocations.problem)
        self._reloading = ReloadingKit(kit)
        self._news = asyncio.Event()
        self._said = ""
        self._trouble: str | None = None
        self._warn: Callable[[str | None], None] = lambda _trouble: None

    def announced(self, _version: int) -> None:
        """An overseer's answer named another version than its answer before."""
        self._news.set()

    async def run(
        self, calls: RevocationCalls, tell: Callable[[int], None], warn: Callable[[str | None], None]
    ) -> None:
        """Follow kit and list for ever; cancel to stop.

        Args:
            calls: to the overseers.
            tell: lets the child know that a list of this version is on disk.
            warn: is told why nobody accepts this server's certificate; None when that is over.
        """
        self._warn = warn
        self._check_own()

        def taken(kit: Kit) -> None:
            self.revocations.trust(kit)
            calls.reconnect(kit)
            self._check_own()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(watch_kit(self._reloading, taken))
            tasks.create_task(self._look_at_the_clock())
            tasks.create_task(self._follow(calls, tell))

    async def _follow(self, calls: RevocationCalls, tell: Callable[[int], None]) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            try:
                again = await self._compare(calls, tell)
            except (FedhelmError, OSError, RuntimeError) as error:  # the last one: no more threads
                again = True
                if str(error) != self._said:
                    self._said = str(error)
                    _log.warning("the list of revoked certificates stays at version %d: %s", self._version, error)
            if again:
                self._news.set()
                await asyncio.sleep(_PAUSE_S)

    @property
    def _version(self) -> int:
        return self.revocations.current.version

    async def _compare(self, calls: RevocationCalls, tell: Callable[[int], None]) -> bool:
        """Fetch what is newer, hand over what an overseer lacks; tell whether to look again soon."""
        if calls.revocations_version > self._version:
            data = await calls.revocations(after=self._version)
            if not data:
                return calls.revocations_version > self._version
            added = await asyncio.to_thread(self.revocations.offer, data)
            tell(self._version)
            self._in_force(calls, added)
        if self.revocations.signed and calls.revocations_lowest < self._version:
            try:
                await calls.revoke(self.revocations.signed)
            except Refused:
                return True  # another has a newer one by now
        return False

    def _in_force(self, calls: RevocationCalls, added: tuple[str, ...]) -> None:
        _log.info("version %d of the list of revoked certificates is in force: %d new", self._version, len(added))
        if any(entry.serial in added and entry.role == "overseer" for entry in self.revocations.current.entries):
            calls.reconnect()  # so that an overseer that was revoked has to show its certificate again
        self._check_own()

    async def _look_at_the_clock(self) -> None:
        while True:
            await asyncio.sleep(_CLOCK_S)
            self._check_own()

    def _check_own(self) -> None:
        kit, trouble = self._reloading.kit, self._reloading.expired()
        try:
            self.revocations.check(serial_of(load_certificate(read_credentials(kit).cert, str(kit.cert))))
        except BadCertificate as error:
            trouble = f"{error}: install a new kit"
        except KitError:
            return  # the next kit is on its way
        if trouble != self._trouble:
            self._trouble = trouble
            self._warn(trouble)
            if trouble is not None:
                _log.error("%s", trouble)
