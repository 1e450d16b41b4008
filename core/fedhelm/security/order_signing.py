"""Orders to sites are signed by the admin who gives them: the server passes them on, each site decides for itself."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from fedhelm.clock import Clock, SystemClock, iso
from fedhelm.config.kit import Kit
from fedhelm.errors import BadSignature, KitError
from fedhelm.security.identity import Principal
from fedhelm.security.policy import PERMISSIONS
from fedhelm.security.statements import Signed, Trust, moment, seal, unseal

__all__ = [
    "ALL_SITES",
    "MAX_AGE",
    "MAX_BYTES",
    "MAX_REASON",
    "SiteOrder",
    "VerifiedOrder",
    "sign_order",
    "verify_order",
]

ALL_SITES: Final = "@ALL"
"""Stands for every site."""

MAX_BYTES: Final = 128 * 1024
"""Largest signed order: the names of some thousand sites."""

MAX_REASON: Final = 500
"""Characters of a reason that count."""

MAX_AGE: Final = timedelta(minutes=15)
"""How far the time of signing may be from the clock of whoever verifies."""

_DOMAIN: Final = b"fedhelm order to sites"
_FORMAT: Final = 1


@dataclasses.dataclass(frozen=True)
class SiteOrder:
    """What an admin signs.

    Attributes:
        project: the project.
        cluster: the federation: an order for one counts in no other.
        order: the id of the request: each site obeys it once.
        action: ``shutdown`` or ``restart``.
        sites: whom it is for, as the admin named them; :data:`ALL_SITES` stands for all.
        reason: for the sites' logs.
    """

    project: str
    cluster: str
    order: str
    action: str
    sites: tuple[str, ...]
    reason: str = ""

    def names(self, site: str) -> bool:
        """Tell whether it is for this site."""
        return site in self.sites or ALL_SITES in self.sites


@dataclasses.dataclass(frozen=True)
class VerifiedOrder:
    """An order that holds. ``admin`` has organisation and serial; ``time`` is that of signing, ISO 8601."""

    order: SiteOrder
    admin: Principal
    time: str


def sign_order(kit: Kit, order: SiteOrder, *, clock: Clock | None = None) -> bytes:
    """Sign an order with the key of an admin's kit; what comes back travels with it, as it is.

    Args:
        kit: the admin's.
        order: what is signed.
        clock: for the time of signing.

    Raises:
        KitError: key or certificate cannot be read.
    """
    said = {**dataclasses.asdict(order), "sites": list(order.sites)}
    body = {"format": _FORMAT, "time": iso((clock or SystemClock()).utcnow()), **said}
    return seal(_DOMAIN, body, kit.key, _certificate(kit.cert))


def verify_order(data: bytes, trust: Trust, *, cluster: str, order: str, action: str) -> VerifiedOrder:
    """Verify that an admin signed this very order just now, whatever bytes it is.

    Whether the admin may give it is another question, which the policy answers.

    Args:
        data: what :func:`sign_order` gave, from whomever it came.
        trust: what the verifier goes by; its ``now`` must be given.
        cluster: the verifier's federation.
        order: the id that came with it.
        action: the action that came with it.

    Raises:
        BadSignature: it does not hold; the message says why.
    """
    assert trust.now is not None, "an order has an age"
    what = f"the order to {action:.20}"
    if not data:
        raise BadSignature(
            f"{what}: nobody signed it", hint="server and console must be of a version that signs orders: upgrade both"
        )
    if len(data) > MAX_BYTES:
        raise BadSignature(f"{what}: longer than {MAX_BYTES} bytes")
    signed = unseal(_DOMAIN, data, what, trust, PERMISSIONS["system.operate"])
    expected = {"project": trust.project, "cluster": cluster, "order": order, "action": action}
    found = _order_of(signed, expected, what)
    time = str(signed.body["time"])
    signed_at = moment(time)
    if signed_at is None or abs(trust.now - signed_at) > MAX_AGE:
        raise BadSignature(
            f"{what}: signed at {time}, and this machine's clock says {iso(trust.now)}", hint="set the clock"
        )
    return VerifiedOrder(found, signed.signer, time)


def _order_of(signed: Signed, expected: dict[str, str], what: str) -> SiteOrder:
    body: dict[str, Any] = dict(signed.body)
    sites, reason = body.get("sites"), body.get("reason")
    form = body.keys() == {"format", "time", "sites", "reason", *expected} and type(body["format"]) is int
    if not form or body["format"] != _FORMAT or not isinstance(sites, list) or not isinstance(reason, str):
        raise BadSignature(f"{what}: not an order of format {_FORMAT}")
    if not sites or not all(isinstance(one, str) for one in sites) or len(reason) > MAX_REASON:
        raise BadSignature(f"{what}: not an order of format {_FORMAT}")
    for key, value in expected.items():
        if body[key] != value:
            raise BadSignature(f"{what}: {key} is {body[key]!r:.80} there, and {value!r:.80} here")
    return SiteOrder(**expected, sites=tuple(sites), reason=reason)


def _certificate(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise KitError(f"{path}: cannot be read: {error.strerror}") from error
