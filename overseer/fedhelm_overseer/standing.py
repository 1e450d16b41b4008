"""Who calls, and for how long that may count: a connection may outlive its certificate, no call may."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Final

from cryptography import x509

from fedhelm.clock import Clock
from fedhelm.errors import BadCertificate
from fedhelm.security.identity import Principal, principal_from_certificate
from fedhelm.security.trust import check_validity

__all__ = ["Standing", "identify"]

_BEHIND_S: Final = 0.01
"""A certificate counts in its last instant still: whoever waits for its end waits until that is over."""


@functools.lru_cache(maxsize=256)
def identify(der: bytes, project: str) -> tuple[Principal, x509.Certificate]:
    """Return whose certificate it is, in DER, which TLS has verified once, when the connection began.

    Raises:
        BadCertificate: no certificate of a participant of this project.
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
    except (ValueError, x509.InvalidVersion) as error:
        raise BadCertificate(f"not a certificate: {error}") from error
    return principal_from_certificate(certificate, project), certificate


class Standing:
    """A caller's certificate while a call lasts.

    Args:
        principal: who calls.
        certificate: with what.
        check: raises BadCertificate for the serial of a certificate that was revoked.
        clock: for its validity.
    """

    def __init__(
        self, principal: Principal, certificate: x509.Certificate, check: Callable[[str], None], clock: Clock
    ) -> None:
        self.principal = principal
        self._certificate = certificate
        self._check = check
        self._clock = clock

    def check(self) -> None:
        """Let the call begin, or go on.

        Raises:
            BadCertificate: the certificate has expired, is not valid yet, or was revoked.
        """
        check_validity(self._certificate, f"the certificate of {self.principal}", self._clock.utcnow())
        self._check(self.principal.serial)

    def left(self) -> float:
        """Return for how many seconds the certificate counts from now on unless it is revoked; 0 once it does not."""
        try:
            self.check()
        except BadCertificate:
            return 0.0
        return (self._certificate.not_valid_after_utc - self._clock.utcnow()).total_seconds() + _BEHIND_S
