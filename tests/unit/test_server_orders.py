"""Orders of admins to agents: once to each site that is named, for a minute."""

from __future__ import annotations

from fedhelm.v1 import fleet_pb2 as fleet
from fedhelm_server.orders import OPEN_S, Orders
from tests.fakes.server_log import Clock


def test_each_site_that_is_named_is_told_once_also_one_that_comes_a_little_later():
    clock = Clock()
    orders = Orders(clock)
    order = fleet.Order(id="r1", action="restart", reason="new software")
    orders.give(order, ["site-1", "site-2"])
    assert list(orders.of("site-1")) == [order]
    assert list(orders.of("site-1")) == list(orders.of("site-3")) == []
    clock.now += OPEN_S - 1
    assert list(orders.of("site-2")) == [order]
    orders.give(fleet.Order(id="r2", action="shutdown"), ["site-1", "site-2"])
    assert [one.id for one in orders.of("site-1")] == ["r2"]
    clock.now += OPEN_S
    assert list(orders.of("site-2")) == []


def test_an_admin_who_asks_again_has_it_told_again():
    orders = Orders(Clock())
    order = fleet.Order(id="r1", action="restart")
    orders.give(order, ["site-1"])
    assert list(orders.of("site-1")) == [order]
    orders.give(order, ["site-1"])
    assert list(orders.of("site-1")) == [order]
