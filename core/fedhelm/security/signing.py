"""The signed manifest of ``startup/``: sha256 of every file, version and time, signed with the project's root key."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedhelm.errors import KitError
from fedhelm.plain_json import parse_plain
from fedhelm.security.pki import CertificateAuthority, verify_by_root

__all__ = ["SIGNATURE_FILE", "Manifest", "make_manifest", "parse_manifest", "verify_startup"]

SIGNATURE_FILE = "signature.json"
_ROOT_FILE = "rootCA.pem"
_HINT = "the kit is not what was provisioned: unpack it again"
_FORMAT = 1
_TIME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z")
_DOMAIN = b"fedhelm startup manifest\n"  # a signature over anything else cannot be passed off as one of these


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a manifest says, before or after its signature was checked.

    ``created`` is the time of signing, ISO 8601 UTC with milliseconds, so that later ones sort behind; empty in kits of
    before this was written. ``own_key``: the participant made its key itself, so that no manifest can name it.
    """

    version: int
    created: str
    files: Mapping[str, str]
    signature: bytes
    own_key: bool = False

    def signed_by(self, authority_pem: bytes) -> bool:
        """Return whether the root certificate in ``authority_pem`` (PEM; or one of two) signed exactly this."""
        signed = _signed_bytes(self.version, self.files, self.created, self.own_key)
        return verify_by_root(authority_pem, self.signature, signed)


def _signed_bytes(version: int, files: Mapping[str, str], created: str, own_key: bool) -> bytes:
    body: dict[str, Any] = {"format": _FORMAT, "version": version, "files": dict(files)}
    if created:
        body["created"] = created
    if own_key:
        body["own_key"] = True
    return _DOMAIN + json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


def make_manifest(
    files: Mapping[str, bytes],
    authority: CertificateAuthority,
    version: int = 1,
    *,
    created: str = "",
    own_key: bool = False,
) -> bytes:
    """Return the content of ``signature.json``.

    Args:
        files: name -> content of every other file in ``startup/``.
        authority: signs.
        version: of the kit; a re-issued kit has a higher one.
        created: the time, as :func:`fedhelm.clock.iso` gives it.
        own_key: the participant made its key itself: ``files`` has none, and the manifest says so.
    """
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}
    signature = authority.sign(_signed_bytes(version, digests, created, own_key))
    body = {
        "format": _FORMAT,
        "version": version,
        **({"created": created} if created else {}),
        **({"own_key": True} if own_key else {}),
        "files": digests,
        "signature": base64.b64encode(signature).decode(),
    }
    return _rendered(body)


def parse_manifest(data: bytes | str, where: str) -> Manifest:
    """Read the content of a ``signature.json``, whose signature is **not** checked yet.

    Raises:
        KitError: it is none; the message begins with ``where``.
    """
    try:
        body: Any = parse_plain(data)
        version, files, created = body["version"], body["files"], body.get("created", "")
        signature = base64.b64decode(body["signature"], validate=True)
        own_key = body.get("own_key", False)
        good = type(version) is int and isinstance(files, dict) and isinstance(own_key, bool)
        if body["format"] != _FORMAT or not good:
            raise KitError(f"{where}: not a manifest of format {_FORMAT}")
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error) as error:
        raise KitError(f"{where}: not a signed manifest") from error
    if not isinstance(created, str) or (created and not _TIME.fullmatch(created)):
        raise KitError(f"{where}: created is not a time")
    for name in files:
        if not name.isprintable() or Path(name).name != name:
            raise KitError(f"{where}: {name!r:.80} is not the name of a file")
    return Manifest(version, created, {name: str(digest) for name, digest in files.items()}, signature, own_key)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise KitError(f"{path} is missing", hint="unpack the kit again") from None
    except OSError as error:
        raise KitError(f"{path} cannot be read: {error.strerror}") from error


def verify_startup(startup: Path) -> int:
    """Check every file of ``startup/`` against its manifest, and the manifest's signature.

    The key of a participant that made it itself is in no manifest: that it belongs to the certificate is for
    ``open_kit`` to check.

    Returns:
        The kit's version.

    Raises:
        KitError: a file is missing, changed or not in the manifest, or the manifest was not signed by the root of
            this kit; the message names the file.
    """
    manifest = _signed_manifest(startup)
    files = manifest.files
    for name in sorted(files):
        data = _read(startup / name)
        if hashlib.sha256(data).hexdigest() != files[name]:
            raise KitError(f"{startup / name} was changed", hint=_HINT)
    expected = {SIGNATURE_FILE, *files}
    if manifest.own_key:
        expected |= {f"{Path(name).stem}.key" for name in files if name.endswith(".crt")}
    for entry in sorted(startup.iterdir()):
        if entry.name not in expected:
            raise KitError(f"{entry} does not belong to the kit", hint=_HINT)
    return manifest.version


def _signed_manifest(startup: Path) -> Manifest:
    """Return the manifest, its signature verified before anything that it says is believed: who is wrong is named."""
    path, root = startup / SIGNATURE_FILE, startup / _ROOT_FILE
    data, pem = _read(path), _read(root)
    manifest = parse_manifest(data, str(path))
    if manifest.files.get(_ROOT_FILE, digest := hashlib.sha256(pem).hexdigest()) != digest:
        raise KitError(f"{root} was changed, or {path} was", hint=_HINT)
    if not manifest.signed_by(pem):
        raise KitError(f"{path} was not signed by this project's root", hint=_HINT)
    if data != _rendered(json.loads(data)):  # blanks, or bits of base64 that mean nothing: nobody signed them
        raise KitError(f"{path} was changed", hint=_HINT)
    return manifest


def _rendered(body: Mapping[str, Any]) -> bytes:
    signature = base64.b64encode(base64.b64decode(body["signature"])).decode()
    return json.dumps({**body, "signature": signature}, indent=2).encode() + b"\n"
