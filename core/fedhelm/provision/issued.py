"""A certificate that was issued: one line of a project's ``state/certificates.json``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, Literal

from fedhelm.clock import iso
from fedhelm.security.identity import principal_from_certificate
from fedhelm.security.pki import load_certificate

__all__ = ["By", "IssuedCertificate", "as_serial", "is_number"]

By = Literal["provision", "name"]
"""Who took a certificate back: ``fedhelm provision``, because the project file changed, or somebody by name."""

_LATER: Final = ("by", "own_key")  # keys that came later: absent where they say nothing


def is_number(value: object) -> bool:
    """Tell whether a value of the state's files may be a version or the number of a ``prod_NN``."""
    return type(value) is int and 0 <= value < 2**31


def as_serial(text: str) -> str:
    """Return a serial number as it is written here, of what somebody copied: ``0A:1B``, ``serial=0A1B``, ``0x0a1b``.

    What is none is returned as it is, and will be nobody's.
    """
    plain = text.strip().lower().removeprefix("serial=").removeprefix("0x").replace(":", "")
    return plain.lstrip("0") or text


@dataclasses.dataclass(frozen=True)
class IssuedCertificate:
    """One line of ``state/certificates.json``; times are ISO 8601 UTC.

    ``prod`` is the folder that first held it. ``by`` says who took it back; None in lines of before that was written.
    ``own_key``: the participant made the key itself, so that no later certificate of it is for another key; None in
    lines of before that was written.
    """

    serial: str
    role: str
    name: str
    org: str
    not_before: str
    not_after: str
    kit_version: int
    cert_pem: str
    revoked_at: str | None = None
    reason: str | None = None
    prod: int | None = None
    by: By | None = None
    own_key: bool | None = None

    @classmethod
    def of(
        cls, cert_pem: bytes, project: str, kit_version: int, prod: int | None = None, *, own_key: bool | None = None
    ) -> IssuedCertificate:
        """Describe a certificate that was just issued.

        Raises:
            BadCertificate: it is none of this project.
        """
        certificate = load_certificate(cert_pem, "certificate")
        principal = principal_from_certificate(certificate, project)
        return cls(
            serial=principal.serial,
            role=principal.role,
            name=principal.name,
            org=principal.org,
            not_before=iso(certificate.not_valid_before_utc),
            not_after=iso(certificate.not_valid_after_utc),
            kit_version=kit_version,
            cert_pem=cert_pem.decode(),
            prod=prod,
            own_key=own_key,
        )

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> IssuedCertificate:
        """Return the line that :meth:`to_json` gave.

        Raises:
            ValueError: it is none; also TypeError.
        """
        one = cls(**value)
        texts = (one.serial, one.role, one.name, one.org, one.not_before, one.not_after, one.cert_pem)
        good = all(isinstance(text, str) for text in texts) and is_number(one.kit_version)
        maybe = (one.revoked_at, one.reason)
        if not good or not all(text is None or isinstance(text, str) for text in maybe):
            raise ValueError("a certificate with a value of another kind")
        if one.by not in (None, "provision", "name") or not (one.own_key is None or isinstance(one.own_key, bool)):
            raise ValueError("a certificate with a value of another kind")
        if one.prod is not None and not is_number(one.prod):
            raise ValueError("a certificate of no prod_NN")
        return one

    def to_json(self) -> dict[str, Any]:
        """Return the line as a JSON object."""
        body = dataclasses.asdict(self)
        return {key: value for key, value in body.items() if value is not None or key not in _LATER}

    @property
    def revoked(self) -> bool:
        """Whether it was taken back."""
        return self.revoked_at is not None

    def expired(self, now: datetime) -> bool:
        """Return whether its time is over at ``now``."""
        return iso(now) >= self.not_after
