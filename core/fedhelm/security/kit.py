"""Open a kit and trust it: manifest, certificate, key, role and name agree, or one clear line says what does not."""

from __future__ import annotations

import stat
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from fedhelm.clock import Clock, SystemClock, iso
from fedhelm.config.kit import Kit, read_kit
from fedhelm.errors import BadCertificate, KitError
from fedhelm.security.identity import principal_from_certificate
from fedhelm.security.pki import load_certificate, load_key
from fedhelm.security.signing import verify_startup

__all__ = ["open_kit"]


def open_kit(root: Path, role: str | None = None, *, clock: Clock | None = None) -> Kit:
    """Read and verify a kit.

    Args:
        root: the participant's folder, the one that holds ``startup/``.
        role: the role the caller is going to play; any if not given.
        clock: for the certificate's validity.

    Raises:
        KitError: a file is missing, changed, extra, readable by others where it must not be, or of another role.
        BadCertificate: the certificate is expired, not valid yet, of another root, or names somebody else.
    """
    kit = read_kit(root)
    verify_startup(kit.startup)
    if role is not None and kit.role != role:
        raise KitError(f"{kit.root} is the kit of a {kit.role} ({kit.name}), not of a {role}")
    authority = load_certificate(kit.ca.read_bytes(), str(kit.ca))
    certificate = load_certificate(_read(kit.cert), str(kit.cert))
    _check_chain(certificate, authority, kit.cert)
    now = (clock or SystemClock()).utcnow()
    _check_time(certificate, kit.cert, now)
    _check_time(authority, kit.ca, now)
    principal = principal_from_certificate(certificate, kit.project)
    if (principal.role, principal.name) != (kit.role, kit.name):
        raise BadCertificate(f"{kit.cert} is the certificate of {principal}, the kit is of {kit.role} {kit.name}")
    _check_key(kit, certificate)
    return kit


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise KitError(f"{path} is missing", hint="unpack the kit again") from None
    except OSError as error:
        raise KitError(f"{path} cannot be read: {error.strerror}") from error


def _check_chain(certificate: x509.Certificate, authority: x509.Certificate, path: Path) -> None:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise BadCertificate(f"{path} was not issued by this project's root") from error


def _check_time(certificate: x509.Certificate, path: Path, now: datetime) -> None:
    if now < certificate.not_valid_before_utc:
        raise BadCertificate(
            f"{path} is not valid before {iso(certificate.not_valid_before_utc)}, and this machine's clock says "
            f"{iso(now)}",
            hint="set the clock",
        )
    if now > certificate.not_valid_after_utc:
        raise BadCertificate(
            f"{path} expired on {iso(certificate.not_valid_after_utc)}, and this machine's clock says {iso(now)}",
            hint="ask the project's administrator for a new kit",
        )


def _check_key(kit: Kit, certificate: x509.Certificate) -> None:
    key = load_key(_read(kit.key), str(kit.key))
    mode = stat.S_IMODE(kit.key.stat().st_mode)
    if mode & 0o077:
        raise KitError(f"{kit.key} can be read by others (mode {mode:04o})", hint=f"chmod 600 {kit.key}")
    if key.public_key() != certificate.public_key():
        raise KitError(f"{kit.key} does not belong to {kit.cert.name}")
