"""Lists of revoked certificates for the kits that tests make."""

from __future__ import annotations

from fedhelm.security.identity import principal_from_certificate
from fedhelm.security.pki import load_certificate
from fedhelm.security.revocation import RevocationList, Revoked

AT = "2026-11-22T15:04:05.123Z"


def serial_of(kit):
    """Return the serial of a kit's certificate as lists and principals write it."""
    return principal_from_certificate(load_certificate(kit.cert.read_bytes(), kit.name), kit.project).serial


def signed_list(authority, version, *gone, reason="laptop stolen"):
    """Return the signed list of this version that takes back the certificates of these kits (at least one)."""
    entries = tuple(Revoked(serial_of(kit), kit.role, kit.name, AT, reason) for kit in gone)
    return RevocationList(gone[0].project, gone[0].cluster, version, AT, entries).to_bytes(authority)
