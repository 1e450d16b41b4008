"""Signed statements: a JSON object, signed with the key of a participant's certificate, which travels with it.

A statement is ``{"statement": {...}, "certificate": PEM, "signature": base64}``. Whoever has the project's root can
verify it, at any time and without asking anybody. Each kind has a domain of its own, so that a signature over one
cannot be passed off as another.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from fedhelm.errors import BadSignature, FedhelmError
from fedhelm.plain_json import NotPlainJson, parse_plain
from fedhelm.security.identity import Principal, principal_from_certificate
from fedhelm.security.pki import load_certificate, load_roots, sign, verify
from fedhelm.security.retired import load_retired
from fedhelm.security.trust import check_issued, check_validity

__all__ = ["MAX_DEPTH", "Revocation", "Signed", "Trust", "moment", "parse_json", "seal", "unseal"]

MAX_DEPTH: Final = 16
"""Objects and lists inside one another."""

_KEYS: Final = {"statement", "certificate", "signature"}
_MAX_CERTIFICATE: Final = 16 * 1024
_MAX_SIGNATURE: Final = 512

Revocation = Callable[[str], object | None]
"""Serial (hex, lower case) -> something, where that certificate was revoked; None where it still counts."""


@dataclasses.dataclass(frozen=True)
class Trust:
    """What a verifier goes by.

    Attributes:
        root_pem: the content of its own ``rootCA.pem``, one or two roots.
        project: its project.
        now: when the certificate has to be valid, besides the time of signing; None: only then.
        revoked: where given, asked for the certificate's serial.
        retired_pem: roots that were rotated away, for what was signed before; of a verifier for whom only what is
            signed now counts: nothing.
    """

    root_pem: bytes
    project: str
    now: datetime | None = None
    revoked: Revocation | None = None
    retired_pem: bytes = b""


@dataclasses.dataclass(frozen=True)
class Signed:
    """A statement that was verified: what it says, and who signed it, organisation and serial included."""

    body: Mapping[str, Any]
    signer: Principal


def _signed_bytes(domain: bytes, body: Mapping[str, Any]) -> bytes:
    return domain + b"\n" + json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def seal(domain: bytes, body: Mapping[str, Any], key: Path, certificate_pem: bytes) -> bytes:
    """Sign a statement and return it with its certificate, as JSON in one line.

    Args:
        domain: the kind of statement.
        body: what it says: JSON values, with ``time`` among them (ISO 8601 UTC with milliseconds).
        key: file of the certificate's private key.
        certificate_pem: the signer's certificate.

    Raises:
        KitError: the key cannot be read.
        ValueError: the body is no JSON value: a mistake in the program.
    """
    signature = base64.b64encode(sign(key, _signed_bytes(domain, body))).decode()
    sealed = {"statement": dict(body), "certificate": certificate_pem.decode(), "signature": signature}
    return json.dumps(sealed, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def unseal(domain: bytes, data: bytes, what: str, trust: Trust, roles: Collection[str]) -> Signed:
    """Verify a statement, whatever bytes it is.

    Args:
        domain: the kind of statement that is expected.
        data: the statement, from whomever it came; its length is the caller's to bound.
        what: how messages call it.
        trust: what the verifier goes by.
        roles: who may sign one.

    Raises:
        BadSignature: no statement; not signed by its certificate; a certificate of another root, project or role,
            not valid then, or revoked.
    """
    try:
        return _unseal(domain, data, what, trust, roles)
    except BadSignature:
        raise
    except FedhelmError as error:
        raise BadSignature(f"{what}: {error.message}", hint=error.hint) from error
    except Exception as error:  # certificates from outside fail in more ways than their library documents
        raise BadSignature(f"{what}: cannot be read") from error


def _unseal(domain: bytes, data: bytes, what: str, trust: Trust, roles: Collection[str]) -> Signed:
    outer = parse_json(data, what)
    if not isinstance(outer, dict) or outer.keys() != _KEYS:
        raise BadSignature(f"{what}: not a signed statement")
    body, pem, encoded = outer["statement"], outer["certificate"], outer["signature"]
    if not isinstance(body, dict) or not isinstance(pem, str) or not isinstance(encoded, str):
        raise BadSignature(f"{what}: not a signed statement")
    if len(pem) > _MAX_CERTIFICATE or len(encoded) > _MAX_SIGNATURE:
        raise BadSignature(f"{what}: certificate or signature are too long")
    certificate = load_certificate(pem.encode(), f"{what}: the signer's certificate")
    roots = (*load_roots(trust.root_pem, "rootCA.pem"), *load_retired(trust.retired_pem))
    check_issued(certificate, roots, "the signer's certificate")
    signer = principal_from_certificate(certificate, trust.project)
    if signer.role not in roles:
        raise BadSignature(f"{what}: signed by {signer}, and only {', '.join(sorted(roles))} may")
    if not verify(pem.encode(), base64.b64decode(encoded, validate=True), _signed_bytes(domain, body)):
        raise BadSignature(f"{what}: the signature is not that of {signer} over what it says")
    signed_at = moment(body.get("time"))
    if signed_at is None:
        raise BadSignature(f"{what}: time is not a time")
    for then in (signed_at, trust.now):
        if then is not None:
            check_validity(certificate, f"the certificate of {signer}", then)
    if trust.revoked is not None and trust.revoked(signer.serial) is not None:
        raise BadSignature(f"{what}: the certificate of {signer} was revoked")
    return Signed(body, signer)


def moment(value: object) -> datetime | None:
    """Return the time that ``2026-11-22T15:04:05.123Z`` names; None for anything else."""
    if not isinstance(value, str) or len(value) != 24 or not value.isascii() or value[10] != "T" or value[-1] != "Z":
        return None
    try:
        return datetime.strptime(value, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
    except ValueError:
        return None


def parse_json(data: bytes, what: str) -> Any:
    """Parse JSON from outside: UTF-8, no key twice, no NaN, no deep nesting.

    Raises:
        BadSignature: it is none; the message begins with ``what``.
    """
    try:
        return parse_plain(data, max_depth=MAX_DEPTH)
    except NotPlainJson as error:
        raise BadSignature(f"{what}: not JSON: {error}") from error
