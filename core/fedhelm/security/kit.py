"""Open a kit and trust it: manifest, certificate, key, role and name agree, or one clear line says what does not."""

from __future__ import annotations

import json
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography import x509

from fedhelm.clock import Clock, SystemClock
from fedhelm.config.kit import Kit, read_kit
from fedhelm.errors import BadCertificate, KitError
from fedhelm.plain_json import parse_plain
from fedhelm.process import atomic_write
from fedhelm.security.identity import principal_from_certificate
from fedhelm.security.pki import load_certificate, load_key, load_roots
from fedhelm.security.signing import verify_startup
from fedhelm.security.trust import check_issued, check_validity

__all__ = ["VERSION_FILE", "check_version", "open_kit", "remember_version", "remembered_version"]

VERSION_FILE = "kit.json"
"""Name of the file in ``run/`` that holds the highest version of the kit that was ever in use."""


def open_kit(
    root: Path,
    role: str | Sequence[str] | None = None,
    *,
    clock: Clock | None = None,
    remember: bool = False,
) -> Kit:
    """Read and verify a kit.

    Args:
        root: the participant's folder, the one that holds ``startup/``.
        role: the role the caller is going to play, or those of which it takes one; any if not given.
        clock: for the certificate's validity.
        remember: write the kit's version to ``run/kit.json``, so that no older kit is taken from now on. Whoever only
            looks at a kit leaves it out; nothing is written then.

    Raises:
        KitError: a file is missing, changed, extra, readable by others where it must not be, or of another role; or
            the kit is older than one that was in use here before.
        BadCertificate: the certificate is expired, not valid yet, of another root, or names somebody else.
    """
    kit = read_kit(root)
    version = verify_startup(kit.startup)
    wanted = (role,) if isinstance(role, str) else role
    if wanted is not None and kit.role not in wanted:
        raise KitError(f"{kit.root} is the kit of a {kit.role} ({kit.name}), not of a {' or '.join(wanted)}")
    roots = load_roots(kit.ca.read_bytes(), str(kit.ca))
    certificate = load_certificate(_read(kit.cert), str(kit.cert))
    root_certificate = check_issued(certificate, roots, str(kit.cert))
    now = (clock or SystemClock()).utcnow()
    check_validity(certificate, str(kit.cert), now)
    check_validity(root_certificate, str(kit.ca), now)
    principal = principal_from_certificate(certificate, kit.project)
    if (principal.role, principal.name) != (kit.role, kit.name):
        raise BadCertificate(f"{kit.cert} is the certificate of {principal}, the kit is of {kit.role} {kit.name}")
    _check_key(kit, certificate)
    check_version(kit, version)
    if remember:
        remember_version(kit, version)
    return kit


def remembered_version(kit: Kit) -> int:
    """Return the highest version of this kit that was in use here; 0 if none is known.

    Raises:
        KitError: the file that says it is damaged.
    """
    path = kit.run / VERSION_FILE
    try:
        body: Any = parse_plain(path.read_bytes())
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise KitError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError:
        body = None
    version = body.get("version") if isinstance(body, dict) else None
    if type(version) is not int:
        hint = "delete it once you are sure that the kit is the newest"
        raise KitError(f"{path} does not say which version of the kit was in use", hint=hint)
    return version


def check_version(kit: Kit, version: int) -> None:
    """Let a kit of this version pass.

    Raises:
        KitError: a higher one was in use here before.
    """
    highest = remembered_version(kit)
    if version < highest:
        raise KitError(
            f"{kit.startup}: version {version} of the kit of {kit.name}; version {highest} was in use here before",
            hint="unpack the newest kit",
        )


def remember_version(kit: Kit, version: int) -> None:
    """Write that this version of the kit is in use, if it is higher than any before.

    Raises:
        KitError: it cannot be written, or the file is damaged.
    """
    if version <= remembered_version(kit):
        return
    try:
        kit.run.mkdir(mode=0o700, exist_ok=True)
        atomic_write(kit.run / VERSION_FILE, json.dumps({"version": version}).encode() + b"\n")
    except OSError as error:
        raise KitError(f"{kit.run / VERSION_FILE} cannot be written: {error.strerror}") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise KitError(f"{path} is missing", hint="unpack the kit again") from None
    except OSError as error:
        raise KitError(f"{path} cannot be read: {error.strerror}") from error


def _check_key(kit: Kit, certificate: x509.Certificate) -> None:
    if not kit.key.exists():
        raise KitError(
            f"{kit.key} is missing",
            hint="copy the key of this participant there (the one that fedhelm pki request made, or that of its "
            "former kit), or unpack the kit again",
        )
    key = load_key(_read(kit.key), str(kit.key))
    mode = stat.S_IMODE(kit.key.stat().st_mode)
    if mode & 0o077:
        raise KitError(f"{kit.key} can be read by others (mode {mode:04o})", hint=f"chmod 600 {kit.key}")
    if key.public_key() != certificate.public_key():
        raise KitError(f"{kit.key} does not belong to {kit.cert.name}")
