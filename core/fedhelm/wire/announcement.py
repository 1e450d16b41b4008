"""What a server shows of its kit when it registers, and how an overseer checks it (docs/decisions/0013)."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json

from fedhelm.config.kit import CONFIG_FILE, Kit, ServerAddress, find_config, kit_from_json
from fedhelm.errors import KitError
from fedhelm.security.signing import SIGNATURE_FILE, parse_manifest
from fedhelm.wire.overseer_api import Announcement

__all__ = ["Announced", "announcement_of", "verify_announcement"]


@dataclasses.dataclass(frozen=True)
class Announced:
    """A server's addresses by its own signed kit, and when that was signed (empty: by a version that did not say)."""

    address: ServerAddress
    kit_time: str = ""


def announcement_of(kit: Kit) -> Announcement:
    """Return what the opened ``kit`` of a server says: its ``signature.json`` and its configuration, as they are.

    Raises:
        KitError: a file cannot be read.
    """
    config = find_config(kit.root)
    try:
        manifest, text = (kit.startup / SIGNATURE_FILE).read_text(), config.read_text()
    except (OSError, ValueError) as error:
        raise KitError(f"{kit.startup} cannot be read: {error}") from error
    signature = parse_manifest(manifest, str(kit.startup / SIGNATURE_FILE)).signature
    return Announcement(manifest=manifest, signature=base64.b64encode(signature).decode(), config=text)


def verify_announcement(announcement: Announcement, kit: Kit, name: str) -> Announced:
    """Check what the server ``name`` (by its certificate) announced, against the project's root in ``kit``.

    Raises:
        KitError: the signature is not the root's, the configuration is not the one signed, or is of another role, name,
            project or cluster.
    """
    where = f"the kit announced by {name}"
    manifest = parse_manifest(announcement.manifest, where)
    if not manifest.signed_by(_read_root(kit)):
        raise KitError(f"{where} was not signed by this project's root")
    config = announcement.config.encode()
    if manifest.files.get(CONFIG_FILE["server"]) != hashlib.sha256(config).hexdigest():
        raise KitError(f"{where}: its configuration is not the one that was signed")
    try:
        data = json.loads(config)
    except (ValueError, RecursionError) as error:
        raise KitError(f"{where}: its configuration is not JSON") from error
    announced = kit_from_json(kit.root, data, where)
    for what, theirs, expected in (
        ("role", announced.role, "server"),
        ("name", announced.name, name),
        ("project", announced.project, kit.project),
        ("cluster", announced.cluster, kit.cluster),
    ):
        if theirs != expected:
            raise KitError(f"{where}: its {what} is {theirs}, not {expected}")
    return Announced(announced.own_server, manifest.created)


def _read_root(kit: Kit) -> bytes:
    try:
        return kit.ca.read_bytes()
    except OSError as error:
        raise KitError(f"{kit.ca} cannot be read: {error.strerror}") from error
