"""An order is obeyed that an admin signed for this site and that its own policy allows; once, also across a restart."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from fedhelm.clock import SystemClock
from fedhelm.errors import BadInput, BadSignature, FedhelmError, KitError, NotAuthorised
from fedhelm.security.kept_revocations import KeptRevocations
from fedhelm.security.order_signing import SiteOrder, sign_order
from fedhelm.security.pki import CertificateAuthority, load_certificate
from fedhelm.security.revocation import RevocationList, Revoked
from fedhelm.v1 import fleet_pb2
from fedhelm_client.orders import Orders, action_of, check_order
from tests.fakes.provision_clock import FixedClock
from tests.support.kits import ADMIN, make_kits

AT = "2026-11-22T15:04:05.123Z"


@pytest.fixture(scope="module")
def authority():
    return CertificateAuthority.create("poc")


@pytest.fixture
def kits(tmp_path, authority):
    return make_kits(tmp_path, sites=2, authority=authority)


@pytest.fixture
def site(kits):
    kits["site-1"].run.mkdir(exist_ok=True)
    return kits["site-1"]


@pytest.fixture
def path(site):
    return site.run / "orders.json"


@pytest.fixture
def order(kits):
    def make(action="restart", identifier="r1", sites=("@ALL",), *, reason="", clock=None, by=ADMIN):
        said = SiteOrder("poc", kits[by].cluster, identifier, action, sites, reason)
        statement = sign_order(kits[by], said, clock=clock)
        return fleet_pb2.Order(id=identifier, action=action, reason="the server's", statement=statement)

    return make


@pytest.fixture
def take(site, path):
    def call(order, orders=None, revocations=None, now=None):
        revocations = revocations or KeptRevocations(site)
        orders = orders or Orders(path)
        if orders.known(order):
            return None
        found = check_order(site, order, revocations, now or SystemClock().utcnow())
        orders.take(site, found)
        return found

    return call


def test_an_order_is_obeyed_once_even_by_the_next_agent(path, order, take):
    orders = Orders(path)
    found = take(order(reason="new driver"), orders)
    assert (found.admin.name, found.order.action, found.order.reason) == (ADMIN, "restart", "new driver")
    assert take(order(), orders) is None
    assert take(order()) is None
    assert take(order("shutdown", "r2", ("site-2", "site-1"))).order.action == "shutdown"


def test_the_sites_own_policy_has_the_last_word(site, path, order, take):
    local = site.local / "authorization.json"
    local.write_text('{"format_version": "1.0", "permissions": {"project_admin": {"operate": "none"}}}')
    with pytest.raises(NotAuthorised, match=rf"^site site-1, project_admin {ADMIN}: operate is none for project_admin"):
        take(order())
    local.write_text('{"format_version": "1.0", "permissions": {"project_admin": {"operate": "sometimes"}}}')
    with pytest.raises(BadInput, match=r"authorization\.json:1:\d+"):
        take(order())
    assert not path.exists(), "what was refused is not remembered: its admin may ask again"
    local.write_text('{"format_version": "1.0", "permissions": {"project_admin": {"operate": "o:site"}}}')
    assert take(order()).order.order == "r1"


def test_what_no_admin_signed_for_this_site_just_now_is_refused(kits, site, order, take, authority):
    now = SystemClock().utcnow()
    unsigned = fleet_pb2.Order(id="r1", action="shutdown", reason="because")
    changed = order()
    changed.action = "shutdown"
    renamed = order()
    renamed.id = "r2"
    for wrong, why in (
        (unsigned, "the order to shutdown: nobody signed it"),
        (changed, "action is 'restart' there, and 'shutdown' here"),
        (renamed, "order is 'r1' there, and 'r2' here"),
        (order(sites=("site-2",)), f"the order to restart of project_admin {ADMIN} is for other sites"),
        (order(clock=FixedClock(now + timedelta(minutes=16))), "signed at"),
        (order(by="server1"), "signed by server server1"),
    ):
        with pytest.raises(BadSignature) as caught:
            take(wrong)
        assert str(caught.value).startswith("site site-1: ")
        assert why in str(caught.value), str(caught.value)
    revocations = KeptRevocations(site)
    serial = f"{load_certificate(kits[ADMIN].cert.read_bytes(), 'it').serial_number:x}"
    entry = Revoked(serial, "project_admin", ADMIN, AT, "laptop stolen")
    revocations.offer(RevocationList("poc", site.cluster, 1, AT, (entry,)).to_bytes(authority))
    with pytest.raises(BadSignature, match="was revoked"):
        take(order(), revocations=revocations)


def test_a_site_that_does_not_know_who_was_revoked_obeys_nobody(site, order, take):
    (site.run / "revoked.json").write_bytes(b"{")
    with pytest.raises(KitError, match="obeys no order before an overseer gave it the list"):
        take(order())


def test_what_cannot_be_understood_is_not_obeyed(path, order, take):
    for wrong in (order("format"), order(identifier=""), order(identifier="x" * 65)):
        with pytest.raises(BadInput, match="is not known here"):
            take(wrong)
    assert not path.exists()
    assert [action_of(order(one)) for one in ("shutdown", "restart", "format")] == ["shutdown", "restart", None]


def test_what_cannot_be_remembered_is_not_obeyed(tmp_path, order, take):
    orders = Orders(tmp_path / "missing" / "orders.json")
    with pytest.raises(FedhelmError, match="cannot be remembered"):
        take(order(), orders)
    (tmp_path / "missing").mkdir()
    assert take(order(), orders) is not None


def test_a_damaged_memory_is_empty(path, order, take, caplog):
    path.write_text("{")
    assert take(order()) is not None
    assert "cannot be read" in caplog.text


def test_the_memory_does_not_grow_for_ever(path, order, take):
    path.write_text(json.dumps([f"r{number}" for number in range(249)]))
    take(order(identifier="r249"))
    assert take(order(identifier="r249")) is None
    assert path.stat().st_size < 4096
