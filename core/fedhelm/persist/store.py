"""Opening, founding and probing a store."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedhelm.errors import BadInput, SlotTaken, StoreUnavailable, WrongStore
from fedhelm.ids import new_incarnation
from fedhelm.persist.base import BlobStore
from fedhelm.persist.chain import GENESIS
from fedhelm.persist.files import Files, create_exclusively, make_directory, naming, read_file
from fedhelm.persist.log import Log
from fedhelm.persist.posix import PosixBlobStore, PosixLogStore, make_layout
from fedhelm.persist.record import By, Draft, decode

__all__ = ["Store", "check_tokens", "init_store", "leave_token", "open_store", "probe", "require_exclusive"]

# About a record: a disk that has room for a few bytes only is full.
_PROBE_BYTES = 4096
_TOKENS_KEPT = 4
_TOKEN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,237}~[0-9a-f]{16}")


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


def leave_token(root: Path, name: str, incarnation: str) -> str:
    """Leave a file in ``<root>/probe/`` that other members look for with `check_tokens`.

    The last few of this name's older ones stay: a member that was not told yet of this life looks for one of those, and
    it must not seem that somebody has another directory.

    Args:
        root: The store.
        name: This member.
        incarnation: This life of it, which the file holds, for people.

    Returns:
        The token: the file's name.

    Raises:
        BadInput: the name cannot be that of a member.
        StoreUnavailable: the store cannot be written.
    """
    token = f"{name}~{secrets.token_hex(8)}"
    if not _TOKEN.fullmatch(token):
        raise BadInput(f"{name!r:.80} cannot name a member of the project")
    folder, files = root / "probe", Files()
    with naming(root / "log"):
        (root / "log").stat()
    with naming(folder):
        if make_directory(folder):
            files.sync_directory(root)
    if not create_exclusively(files, root / "tmp", folder / token, incarnation.encode()):
        raise WrongStore(f"{folder}: a name that nobody used is taken")
    with naming(folder):
        older = sorted((old for old in folder.glob(f"{name}~*") if old.name != token), key=_written_at, reverse=True)
        for old in older[_TOKENS_KEPT:]:
            old.unlink(missing_ok=True)
        files.sync_directory(folder)
    return token


def _written_at(path: Path) -> int:
    return path.stat().st_mtime_ns


def check_tokens(root: Path, tokens: Mapping[str, str], files: Files | None = None) -> list[str]:
    """Find out whether this member and others see the same directory at once, as slots must be.

    Each token has to be in this listing, and creating it again has to be refused. A token of a life that is long over
    looks like one of another directory: rely on this only for a token that was told lately.

    Args:
        root: The store.
        tokens: What other members' `leave_token` returned, by their names.
        files: The disk.

    Returns:
        For each that fails a sentence that names the member and says what to look at.

    Raises:
        StoreUnavailable: the store cannot be read or written.
    """
    folder, files = root / "probe", files or Files()
    with naming(root / "log"):
        (root / "log").stat()
    with naming(folder):
        make_directory(folder)
        listed = set(files.names(folder))
    problems = list[str]()
    for name, token in sorted(tokens.items()):
        if not _TOKEN.fullmatch(token):
            problems.append(f"{name} left no token in its store: {token!r:.80} is none")
            continue
        created = create_exclusively(files, root / "tmp", folder / token, b"checked")
        if created and token not in listed:
            with naming(folder):
                (folder / token).unlink(missing_ok=True)
        if reason := _difference(token in listed, created):
            problems.append(f"{root}, as this server sees it, {reason.format(name=name)}")
    return problems


def _difference(listed: bool, created: bool) -> str | None:
    if listed and created:
        return "lets a name that {name} created be created again: it cannot hold the log"
    if created:
        return "lacks what {name} wrote to its store: another directory is mounted on one of the two"
    if not listed:
        return "is listed without what {name} wrote to it before: mount NFS with noac or lookupcache=none"
    return None
