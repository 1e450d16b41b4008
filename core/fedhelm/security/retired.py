"""Roots that were rotated away: what was signed while they counted can still be verified.

They are for statements alone, submissions of jobs and provenance, which are verified long after they were signed. No
connection, kit or list of revoked certificates is ever verified with one.
"""

from __future__ import annotations

from typing import Final

from cryptography import x509

from fedhelm.config.kit import Kit
from fedhelm.errors import BadCertificate, KitError

__all__ = ["MAX_RETIRED", "RETIRED_FILE", "load_retired", "read_retired"]

RETIRED_FILE: Final = "retiredCA.pem"
"""Name of the file in ``startup/``, which the manifest names; a kit of a project that has no such root has none."""

MAX_RETIRED: Final = 64
"""Roots in one file; the oldest go first."""


def load_retired(pem: bytes, what: str = RETIRED_FILE) -> tuple[x509.Certificate, ...]:
    """Parse retired root certificates, oldest first; of nothing, none.

    Raises:
        BadCertificate: it is something else; ``what`` names it in the message.
    """
    if not pem:
        return ()
    try:
        found = x509.load_pem_x509_certificates(pem)
    except (ValueError, x509.InvalidVersion) as error:
        raise BadCertificate(f"{what}: not certificates in PEM form") from error
    if len(found) > MAX_RETIRED:
        raise BadCertificate(f"{what}: {len(found)} certificates, at most {MAX_RETIRED} are read")
    return tuple(found)


def read_retired(kit: Kit) -> bytes:
    """Return the retired roots of a kit, PEM; nothing where the project has none.

    Raises:
        KitError: the file cannot be read.
    """
    path = kit.startup / RETIRED_FILE
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise KitError(f"{path}: cannot be read: {error.strerror}") from error
