from __future__ import annotations

import hashlib
import re
import subprocess
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedhelm.errors import BadCertificate, BadInput, KitError
from fedhelm.security.pki import (
    CertificateAuthority,
    as_fingerprint,
    key_to_pem,
    load_certificate,
    load_key,
    load_roots,
    new_key,
    public_key_sha256,
    serial_of,
    sign,
    verify,
    verify_by_root,
)
from tests.fakes.provision_clock import FixedClock

CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH


@pytest.fixture
def clock():
    return FixedClock()


@pytest.fixture
def authority(clock):
    return CertificateAuthority.create("poc", clock=clock)


def issue(authority, role, name, **options):
    return x509.load_pem_x509_certificate(authority.issue(role, name, "nvidia", **options).cert)


def names_of(certificate):
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


@pytest.mark.parametrize(
    ("role", "name", "usages", "dns"),
    [
        ("overseer", "overseer", {CLIENT, SERVER}, ["overseer"]),
        ("server", "server1", {CLIENT, SERVER}, ["server1"]),
        ("site", "site-1", {CLIENT}, []),
        ("project_admin", "admin@nvidia.com", {CLIENT}, []),
    ],
)
def test_only_those_who_listen_can_pose_as_a_server(authority, role, name, usages, dns):
    certificate = issue(authority, role, name)
    assert set(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == usages
    assert names_of(certificate).get_values_for_type(x509.DNSName) == dns
    uris = names_of(certificate).get_values_for_type(x509.UniformResourceIdentifier)
    assert uris == [f"fedhelm://poc/{role}/{name}"]
    assert certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value == "nvidia"
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert isinstance(certificate.public_key().curve, ec.SECP256R1)


def test_the_root_lives_ten_years_and_a_leaf_one_both_backdated(authority, clock):
    root, leaf = x509.load_pem_x509_certificate(authority.cert_pem), issue(authority, "site", "site-1")
    for certificate, days in ((root, 3650), (leaf, 365)):
        assert certificate.not_valid_before_utc == clock.now - timedelta(minutes=5)
        assert certificate.not_valid_after_utc - certificate.not_valid_before_utc == timedelta(days=days)
    constraints = root.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)


def test_no_leaf_outlives_the_root(authority, clock):
    clock.shift(days=3640)
    root = x509.load_pem_x509_certificate(authority.cert_pem)
    assert issue(authority, "site", "site-1").not_valid_after_utc == root.not_valid_after_utc


def test_serials_and_keys_differ(authority):
    one, two = (issue(authority, "site", "site-1") for _ in range(2))
    assert one.serial_number != two.serial_number
    assert one.public_key() != two.public_key()


def test_a_root_that_was_stored_issues_for_the_same_federation(authority, clock):
    again = CertificateAuthority.load("poc", authority.cert_pem, authority.key_pem(), clock=clock)
    issue(again, "site", "site-3").verify_directly_issued_by(x509.load_pem_x509_certificate(authority.cert_pem))


def test_a_root_whose_key_is_another_is_refused(authority):
    other = CertificateAuthority.create("poc")
    with pytest.raises(KitError, match="does not belong"):
        CertificateAuthority.load("poc", authority.cert_pem, other.key_pem())
    with pytest.raises(BadCertificate, match="root certificate"):
        CertificateAuthority.load("poc", b"nonsense", authority.key_pem())
    with pytest.raises(KitError, match="root key"):
        CertificateAuthority.load("poc", authority.cert_pem, b"nonsense")


@pytest.mark.parametrize("org", ["", "x" * 65])
def test_an_organisation_that_x509_cannot_hold_is_refused(authority, org):
    with pytest.raises(BadInput, match="organisation"):
        authority.issue("site", "site-1", org)


def test_a_long_name_fits_into_the_certificate(authority):
    name = ".".join(["a" * 60] * 4)
    assert names_of(issue(authority, "server", name)).get_values_for_type(x509.DNSName) == [name]


def test_signatures(authority, tmp_path):
    issued = authority.issue("project_admin", "admin@nvidia.com", "nvidia")
    key = tmp_path / "client.key"
    key.write_bytes(issued.key)
    signature = sign(key, b"job")
    assert verify(issued.cert, signature, b"job")
    assert not verify(issued.cert, signature, b"another job")
    assert not verify(authority.cert_pem, signature, b"job")
    assert not verify(issued.cert, b"", b"job")
    with pytest.raises(KitError, match="No such file"):
        sign(tmp_path / "none.key", b"job")
    with pytest.raises(BadCertificate):
        verify(b"", signature, b"job")


def test_the_root_key_is_encrypted_under_a_passphrase(authority):
    secret = authority.key_pem(b"correct horse")
    assert b"ENCRYPTED" in secret
    again = CertificateAuthority.load("poc", authority.cert_pem, secret, passphrase=b"correct horse")
    assert verify(authority.cert_pem, again.sign(b"x"), b"x")
    for wrong, message in (
        (None, "root key is encrypted"),
        (b"", "is encrypted"),
        (b"wrong", "the passphrase is wrong"),
    ):
        with pytest.raises(KitError, match=message) as caught:
            CertificateAuthority.load("poc", authority.cert_pem, secret, passphrase=wrong)
        assert "\n" not in str(caught.value)
    plain = authority.key_pem()
    assert CertificateAuthority.load("poc", authority.cert_pem, plain, passphrase=b"needless").project == "poc"


def test_a_certificate_for_a_key_that_the_participant_made(authority):
    key = new_key()
    certificate = load_certificate(authority.issue_for(key.public_key(), "site", "site-1", "org"), "x")
    assert certificate.public_key() == key.public_key()
    other = ec.generate_private_key(ec.SECP384R1())
    with pytest.raises(BadInput, match="secp384r1, P-256"):
        authority.issue_for(other.public_key(), "site", "site-1", "org")


def test_what_was_issued_says_its_serial(authority):
    issued = authority.issue("site", "site-1", "org")
    assert int(issued.serial, 16) == load_certificate(issued.cert, "x").serial_number
    assert issued.serial == issued.serial.lower()


def test_while_the_root_is_rotated_either_signature_counts_and_the_first_signs(authority):
    new = CertificateAuthority.create("poc")
    both = authority.trusting(new.signing_pem)
    assert [serial_of(one) for one in load_roots(both.cert_pem, "x")] == [
        serial_of(load_certificate(one.signing_pem, "x")) for one in (authority, new)
    ]
    for signer in (authority, new, both):
        assert verify_by_root(both.cert_pem, signer.sign(b"x"), b"x")
    assert not verify_by_root(authority.cert_pem, new.sign(b"x"), b"x")
    again = CertificateAuthority.load("poc", both.cert_pem, authority.key_pem())
    assert again.cert_pem == both.cert_pem
    assert again.trusting(None).cert_pem == authority.cert_pem
    switched = CertificateAuthority.load("poc", both.cert_pem, new.key_pem())
    assert switched.cert_pem == new.trusting(authority.signing_pem).cert_pem


def test_a_participants_certificate_is_one_whatever_stands_behind_it(authority):
    ours, others = authority.issue("site", "a", "o"), authority.issue("site", "b", "o")
    signature = load_key(others.key, "x").sign(b"x", ec.ECDSA(hashes.SHA256()))
    assert verify(others.cert, signature, b"x")
    assert not verify(ours.cert + others.cert, signature, b"x")


def test_three_roots_are_too_many(authority):
    with pytest.raises(BadCertificate, match="3 certificates, one or two"):
        load_roots(authority.cert_pem * 3, "rootCA.pem")
    with pytest.raises(BadCertificate, match=r"rootCA\.pem: not a certificate"):
        load_roots(b"nonsense", "rootCA.pem")


def test_a_passphrase_costs_600_000_rounds_for_each_guess_and_openssl_can_read_the_key(tmp_path):
    key = new_key()
    pem = key_to_pem(key, b"correct horse")
    assert load_key(pem, "x", b"correct horse").private_numbers() == key.private_numbers()
    for wrong in (b"correct horsf", b"correct horse ", b"x"):
        with pytest.raises(KitError, match="passphrase is wrong"):
            load_key(pem, "x", wrong)
    with pytest.raises(KitError, match="is encrypted"):
        load_key(pem, "x")
    path = tmp_path / "a.key"
    path.write_bytes(pem)
    said = subprocess.run(
        ["openssl", "asn1parse", "-in", path], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert "PBKDF2" in said
    assert "hmacWithSHA256" in said
    assert "aes-256-cbc" in said
    assert f":{600_000:06X}" in said
    plain = subprocess.run(
        ["openssl", "pkey", "-in", path, "-passin", "pass:correct horse"], capture_output=True, check=True, timeout=60
    ).stdout
    assert load_key(plain, "x").private_numbers() == key.private_numbers()
    assert key_to_pem(key, b"correct horse") != pem, "another IV"


def test_the_fingerprint_of_a_key_is_the_one_that_openssl_prints(tmp_path):
    key = new_key()
    path = tmp_path / "a.key"
    path.write_bytes(key_to_pem(key))
    der = subprocess.run(
        ["openssl", "pkey", "-in", path, "-pubout", "-outform", "DER"], capture_output=True, check=True, timeout=60
    ).stdout
    found = public_key_sha256(key.public_key())
    assert found == hashlib.sha256(der).hexdigest()
    for said in (found.upper(), " SHA256:" + found, ":".join(re.findall("..", found))):
        assert as_fingerprint(said) == found
