"""The project's certificate authority: ECDSA P-256, one root, leaves for participants, signatures."""

from __future__ import annotations

import dataclasses
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedhelm.clock import Clock, SystemClock
from fedhelm.errors import BadCertificate, BadInput, KitError
from fedhelm.security.identity import uri_of

__all__ = ["CertificateAuthority", "Issued", "load_certificate", "load_key", "sign", "verify"]

BACKDATED: Final = timedelta(minutes=5)  # a participant whose clock is a little behind can start at once
CA_LIFE: Final = timedelta(days=3650)
LEAF_LIFE: Final = timedelta(days=365)

_LISTENING_ROLES = frozenset({"overseer", "server"})


@dataclasses.dataclass(frozen=True)
class Issued:
    """A certificate and its private key, both PEM."""

    cert: bytes
    key: bytes


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _subject(org: str, name: str) -> x509.Name:
    if not 0 < len(org) <= 64:
        raise BadInput(f"organisation {org!r} must have 1 to 64 characters")
    # CN is for people who look at the certificate; X.509 limits it to 64 characters.
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, org), x509.NameAttribute(NameOID.COMMON_NAME, name[:64])]
    )


class CertificateAuthority:
    """A project's root: issues participants' certificates and signs their kits.

    The root signs leaves only (path length 0), each with a URI of its own project.
    """

    def __init__(self, project: str, cert: x509.Certificate, key: ec.EllipticCurvePrivateKey, clock: Clock) -> None:
        self.project = project
        self._cert, self._key, self._clock = cert, key, clock

    @classmethod
    def create(cls, project: str, *, clock: Clock | None = None) -> CertificateAuthority:
        """Make a root key and a self-signed certificate, valid for ten years."""
        clock = clock or SystemClock()
        key = ec.generate_private_key(ec.SECP256R1())
        name = _subject(project, f"{project} root")
        start = clock.utcnow() - BACKDATED
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        cert = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(start + CA_LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(ca=True), critical=True)
            .add_extension(identifier, critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(project, cert, key, clock)

    @classmethod
    def load(cls, project: str, cert: bytes, key: bytes, *, clock: Clock | None = None) -> CertificateAuthority:
        """Return the root whose certificate and key (PEM) :meth:`create` made before.

        Raises:
            BadCertificate: not a certificate.
            KitError: not an ECDSA key, or not this certificate's.
        """
        certificate, private = load_certificate(cert, "root certificate"), load_key(key, "root key")
        if private.public_key() != certificate.public_key():
            raise KitError("the root key does not belong to the root certificate")
        return cls(project, certificate, private, clock or SystemClock())

    @property
    def cert_pem(self) -> bytes:
        """The root certificate, PEM."""
        return self._cert.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The root's private key, PEM: to be written with mode 0600 and to no kit."""
        return _key_pem(self._key)

    def issue(
        self,
        role: str,
        name: str,
        org: str,
        *,
        start: datetime | None = None,
        life: timedelta = LEAF_LIFE,
    ) -> Issued:
        """Make a key and a certificate for one participant.

        Only an overseer or a server gets ``serverAuth`` and a DNS name, so that nobody else can pose as one.

        Args:
            role: the participant's role.
            name: its name, checked by the caller.
            org: its organisation, 1 to 64 characters.
            start: when it becomes valid; five minutes ago if not given.
            life: how long it is valid.

        Raises:
            BadInput: an organisation that is empty or too long.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        start = start or self._clock.utcnow() - BACKDATED
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri_of(self.project, role, name))]
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if role in _LISTENING_ROLES:
            names.append(x509.DNSName(name))
            usages.insert(0, ExtendedKeyUsageOID.SERVER_AUTH)
        issuer = self._cert.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        cert = (
            x509.CertificateBuilder()
            .subject_name(_subject(org, name))
            .issuer_name(self._cert.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(min(start + life, self._cert.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return Issued(cert.public_bytes(serialization.Encoding.PEM), _key_pem(key))

    def sign(self, data: bytes) -> bytes:
        """Sign with the root key; :func:`verify` with :attr:`cert_pem` checks it."""
        return self._key.sign(data, ec.ECDSA(hashes.SHA256()))


def load_certificate(pem: bytes, what: str) -> x509.Certificate:
    """Parse one PEM certificate.

    Raises:
        BadCertificate: it is none; ``what`` names it in the message.
    """
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise BadCertificate(f"{what}: not a certificate in PEM form") from error


def load_key(pem: bytes, what: str) -> ec.EllipticCurvePrivateKey:
    """Parse one unencrypted PEM ECDSA key.

    Raises:
        KitError: it is none; ``what`` names it in the message.
    """
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError) as error:
        raise KitError(f"{what}: not a private key in PEM form") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise KitError(f"{what}: not an ECDSA key")
    return key


def sign(key_path: Path, data: bytes) -> bytes:
    """Sign with the ECDSA key in a PEM file (SHA-256).

    Raises:
        KitError: the file is missing or no such key.
    """
    try:
        pem = key_path.read_bytes()
    except OSError as error:
        raise KitError(f"{key_path}: cannot be read: {error.strerror}") from error
    return load_key(pem, str(key_path)).sign(data, ec.ECDSA(hashes.SHA256()))


def verify(cert: bytes, signature: bytes, data: bytes) -> bool:
    """Tell whether ``signature`` over ``data`` was made with the key of this certificate (PEM).

    Raises:
        BadCertificate: ``cert`` is no certificate with an ECDSA key.
    """
    public = load_certificate(cert, "certificate").public_key()
    if not isinstance(public, ec.EllipticCurvePublicKey):
        raise BadCertificate("the certificate's key is not an ECDSA key")
    try:
        public.verify(signature, data, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True
