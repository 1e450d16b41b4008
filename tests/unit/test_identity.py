from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from fedhelm.config.kit import ADMIN_ROLES
from fedhelm.errors import BadCertificate
from fedhelm.security.identity import Principal, principal_from_der, principal_from_uris
from fedhelm.security.pki import CertificateAuthority


def der_of(authority, role, name, org="nvidia"):
    issued = authority.issue(role, name, org)
    return x509.load_pem_x509_certificate(issued.cert).public_bytes(serialization.Encoding.DER)


@pytest.mark.parametrize(
    ("role", "name"),
    [
        ("overseer", "overseer"),
        ("server", "server1"),
        ("site", "site-1.example.org"),
        *((role, "admin@nvidia.com") for role in ADMIN_ROLES),
    ],
)
def test_a_certificate_names_project_role_name_and_organisation(role, name):
    authority = CertificateAuthority.create("poc")
    der = der_of(authority, role, name)
    serial = f"{x509.load_der_x509_certificate(der).serial_number:x}"
    assert principal_from_der(der, "poc") == Principal("poc", role, name, "nvidia", serial)


def test_another_projects_certificate_is_refused():
    with pytest.raises(BadCertificate, match="of project 'other'"):
        principal_from_der(der_of(CertificateAuthority.create("other"), "site", "site-1"), "poc")


@pytest.mark.parametrize(
    "uris",
    [
        [],
        ["fedhelm://poc/site/a", "fedhelm://poc/site/b"],
        ["fedhelm://poc/site/a", "https://example.org"],
        ["https://poc/site/a"],
        ["fedhelm://poc/site"],
        ["fedhelm://poc/site/a/b"],
        ["fedhelm://poc/site/"],
        ["fedhelm://poc/site/a?x"],
        ["fedhelm://poc/site/a\n"],
        ["fedhelm://POC/site/a"],
        ["fedhelm://poc/root/a"],
        ["fedhelm://poc/site/../etc"],
        ["fedhelm://poc/site/A"],
        ["fedhelm://poc/site/admin@nvidia.com"],
        *([f"fedhelm://poc/{role}/site-1"] for role in ADMIN_ROLES),
        ["xfedhelm://poc/site/a"],
    ],
)
def test_anything_but_one_uri_of_the_right_form_is_refused(uris):
    with pytest.raises(BadCertificate):
        principal_from_uris(uris, "poc")


def test_the_organisation_is_empty_where_only_uris_are_known():
    assert principal_from_uris(["fedhelm://poc/site/a"], "poc") == Principal("poc", "site", "a", "")


def test_bytes_that_are_no_certificate_are_refused():
    with pytest.raises(BadCertificate, match="not a certificate"):
        principal_from_der(b"\x30\x03\x02\x01\x00", "poc")


def test_a_certificate_without_names_is_refused():
    authority = CertificateAuthority.create("poc")
    root = x509.load_pem_x509_certificate(authority.cert_pem).public_bytes(serialization.Encoding.DER)
    with pytest.raises(BadCertificate, match="0 URI names"):
        principal_from_der(root, "poc")
