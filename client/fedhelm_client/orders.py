"""What an admin told this agent to do, each order obeyed once, also across a restart: a server may say it again."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Literal

from fedhelm.plain_json import parse_plain
from fedhelm.process import atomic_write
from fedhelm.v1 import fleet_pb2

__all__ = ["Action", "Orders"]

_log = logging.getLogger("fedhelm.client")

_KEPT = 200

Action = Literal["shutdown", "restart"]


class Orders:
    """The ids of orders that were obeyed.

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

    def take(self, order: fleet_pb2.Order) -> Action | None:
        """Return what to do now; None for an order that was obeyed already, or cannot be.

        The order is remembered durably before it is returned. What cannot be remembered is not obeyed: said again after
        a restart, it would restart this agent for ever.
        """
        action: Action
        if order.action == "shutdown":
            action = "shutdown"
        elif order.action == "restart":
            action = "restart"
        else:
            _log.warning("an order to %.40r is not known here", order.action)
            return None
        if not order.id or len(order.id) > 64 or order.id in self._obeyed:
            return None
        obeyed = [*self._obeyed, order.id][-_KEPT:]
        try:
            atomic_write(self._path, json.dumps(obeyed).encode())
        except OSError as error:
            _log.error("the order to %s is not obeyed, it cannot be remembered: %s", action, error)
            return None
        self._obeyed = obeyed
        why = " ".join(order.reason.split())[:200]
        _log.info("ordered to %s%s", action, f": {why}" if why else "")
        return action
