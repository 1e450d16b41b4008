"""Certificate requests: a participant makes its key itself, and nobody else ever sees it.

A request (PKCS10) says role and name in one URI, organisation in its subject, and proves that whoever made it has the
key. It asks only: what is granted is what the project file says of that participant.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fedhelm.config.kit import ADMIN_ROLES, ROLES
from fedhelm.errors import BadCertificate, BadInput
from fedhelm.ids import check_admin_name, check_host_name
from fedhelm.security.pki import key_to_pem, new_key

__all__ = ["MAX_BYTES", "CertificateRequest", "check_participant", "make_request", "read_request"]

MAX_BYTES: Final = 64 * 1024
"""Largest file that is read as a request."""

_UNREADABLE: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    InvalidSignature,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What the library raises about a request that is none, sooner or later."""

_URI: Final = re.compile(r"fedhelm-request://([^/?#]+)/([^/?#]+)")


@dataclasses.dataclass(frozen=True)
class CertificateRequest:
    """What somebody asks for, with the key that it was proved to have."""

    role: str
    name: str
    org: str
    public_key: ec.EllipticCurvePublicKey


def check_participant(role: str, name: str, org: str) -> None:
    """Let a role, a name and an organisation pass that a certificate may carry.

    Raises:
        BadInput: one of them may not; the message says which.
    """
    if role not in ROLES:
        raise BadInput(f"role {role!r} is not one of {', '.join(ROLES)}")
    if role in ADMIN_ROLES:
        check_admin_name(name)
    else:
        check_host_name(name)
    if not 0 < len(org) <= 64 or not org.isprintable():
        raise BadInput(f"organisation {org!r} must have 1 to 64 printable characters")


def make_request(role: str, name: str, org: str) -> tuple[bytes, bytes]:
    """Make a key and the request for its certificate.

    Returns:
        The private key and the request, both PEM.

    Raises:
        BadInput: as :func:`check_participant`.
    """
    check_participant(role, name, org)
    key = new_key()
    subject = x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, org), x509.NameAttribute(NameOID.COMMON_NAME, name[:64])]
    )
    uri = x509.UniformResourceIdentifier(f"fedhelm-request://{role}/{name}")
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(subject)
        .add_extension(x509.SubjectAlternativeName([uri]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return key_to_pem(key), request.public_bytes(serialization.Encoding.PEM)


def read_request(pem: bytes, what: str) -> CertificateRequest:
    """Read and verify a request.

    Args:
        pem: the request.
        what: how messages call it.

    Raises:
        BadCertificate: it is none that :func:`make_request` could have made, or its signature is wrong.
    """
    if len(pem) > MAX_BYTES:
        raise BadCertificate(f"{what}: {len(pem)} bytes, a certificate request has at most {MAX_BYTES}")
    try:
        request = x509.load_pem_x509_csr(pem)
        key, valid = request.public_key(), request.is_signature_valid
        names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        orgs = [str(one.value) for one in request.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]
    except x509.ExtensionNotFound:
        raise BadCertificate(f"{what}: the request does not say for whom it is", hint=_HINT) from None
    except _UNREADABLE as error:
        raise BadCertificate(f"{what}: not a certificate request in PEM form", hint=_HINT) from error
    if not valid:
        raise BadCertificate(f"{what}: the request was not signed with its own key")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise BadCertificate(f"{what}: the request's key is not ECDSA P-256", hint=_HINT)
    match = _URI.fullmatch(uris[0]) if len(uris) == 1 else None
    if match is None or len(orgs) != 1:
        raise BadCertificate(f"{what}: the request does not say for whom it is", hint=_HINT)
    try:
        check_participant(match[1], match[2], orgs[0])
    except BadInput as error:
        raise BadCertificate(f"{what}: {error}") from error
    return CertificateRequest(match[1], match[2], orgs[0], key)


_HINT: Final = "fedhelm pki request makes one"
