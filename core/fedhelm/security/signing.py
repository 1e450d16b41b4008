"""The signed manifest of ``startup/``: the sha256 of every file and a version, signed with the project's root key."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedhelm.errors import KitError
from fedhelm.security.pki import CertificateAuthority, verify

__all__ = ["SIGNATURE_FILE", "make_manifest", "verify_startup"]

SIGNATURE_FILE = "signature.json"
_FORMAT = 1
_DOMAIN = b"fedhelm startup manifest\n"  # a signature over anything else cannot be passed off as one of these


def _signed_bytes(version: int, files: Mapping[str, str]) -> bytes:
    body = {"format": _FORMAT, "version": version, "files": dict(files)}
    return _DOMAIN + json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


def make_manifest(files: Mapping[str, bytes], authority: CertificateAuthority, version: int = 1) -> bytes:
    """Return the content of ``signature.json``.

    Args:
        files: name -> content of every other file in ``startup/``.
        authority: signs.
        version: of the kit; a re-issued kit has a higher one.
    """
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}
    signature = authority.sign(_signed_bytes(version, digests))
    body = {
        "format": _FORMAT,
        "version": version,
        "files": digests,
        "signature": base64.b64encode(signature).decode(),
    }
    return json.dumps(body, indent=2).encode() + b"\n"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise KitError(f"{path} is missing", hint="unpack the kit again") from None
    except OSError as error:
        raise KitError(f"{path} cannot be read: {error.strerror}") from error


def _parse(path: Path) -> tuple[int, dict[str, str], bytes]:
    try:
        body: Any = json.loads(_read(path))
        version, files = body["version"], body["files"]
        signature = base64.b64decode(body["signature"], validate=True)
        if body["format"] != _FORMAT or not isinstance(version, int) or not isinstance(files, dict):
            raise KitError(f"{path}: not a manifest of format {_FORMAT}")
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error) as error:
        raise KitError(f"{path}: not a signed manifest") from error
    return version, {str(name): str(digest) for name, digest in files.items()}, signature


def verify_startup(startup: Path) -> int:
    """Check every file of ``startup/`` against its manifest, and the manifest's signature.

    Returns:
        The kit's version.

    Raises:
        KitError: a file is missing, changed or not in the manifest, or the manifest was not signed by the root of
            this kit; the message names the file.
    """
    path = startup / SIGNATURE_FILE
    version, files, signature = _parse(path)
    hint = "the kit is not what was provisioned: unpack it again"
    for name in sorted(files):
        data = _read(startup / Path(name).name)
        if hashlib.sha256(data).hexdigest() != files[name]:
            raise KitError(f"{startup / name} was changed", hint=hint)
    for entry in sorted(startup.iterdir()):
        if entry.name not in files and entry.name != SIGNATURE_FILE:
            raise KitError(f"{entry} does not belong to the kit", hint=hint)
    if "rootCA.pem" not in files or not verify(_read(startup / "rootCA.pem"), signature, _signed_bytes(version, files)):
        raise KitError(f"{path} was not signed by this project's root", hint=hint)
    return version
