"""Orders of admins to agents: once to each site that is named, for a minute; and what the sites made of them."""

from __future__ import annotations

import asyncio

import pytest

from fedhelm.clock import SystemClock
from fedhelm.errors import BadSignature
from fedhelm.security.order_signing import MAX_AGE, SiteOrder, sign_order
from fedhelm.v1 import admin_pb2 as admin
from fedhelm.v1 import fleet_pb2 as fleet
from fedhelm_server.orders import MAX_REFUSAL, OPEN_S, Orders, check_signed
from tests.fakes.server_log import Clock
from tests.support.kits import ADMIN, make_kits


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


def told(orders, *sites, identifier="r1"):
    orders.give(fleet.Order(id=identifier, action="restart"), sites)
    for site in sites:
        list(orders.of(site))


def says(orders, site, refusal="", identifier="r1"):
    orders.answered(site, fleet.OrderAnswer(id=identifier, refusal=refusal))


async def test_who_refuses_is_told_as_soon_as_every_site_has_answered_or_gone():
    orders = Orders(Clock())
    told(orders, "site-1", "site-2", "site-3")
    waiting = asyncio.ensure_future(orders.refusals("r1", {"site-1", "site-2", "site-3"}, timeout=60))
    await asyncio.sleep(0)
    says(orders, "site-2", "operate needs\n none" + "!" * 1000)
    says(orders, "site-2")  # its first word counts
    says(orders, "site-9", "not asked")
    says(orders, "site-1", "another", identifier="r2")
    orders.gone("site-1")  # it obeys
    await asyncio.sleep(0)
    assert not waiting.done()
    says(orders, "site-3")  # it had obeyed before
    refused = await asyncio.wait_for(waiting, 10)
    assert refused == {"site-2": ("operate needs none" + "!" * 1000)[:MAX_REFUSAL]}


async def test_a_site_that_does_not_answer_is_not_waited_for_long():
    orders = Orders(Clock())
    told(orders, "site-1", "site-2")
    says(orders, "site-1", "no")
    assert await orders.refusals("r1", {"site-1", "site-2"}, timeout=0.01) == {"site-1": "no"}
    assert await orders.refusals("r2", {"site-1"}, timeout=0.01) == {}


def test_a_signature_is_of_who_asks_for_what_is_asked_just_now(tmp_path):
    kits = make_kits(tmp_path, sites=2, admins=(ADMIN, "eve@nvidia.com"))
    server, now = kits["server1"], SystemClock().utcnow()

    def request(by=ADMIN, *, signed_for=("site-1",), sites=("site-1",), signed="restart", action="restart", name="r1"):
        order = SiteOrder("poc", server.cluster, "r1", signed, signed_for)
        statement = sign_order(kits[by], order)
        return admin.OperateRequest(request_id=name, action=action, sites=sites, statement=statement)

    def check(asked, when=now):
        check_signed(server, asked, None, caller=ADMIN, now=when)

    check(request())
    check(request(signed_for=("site-2", "site-1"), sites=("site-1", "site-2")))
    check(admin.OperateRequest(request_id="r1", action="restart", sites=["site-1"]))  # of a console of before
    for wrong, when, why in (
        (request("eve@nvidia.com"), now, "signed by project_admin eve@nvidia.com, asked by admin@nvidia.com"),
        (request(sites=("site-1", "site-2")), now, "signed for other sites"),
        (request(action="shutdown"), now, "action is 'restart' there, and 'shutdown' here"),
        (request(name="r2"), now, "order is 'r1' there, and 'r2' here"),
        (request(), now + 2 * MAX_AGE, "signed at"),
    ):
        with pytest.raises(BadSignature) as caught:
            check(wrong, when)
        assert why in str(caught.value)
