"""What admins ask of agents: each order goes once to the stream of every site it names, for a minute also to newcomers.

An agent obeys an order's id once, whoever repeats it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from fedhelm.clock import Clock
from fedhelm.v1 import fleet_pb2 as fleet

__all__ = ["Orders"]

OPEN_S = 60.0


@dataclass
class _Order:
    message: fleet.Order
    sites: frozenset[str]
    until: float
    told: set[str] = field(default_factory=set)


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
