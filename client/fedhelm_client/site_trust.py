"""What a site's agent keeps up to date while it runs: the kit in use, and the list of revoked certificates.

The list comes from an overseer, which holds the question until it has a newer one. It is verified here and kept on
disk, where whatever verifies a job's submitter finds it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
from collections.abc import Callable
from typing import Final, Protocol, TypeVar

from fedhelm.config.kit import Kit
from fedhelm.errors import BadCertificate, FedhelmError
from fedhelm.security.kept_revocations import KeptRevocations
from fedhelm.security.pki import load_certificate, serial_of
from fedhelm.security.reloading import LOOK_S, ReloadingKit, watch_kit
from fedhelm.security.tls import read_credentials

__all__ = ["ListCalls", "SiteTrust", "in_daemon"]

_log = logging.getLogger("fedhelm.client")

_WAIT_S: Final = 25.0
_FIRST: Final = (0.0, 1.0)
_PAUSE: Final = (5.0, 10.0)
"""Seconds until an overseer is asked: at first, and after one that did not answer. Many sites must not ask at once."""

_T = TypeVar("_T")


class ListCalls(Protocol):
    """What is asked of the overseers (:class:`fedhelm.wire.overseer_console.OverseerConsoleClient`); blocking."""

    def revocations(self, after: int = 0, wait_s: float = 0.0) -> bytes:
        """Return the list if it is newer than ``after``, else nothing."""

    def reconnect(self) -> None:
        """Let calls that begin now open new connections."""


async def in_daemon(call: Callable[[], _T], name: str) -> _T:
    """Make a blocking call in a thread that ends with the process: an overseer that hangs must not hold up its end."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[_T] = loop.create_future()

    def settle(result: _T | None, error: Exception | None) -> None:
        if answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(result)  # type: ignore[arg-type] # None only where the call gives that

    def make() -> None:
        result: _T | None = None
        failed: Exception | None = None
        try:
            result = call()
        except Exception as error:  # noqa: BLE001 - it is raised where the answer is waited for
            failed = error
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, result, failed)

    threading.Thread(target=make, name=name, daemon=True).start()
    return await answer


class SiteTrust:
    """One site's.

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
        self._said = ""
        self._revoked: str | None = None
        self._serial = ""
        self._read_serial(kit)

    @property
    def trouble(self) -> str | None:
        """Why nobody accepts this site's certificate, as far as it knows itself; None if nothing is known."""
        return self._revoked or self._reloading.expired()

    async def run(
        self,
        calls: ListCalls | None,
        taken: Callable[[Kit], None],
        changed: Callable[[], None],
        *,
        look: float = LOOK_S,
    ) -> None:
        """Follow kit and list for ever; cancel to stop.

        Args:
            calls: to the overseers; None: no list is asked for.
            taken: called with each new kit.
            changed: called when :attr:`trouble` may be another.
            look: seconds between two looks at the kit.
        """

        def take(kit: Kit) -> None:
            self.revocations.trust(kit)
            self._read_serial(kit)
            if calls is not None:
                calls.reconnect()
            taken(kit)
            changed()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(watch_kit(self._reloading, take, interval=look))
            if calls is not None:
                tasks.create_task(self._follow(calls, changed))

    async def _follow(self, calls: ListCalls, changed: Callable[[], None]) -> None:
        await asyncio.sleep(random.uniform(*_FIRST))
        while True:
            version = self.revocations.current.version
            try:
                data = await in_daemon(lambda: calls.revocations(version, _WAIT_S), "revocations")  # noqa: B023 - awaited
                if data:
                    added = await asyncio.to_thread(self.revocations.offer, data)
                    self._in_force(calls, added)
                    changed()
                self._said = ""
            except (FedhelmError, OSError, RuntimeError) as error:  # the last one: no more threads
                if str(error) != self._said:
                    self._said = str(error)
                    # A refused certificate is what the servers refuse, too, and those say it.
                    level = logging.DEBUG if isinstance(error, BadCertificate) else logging.INFO
                    _log.log(level, "version %d of the list of revoked certificates is kept: %s", version, error)
            if self.revocations.current.version == version:
                changed()  # the certificate may have expired meanwhile
                await asyncio.sleep(random.uniform(*(_PAUSE if self._said else _FIRST)))

    def _in_force(self, calls: ListCalls, added: tuple[str, ...]) -> None:
        current = self.revocations.current
        _log.info("version %d of the list of revoked certificates is in force: %d new", current.version, len(added))
        if any(entry.serial in added and entry.role == "overseer" for entry in current.entries):
            calls.reconnect()  # so that an overseer that was revoked has to show its certificate again
        self._check_own()

    def _read_serial(self, kit: Kit) -> None:
        self._serial = serial_of(load_certificate(read_credentials(kit).cert, str(kit.cert)))
        self._check_own()

    def _check_own(self) -> None:
        try:
            self.revocations.check(self._serial)
        except BadCertificate as error:  # the servers say it, too, and that is in the log
            self._revoked = f"{error}: install a new kit"
        else:
            self._revoked = None
