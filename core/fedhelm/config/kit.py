"""What a participant knows from its kit: who it is, whom it dials, what the federation consists of."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from fedhelm.config.timing import Timing
from fedhelm.errors import BadInput, KitError
from fedhelm.ids import check_admin_name, check_host_name
from fedhelm.plain_json import parse_plain

__all__ = [
    "ADMIN_ROLES",
    "CERT_STEM",
    "CONFIG_FILE",
    "ROLES",
    "SQLITE",
    "Kit",
    "OverseerAddress",
    "ServerAddress",
    "check_lease_store",
    "find_config",
    "kit_from_json",
    "kit_to_json",
    "read_kit",
]

VERSION = 1

ADMIN_ROLES = ("project_admin", "org_admin", "lead", "member")
"""The roles of people; what each may do is the policy's business."""

ROLES = ("overseer", "server", "site", *ADMIN_ROLES)

CONFIG_FILE: Mapping[str, str] = MappingProxyType(
    {
        "overseer": "fed_overseer.json",
        "server": "fed_server.json",
        "site": "fed_client.json",
        **dict.fromkeys(ADMIN_ROLES, "fed_admin.json"),
    }
)
"""Role -> name of the configuration file in ``startup/``."""

CERT_STEM: Mapping[str, str] = MappingProxyType(
    {"overseer": "overseer", "server": "server", "site": "client", **dict.fromkeys(ADMIN_ROLES, "client")}
)
"""Role -> name of certificate and key in ``startup/``, without ``.crt`` and ``.key``."""

SQLITE = "sqlite"
"""The lease store of an overseer that is alone: a file in its ``run/``."""


@dataclasses.dataclass(frozen=True)
class OverseerAddress:
    """Where an overseer answers: dial ``host:port``, expect a certificate for ``name``."""

    name: str
    host: str
    port: int
    api_root: str = "/api/v1"


@dataclasses.dataclass(frozen=True)
class ServerAddress:
    """Where a server answers: dial ``host:port``, expect a certificate for ``name``."""

    name: str
    host: str
    fed_learn_port: int
    admin_port: int


@dataclasses.dataclass(frozen=True)
class Kit:
    """An unpacked kit: ``root`` (absolute, no links) holds ``startup/`` and ``local/``; only servers have a ``store``.

    Only overseers have a ``lease_store``: ``sqlite``, or the URL of the PostgreSQL database that they share.
    ``sites`` names every site of the project, deployed or not; ``enable_byoc`` is this participant's own (may jobs
    bring their own code?). ``resources`` are what a site has to give to jobs, as the project file says it, such as
    ``{"gpu": [0, 1]}``. ``docker_image`` is the image that the project's participants may be started in.
    ``site_orgs`` has the organisation of each site, in servers' kits; empty in kits of before.
    """

    root: Path
    project: str
    cluster: str
    role: str
    name: str
    org: str
    overseers: tuple[OverseerAddress, ...]
    servers: tuple[ServerAddress, ...]
    sites: tuple[str, ...]
    timing: Timing
    store: Path | None = None
    enable_byoc: bool = False
    lease_store: str | None = None
    resources: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    docker_image: str | None = None
    site_orgs: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)

    @property
    def startup(self) -> Path:
        """The signed folder."""
        return self.root / "startup"

    @property
    def local(self) -> Path:
        """The participant's own, unsigned folder."""
        return self.root / "local"

    @property
    def run(self) -> Path:
        """The folder of what the participant writes while it runs; made when it starts."""
        return self.root / "run"

    @property
    def log_file(self) -> Path:
        """The participant's log, ``log.txt``."""
        return self.root / "log.txt"

    @property
    def transfer(self) -> Path:
        """An admin's folder of jobs to submit and results to fetch."""
        return self.root / "transfer"

    @property
    def ca(self) -> Path:
        """The project's root certificate (PEM)."""
        return self.startup / "rootCA.pem"

    @property
    def cert(self) -> Path:
        """This participant's certificate (PEM)."""
        return self.startup / f"{CERT_STEM[self.role]}.crt"

    @property
    def key(self) -> Path:
        """This participant's private key (PEM), mode 0600."""
        return self.startup / f"{CERT_STEM[self.role]}.key"

    @property
    def own_server(self) -> ServerAddress:
        """The address this server listens at.

        Raises:
            KitError: this is no server's kit.
        """
        return self.server(self.name)

    @property
    def own_overseer(self) -> OverseerAddress:
        """The address this overseer listens at.

        Raises:
            KitError: this is no overseer's kit.
        """
        for overseer in self.overseers:
            if overseer.name == self.name:
                return overseer
        raise KitError(f"{self.root}: the kit lists no overseer called {self.name}")

    def server(self, name: str) -> ServerAddress:
        """Return the address of the server called ``name``.

        Raises:
            KitError: the kit lists no such server.
        """
        for server in self.servers:
            if server.name == name:
                return server
        raise KitError(f"{self.root}: the kit lists no server called {name}")


def kit_to_json(kit: Kit, *, store: str | None = None) -> dict[str, Any]:
    """Return the content of the kit's configuration file.

    Args:
        kit: the kit; its ``root`` is not written.
        store: the store's path as the file shall say it: absolute, or relative to the kit's folder.
    """
    optional = {
        **({} if kit.lease_store is None else {"lease_store": kit.lease_store}),
        **({"resources": dict(kit.resources)} if kit.resources else {}),
        **({} if kit.docker_image is None else {"docker_image": kit.docker_image}),
        **({"site_orgs": dict(kit.site_orgs)} if kit.site_orgs else {}),
    }
    return {
        "version": VERSION,
        "project": kit.project,
        "cluster": kit.cluster,
        "role": kit.role,
        "name": kit.name,
        "org": kit.org,
        "overseers": [dataclasses.asdict(one) for one in kit.overseers],
        "servers": [dataclasses.asdict(one) for one in kit.servers],
        "sites": list(kit.sites),
        "timing": kit.timing.to_json(),
        "store": store,
        "enable_byoc": kit.enable_byoc,
        **optional,
    }


def check_lease_store(value: str, *, secrets: bool) -> str:
    """Return the value: ``sqlite`` or a PostgreSQL URL.

    Args:
        value: what a person or a file says.
        secrets: whether it may carry a password.

    Raises:
        BadInput: neither, or a password where none may be; the message does not repeat the value.
    """
    if value == SQLITE:
        return value
    hint = "sqlite, or postgresql://USER@HOST:PORT/DATABASE?passfile=FILE"
    try:
        url = urlsplit(value)
        asked = {key for key, _ in parse_qsl(url.query, keep_blank_values=True)}
    except ValueError:
        raise BadInput("lease_store is not a URL", hint=hint) from None
    if url.scheme not in ("postgresql", "postgres") or not url.netloc + url.query:
        raise BadInput("lease_store is neither sqlite nor a PostgreSQL URL", hint=hint)
    if not secrets and (url.password is not None or asked & {"password", "sslpassword"}):
        raise BadInput("lease_store carries a password", hint="passfile=FILE names a file that holds it")
    return value


class _Fields:
    """Typed access to one JSON object; a wrong type is a KitError that names file and key."""

    def __init__(self, data: Any, where: str) -> None:
        if not isinstance(data, dict):
            raise KitError(f"{where}: not a JSON object")
        self.data, self.where = data, where

    def text(self, key: str) -> str:
        value = self.data.get(key)
        if not isinstance(value, str) or not value:
            raise KitError(f"{self.where}: {key} is missing or not text")
        return value

    def port(self, key: str) -> int:
        value = self.data.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 65536:
            raise KitError(f"{self.where}: {key} is missing or not a port number")
        return value

    def text_or_none(self, key: str) -> str | None:
        return None if self.data.get(key) is None else self.text(key)

    def items(self, key: str) -> list[Any]:
        value = self.data.get(key)
        if not isinstance(value, list):
            raise KitError(f"{self.where}: {key} is missing or not a list")
        return value

    def rows(self, key: str) -> list[_Fields]:
        return [_Fields(one, f"{self.where}: {key}[{index}]") for index, one in enumerate(self.items(key))]


def _overseer(row: _Fields) -> OverseerAddress:
    return OverseerAddress(
        check_host_name(row.text("name"), "overseer"), row.text("host"), row.port("port"), row.text("api_root")
    )


def _server(row: _Fields) -> ServerAddress:
    return ServerAddress(
        check_host_name(row.text("name"), "server"),
        row.text("host"),
        row.port("fed_learn_port"),
        row.port("admin_port"),
    )


def kit_from_json(root: Path, data: Any, where: str) -> Kit:
    """Build a kit from its configuration; every name and path in it is checked.

    Args:
        root: the kit's folder.
        data: the parsed file.
        where: how messages call the file.

    Raises:
        KitError: a key is missing or has the wrong type or form; the message names file and key.
    """
    fields = _Fields(data, where)
    if fields.data.get("version") != VERSION:
        raise KitError(f"{where}: version {fields.data.get('version')!r} of the format, this program reads {VERSION}")
    role = fields.text("role")
    if role not in ROLES:
        raise KitError(f"{where}: role {role!r} is not one of {', '.join(ROLES)}")
    store = fields.text_or_none("store")
    lease_store = (
        (fields.text("lease_store") if "lease_store" in fields.data else SQLITE) if role == "overseer" else None
    )
    byoc = fields.data.get("enable_byoc", False)
    if not isinstance(byoc, bool):
        raise KitError(f"{where}: enable_byoc is not true or false")
    resources = fields.data.get("resources", {})
    if not isinstance(resources, dict) or (resources and role != "site"):
        raise KitError(f"{where}: resources is not an object, or not a site's")
    orgs = fields.data.get("site_orgs", {})
    if not isinstance(orgs, dict) or not all(isinstance(org, str) and org for org in orgs.values()):
        raise KitError(f"{where}: site_orgs is not an object of texts")
    root = root.resolve()  # one kit has one path, whatever links led here: process marks carry it
    try:
        name = fields.text("name")
        kit = Kit(
            root=root,
            project=fields.text("project"),
            cluster=fields.text("cluster"),
            role=role,
            name=check_admin_name(name) if role in ADMIN_ROLES else check_host_name(name),
            org=fields.text("org"),
            overseers=tuple(map(_overseer, fields.rows("overseers"))),
            servers=tuple(map(_server, fields.rows("servers"))),
            sites=tuple(check_host_name(str(one), "site") for one in fields.items("sites")),
            timing=Timing.from_json(fields.data.get("timing")),
            store=None if store is None else _path(root, store),
            enable_byoc=byoc,
            lease_store=None if lease_store is None else check_lease_store(lease_store, secrets=False),
            resources=resources,
            docker_image=fields.text_or_none("docker_image"),
            site_orgs={check_host_name(site, "site"): org for site, org in orgs.items()},
        )
    except BadInput as error:
        raise KitError(f"{where}: {error}") from error
    return kit


def _path(root: Path, said: str) -> Path:
    try:
        return Path(root, said).resolve()
    except (ValueError, OSError, RuntimeError):  # a NUL, halves of surrogate pairs, a circle of links
        raise BadInput(f"store {said!r:.80} is not the path of a folder") from None


def find_config(root: Path) -> Path:
    """Return the path of the kit's configuration file.

    Raises:
        KitError: ``root`` holds no ``startup/`` with exactly one configuration file.
    """
    startup = root / "startup"
    every = list(dict.fromkeys(CONFIG_FILE.values()))
    try:
        if not startup.is_dir():
            raise KitError(f"{root} is no kit: it has no startup folder", hint="give the participant's folder")
        found = [startup / name for name in every if (startup / name).is_file()]
    except OSError as error:
        raise KitError(
            f"{startup}: cannot be read: {error.strerror}", hint="run this as the user to whom the kit belongs"
        ) from error
    if len(found) != 1:
        names = ", ".join(every)
        raise KitError(f"{startup}: exactly one of {names} is needed, found {len(found)}")
    return found[0]


def read_kit(root: Path) -> Kit:
    """Read a kit's configuration **without** verifying its signature; see ``fedhelm.security.kit.open_kit``.

    Raises:
        KitError: missing, not JSON, or a wrong value; the message names the file.
    """
    path = find_config(root)
    try:
        data = parse_plain(path.read_bytes())
    except (OSError, ValueError) as error:
        raise KitError(f"{path}: cannot be read: {error}") from error
    return kit_from_json(root, data, str(path))
