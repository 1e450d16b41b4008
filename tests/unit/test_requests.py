from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhelm.errors import BadCertificate, BadInput
from fedhelm.security.pki import load_key
from fedhelm.security.requests import make_request, read_request

KEY, REQUEST = make_request("site", "site-1", "Hospital A")


def refused(pem):
    with pytest.raises(BadCertificate) as caught:
        read_request(pem, "a.csr")
    assert "\n" not in caught.value.message
    assert caught.value.message.startswith("a.csr: ")
    return caught.value.message


def made(*uris, org="org", key=None, orgs=1):
    names = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, org)] * orgs
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(names))
    if uris:
        san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
        builder = builder.add_extension(san, critical=False)
    request = builder.sign(key or ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


def test_a_request_says_who_asks_and_proves_the_key():
    request = read_request(REQUEST, "a.csr")
    assert (request.role, request.name, request.org) == ("site", "site-1", "Hospital A")
    assert load_key(KEY, "x").public_key() == request.public_key
    assert KEY.splitlines()[1] not in REQUEST


def test_long_names_and_administrators():
    name = ".".join(["a" * 60] * 3)
    assert read_request(make_request("server", name, "o")[1], "a.csr").name == name
    assert read_request(make_request("lead", "bob@b.org", "o")[1], "a.csr").role == "lead"


@pytest.mark.parametrize(
    ("role", "name", "org"),
    [
        ("root", "a", "o"),
        ("site", "../a", "o"),
        ("site", "a@b.c", "o"),
        ("lead", "a", "o"),
        ("site", "a", ""),
        ("site", "a", "x" * 65),
    ],
)
def test_what_no_certificate_may_carry_is_not_asked_for(role, name, org):
    with pytest.raises(BadInput):
        make_request(role, name, org)


def test_requests_of_another_make_are_refused():
    uri = "fedhelm-request://site/site-1"
    assert read_request(made(uri), "a.csr").name == "site-1"
    assert "does not say for whom" in refused(made())
    assert "does not say for whom" in refused(made(uri, uri))
    assert "does not say for whom" in refused(made(uri, orgs=2))
    assert "does not say for whom" in refused(made("fedhelm://poc/site/site-1"))
    assert "role 'root'" in refused(made("fedhelm-request://root/site-1"))
    assert "not a host name" in refused(made("fedhelm-request://site/.."))
    assert "not ECDSA P-256" in refused(made(uri, key=ec.generate_private_key(ec.SECP384R1())))
    assert "not ECDSA P-256" in refused(made(uri, key=rsa.generate_private_key(65537, 2048)))


def test_a_request_with_another_key_is_refused():
    ours = x509.load_pem_x509_csr(REQUEST)
    other = x509.load_pem_x509_csr(make_request("site", "site-1", "Hospital A")[1])

    def spki(request):
        return request.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    der = ours.public_bytes(serialization.Encoding.DER).replace(spki(ours), spki(other))
    forged = x509.load_der_x509_csr(der).public_bytes(serialization.Encoding.PEM)
    assert "not signed with its own key" in refused(forged)


def test_what_is_far_too_large_is_not_read():
    assert "at most" in refused(REQUEST + b" " * 100_000)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200), st.integers(0, len(REQUEST) - 1), st.integers(0, 40))
def test_hostile_bytes_are_refused_or_still_say_the_same(blob, at, cut):
    for pem in (blob, REQUEST[:at] + blob + REQUEST[at + cut :]):
        try:
            request = read_request(pem, "a.csr")
        except BadCertificate:
            continue
        assert (request.role, request.name) == ("site", "site-1")
