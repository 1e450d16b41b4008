"""What an admin told this agent to do: signed by them, allowed by this site's own policy, and obeyed once.

A server passes orders on, and may say one again; an id that was obeyed is remembered, also across a restart.
"""

from __future__ import annotations

import json
import logging
from datetime import datetime
from pathlib import Path
from typing import Final, Literal, get_args

from fedhelm.config.kit import Kit
from fedhelm.errors import BadInput, BadSignature, FedhelmError, KitError, NotAuthorised
from fedhelm.plain_json import parse_plain
from fedhelm.process import atomic_write
from fedhelm.security.authorization import Object
from fedhelm.security.gates import ask, read_policy, subject_of
from fedhelm.security.identity import Principal
from fedhelm.security.kept_revocations import KeptRevocations
from fedhelm.security.order_signing import VerifiedOrder, verify_order
from fedhelm.security.statements import Trust
from fedhelm.v1 import fleet_pb2

__all__ = ["Action", "Orders", "action_of", "check_order", "check_rights"]

_log = logging.getLogger("fedhelm.client")

_KEPT: Final = 200

Action = Literal["shutdown", "restart"]


def action_of(order: fleet_pb2.Order) -> Action | None:
    """Return what an order is about; None for something that is not known here."""
    return next((one for one in get_args(Action) if one == order.action), None)


def check_order(kit: Kit, order: fleet_pb2.Order, revocations: KeptRevocations, now: datetime) -> VerifiedOrder:
    """Let an order pass that an admin gave this site just now; blocking. Whether they may is :func:`check_rights`.

    Args:
        kit: the site's.
        order: as it came from the server.
        revocations: the list in force at this site.
        now: by this site's clock.

    Raises:
        BadInput: it is none.
        BadSignature: no admin signed this, for this site, within the last quarter of an hour.
        KitError: the root of this site cannot be read, or its list of revoked certificates is damaged.
    """
    action = action_of(order)
    if action is None or not order.id or len(order.id) > 64:
        raise BadInput(f"site {kit.name}: an order to {order.action!r:.40} is not known here")
    if revocations.problem is not None:
        raise KitError(
            f"site {kit.name} obeys no order before an overseer gave it the list of revoked certificates again: "
            f"{revocations.problem.message}"
        )
    try:
        roots = kit.ca.read_bytes()
    except OSError as error:
        raise KitError(f"{kit.ca}: cannot be read: {error.strerror}") from error
    trust = Trust(roots, kit.project, now, revocations.current.revoked)
    try:
        found = verify_order(order.statement, trust, cluster=kit.cluster, order=order.id, action=action)
    except BadSignature as error:
        raise BadSignature(f"site {kit.name}: {error.message}", hint=error.hint) from error
    if not found.order.names(kit.name):
        raise BadSignature(f"site {kit.name}: the order to {action} of {found.admin} is for other sites")
    return found


def check_rights(kit: Kit, admin: Principal) -> None:
    """Let an order pass whose admin this site's own policy lets operate it; blocking.

    Raises:
        NotAuthorised: names the site and the rule.
        BadInput: a mistake in the site's policy. KitError: it is missing.
    """
    where = Object(kit.name, kit.org)
    decision = ask(read_policy(kit.root), subject_of(admin), "system.operate", where)
    if not decision.allowed:
        raise NotAuthorised(f"site {kit.name}, {admin}: {decision.rule}; {decision.why}")


class Orders:
    """The ids of orders that were obeyed. Blocking: call it in a thread.

    Args:
        path: ``run/orders.json``; missing or damaged, it is taken for empty.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._obeyed: list[str] = []
        try:
            self._obeyed = [str(one) for one in parse_plain(path.read_bytes())]
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError) as error:
            _log.warning("%s cannot be read: an order may be obeyed a second time: %s", path, error)

    def known(self, order: fleet_pb2.Order) -> bool:
        """Tell whether an order was obeyed already."""
        return order.id in self._obeyed

    def take(self, kit: Kit, found: VerifiedOrder) -> None:
        """Let an order be obeyed now: it is remembered durably when this returns.

        What cannot be remembered is not obeyed: said again after a restart, it would restart this agent for ever.

        Raises:
            FedhelmError: as :func:`check_rights`; or it cannot be remembered.
        """
        check_rights(kit, found.admin)
        obeyed = [*self._obeyed, found.order.order][-_KEPT:]
        try:
            atomic_write(self._path, json.dumps(obeyed).encode())
        except OSError as error:
            raise FedhelmError(
                f"site {kit.name}: the order to {found.order.action} is not obeyed, it cannot be remembered: {error}"
            ) from error
        self._obeyed = obeyed
