"""An admin's signature under an order holds for this order and this federation, for a quarter of an hour."""

from __future__ import annotations

import base64
import dataclasses
import json
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedhelm.clock import iso
from fedhelm.config.kit import Kit
from fedhelm.config.timing import PROFILES
from fedhelm.errors import BadSignature, KitError
from fedhelm.security.job_signing import sign_submission
from fedhelm.security.order_signing import MAX_AGE, MAX_BYTES, MAX_REASON, SiteOrder, sign_order, verify_order
from fedhelm.security.pki import CertificateAuthority
from fedhelm.security.statements import Trust, seal
from tests.fakes.provision_clock import FixedClock

CLUSTER = "c" * 32
ORDER = SiteOrder("poc", CLUSTER, "r1234567", "restart", ("site-1", "site-2"), "new driver")


@pytest.fixture(scope="module")
def clock():
    return FixedClock()


@pytest.fixture(scope="module")
def authority(clock):
    return CertificateAuthority.create("poc", clock=clock)


@pytest.fixture(scope="module")
def kit_of(authority, tmp_path_factory):
    def make(role="org_admin", name="olga@a.org", issuer=authority, **options):
        root = tmp_path_factory.mktemp("kit")
        (root / "startup").mkdir()
        issued = issuer.issue(role, name, "a", **options)
        kit = Kit(root, "poc", CLUSTER, role, name, "a", (), (), (), PROFILES["fast"])
        kit.cert.write_bytes(issued.cert)
        kit.key.write_bytes(issued.key)
        return kit

    return make


@pytest.fixture(scope="module")
def olga(kit_of):
    return kit_of()


@pytest.fixture(scope="module")
def trust(authority, clock):
    return Trust(authority.cert_pem, "poc", clock.now)


def check(data, trust, *, cluster=CLUSTER, order="r1234567", action="restart"):
    return verify_order(data, trust, cluster=cluster, order=order, action=action)


def test_what_was_signed_comes_back_with_who_signed_it(olga, trust, clock):
    found = check(sign_order(olga, ORDER, clock=clock), trust)
    assert found.order == ORDER
    assert (found.admin.role, found.admin.name, found.admin.org) == ("org_admin", "olga@a.org", "a")
    assert found.time == iso(clock.now)
    assert [found.order.names(site) for site in ("site-1", "site-3")] == [True, False]
    assert dataclasses.replace(ORDER, sites=("@ALL",)).names("site-3")


def test_it_holds_for_nothing_else(olga, kit_of, trust, clock):
    signed = sign_order(olga, ORDER, clock=clock)
    stranger = CertificateAuthority.create("poc", clock=clock)
    revoked = dataclasses.replace(trust, revoked=lambda serial: serial)
    late = [dataclasses.replace(trust, now=clock.now + sign * 1.01 * MAX_AGE) for sign in (1, -1)]
    for data, by, other, why in (
        (b"", trust, {}, "nobody signed it"),
        (b"{" * 1000, trust, {}, "not JSON"),
        (b" " * (MAX_BYTES + 1), trust, {}, "longer than"),
        (signed, trust, {"cluster": "d" * 32}, "cluster is"),
        (signed, trust, {"order": "r7654321"}, "order is"),
        (signed, trust, {"action": "shutdown"}, "action is"),
        (signed, dataclasses.replace(trust, project="other"), {}, "project"),
        (signed, revoked, {}, "org_admin olga@a.org was revoked"),
        (signed, late[0], {}, "signed at"),
        (signed, late[1], {}, "not valid before"),
        (sign_order(kit_of(issuer=stranger), ORDER, clock=clock), trust, {}, "not issued by this project's root"),
        (sign_order(kit_of("lead", "l@a.org"), ORDER, clock=clock), trust, {}, "only org_admin, project_admin may"),
        (sign_order(kit_of("server", "server1"), ORDER, clock=clock), trust, {}, "only org_admin, project_admin may"),
        (sign_submission(kit_of("project_admin", "p@a.org"), "j", "n", "d", clock=clock), trust, {}, "not that of"),
    ):
        with pytest.raises(BadSignature) as caught:
            check(data, by, **other)
        assert why in str(caught.value), str(caught.value)
    with pytest.raises(BadSignature) as unsigned:
        check(b"", trust)
    assert "upgrade both" in unsigned.value.hint


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"format": True},
        {"sites": []},
        {"sites": "site-1"},
        {"sites": [1]},
        {"reason": 1},
        {"reason": "x" * (MAX_REASON + 1)},
        {"more": 1},
        {"order": 7},
        {"action": None},
    ],
)
def test_what_is_signed_has_a_form(olga, trust, clock, change):
    body = {"format": 1, "time": iso(clock.now), **dataclasses.asdict(ORDER), **change}
    signed = seal(b"fedhelm order to sites", json.loads(json.dumps(body)), olga.key, olga.cert.read_bytes())
    with pytest.raises(BadSignature):
        check(signed, trust)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(at=st.integers(0), flip=st.integers(1, 255))
def test_with_any_other_byte_it_says_nothing_else(olga, trust, clock, at, flip):
    signed = sign_order(olga, ORDER, clock=clock)
    other = bytearray(signed)
    other[at % len(other)] ^= flip
    with suppress(BadSignature):  # the last letter of base64 has bits that mean nothing
        assert check(bytes(other), trust) == check(signed, trust)


def test_a_signature_over_other_words_is_refused(olga, trust, clock):
    sealed = json.loads(sign_order(olga, ORDER, clock=clock))
    other = json.loads(sign_order(olga, dataclasses.replace(ORDER, sites=("@ALL",)), clock=clock))
    sealed["signature"] = other["signature"]
    with pytest.raises(BadSignature, match="not that of"):
        check(json.dumps(sealed).encode(), trust)
    sealed["signature"] = base64.b64encode(b"x" * 70).decode()
    with pytest.raises(BadSignature, match="not that of"):
        check(json.dumps(sealed).encode(), trust)


def test_a_kit_without_a_certificate_signs_nothing(olga, clock, tmp_path):
    with pytest.raises(KitError, match="cannot be read"):
        sign_order(dataclasses.replace(olga, root=tmp_path), ORDER, clock=clock)
