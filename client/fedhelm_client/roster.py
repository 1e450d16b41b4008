"""Asks the overseers which servers there are: now and then, and soon when nobody leads."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from fedhelm.config.kit import Kit
from fedhelm.errors import BadCertificate, FedhelmError
from fedhelm.wire.roster import learn_servers
from fedhelm_client.links import Links
from fedhelm_client.site_trust import in_daemon

if TYPE_CHECKING:
    from fedhelm.wire.overseer_api import ServerView

__all__ = ["Ask", "ServerWatch"]

_log = logging.getLogger("fedhelm.client")

_FIRST = (0.0, 1.0)
_USUAL = (24.0, 36.0)
_ALONE = (2.0, 4.0)
"""Seconds until the overseers are asked: at first, usually, and while nobody leads. Many sites must not ask at once."""

Ask = Callable[[], "Iterable[ServerView]"]
"""Asks the overseers; blocking, about 2 s at most."""


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

    def take(self, kit: Kit) -> None:
        """Go on with a kit that took the place of the former one."""
        self._kit = kit

    async def run(self) -> None:
        """Ask, for ever. Nobody answering changes nothing."""
        await asyncio.sleep(random.uniform(*_FIRST))
        while True:
            try:
                views = await in_daemon(self._ask, "servers")
                self._links.set_servers(learn_servers(self._kit, views))
                self._said = ""
            except FedhelmError as error:
                if str(error) != self._said:
                    self._said = str(error)
                    # A refused certificate is what the servers refuse, too, and those say it.
                    level = logging.DEBUG if isinstance(error, BadCertificate) else logging.INFO
                    _log.log(level, "the servers known so far are kept: %s", error)
            await self._until_due()

    async def _until_due(self) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + random.uniform(*_USUAL)
        while (left := end - loop.time()) > 0:
            standing = self._links.standing
            alone = standing[0] is None
            moved = await self._links.moved_from(standing, min(left, random.uniform(*_ALONE)) if alone else left)
            if alone and not moved:
                return
