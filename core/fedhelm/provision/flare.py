"""What stands in FLARE's project files and has another place here: each is named once, with what takes its place."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

from fedhelm.config.yaml_source import Document, Key

__all__ = ["MANAGERS", "ROLE_NAMES", "Note", "adopt", "notes_as_lines"]

ROLE_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "super": "project_admin",
        "lead_researcher": "lead",
        "site_researcher": "member",
        "site_admin": "org_admin",
        "lead_it": "org_admin",
        "site_it": "org_admin",
        "lead_security": "member",
        "site_security": "member",
    }
)
"""FLARE's role -> the role here that may do no more."""

MANAGERS: Mapping[str, str] = MappingProxyType({"ListResourceManager": "list", "GPUResourceManager": "gpu"})
"""FLARE's class -> the resource manager here."""

_BUILDERS: Mapping[str, str] = MappingProxyType(
    {
        "WorkspaceBuilder": "prod_NN, resources and state are always written",
        "TemplateBuilder": "kits have scripts of their own",
        "DockerBuilder": "docker_image at the top; resources/ has a Dockerfile and compose.yaml",
        "StaticFileBuilder": "snapshot_persistor, docker_image and overseer at the top of the file say it",
        "AuthPolicyBuilder": "authorization at the top, in the form of authorization.json",
        "CertBuilder": "every participant gets a certificate",
        "SignatureBuilder": "every kit is signed",
        "DistributionBuilder": "every kit is zipped; --zip-password-file encrypts",
        "HEBuilder": "homomorphic encryption is not part of this version",
        "HelmChartBuilder": "compose.yaml and systemd units are in resources/",
    }
)

_COMPONENTS: Mapping[str, str] = MappingProxyType(
    {"resource_consumer": "resource_manager alone says what a site gives"}
)

_NOTHING: Final = "nothing here reads it"


@dataclasses.dataclass(frozen=True)
class Note:
    """Something that was read over or read as something else; ``where`` is its ``file:line:col``."""

    where: str
    what: str


def notes_as_lines(notes: tuple[Note, ...]) -> list[str]:
    """Return a line for each different note: where it applies first, and how often."""
    places: dict[str, list[str]] = {}
    for note in notes:
        seen = places.setdefault(note.what, [])
        if note.where not in seen:
            seen.append(note.where)
    return [
        f"{where[0]}: {what}" + (f" (and {len(where) - 1} more like it)" if len(where) > 1 else "")
        for what, where in places.items()
    ]


def adopt(document: Document) -> tuple[Document, tuple[Note, ...]]:
    """Return the document without what has no meaning here, and a note for each thing that was taken away.

    Top-level keys that only hold what aliases use, and those that begin with ``x-``, go without a note.
    """
    if not isinstance(document.value, dict):
        return document, ()
    top: dict[str, Any] = {}
    notes: list[Note] = []
    for key, value in document.value.items():
        if key == "builders":
            notes += _builders(document, value)
        elif key == "participants" and isinstance(value, list):
            top[key] = [_participant(document, (key, index), one, notes) for index, one in enumerate(value)]
        elif key in _OWN_KEYS or not (key.startswith("x-") or _holds_aliases(document, key)):
            top[key] = value
    for key, value in _from_builders(document.value.get("builders")):
        if key not in top:
            top[key] = value
            notes.append(Note(document.where(("builders",)), f"{key}: {value} is taken from the builders"))
    return dataclasses.replace(document, value=top), tuple(notes)


_OWN_KEYS = frozenset(
    {"api_version", "name", "description", "snapshot_persistor", "docker_image", "overseer", "timing"}
    | {"authorization", "privacy"}
)


def _holds_aliases(document: Document, key: str) -> bool:
    return any(shared[0] == key for shared in document.shared if shared)


def _short(path: Any) -> str:
    return str(path).rpartition(".")[2]


def _builders(document: Document, value: Any) -> Iterator[Note]:
    for index, one in enumerate(value if isinstance(value, list) else []):
        name = _short(one.get("path") if isinstance(one, dict) else one)
        what = _BUILDERS.get(name, "nothing here reads it")
        yield Note(document.where(("builders", index)), f"builder {name} has no meaning here: {what}")


def _at(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _from_builders(builders: Any) -> Iterator[tuple[str, str]]:
    """Yield what FLARE's builders say and this file says at its top."""
    for one in builders if isinstance(builders, list) else []:
        if _short(_at(one, "path")) == "StaticFileBuilder":
            # Not docker_image: the image that is named there holds FLARE.
            store = _at(one, "args", "snapshot_persistor", "args", "storage", "args", "root_dir")
            if isinstance(store, str):
                yield "snapshot_persistor", store


def _participant(document: Document, key: Key, value: Any, notes: list[Note]) -> Any:
    if not isinstance(value, dict):
        return value
    entry = dict(value)
    components = entry.get("components")
    if components is None:
        entry.pop("components", None)
    elif isinstance(components, dict):
        entry["components"] = _kept_components(document, (*key, "components"), components, notes)
    for name in [entry.get("role"), *(entry["roles"] if isinstance(entry.get("roles"), list) else [])]:
        if isinstance(name, str) and name in ROLE_NAMES:
            at = (*key, "role") if "role" in entry else (*key, "roles")
            notes.append(Note(document.where(at), f"role {name} is {ROLE_NAMES[name]} here"))
    return entry


def _kept_components(
    document: Document, key: Key, components: dict[str, Any], notes: list[Note]
) -> dict[str, Any]:  # fmt: skip
    kept: dict[str, Any] = {}
    for name, value in components.items():
        where = document.where((*key, name), of_key=True)
        path = _at(value, "path")
        if name != "resource_manager":
            what = _COMPONENTS.get(name, _NOTHING)
            notes.append(Note(where, f"component {name} has no meaning here: {what}"))
            continue
        kept[name] = value
        if isinstance(path, str) and _short(path) in MANAGERS and path not in MANAGERS.values():
            short = MANAGERS[_short(path)]
            notes.append(Note(where, f"class path {path} has no meaning here: the resource manager `{short}` takes it"))
    return kept
