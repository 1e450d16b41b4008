"""Opening, founding and probing a store."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedhelm.errors import SlotTaken, StoreUnavailable, WrongStore
from fedhelm.ids import new_incarnation
from fedhelm.persist.base import BlobStore
from fedhelm.persist.chain import GENESIS
from fedhelm.persist.files import Files, create_exclusively, naming, read_file
from fedhelm.persist.log import Log
from fedhelm.persist.posix import PosixBlobStore, PosixLogStore, make_layout
from fedhelm.persist.record import By, Draft, decode

__all__ = ["Store", "init_store", "open_store", "probe", "require_exclusive"]

# About a record: a disk that has room for a few bytes only is full.
_PROBE_BYTES = 4096


@dataclass(frozen=True)
class Store:
    """A store that was found to be the right one.

    Attributes:
        root: Its directory.
        cluster: The federation it belongs to.
        project: That federation's project.
        log: Nothing of it is read yet.
        blobs: May be used by several threads.
    """

    root: Path
    cluster: str
    project: str
    log: Log
    blobs: BlobStore


def _genesis(root: Path) -> dict[str, Any]:
    hint = "is the shared directory mounted?"
    if not root.is_dir() or not (root / "log").is_dir():
        raise WrongStore(f"{root} is not a store", hint=hint)
    data = PosixLogStore(root).read(0)
    if data is None:
        raise WrongStore(f"{root} has no genesis record", hint=hint)
    record = decode(data, 0)
    if record.kind != GENESIS:
        raise WrongStore(f"{root} begins with a {record.kind!r} record, not with genesis")
    return record.body


def _require_cluster(root: Path, cluster: str) -> str:
    body = _genesis(root)
    if body.get("cluster") != cluster:
        raise WrongStore(
            f"{root} belongs to cluster {body.get('cluster')!r} (project {body.get('project')!r}), not to {cluster!r}",
            hint="the store of another federation: check the kit's store path",
        )
    return str(body.get("project"))


def open_store(root: Path, cluster: str) -> Store:
    """Open the store of federation ``cluster``.

    Raises:
        WrongStore: no genesis (an unmounted directory is not an empty universe), or another cluster's.
        Corrupt: the genesis record is damaged.
        StoreUnavailable: it cannot be read.
    """
    project = _require_cluster(root, cluster)
    blobs = PosixBlobStore(root)
    return Store(root, cluster, project, Log(PosixLogStore(root), blobs), blobs)


def init_store(root: Path, cluster: str, project: str) -> None:
    """Found the store of a new federation: directories and the genesis record, once.

    Founding the same cluster's again changes nothing.

    Raises:
        WrongStore: another cluster's genesis is there.
        Corrupt: the genesis record there is damaged.
        StoreUnavailable: it cannot be written.
    """
    make_layout(root)
    body = {"cluster": cluster, "project": project}
    # A taken slot: founded before, or by somebody else just now.
    with suppress(SlotTaken):
        Log(PosixLogStore(root)).append(Draft(GENESIS, 0, By("provision", new_incarnation()), body))
    _require_cluster(root, cluster)


def probe(root: Path) -> None:
    """Find out by trying whether ``root`` can be written, and whether its exclusive create really is exclusive.

    Leaves nothing behind. Costs a few fsyncs.

    Raises:
        StoreUnavailable: it cannot be written: full, read-only, not there.
        WrongStore: a name can be created twice: high availability on this store would lose records.
    """
    temporary = root / "tmp"
    target = temporary / f"probe-{secrets.token_hex(8)}"
    files = Files()
    with naming(root / "log"):
        (root / "log").stat()

    def create(data: bytes) -> bool:
        created = create_exclusively(files, temporary, target, data)
        with naming(temporary):
            files.sync_directory(temporary)
        return created

    try:
        require_exclusive(create, lambda: read_file(target, _PROBE_BYTES + 1), str(root))
    finally:
        with suppress(OSError):
            target.unlink()


def require_exclusive(create: Callable[[bytes], bool], read: Callable[[], bytes | None], name: str) -> None:
    """Create one name twice, and see that the second create was refused and changed nothing.

    Args:
        create: Creates the name with these bytes; False if it was taken.
        read: Returns the bytes under the name.
        name: The store, for messages.

    Raises:
        WrongStore: the name was created twice, or has changed.
        StoreUnavailable: what was created cannot be read back.
    """
    first, second = b"first".ljust(_PROBE_BYTES), b"second".ljust(_PROBE_BYTES)
    if not create(first):
        raise WrongStore(f"{name}: a name that nobody used is taken")
    again = create(second)
    found = read()
    if again or found == second:
        raise WrongStore(f"{name} lets a name be created twice: it cannot hold the log")
    if found != first:
        raise StoreUnavailable(f"{name}: what was written cannot be read back")
