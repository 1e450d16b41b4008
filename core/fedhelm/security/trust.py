"""Whom a participant trusts, for how long, and when somebody should be told that a certificate ends soon."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from fedhelm.clock import iso
from fedhelm.errors import BadCertificate

__all__ = ["LEAD_TIMES", "NEW_KIT", "check_issued", "check_validity", "expiry_warnings", "issuer_of"]

NEW_KIT: Final = "ask the project's administrator for a new kit"
"""What to do about a certificate that has expired."""

LEAD_TIMES: Final = (timedelta(days=30), timedelta(days=7), timedelta(days=1))
"""How long before its end a certificate is warned of; the wording gets stronger with each."""

_WORDS: Final = ("expires", "expires soon", "is about to expire")


def issuer_of(certificate: x509.Certificate, roots: tuple[x509.Certificate, ...]) -> x509.Certificate | None:
    """Return the one of ``roots`` that issued the certificate; None if none did."""
    for root in roots:
        try:
            certificate.verify_directly_issued_by(root)
        except (ValueError, TypeError, InvalidSignature):
            continue
        return root
    return None


def check_issued(certificate: x509.Certificate, roots: tuple[x509.Certificate, ...], what: str) -> x509.Certificate:
    """Return the root that issued the certificate.

    Raises:
        BadCertificate: none of them did; the message begins with ``what``.
    """
    root = issuer_of(certificate, roots)
    if root is None:
        raise BadCertificate(f"{what} was not issued by this project's root")
    return root


def check_validity(certificate: x509.Certificate, what: str, now: datetime) -> None:
    """Let a certificate pass that is valid at ``now`` (UTC).

    Raises:
        BadCertificate: it is expired or not valid yet; the message begins with ``what`` and says both times.
    """
    if now < certificate.not_valid_before_utc:
        raise BadCertificate(
            f"{what} is not valid before {iso(certificate.not_valid_before_utc)}, and this machine's clock says "
            f"{iso(now)}",
            hint="set the clock",
        )
    if now > certificate.not_valid_after_utc:
        raise BadCertificate(
            f"{what} expired on {iso(certificate.not_valid_after_utc)}, and this machine's clock says {iso(now)}",
            hint=NEW_KIT,
        )


def expiry_warnings(certificate: x509.Certificate, now: datetime) -> str | None:
    """Say that a certificate ends within :data:`LEAD_TIMES`, or ended.

    Returns:
        What follows the subject, such as ``expires on 2027-01-31, in 29 days``; None while it has time. It changes at
        most once a day, so whoever logs it may keep quiet until it does.
    """
    end = certificate.not_valid_after_utc
    day = end.astimezone(UTC).date().isoformat()
    left = end - now
    if left < timedelta(0):
        return f"expired on {day}"
    words = [word for lead, word in zip(LEAD_TIMES, _WORDS, strict=True) if left <= lead]
    if not words:
        return None
    days = left.days
    return f"{words[-1]} on {day}, " + ("within a day" if days < 1 else f"in {days} day{'s' if days > 1 else ''}")
