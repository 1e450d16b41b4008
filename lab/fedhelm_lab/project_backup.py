"""Backup and restore of a whole project: log and blobs, lease, root key and kits, as far as they are on this machine.

::

    <backup>/backup.json       what it is, and the sha256 of every file but those of the store
    <backup>/store/            the log and its blobs
    <backup>/lease.json        lease row, history, servers
    <backup>/state/            the project's root certificate and key
    <backup>/kits/<name>/      startup/ and local/ of each kit
    <backup>/.fedhelm-...json  of a `fedhelm poc` workspace: who takes part

A backup is whole or not there: it is written under another name first. It holds private keys: mode 0700.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fedhelm.clock import iso
from fedhelm.config.kit import Kit
from fedhelm.errors import AlreadyRunning, BadInput, Conflict, Corrupt, FedhelmError, NotFound
from fedhelm.ids import new_incarnation
from fedhelm.persist import By, Draft, open_store
from fedhelm.persist.backup import back_up, restore
from fedhelm.persist.fsck import look_at
from fedhelm.persist.posix import PosixLogStore
from fedhelm.plain_json import parse_plain
from fedhelm.process import ParticipantLock, atomic_write
from fedhelm_lab.collected import may_be_gone

__all__ = [
    "EPOCH_LEAP",
    "Parts",
    "back_up_project",
    "check_stopped",
    "read_backup",
    "remake_workspace",
    "restore_project",
]

EPOCH_LEAP = 2**20
"""How far a restore raises the epoch: above every epoch that sites may have seen after the backup was made."""

_SCHEMA = 1
_FACTS = "backup.json"


@dataclass(frozen=True)
class Parts:
    """What of a project is on this machine.

    Attributes:
        kits: Of servers, overseers and others; what each needs is done for it.
        state: The folder of the project's root certificate and key, if it is here.
        marker: The file that says what a workspace consists of, if all of it is here.
    """

    kits: tuple[Kit, ...]
    state: Path | None = None
    marker: Path | None = None

    @property
    def server(self) -> Kit | None:
        """A server's kit, which knows the store."""
        return next((kit for kit in self.kits if kit.role == "server"), None)

    @property
    def overseer(self) -> Kit | None:
        """An overseer's kit, which knows the lease store."""
        return next((kit for kit in self.kits if kit.role == "overseer"), None)


def _check_outside(parts: Parts, target: Path) -> None:
    """A backup inside the store would look like damage to servers, and be lost with what it is a copy of."""
    copied = {kit.store for kit in parts.kits if kit.store is not None}
    copied |= {kit.root / name for kit in parts.kits for name in ("startup", "local")}
    copied |= {parts.state} if parts.state is not None else set()
    for folder in sorted(copied):
        if target.resolve().is_relative_to(folder.resolve()):
            raise BadInput(f"{target} lies in {folder}, which is to be copied", hint="give a path outside of it")


def back_up_project(parts: Parts, target: Path) -> dict[str, Any]:
    """Write a backup to ``target``, which must not exist; everything may run meanwhile. Return its facts.

    Raises:
        Conflict: the target exists.
        BadInput: the kits are of several projects, or there is none; the target lies in what is copied.
        Corrupt: the store is damaged; the message names the slot or blob.
        StoreUnavailable: store or lease store do not answer.
    """
    first = _one_project(parts)
    target = target.absolute()
    if target.exists():
        raise Conflict(f"{target} exists", hint="give a path that does not")
    _check_outside(parts, target)
    with _draft_of(target) as draft:
        facts: dict[str, Any] = {"schema_version": _SCHEMA, "project": first.project, "cluster": first.cluster}
        facts |= {"made": iso(datetime.now(UTC)), "fedhelm": version("fedhelm"), "parts": []}
        # The lease before the log: a lease that is older than the log is raised to it, the other way round it would
        # claim records that the backup lacks.
        if parts.overseer is not None:
            from fedhelm_overseer.lease_copy import copy_out, opened

            with opened(parts.overseer) as (engines, key):
                _write_json(draft / "lease.json", copy_out(engines, key))
            facts["parts"].append("lease")
        if parts.server is not None:
            assert parts.server.store is not None
            facts["store"] = asdict(back_up(parts.server.store, draft / "store", may_be_gone))
            facts["parts"].append("store")
        if parts.state is not None:
            shutil.copytree(parts.state, draft / "state")
            facts["parts"].append("state")
        if parts.marker is not None:
            shutil.copy2(parts.marker, draft / parts.marker.name)
        for kit in parts.kits:
            for name in ("startup", "local"):
                if (kit.root / name).is_dir():
                    shutil.copytree(kit.root / name, draft / "kits" / kit.name / name)
        facts["kits"] = sorted(kit.name for kit in parts.kits)
        facts["files"] = {name: _sha256(draft / name) for name in _small_files(draft)}
        _write_json(draft / _FACTS, facts)
        draft.rename(target)
    return facts


def read_backup(source: Path) -> dict[str, Any]:
    """Return the facts of a backup whose files, those of the store apart, are as they were written.

    Raises:
        NotFound: there is none.
        Corrupt: a file is missing, changed or one too many; the message names it.
    """
    try:
        facts = parse_plain((source / _FACTS).read_bytes())
        files, schema = dict(facts["files"]), facts["schema_version"]
    except FileNotFoundError:
        raise NotFound(f"{source} is no backup: it has no {_FACTS}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"{source / _FACTS} cannot be read: {error}") from error
    if schema != _SCHEMA:
        raise BadInput(f"{source / _FACTS}: version {schema!r} of the format, this program reads {_SCHEMA}")
    there = set(_small_files(source)) - {_FACTS}
    for name in sorted(there ^ set(files)):
        raise Corrupt(f"{source / name} {'is missing' if name in files else 'does not belong to the backup'}")
    for name, digest in files.items():
        if _sha256(source / name) != digest:
            raise Corrupt(f"{source / name} is damaged")
    return dict(facts)


def restore_project(source: Path, parts: Parts, *, replace: bool = False) -> dict[str, Any]:
    """Put store and lease back for the kits in ``parts``, and raise the epoch; nothing of the project may run.

    What is there already is moved aside with ``replace``, never deleted. The epoch rises by `EPOCH_LEAP` above those of
    the backup and of what is there, so that sites which saw epochs that the backup lacks follow again. Jobs go on
    where the backup saw them.

    Args:
        source: the backup.
        parts: the kits that it is restored for, in place.
        replace: a store that is not empty is moved aside.

    Returns:
        What was done: ``epoch``, ``log_seq``, ``moved`` (old places by new).

    Raises:
        AlreadyRunning: a participant of ``parts`` runs.
        Conflict: a store is there and ``replace`` was not given.
        BadInput: the backup is another project's.
        Corrupt: the backup is damaged; nothing was changed.
        StoreUnavailable: the lease store does not answer; nothing was changed.
    """
    facts, first = read_backup(source), _one_project(parts)
    if (facts["project"], facts["cluster"]) != (first.project, first.cluster):
        raise BadInput(f"{source} is of project {facts['project']}, cluster {facts['cluster']}; {first.root} is not")
    check_stopped(parts)
    lease = _lease_in(source) if "lease" in facts["parts"] else None
    done: dict[str, Any] = {"project": first.project, "made": facts["made"], "moved": {}}
    seen = _lease_epoch(lease)
    if parts.overseer is not None and lease is not None:
        seen = max(seen, _check_lease(parts.overseer, lease))
    if parts.server is not None and parts.server.store is not None:
        seen = max(seen, _epoch_there(parts.server.store))
    epoch, log_seq = seen + EPOCH_LEAP, -1
    if parts.server is not None and "store" in facts["parts"]:
        epoch, log_seq = _restore_store(source / "store", parts.server, seen, done, replace=replace)
    if parts.overseer is not None and lease is not None:
        from fedhelm_overseer.lease_copy import copy_in, opened

        with opened(parts.overseer) as (engines, key):
            copy_in(engines, key, lease, epoch=epoch, log_seq=log_seq)
    return done | {"epoch": epoch, "log_seq": log_seq}


def _check_lease(overseer: Kit, lease: Any) -> int:
    """Find out before the store is moved whether the lease can be put back; return the epoch of the one that is there.

    A backup that is restored once more brings no epoch above those of the time after it was restored first.
    """
    from fedhelm_overseer.lease_copy import check_copy, copy_out, opened

    check_copy(lease)
    with opened(overseer) as (engines, key):
        return _lease_epoch(copy_out(engines, key))


def _epoch_there(store: Path) -> int:
    """Return the epoch of the last sound record in the store that is replaced; 0 if there is none."""
    if not (store / "log").is_dir():
        return 0
    log = PosixLogStore(store)
    for seq in sorted(log.slots(), reverse=True):
        record, _ = look_at(log, seq)
        if record is not None:
            return record.epoch
    return 0


def _restore_store(source: Path, kit: Kit, seen: int, done: dict[str, Any], *, replace: bool) -> tuple[int, int]:
    """Restore the log beside its place, raise its epoch, and put it there; return epoch and last slot."""
    store = kit.store
    assert store is not None
    there = store.is_dir() and any(store.iterdir())
    if there and not replace:
        raise Conflict(f"{store} is not empty", hint="--replace moves it aside; nothing is deleted")
    with _draft_of(store) as draft:
        restored = draft / "store"
        try:
            restore(source, restored, may_be_gone)
        except Corrupt as error:
            raise Corrupt(f"the backup {source}: {error.message}", hint=error.hint) from error
        log = open_store(restored, kit.cluster).log
        log.read_new()
        before = log.epoch
        epoch = max(before, seen) + EPOCH_LEAP
        body = {"from": before, "to": epoch, "reason": "restored from a backup", "time": iso(datetime.now(UTC))}
        record = log.append(Draft("epoch_repair", epoch, By("restore", new_incarnation()), body))
        if there:
            stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
            aside = store.with_name(f"{store.name}.before-{stamp}")
            store.rename(aside)
            done["moved"][str(store)] = str(aside)
        elif store.is_dir():
            store.rmdir()
        restored.rename(store)
    return epoch, record.seq


def check_stopped(parts: Parts) -> None:
    """Let what changes a store pass only while none of its servers and overseers here runs.

    Raises:
        AlreadyRunning: one does; names it.
    """
    for kit in parts.kits:
        pid = ParticipantLock.holder(kit.run) if kit.role in {"server", "overseer"} else None
        if pid is not None:
            raise AlreadyRunning(
                f"{kit.name} runs (pid {pid})", hint="stop all servers and overseers of the project first"
            )


def remake_workspace(source: Path, target: Path, marker: str) -> None:
    """Make a workspace that is lost from the kits in its backup, without store and lease: all of it, or nothing.

    Raises:
        NotFound: the backup is not of a whole workspace.
        Corrupt: the backup is damaged.
    """
    facts, target = read_backup(source), target.absolute()
    if marker not in facts["files"]:
        raise NotFound(f"{source} is not the backup of a workspace", hint="restore it for each --kit DIR")
    with _draft_of(target) as draft:
        shutil.copytree(source / "kits", draft, dirs_exist_ok=True)
        shutil.copytree(source / "state", draft / "state")
        shutil.copy2(source / marker, draft / marker)
        draft.rename(target)


def _one_project(parts: Parts) -> Kit:
    if not parts.kits:
        raise BadInput("no kit was given", hint="--kit DIR, or -w WORKSPACE")
    first = parts.kits[0]
    for kit in parts.kits:
        if (kit.project, kit.cluster) != (first.project, first.cluster):
            raise BadInput(f"{kit.root} is of another project than {first.root}")
    return first


def _lease_in(source: Path) -> Any:
    try:
        return parse_plain((source / "lease.json").read_bytes())
    except (OSError, ValueError) as error:
        raise Corrupt(f"{source / 'lease.json'} cannot be read: {error}") from error


def _lease_epoch(lease: Any) -> int:
    try:
        return 0 if lease is None else int(lease["tables"]["lease"][0]["epoch"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise Corrupt(f"the backup's lease.json cannot be read: {error!r}") from error


@contextmanager
def _draft_of(target: Path) -> Iterator[Path]:
    """Yield a folder beside ``target``; what is still there at the end is removed."""
    draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft.mkdir(mode=0o700)
        yield draft
    except OSError as error:
        raise FedhelmError(
            f"{error.filename or target}: {error.strerror or error}", hint="nothing was left half done"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _small_files(folder: Path) -> list[str]:
    """Return every file of a backup but the store's, whose chain and digests are its own."""
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sorted(str(one) for one in files if one.parts[0] != "store")


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise Corrupt(f"{path} cannot be read: {error.strerror}") from error


def _write_json(path: Path, body: Any) -> None:
    atomic_write(path, json.dumps(body, indent=1, sort_keys=True).encode() + b"\n")
