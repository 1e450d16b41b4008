"""``project.yml`` into a :class:`Project`; each mistake is a line ``project.yml:LINE:COL: path: what is wrong``."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

import pydantic

from fedhelm.config.kit import ADMIN_ROLES, SQLITE, check_lease_store
from fedhelm.config.timing import PROFILES
from fedhelm.config.yaml_source import Document, Key, load_yaml, read_yaml_file
from fedhelm.errors import BadInput, NotSupportedYet
from fedhelm.ids import check_admin_name, check_host_name
from fedhelm.privacy.policy import PrivacyPolicy
from fedhelm.provision.container_values import gpus_of
from fedhelm.provision.flare import MANAGERS, ROLE_NAMES, Note, adopt
from fedhelm.provision.project import Participant, Project, check_org, check_project_name
from fedhelm.security.authorization import Policy

__all__ = ["ProjectFile", "parse_project", "read_project_file"]

API_VERSION: Final = 3
API_ROOT: Final = "/api/v1"

_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,254}")
_TYPES: Mapping[str, str] = {"overseer": "overseer", "server": "server", "client": "site", "site": "site", "admin": ""}
_DEFAULT_PORTS: Mapping[str, int] = {"port": 8443, "fed_learn_port": 8002, "admin_port": 8003}

# Which keys belong to which type; name, type and org belong to all.
_BELONGS: Mapping[str, tuple[str, ...]] = {
    "protocol": ("overseer",),
    "api_root": ("overseer",),
    "port": ("overseer",),
    "fed_learn_port": ("server",),
    "admin_port": ("server",),
    "host": ("overseer", "server"),
    "enable_byoc": ("server", "client", "site"),
    "components": ("server", "client", "site"),
    "role": ("admin",),
    "roles": ("admin",),
}

_Finding = tuple[Key, str]


class _Strict(pydantic.BaseModel, extra="forbid", frozen=True):
    pass


class _Manager(_Strict, frozen=True):
    path: str = "list"
    args: dict[str, Any] = {}


class _Components(_Strict, frozen=True):
    resource_manager: _Manager | None = None


class _Entry(_Strict, frozen=True):
    name: str
    type: Literal["overseer", "server", "client", "site", "admin"]
    org: str
    host: str | None = None
    protocol: str | None = None
    api_root: str | None = None
    port: int | None = None
    fed_learn_port: int | None = None
    admin_port: int | None = None
    enable_byoc: bool = False
    own_key: bool = False
    role: str | None = None
    roles: tuple[str, ...] | None = None
    components: _Components = _Components()


class _Overseer(_Strict, frozen=True):
    lease_store: str = SQLITE


class _Directory(_Strict, frozen=True):
    directory: str


class _File(_Strict, frozen=True):
    api_version: int
    name: str
    description: str | None = None
    participants: tuple[_Entry, ...]
    snapshot_persistor: str | _Directory | None = None
    docker_image: str | None = None
    overseer: _Overseer = _Overseer()
    timing: str = "default"
    authorization: dict[str, Any] | None = None
    privacy: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class ProjectFile:
    """What a project file says. ``source`` is the file as it was read; the project's cluster id is a new one."""

    project: Project
    notes: tuple[Note, ...]
    source: bytes


def read_project_file(path: Path) -> ProjectFile:
    """Read a project file.

    Raises:
        BadInput: it cannot be read, or a line for each thing that is wrong with it.
        NotSupportedYet: it asks for something that a later version will serve.
    """
    source = read_yaml_file(path)  # once: what was parsed is what is kept, also of a pipe
    project, notes = parse_project(load_yaml(source, str(path), aliases=True))
    return ProjectFile(project, notes, source)


def parse_project(document: Document) -> tuple[Project, tuple[Note, ...]]:
    """Return the project, and notes about what was read over or read as something else.

    Raises:
        BadInput, NotSupportedYet: as :func:`read_project_file`.
    """
    document, notes = adopt(document)
    file = document.validate(_File)
    place = file.snapshot_persistor
    store = place.directory if isinstance(place, _Directory) else place or ""
    if re.match(r"(?i)[a-z][a-z0-9+.-]*://", store):
        what = f"{store.partition('://')[0]}:// is not served yet: a directory that all servers share is"
        raise document.error(("snapshot_persistor",), what, NotSupportedYet)
    found = [*_top(file, store), *_entries(file), *_together(file, document)]
    if found:
        found.sort(key=lambda one: [int(part) for part in document.where(one[0], of_key=True).rsplit(":", 2)[1:]])
        raise BadInput("\n".join(dict.fromkeys(document.error(key, what).message for key, what in found)))
    return _project(file, store, document), notes


def _tried(check: Callable[[str], str], value: str, key: Key) -> Iterator[_Finding]:
    try:
        check(value)
    except BadInput as error:
        yield key, error.message


def _top(file: _File, store: str) -> Iterator[_Finding]:
    if file.api_version != API_VERSION:
        yield ("api_version",), f"this program reads {API_VERSION}, not {file.api_version}"
    yield from _tried(check_project_name, file.name, ("name",))
    path = PurePosixPath(store)
    if file.snapshot_persistor is None:
        yield ("snapshot_persistor",), "missing: the directory that all servers share, as in /shared/fedhelm"
    elif not path.is_absolute() or ".." in path.parts or not store.isprintable() or len(path.parts) < 2:
        yield ("snapshot_persistor",), "an absolute path is needed: the same directory at every server"
    if file.timing not in PROFILES:
        yield ("timing",), f"there is {', '.join(PROFILES)}, not {file.timing!r}"
    if file.docker_image is not None and not _IMAGE.fullmatch(file.docker_image):
        yield ("docker_image",), "not the name of an image, such as fedhelm:0.1"
    if file.description is not None and not file.description.isprintable():
        yield ("description",), "one line of text is needed"
    try:
        check_lease_store(file.overseer.lease_store, secrets=False)
    except BadInput as error:  # does not repeat the value, which may hold a password
        yield ("overseer", "lease_store"), f"{error.message} ({error.hint})"


def _entries(file: _File) -> Iterator[_Finding]:
    for index, entry in enumerate(file.participants):
        key: Key = ("participants", index)
        for name in sorted(entry.model_fields_set):
            whose = _BELONGS.get(name)
            if whose is not None and entry.type not in whose:
                kinds = " and ".join(f"{one}s" for one in whose if one != "client")
                yield (*key, name), f"is a key of {kinds} alone"
        yield from _tried(check_admin_name if entry.type == "admin" else check_host_name, entry.name, (*key, "name"))
        yield from _tried(check_org, entry.org, (*key, "org"))
        for name in _DEFAULT_PORTS:
            port = getattr(entry, name)
            if port is not None and not 0 < port < 65536:
                yield (*key, name), f"{port} is not a port number"
        if entry.host is not None and not _is_host(entry.host):
            yield (*key, "host"), f"{entry.host!r} is neither a host name nor an IP address"
        if entry.protocol not in (None, "https"):
            yield (*key, "protocol"), f"only https is served, not {entry.protocol!r}: certificates say who is who"
        if entry.api_root is not None and entry.api_root.rstrip("/") != API_ROOT:
            yield (*key, "api_root"), f"only {API_ROOT} is served, not {entry.api_root!r}"
        if entry.type == "admin":
            yield from ((at, what) for at, what, _ in _role(entry, key) if what)
        yield from ((at, what) for at, what, _ in _resources(entry, key) if what)


def _is_host(host: str) -> bool:
    try:
        check_host_name(host)
    except BadInput:
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return False
    return True


def _role(entry: _Entry, key: Key) -> Iterator[tuple[Key, str, str]]:
    """Yield what is wrong with an admin's role (the second is not empty), or the role."""
    names = [entry.role] if entry.role is not None else list(entry.roles or ())
    at = (*key, "roles") if entry.role is None and entry.roles is not None else (*key, "role")
    if entry.role is not None and entry.roles is not None:
        yield at, "role and roles: one of them is enough", ""
    roles = {ROLE_NAMES.get(name, name) for name in names}
    if len(roles) != 1:
        yield at, f"exactly one role is needed: {', '.join(ADMIN_ROLES)}", ""
    for role in roles:
        if role in ADMIN_ROLES:
            yield at, "", role
        else:
            yield at, f"unknown role {role!r}; there is {', '.join(ADMIN_ROLES)}", ""


def _resources(entry: _Entry, key: Key) -> Iterator[tuple[Key, str, dict[str, Any]]]:
    """Yield what is wrong with a site's resource manager (the second is not empty), or the resources."""
    manager = entry.components.resource_manager
    at = (*key, "components", "resource_manager")
    if manager is None:
        return
    if entry.type == "server":
        yield at, "is a key of sites alone", {}
    short = manager.path.rpartition(".")[2]
    kind = MANAGERS.get(short, manager.path)
    if kind == "list":
        yield from _list_resources(manager.args, (*at, "args"))
    elif kind == "gpu":
        yield from _gpu_resources(manager.args, (*at, "args"))
    else:
        known = " and ".join(MANAGERS.values())
        yield (*at, "path"), f"there are the resource managers {known}, not {manager.path!r}", {}


def _list_resources(args: dict[str, Any], at: Key) -> Iterator[tuple[Key, str, dict[str, Any]]]:
    resources = args.get("resources")
    if set(args) != {"resources"} or not isinstance(resources, dict):
        yield at, "resources is needed and nothing else, as in `args: {resources: {gpu: [0, 1]}}`", {}
        return
    for name, value in resources.items():
        items = value if isinstance(value, list) else [value]
        plain = all(isinstance(one, str) or _is_finite(one) for one in items)
        negative = any(isinstance(one, int | float) and one < 0 for one in items)
        if not plain or negative or len({str(one) for one in items}) != len(items):
            what = "a number, a text, or a list of different ones is needed"
            yield (*at, "resources", name), what, {}
    yield at, "", resources


def _is_finite(value: object) -> bool:
    """Tell whether a value is a number that a kit can say: no truth value, not a number, or endless one."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _gpu_resources(args: dict[str, Any], at: Key) -> Iterator[tuple[Key, str, dict[str, Any]]]:
    number, memory = args.get("num_of_gpus"), args.get("mem_per_gpu_in_GiB", 0)
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= 1024:
        yield at, "num_of_gpus is needed: how many GPUs, a number", {}
        return
    if not _is_finite(memory) or memory < 0:
        yield (*at, "mem_per_gpu_in_GiB"), "a number of GiB is needed", {}
        return
    yield at, "", {"gpu": list(range(number)), **({"gpu_memory_gib": memory} if memory else {})}


def _ports(entry: _Entry) -> tuple[int, ...]:
    names = {"overseer": ("port",), "server": ("fed_learn_port", "admin_port")}.get(entry.type, ())
    return tuple(getattr(entry, name) or _DEFAULT_PORTS[name] for name in names)


def _index_of(file: _File, name: str) -> int | None:
    return next((index for index, one in enumerate(file.participants) if one.name.lower() == name.lower()), None)


def _together(file: _File, document: Document) -> Iterator[_Finding]:
    """Yield what cannot be true together."""
    names: dict[str, int] = {}
    taken: dict[tuple[str, int], str] = {}
    for index, entry in enumerate(file.participants):
        key: Key = ("participants", index)
        first = names.setdefault(entry.name.lower(), index)
        if first != index:
            line = document.where(("participants", first, "name")).split(":")[-2]
            yield (*key, "name"), f"{entry.name!r} is the name of another participant, line {line}"
        if entry.name.endswith(".zip") and (other := _index_of(file, entry.name.removesuffix(".zip"))) is not None:
            line = document.where(("participants", other, "name")).split(":")[-2]
            yield (*key, "name"), f"{entry.name!r} is the name of the zip of another participant, line {line}"
        for port in _ports(entry) if first == index else ():
            holder = taken.setdefault((entry.host or entry.name, port), entry.name)
            if holder != entry.name or _ports(entry).count(port) > 1:
                yield key, f"port {port} of {entry.host or entry.name} is that of {holder} already"
    for kind in ("overseer", "server"):
        if not any(entry.type == kind for entry in file.participants):
            yield ("participants",), f"at least one {kind} is needed"
    overseers = sum(entry.type == "overseer" for entry in file.participants)
    if overseers > 1 and file.overseer.lease_store == SQLITE:
        what = f"{overseers} overseers share one lease, which they keep in PostgreSQL: lease_store: postgresql://..."
        yield ("overseer",), what


def _participant(entry: _Entry, key: Key, document: Document) -> Participant:
    role = next((role for _, _, role in _role(entry, key)), "") if entry.type == "admin" else _TYPES[entry.type]
    resources = next((found for _, _, found in _resources(entry, key)), {})
    made = Participant(
        name=entry.name,
        role=role,
        org=entry.org,
        host=entry.host or "",
        ports=_ports(entry),
        enable_byoc=entry.enable_byoc,
        resources=resources,
        own_key=entry.own_key,
    )
    try:
        gpus_of(made)
    except BadInput as error:
        at = (*key, "components", "resource_manager", "args", "resources", "gpu")
        raise document.error(at, error.message) from error
    return made


def _project(file: _File, store: str, document: Document) -> Project:
    return Project(
        name=file.name,
        participants=tuple(
            _participant(entry, ("participants", index), document) for index, entry in enumerate(file.participants)
        ),
        store=store,
        timing=PROFILES[file.timing],
        lease_store=file.overseer.lease_store,
        docker_image=file.docker_image,
        description=file.description or "",
        authorization=_policy(file, document),
        privacy=_privacy(file, document),
        interpreter="",
    )


def _policy(file: _File, document: Document) -> str | None:
    """Return the text of ``authorization.json`` that the file asks for; None for the default."""
    if file.authorization is None:
        return None
    text = json.dumps(file.authorization, indent=2) + "\n"
    try:
        Policy.parse(text, "authorization")
    except BadInput as error:
        raise _in_project(document, "authorization", error) from error
    return text


def _privacy(file: _File, document: Document) -> str | None:
    """Return the text of the sites' ``privacy.json`` that the file asks for; None where it asks for nothing."""
    if not file.privacy:
        return None
    text = json.dumps({"format_version": "1.0", **file.privacy}, indent=2) + "\n"
    try:
        policy = PrivacyPolicy.parse(text, "privacy")
    except BadInput as error:
        raise _in_project(document, "privacy", error) from error
    return None if policy == PrivacyPolicy() else text


def _in_project(document: Document, key: str, error: BadInput) -> BadInput:
    """Return what is wrong with a policy: its places are those of a JSON text; the keys it names are this file's."""
    dotted, _, what = re.sub(rf"^{key}:\d+:\d+: ", "", error.message).partition(": ")
    parts = [int(part) if part.isdigit() else part for part in re.split(r"[.\[\]]+", dotted) if part]
    return document.error((key, *parts), what, type(error))
