"""From a certificate to a principal. Role and name come from the one URI in the certificate and from nowhere else."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from cryptography import x509
from cryptography.x509.oid import NameOID

from fedhelm.config.kit import ADMIN_ROLES, ROLES
from fedhelm.errors import BadCertificate, BadInput
from fedhelm.ids import check_admin_name, check_host_name

__all__ = [
    "Principal",
    "principal_from_certificate",
    "principal_from_der",
    "principal_from_uris",
    "uri_of",
]

_URI = re.compile(r"fedhelm://([^/?#]+)/([^/?#]+)/([^/?#]+)")


@dataclasses.dataclass(frozen=True)
class Principal:
    """A participant whose certificate was verified.

    ``org`` and ``serial`` (hexadecimal, lower case) are empty where only the URI was at hand.
    """

    project: str
    role: str
    name: str
    org: str = ""
    serial: str = ""

    def __str__(self) -> str:
        """Return ``role name`` for messages."""
        return f"{self.role} {self.name}"


def uri_of(project: str, role: str, name: str) -> str:
    """Return the URI that names this participant in its certificate."""
    return f"fedhelm://{project}/{role}/{name}"


def principal_from_uris(uris: Sequence[str], project: str, org: str = "", serial: str = "") -> Principal:
    """Read the principal from all URI names of a verified certificate.

    Args:
        uris: all of them, not only the first.
        project: the project that the certificate must be of.
        org: what the certificate says, where it is at hand.
        serial: its serial number, likewise.

    Raises:
        BadCertificate: not exactly one URI, not of this form or project, an unknown role, or a name of a wrong form.
    """
    if len(uris) != 1:
        raise BadCertificate(f"the certificate carries {len(uris)} URI names, exactly one is needed")
    match = _URI.fullmatch(uris[0])
    if not match:
        raise BadCertificate(f"the certificate's URI {uris[0]!r} is not fedhelm://PROJECT/ROLE/NAME")
    its_project, role, name = match.groups()
    if its_project != project:
        raise BadCertificate(f"the certificate is of project {its_project!r}, not of {project!r}")
    if role not in ROLES:
        raise BadCertificate(f"the certificate names the unknown role {role!r}")
    try:
        if role in ADMIN_ROLES:
            check_admin_name(name)
        else:
            check_host_name(name)
    except BadInput as error:
        raise BadCertificate(f"the certificate's URI {uris[0]!r}: {error}") from error
    return Principal(project, role, name, org, serial)


def principal_from_certificate(certificate: x509.Certificate, project: str) -> Principal:
    """Read the principal from a certificate whose chain was verified already.

    Raises:
        BadCertificate: as :func:`principal_from_uris`.
    """
    try:
        orgs = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except x509.ExtensionNotFound:
        uris = []
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise BadCertificate(f"the certificate cannot be read: {error}") from error
    org = str(orgs[0].value) if orgs else ""
    return principal_from_uris(uris, project, org, f"{certificate.serial_number:x}")


def principal_from_der(der: bytes, project: str) -> Principal:
    """Read the principal from a certificate in DER whose chain was verified already (by TLS).

    Raises:
        BadCertificate: not a certificate, or as :func:`principal_from_uris`.
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
    except (ValueError, x509.InvalidVersion) as error:
        raise BadCertificate(f"not a certificate: {error}") from error
    return principal_from_certificate(certificate, project)
