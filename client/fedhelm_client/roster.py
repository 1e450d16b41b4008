"""Asks the overseers which servers there are: now and then, and soon when nobody leads."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from fedhelm.config.kit import Kit
from fedhelm.errors import FedhelmError
from fedhelm.wire.roster import learn_servers
from fedhelm_client.links import Links

if TYPE_CHECKING:
    from fedhelm.wire.overseer_api import ServerView

__all__ = ["Ask", "ServerWatch", "ask_overseers"]

_log = logging.getLogger("fedhelm.client")

_FIRST = (0.0, 1.0)
_USUAL = (24.0, 36.0)
_ALONE = (2.0, 4.0)
"""Seconds until the overseers are asked: at first, usually, and while nobody leads. Many sites must not ask at once."""

Ask = Callable[[], "Iterable[ServerView]"]


def ask_overseers(kit: Kit) -> Ask:
    """Return the way a real site asks: blocking, about 2 s at most; connected to nobody before the first call."""
    from fedhelm.wire.overseer_console import OverseerConsoleClient

    return OverseerConsoleClient(kit).servers


class ServerWatch:
    """Keeps the servers that a site dials those that there are.

    Args:
        kit: the site's.
        links: is told of the servers.
        ask: returns them as an overseer sees them; blocking.
    """

    def __init__(self, kit: Kit, links: Links, ask: Ask) -> None:
        self._kit = kit
        self._links = links
        self._ask = ask
        self._said = ""

    async def run(self) -> None:
        """Ask, for ever. Nobody answering changes nothing."""
        await asyncio.sleep(random.uniform(*_FIRST))
        while True:
            try:
                views = await self._answer()
                self._links.set_servers(learn_servers(self._kit, views))
                self._said = ""
            except FedhelmError as error:
                if str(error) != self._said:
                    self._said = str(error)
                    _log.info("the servers known so far are kept: %s", error)
            await self._until_due()

    async def _answer(self) -> Iterable[ServerView]:
        """Ask in a thread that ends with the process: an overseer that hangs must not hold up this site's end."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Iterable[ServerView]] = loop.create_future()

        def settle(views: Iterable[ServerView] | None, error: Exception | None) -> None:
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(views or ())

        def ask() -> None:
            views: Iterable[ServerView] | None = None
            failed: Exception | None = None
            try:
                views = self._ask()
            except Exception as error:  # noqa: BLE001 - it is raised where the answer is waited for
                failed = error
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(settle, views, failed)

        threading.Thread(target=ask, name="servers", daemon=True).start()
        return await answer

    async def _until_due(self) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + random.uniform(*_USUAL)
        while (left := end - loop.time()) > 0:
            standing = self._links.standing
            alone = standing[0] is None
            moved = await self._links.moved_from(standing, min(left, random.uniform(*_ALONE)) if alone else left)
            if alone and not moved:
                return
