"""Which servers there are: those of the kit, until an overseer has said otherwise; kept on disk for when none answers.

The list says whom to dial, not whom to believe: a server still has to show a certificate of the project with its name.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from fedhelm.config.kit import Kit, ServerAddress
from fedhelm.errors import BadInput
from fedhelm.ids import check_host_name
from fedhelm.plain_json import parse_plain
from fedhelm.process import atomic_write

if TYPE_CHECKING:
    from fedhelm.wire.overseer_api import ServerView

__all__ = ["known_servers", "learn_servers"]

_log = logging.getLogger("fedhelm.wire")

_NAME = "servers.json"
_MOST = 64
"""So many servers are more than a project has; an answer with more is none."""


def known_servers(kit: Kit) -> tuple[ServerAddress, ...]:
    """Return the servers that an overseer named last; the kit's where none did since this kit was made."""
    try:
        data = parse_plain((kit.run / _NAME).read_bytes())
        if data["cluster"] != kit.cluster or data["kit"] != _plain(kit.servers):
            return kit.servers
        return tuple(_address(one) for one in data["servers"]) or kit.servers
    except FileNotFoundError:
        return kit.servers
    except (OSError, ValueError, KeyError, TypeError, BadInput) as error:
        _log.warning("%s cannot be read, the kit's servers are used: %s", kit.run / _NAME, error)
        return kit.servers


def learn_servers(kit: Kit, views: Iterable[ServerView]) -> tuple[ServerAddress, ...]:
    """Take an overseer's list for the truth, keep it on disk, and return it; an empty or senseless one changes nothing.

    A folder that cannot be written to remembers nothing, which costs something only when no overseer answers.
    """
    known = known_servers(kit)
    named = {one.name: one for one in known}
    try:
        found = tuple(_from_view(view, named) for view in views if view.host or view.name in named)
    except BadInput as error:
        _log.warning("an overseer's list of servers is not used: %s", error)
        return known
    if not 0 < len(found) <= _MOST or found == known:
        return known
    data = {"cluster": kit.cluster, "kit": _plain(kit.servers), "servers": _plain(found)}
    try:
        kit.run.mkdir(mode=0o700, parents=True, exist_ok=True)
        atomic_write(kit.run / _NAME, json.dumps(data).encode())
    except OSError as error:
        _log.warning("%s cannot be written: %s", kit.run / _NAME, error)
    return found


def _plain(servers: Iterable[ServerAddress]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(one) for one in servers]


def _from_view(view: ServerView, known: Mapping[str, ServerAddress]) -> ServerAddress:
    # An overseer of the version before does not say the host: then it has not changed.
    host = view.host or known[view.name].host
    return _address(
        {"name": view.name, "host": host, "fed_learn_port": view.fed_learn_port, "admin_port": view.admin_port}
    )


def _address(data: Mapping[str, Any]) -> ServerAddress:
    host, ports = data["host"], (data["fed_learn_port"], data["admin_port"])
    if not isinstance(host, str) or not 0 < len(host) <= 255 or not host.isprintable() or set(host) & set(" /"):
        raise BadInput(f"{host!r:.80} is no host")
    for port in ports:
        if not isinstance(port, int) or not 0 < port < 65536:
            raise BadInput(f"{port!r:.80} is no port")
    return ServerAddress(check_host_name(str(data["name"]), "server"), host, *ports)
