"""Where an overseer keeps the lease: what its kit says, unless its own ``local/overseer.json`` says otherwise."""

from __future__ import annotations

import json
import stat
from pathlib import Path

from fedhelm.config.kit import SQLITE, Kit, check_lease_store
from fedhelm.errors import BadInput, KitError
from fedhelm_overseer.lease import LeaseStore
from fedhelm_overseer.lease_engines import Engines, PostgresEngines, SqliteEngines
from fedhelm_overseer.lease_store import SqlLeaseStore

__all__ = ["LOCAL_FILE", "lease_engines", "lease_file", "lease_place", "open_lease_store"]

LOCAL_FILE = "overseer.json"
"""In ``local/``: ``{"lease_store": URL}``. Only here may the URL carry a password, and then nobody else may read it."""


def lease_place(kit: Kit) -> str:
    """Return ``sqlite`` or a PostgreSQL URL.

    Raises:
        KitError: ``local/overseer.json`` is wrong; the message names it, and not what it says.
    """
    path = kit.local / LOCAL_FILE
    try:
        said = json.loads(path.read_bytes())
        secret = not stat.S_IMODE(path.stat().st_mode) & 0o077
    except FileNotFoundError:
        return kit.lease_store or SQLITE
    except (OSError, ValueError, RecursionError) as error:
        raise KitError(f"{path} cannot be read: {type(error).__name__}") from None
    if not isinstance(said, dict) or set(said) != {"lease_store"} or not isinstance(said["lease_store"], str):
        raise KitError(f"{path}: an object with the key lease_store is needed")
    try:
        return check_lease_store(said["lease_store"], secrets=secret)
    except BadInput as error:
        hint = error.hint if secret else f"{error.hint}; or chmod 600 {path}"
        raise KitError(f"{path}: {error}", hint=hint) from None


def open_lease_store(kit: Kit, place: str) -> LeaseStore:
    """Open the lease store at ``place``; see ``lease_place``.

    A database that several projects may share keeps the lease under the cluster's id: a project that was provisioned
    anew has nothing to do with what its predecessor left there.

    Raises:
        StoreUnavailable, Corrupt: as ``SqlLeaseStore``.
        BadInput, FedhelmError: as ``PostgresEngines``.
    """
    return SqlLeaseStore(*lease_engines(kit, place))


def lease_engines(kit: Kit, place: str) -> tuple[Engines, str]:
    """Return the database at ``place``, and the key under which the project's rows are in it."""
    if place != SQLITE:
        return PostgresEngines(place, kit.timing, kit.local), kit.cluster
    kit.run.mkdir(mode=0o700, parents=True, exist_ok=True)
    return SqliteEngines(lease_file(kit)), kit.project


def lease_file(kit: Kit) -> Path:
    """Return the file of an overseer that shares its lease with no other."""
    return kit.run / "overseer.db"
