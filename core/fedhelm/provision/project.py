"""The project: who takes part, where they answer, which times they keep. The input of :mod:`fedhelm.provision.kits`."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar

from fedhelm.config.kit import ADMIN_ROLES, SQLITE, OverseerAddress, ServerAddress, check_lease_store
from fedhelm.config.timing import PROFILES, Timing
from fedhelm.errors import BadInput
from fedhelm.ids import check_admin_name, check_host_name, new_cluster_id

__all__ = ["Participant", "Project", "check_org", "check_project_name"]

_PROJECT = re.compile(r"[a-z0-9]([a-z0-9_.-]{0,61}[a-z0-9])?")


def check_project_name(value: str) -> str:
    """Return ``value`` if it may name a project: it becomes part of every certificate's URI, and a folder.

    Raises:
        BadInput: it may not.
    """
    if not _PROJECT.fullmatch(value) or ".." in value:
        raise BadInput(f"project name {value!r} is not of lower-case letters, digits, '-', '_' and '.' (at most 63)")
    return value


def check_org(value: str) -> str:
    """Return ``value`` if it may name an organisation.

    Raises:
        BadInput: empty, longer than a certificate takes, or with characters that do not show.
    """
    if not 0 < len(value) <= 64 or not value.isprintable() or value != value.strip():
        raise BadInput(f"organisation {value!r} must have 1 to 64 characters that show")
    return value


@dataclasses.dataclass(frozen=True)
class Participant:
    """One that gets a kit.

    Attributes:
        name: A host name for overseers, servers and sites; an address (``name@domain``) for admins.
        role: ``overseer``, ``server``, ``site``, or one of the roles of admins.
        org: Its organisation, 1 to 64 characters.
        host: Where others dial it; overseers and servers only. The name itself if empty.
        ports: An overseer's one port; a server's fed_learn and admin port.
        enable_byoc: Whether jobs may bring their own code to it.
        resources: What a site has to give to jobs, such as ``{"gpu": [0, 1]}``.
        own_key: It makes its key itself: no key for it is ever made elsewhere.
    """

    name: str
    role: str
    org: str
    host: str = ""
    ports: tuple[int, ...] = ()
    enable_byoc: bool = False
    resources: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    own_key: bool = False

    _PORTS: ClassVar = {"overseer": 1, "server": 2, "site": 0, **dict.fromkeys(ADMIN_ROLES, 0)}

    def __post_init__(self) -> None:
        if self.role not in self._PORTS:
            raise BadInput(f"{self.name}: role {self.role!r} is not one of {', '.join(self._PORTS)}")
        if self.is_admin:
            check_admin_name(self.name)
        else:
            check_host_name(self.name, self.role)
        check_org(self.org)
        if len(self.ports) != self._PORTS[self.role]:
            raise BadInput(f"{self.name}: a {self.role} has {self._PORTS[self.role]} ports, not {len(self.ports)}")
        for port in self.ports:
            if not 0 < port < 65536:
                raise BadInput(f"{self.name}: {port} is not a port number")

    @property
    def is_admin(self) -> bool:
        """Whether this is a person's kit: a console, and nothing that runs."""
        return self.role in ADMIN_ROLES


@dataclasses.dataclass(frozen=True)
class Project:
    """A federation before its kits exist.

    Attributes:
        name: Part of every certificate; see :func:`check_project_name`.
        participants: In project order, which decides between servers that are otherwise equal.
        timing: The profile that all of them keep.
        store: The shared store's path as servers' kits shall say it: absolute, or relative to the kit's folder.
        lease_store: Where the overseers keep the lease: ``sqlite`` (one overseer), or the URL of a PostgreSQL database,
            without a password.
        cluster: Id of this federation; the store's genesis record and every kit carry it.
        docker_image: The image that participants may be started in; then kits have a ``docker.sh``.
        description: A line for people.
        authorization: The text of the default policy in the kits of servers and sites; the built-in one if None.
        privacy: The text of the privacy policy in the kits of sites, ``startup/privacy.json``; no such file if None.
        retired_roots: Root certificates (PEM) that were rotated away; kits have them for what was signed before.
        interpreter: The Python that the kits' scripts try first; empty: the one of ``fedhelm`` on the PATH.
    """

    name: str
    participants: tuple[Participant, ...]
    store: str
    timing: Timing = PROFILES["default"]
    lease_store: str = SQLITE
    cluster: str = dataclasses.field(default_factory=new_cluster_id)
    docker_image: str | None = None
    description: str = ""
    authorization: str | None = None
    privacy: str | None = None
    interpreter: str = sys.executable
    retired_roots: bytes = b""

    def __post_init__(self) -> None:
        check_project_name(self.name)
        self.timing.check()
        for name, count in Counter(one.name for one in self.participants).items():
            if count > 1:
                raise BadInput(f"project {self.name}: {count} participants are called {name}")
        for role in ("overseer", "server"):
            if not self.of(role):
                raise BadInput(f"project {self.name}: at least one {role} is needed")
        check_lease_store(self.lease_store, secrets=False)
        number = len(self.of("overseer"))
        if number > 1 and self.lease_store == SQLITE:
            raise BadInput(
                f"{number} overseers share one lease, which they keep in PostgreSQL",
                hint="name the database: postgresql://USER@HOST:PORT/DATABASE?passfile=FILE",
            )

    def of(self, role: str) -> tuple[Participant, ...]:
        """Return the participants of one role, in project order."""
        return tuple(one for one in self.participants if one.role == role)

    @property
    def overseers(self) -> tuple[OverseerAddress, ...]:
        """Where the overseers answer."""
        return tuple(OverseerAddress(one.name, one.host or one.name, one.ports[0]) for one in self.of("overseer"))

    @property
    def servers(self) -> tuple[ServerAddress, ...]:
        """Where the servers answer."""
        return tuple(ServerAddress(one.name, one.host or one.name, *one.ports) for one in self.of("server"))

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites' names."""
        return tuple(one.name for one in self.of("site"))
