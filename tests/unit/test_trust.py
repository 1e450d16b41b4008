from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from fedhelm.errors import BadCertificate
from fedhelm.security.pki import CertificateAuthority, load_certificate
from fedhelm.security.trust import check_issued, check_validity, expiry_warnings, issuer_of
from tests.fakes.provision_clock import FixedClock

END = datetime(2026, 12, 31, 23, 55, tzinfo=UTC)  # five minutes before 2026, and a year


@pytest.fixture
def authority():
    return CertificateAuthority.create("poc", clock=FixedClock())


@pytest.fixture
def certificate(authority):
    return load_certificate(authority.issue("site", "site-1", "org").cert, "x")


@pytest.mark.parametrize(
    ("left", "words"),
    [
        (timedelta(days=31), None),
        (timedelta(days=30, seconds=1), None),
        (timedelta(days=30), "expires on 2026-12-31, in 30 days"),
        (timedelta(days=7, hours=1), "expires on 2026-12-31, in 7 days"),
        (timedelta(days=7), "expires soon on 2026-12-31, in 7 days"),
        (timedelta(days=1, hours=3), "expires soon on 2026-12-31, in 1 day"),
        (timedelta(hours=23), "is about to expire on 2026-12-31, within a day"),
        (timedelta(0), "is about to expire on 2026-12-31, within a day"),
        (timedelta(seconds=-1), "expired on 2026-12-31"),
    ],
)
def test_a_certificate_is_warned_of_thirty_seven_and_one_days_before_its_end(certificate, left, words):
    assert certificate.not_valid_after_utc == END
    assert expiry_warnings(certificate, END - left) == words


def test_validity_names_what_and_both_times(certificate):
    check_validity(certificate, "client.crt", END)
    with pytest.raises(BadCertificate, match=r"client\.crt expired on 2026-12-31T23:55:00.000Z.* 2027-01-01"):
        check_validity(certificate, "client.crt", END + timedelta(days=1))
    with pytest.raises(BadCertificate, match=r"client\.crt is not valid before 2025-12-31T23:55:00.000Z"):
        check_validity(certificate, "client.crt", END - timedelta(days=366))


def test_the_root_that_issued_is_found_among_two(authority, certificate):
    ours = load_certificate(authority.cert_pem, "x")
    other = load_certificate(CertificateAuthority.create("poc").cert_pem, "x")
    assert issuer_of(certificate, (other, ours)) == ours
    assert check_issued(certificate, (ours,), "x") == ours
    with pytest.raises(BadCertificate, match="x was not issued by this project's root"):
        check_issued(certificate, (other,), "x")
