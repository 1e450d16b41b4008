"""What admins ask of agents: each order goes once to the stream of every site it names, for a minute also to newcomers.

An agent obeys an order's id once, whoever repeats it, and only one that an admin signed; it says so where it refuses.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import datetime

from fedhelm.clock import Clock
from fedhelm.config.kit import Kit
from fedhelm.errors import BadSignature, KitError
from fedhelm.security.kept_revocations import KeptRevocations
from fedhelm.security.order_signing import verify_order
from fedhelm.security.statements import Trust
from fedhelm.v1 import admin_pb2 as admin
from fedhelm.v1 import fleet_pb2 as fleet

__all__ = ["ANSWER_S", "MAX_REFUSAL", "OPEN_S", "Orders", "check_signed"]

OPEN_S = 60.0
"""Seconds for which an order is also told to sites that connect."""

ANSWER_S = 2.0
"""Seconds that sites have to refuse an order, before its admin is answered."""

MAX_REFUSAL = 500
"""Characters of a refusal that are handed on."""


def check_signed(
    kit: Kit, request: admin.OperateRequest, revocations: KeptRevocations | None, *, caller: str, now: datetime
) -> None:
    """Let an order pass that its caller signed as it is, and one that is not signed: sites refuse that. Blocking.

    Args:
        kit: this server's.
        request: what is asked.
        revocations: the certificates that count no longer; None: there are none.
        caller: who asks.
        now: by this server's clock.

    Raises:
        BadSignature: it is signed, and the signature is not for this; the message says why.
        KitError: this server's own root certificate cannot be read.
    """
    if not request.statement:
        return
    try:
        roots = kit.ca.read_bytes()
    except OSError as error:
        raise KitError(f"{kit.ca}: cannot be read: {error.strerror}") from error
    trust = Trust(roots, kit.project, now, None if revocations is None else revocations.current.revoked)
    found = verify_order(request.statement, trust, cluster=kit.cluster, order=request.request_id, action=request.action)
    if found.admin.name != caller:
        raise BadSignature(f"the order to {request.action}: signed by {found.admin}, asked by {caller}")
    if sorted(found.order.sites) != sorted(request.sites):
        raise BadSignature(f"the order to {request.action}: signed for other sites than those that are named")


@dataclass
class _Order:
    message: fleet.Order
    sites: frozenset[str]
    until: float
    told: set[str] = field(default_factory=set)
    answers: dict[str, str] = field(default_factory=dict)
    answered: asyncio.Event = field(default_factory=asyncio.Event)

    def answer(self, site: str, refusal: str) -> None:
        if site in self.told and site not in self.answers:
            self.answers[site] = refusal
            self.answered.set()


class Orders:
    """The orders of the last minute. Their record in the log comes first; what is here dies with the process."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._orders: dict[str, _Order] = {}

    def give(self, message: fleet.Order, sites: Collection[str]) -> None:
        """Have these sites told. An id that was given before goes out again: its admin asks again."""
        self._orders[message.id] = _Order(message, frozenset(sites), self._clock.boottime() + OPEN_S)

    def of(self, site: str) -> Iterator[fleet.Order]:
        """Yield what the site has not been told yet, and take it for told."""
        now = self._clock.boottime()
        self._orders = {key: order for key, order in self._orders.items() if order.until > now}
        for order in self._orders.values():
            if site in order.sites and site not in order.told:
                order.told.add(site)
                yield order.message

    def answered(self, site: str, answer: fleet.OrderAnswer) -> None:
        """Take note of what a site made of an order; of what it was not told nothing is noted."""
        order = self._orders.get(answer.id)
        if order is not None:
            order.answer(site, " ".join(answer.refusal.split())[:MAX_REFUSAL])

    def gone(self, site: str) -> None:
        """A site's stream has ended: it does not refuse any more."""
        for order in self._orders.values():
            order.answer(site, "")

    async def refusals(self, identifier: str, sites: Collection[str], timeout: float = ANSWER_S) -> dict[str, str]:
        """Wait until these sites have answered or gone, or the time is over; return who refused, and why."""
        order = self._orders.get(identifier)
        if order is None:
            return {}
        try:
            async with asyncio.timeout(timeout):
                while not order.answers.keys() >= set(sites):
                    order.answered.clear()
                    await order.answered.wait()
        except TimeoutError:
            pass
        return {site: why for site, why in sorted(order.answers.items()) if why}
