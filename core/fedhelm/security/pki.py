"""The project's certificate authority: ECDSA P-256, one root, leaves for participants, signatures."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedhelm.clock import Clock, SystemClock
from fedhelm.errors import BadCertificate, BadInput, KitError
from fedhelm.security.identity import uri_of
from fedhelm.security.key_encryption import encrypted_pem

__all__ = [
    "CertificateAuthority",
    "Issued",
    "as_fingerprint",
    "key_to_pem",
    "load_certificate",
    "load_key",
    "load_roots",
    "new_key",
    "public_key_sha256",
    "serial_of",
    "sign",
    "verify",
    "verify_by_root",
]

BACKDATED: Final = timedelta(minutes=5)  # a participant whose clock is a little behind can start at once
CA_LIFE: Final = timedelta(days=3650)
LEAF_LIFE: Final = timedelta(days=365)

_LISTENING_ROLES = frozenset({"overseer", "server"})


@dataclasses.dataclass(frozen=True)
class Issued:
    """A certificate and its private key, both PEM. ``serial`` is the certificate's, hex in lower case."""

    cert: bytes
    key: bytes
    serial: str = ""


def new_key() -> ec.EllipticCurvePrivateKey:
    """Make a private key of the only kind that this project uses, ECDSA P-256."""
    return ec.generate_private_key(ec.SECP256R1())


def key_to_pem(key: ec.EllipticCurvePrivateKey, passphrase: bytes | None = None) -> bytes:
    """Return the key as PKCS8 PEM, encrypted under the passphrase where one is given."""
    plain, pkcs8 = serialization.NoEncryption(), serialization.PrivateFormat.PKCS8
    if passphrase:
        return encrypted_pem(key.private_bytes(serialization.Encoding.DER, pkcs8, plain), passphrase)
    return key.private_bytes(serialization.Encoding.PEM, pkcs8, plain)


def serial_of(certificate: x509.Certificate) -> str:
    """Return a certificate's serial number as it is written everywhere: hex, lower case, no leading zeros."""
    return f"{certificate.serial_number:x}"


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

    Args:
        project: the project's name.
        cert: the root certificate, the one that signs.
        key: its key.
        clock: for the certificates' validity.
        also: another root that participants trust, while the root is rotated.
    """

    def __init__(
        self,
        project: str,
        cert: x509.Certificate,
        key: ec.EllipticCurvePrivateKey,
        clock: Clock,
        also: tuple[x509.Certificate, ...] = (),
    ) -> None:
        self.project = project
        self._cert, self._key, self._clock, self._also = cert, key, clock, also

    @classmethod
    def create(cls, project: str, *, clock: Clock | None = None) -> CertificateAuthority:
        """Make a root key and a self-signed certificate, valid for ten years."""
        clock = clock or SystemClock()
        key = new_key()
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
    def load(
        cls,
        project: str,
        cert: bytes,
        key: bytes,
        *,
        passphrase: bytes | None = None,
        clock: Clock | None = None,
    ) -> CertificateAuthority:
        """Return the root whose certificate and key (PEM) :meth:`create` made before.

        Args:
            project: the project's name.
            cert: one or two root certificates; the one that is the key's signs, and stands first from now on.
            key: the private key, encrypted or not.
            passphrase: of the key, where it is encrypted.
            clock: for the certificates' validity.

        Raises:
            BadCertificate: not one or two certificates.
            KitError: not an ECDSA key, not this certificate's, or its passphrase is missing or wrong.
        """
        roots = load_roots(cert, "root certificate")
        private = load_key(key, "root key", passphrase)
        signing = [one for one in roots if one.public_key() == private.public_key()]
        if not signing:
            raise KitError("the root key does not belong to the root certificate")
        others = tuple(one for one in roots if one not in signing)
        return cls(project, signing[0], private, clock or SystemClock(), others)

    def trusting(self, pem: bytes | None) -> CertificateAuthority:
        """Return this root, whose participants also trust the root certificate ``pem``, or no other (None).

        Raises:
            BadCertificate: not a certificate.
        """
        also = () if pem is None else (load_certificate(pem, "root certificate"),)
        return CertificateAuthority(self.project, self._cert, self._key, self._clock, also)

    @property
    def cert_pem(self) -> bytes:
        """What participants trust, PEM: the root certificate, and behind it another one while the root is rotated."""
        return b"".join(one.public_bytes(serialization.Encoding.PEM) for one in (self._cert, *self._also))

    @property
    def signing_pem(self) -> bytes:
        """The certificate of the root that signs, alone (PEM)."""
        return self._cert.public_bytes(serialization.Encoding.PEM)

    def key_pem(self, passphrase: bytes | None = None) -> bytes:
        """Return the root's private key, PEM: to be written with mode 0600 and to no kit.

        Args:
            passphrase: encrypts it (see :mod:`fedhelm.security.key_encryption`); plain without one.
        """
        return key_to_pem(self._key, passphrase)

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
        key = new_key()
        cert = self.issue_for(key.public_key(), role, name, org, start=start, life=life)
        serial = serial_of(x509.load_pem_x509_certificate(cert))
        return Issued(cert, key_to_pem(key), serial)

    def issue_for(
        self,
        public_key: ec.EllipticCurvePublicKey,
        role: str,
        name: str,
        org: str,
        *,
        start: datetime | None = None,
        life: timedelta = LEAF_LIFE,
    ) -> bytes:
        """Return a certificate (PEM) for a key that the participant made itself; otherwise as :meth:`issue`.

        Raises:
            BadInput: an organisation that is empty or too long, or a key of another kind than ECDSA P-256.
        """
        if not isinstance(public_key.curve, ec.SECP256R1):
            raise BadInput(f"the key of {name} is on the curve {public_key.curve.name}, P-256 (secp256r1) is needed")
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
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(min(start + life, self._cert.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return cert.public_bytes(serialization.Encoding.PEM)

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
    except (ValueError, x509.InvalidVersion) as error:
        raise BadCertificate(f"{what}: not a certificate in PEM form") from error


def load_roots(pem: bytes, what: str) -> tuple[x509.Certificate, ...]:
    """Parse the content of a ``rootCA.pem``: one root certificate, or two while the root is rotated, the signing first.

    Raises:
        BadCertificate: it is something else; ``what`` names it in the message.
    """
    try:
        roots = x509.load_pem_x509_certificates(pem)
    except (ValueError, x509.InvalidVersion) as error:
        raise BadCertificate(f"{what}: not a certificate in PEM form") from error
    if len(roots) > 2:
        raise BadCertificate(f"{what}: {len(roots)} certificates, one or two are needed")
    return tuple(roots)


def load_key(pem: bytes, what: str, passphrase: bytes | None = None) -> ec.EllipticCurvePrivateKey:
    """Parse one PEM ECDSA key.

    Args:
        pem: the key.
        what: how messages call it.
        passphrase: of an encrypted key; one that is given for a key that is not encrypted is not used.

    Raises:
        KitError: it is none, or it is encrypted and the passphrase is missing or wrong.
    """
    encrypted = b"-----BEGIN ENCRYPTED PRIVATE KEY-----" in pem
    if encrypted and not passphrase:
        raise KitError(f"{what} is encrypted", hint="give its passphrase")
    try:
        key = serialization.load_pem_private_key(pem, passphrase if encrypted else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        if encrypted:
            raise KitError(f"{what} does not open: the passphrase is wrong, or the file is damaged") from error
        raise KitError(f"{what}: not a private key in PEM form") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise KitError(f"{what}: not an ECDSA key")
    return key


def public_key_sha256(key: ec.EllipticCurvePublicKey) -> str:
    """Return the SHA-256 of a public key (DER, SubjectPublicKeyInfo), hex: what two people compare.

    ``openssl pkey -in FILE.key -pubout -outform DER | sha256sum`` prints the same.
    """
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def as_fingerprint(text: str) -> str:
    """Return what somebody copied as :func:`public_key_sha256` writes it: without colons and blanks, lower case."""
    return re.sub(r"[\s:]", "", text.lower()).removeprefix("sha256")


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
    """Tell whether ``signature`` over ``data`` was made with the key of this certificate (PEM; the first, of several).

    Raises:
        BadCertificate: ``cert`` is no certificate with an ECDSA key.
    """
    return _verify(load_certificate(cert, "certificate"), signature, data)


def verify_by_root(roots: bytes, signature: bytes, data: bytes) -> bool:
    """Tell whether one of the roots in ``roots``, the content of a ``rootCA.pem``, signed ``data``.

    Raises:
        BadCertificate: ``roots`` is not one or two certificates with ECDSA keys.
    """
    return any(_verify(one, signature, data) for one in load_roots(roots, "root certificate"))


def _verify(certificate: x509.Certificate, signature: bytes, data: bytes) -> bool:
    try:
        public = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BadCertificate(f"the certificate's key cannot be read: {error}") from error
    if not isinstance(public, ec.EllipticCurvePublicKey):
        raise BadCertificate("the certificate's key is not an ECDSA key")
    try:
        public.verify(signature, data, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True
