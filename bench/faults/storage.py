"""Faults of the shared store: away, full, read-only, damaged."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from bench.faults.history import blob_file
from bench.faults.kinds import Scene, kind
from bench.faults.processes import power_off, send
from bench.federation import until
from fedhelm.persist.fsck import examine

__all__: list[str] = []

_ATTEMPTS = 4


@kind("cut-from-store", "outage", failover=True, variant="mounted", bound=14.0)
def cut_from_store(scene: Scene) -> Iterator[None]:
    """The primary's own mount of the store is gone: its path is an empty directory."""
    seconds = scene.seconds(16, 20, 13)
    yield
    scene.strike(lambda: scene.lab.unmount(scene.primary))
    time.sleep(seconds)
    scene.lab.mount(scene.primary)


@kind("store-read-only", "outage", failover=True, variant="mounted", bound=14.0)
def store_read_only(scene: Scene) -> Iterator[None]:
    """The primary's own mount of the store takes no writes; it can be read."""
    path = str(scene.lab.root / "mounts" / scene.primary)
    seconds = scene.seconds(16, 20, 13)

    def remounted(how: str) -> bool:
        command = ["mount", "-o", f"remount,bind,{how}", path]
        return subprocess.run(command, check=False, capture_output=True, timeout=10).returncode == 0

    def blow() -> None:  # the kernel refuses while a file is open for writing
        until(lambda: remounted("ro") or None, 10, "the mount is read-only")

    yield
    scene.strike(blow)
    time.sleep(seconds)
    until(lambda: remounted("rw") or None, 10, "the mount is writable")


@kind("store-away", "outage", failover=None)
def store_away(scene: Scene) -> Iterator[None]:
    """The store is not there, for all servers."""
    store = scene.lab.store
    away = store.with_name("store.away")
    seconds = scene.seconds(10, 30, 4)
    yield
    scene.strike(lambda: store.rename(away))
    time.sleep(seconds)
    scene.expect(not store.exists(), "somebody made the store's folder anew")
    away.rename(store)


@kind("store-full", "outage", failover=None, variant="small-disk")
def store_full(scene: Scene) -> Iterator[None]:
    """The store's disk is full for all servers, then has room again."""
    filler = scene.lab.store / "filler"
    seconds = scene.seconds(7, 20, 4)
    yield
    scene.strike(lambda: _fill(filler))
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:  # what a server frees by deleting is taken at once
        time.sleep(0.5)
        _fill(filler)
    filler.unlink()


def _fill(path: Path) -> None:
    size = 1 << 20
    with path.open("ab", buffering=0) as file:
        while size:
            try:
                file.write(b"\0" * size)
            except OSError:
                size //= 2


def _damaged_record(scene: Scene, damage: str) -> Iterator[None]:
    """Damage a slot, restart the standby: it has to name the slot and stand back; then put the slot back.

    A checkpoint that is written meanwhile may cover the slot, and then nobody has to read it: another one is taken.
    """
    yield
    for attempt in range(_ATTEMPTS):
        if _named(scene, damage, first=attempt == 0):
            states = {one.name: one.state for one in scene.lab.session.servers(timeout=5)}
            scene.expect(states[scene.standby] != "ACTIVE", f"{scene.standby} leads with a damaged log")
            return
    scene.findings.append(f"{_ATTEMPTS} damaged slots were each covered by a checkpoint before they were read")


def _covered(scene: Scene) -> int:
    return max(
        (one.record.body["covered"] for one in scene.lab.watch.seen if one.record.kind == "checkpoint"), default=0
    )


def _named(scene: Scene, damage: str, *, first: bool) -> bool:
    """Tell whether the standby named the damaged slot; False if a checkpoint came to cover that."""
    lab, name = scene.lab, scene.standby
    # Of those that a server reads when it starts: after the newest checkpoint.
    newest = len(lab.watch.seen) - 2
    slot = scene.rng.randint(min(_covered(scene) + 1, newest), newest)
    path = lab.store / "log" / f"{slot:016d}"
    scene.params["slot"] = slot
    good, place, child = path.read_bytes(), scene.rng.randrange(path.stat().st_size), lab.pid(name, "child")
    begun = len(lab.log(name))
    if first:
        scene.strike(lambda: _damage(path, good, damage, place))
    else:
        _damage(path, good, damage, place)
    os.kill(child, signal.SIGKILL)

    def seen() -> str | None:
        if f"slot {slot}" in lab.log(name)[begun:]:
            return "named"
        return "covered" if _covered(scene) >= slot else None

    try:
        return until(seen, 20, f"{name} names slot {slot}") == "named"
    finally:
        kept = path if slot >= lab.low_water else lab.store / "archive" / "log" / path.name
        kept.unlink(missing_ok=True)
        kept.write_bytes(good)


def _damage(path: Path, good: bytes, damage: str, place: int) -> None:
    path.unlink()
    if damage == "flipped":
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
    elif damage == "truncated":
        path.write_bytes(good[:place])


@kind("record-flipped", "operator", failover=False)
def record_flipped(scene: Scene) -> Iterator[None]:
    """One bit of a record is wrong."""
    return _damaged_record(scene, "flipped")


@kind("record-truncated", "operator", failover=False)
def record_truncated(scene: Scene) -> Iterator[None]:
    """A record is cut off."""
    return _damaged_record(scene, "truncated")


@kind("record-missing", "operator", failover=False)
def record_missing(scene: Scene) -> Iterator[None]:
    """A slot is gone, with others after it."""
    return _damaged_record(scene, "missing")


@kind("record-missing-at-failover", "operator", failover=True)
def record_missing_at_failover(scene: Scene) -> Iterator[None]:
    """A running standby has to lead, and the slot that it would read next is gone: nobody leads until it is back.

    Where the primary's child dies, the lease knows how far the log went; where its host does, it may not know that.
    """
    lab, name = scene.lab, scene.standby
    dies = scene.params["dies"] = scene.rng.choice(["child", "host"])
    pids = [one.pid for one in lab.processes(name)]
    child, begun = lab.pid(scene.primary, "child"), {one: len(lab.log(one)) for one in lab.servers}
    yield
    scene.strike(lambda: send(pids, signal.SIGSTOP))
    try:
        path, good = _hole_ahead(scene)
        if dies == "host":
            power_off(scene, scene.primary)
        else:
            os.kill(child, signal.SIGKILL)
    finally:
        send(pids, signal.SIGCONT)
    slot = scene.params["slot"] = int(path.name)

    def refused() -> bool | None:
        """It is named, by the first who cannot go on; and the standby does not take over."""
        told = {one: lab.log(one)[begun[one] :] for one in lab.servers}
        named = any(f"slot {slot} is missing" in text for text in told.values())
        return (named and ("cannot take over" in told[name] or f"slot {slot} is missing" in told[name])) or None

    try:
        until(refused, 20, f"slot {slot} is named, and {name} does not take over")
        time.sleep(3.0 if scene.quick else 8.0)  # nothing can be waited for: nobody may lead
        scene.expect(lab.watch.epoch == scene.epoch, f"epoch {lab.watch.epoch} leads a log without slot {slot}")
    finally:
        scene.expect(not path.exists(), f"I8: slot {slot} was missing, and somebody wrote it anew")
        path.unlink(missing_ok=True)
        path.write_bytes(good)


def _hole_ahead(scene: Scene) -> tuple[Path, bytes]:
    """Delete a slot that a stopped standby has not read and no checkpoint covers; return its file and its contents."""
    lab = scene.lab
    for _ in range(_ATTEMPTS):
        slot = len(lab.watch.seen) + 2  # those that it read while the watch looked away are before
        until(lambda slot=slot: len(lab.watch.seen) > slot + 1 or None, 20, "more records")  # type: ignore[misc]
        path = lab.store / "log" / f"{slot:016d}"
        good = path.read_bytes()
        path.unlink()
        if _covered(scene) < slot:
            return path, good
        path.write_bytes(good)
    raise TimeoutError(f"{_ATTEMPTS} deleted slots were each covered by a checkpoint")


@kind("blob-flipped", "operator", failover=False, jobs=2, phases=("training",), pause=2.0)
def blob_flipped(scene: Scene) -> Iterator[None]:
    """A contribution's blob is damaged before it is aggregated: its job fails and says so, the other one goes on."""
    lab, main = scene.lab, scene.jobs[0]
    held = lab.sites[-1]
    job, aimed = main.handle.job_id, scene.params["round"]
    yield
    pids = [one.pid for one in lab.processes(held)]
    scene.strike(lambda: send(pids, signal.SIGSTOP))
    try:
        chunk = _first_chunk(lab.store, _given(scene, job, aimed))
        data = bytearray(chunk.read_bytes())
        data[len(data) // 2] ^= 1
        with contextlib.suppress(FileNotFoundError):
            chunk.unlink()
        chunk.write_bytes(data)
        scene.doomed[job] = "(?i)chunk|digest|damaged|blob"
    finally:
        send(pids, signal.SIGCONT)


def _given(scene: Scene, job: str, number: int) -> dict[str, str]:
    """Wait for a contribution to a round, and return its blob."""

    def look() -> dict[str, str] | None:
        for one in scene.lab.watch.seen[-200:]:
            for item in one.record.body.get("items", ()) if one.record.kind == "contribution" else ():
                if item["job"] == job and item["round"] == number:
                    return dict(item["blob"])
        return None

    return until(look, 20, "the other site's contribution")


@kind("blob-deleted", "operator", failover=False, jobs=2, phases=("training",), pause=2.0, prelude=True)
def blob_deleted(scene: Scene) -> Iterator[None]:
    """A contribution's, a bundle's and a checkpoint's blob are deleted: each is named, and nothing else is lost."""
    lab = scene.lab
    _until_checkpoint(scene)
    yield
    main, standby = scene.jobs[0].handle.job_id, scene.standby
    child = lab.pid(standby, "child")
    yield
    sites = {site: [one.pid for one in lab.processes(site)] for site in lab.sites}
    kept = _first_chunk(lab.store, _of_record(scene, "checkpoint", "blob"))
    scene.strike(lambda: send(sites[lab.sites[-1]], signal.SIGSTOP))
    try:
        blobs = {main: _given(scene, main, scene.params["round"])}
        for pids in sites.values():  # nobody has read the bundle of what is submitted now
            send(pids, signal.SIGSTOP)
        unread = scene.submit("unread").handle.job_id
        blobs[unread] = _of_record(scene, "job_submitted", "bundle", unread)
        chunks = {job: _first_chunk(lab.store, blob) for job, blob in blobs.items()} | {"checkpoint": kept}
        good = kept.read_bytes()
        for chunk in chunks.values():
            chunk.unlink()
        named = " ".join(one.path for one in examine(lab.store).findings)
        for what, chunk in chunks.items():
            owner = str(chunk.parent.relative_to(lab.store / "blobs"))
            scene.expect(owner in named, f"fsck does not name the deleted blob of {what}: {owner}")
        scene.doomed |= dict.fromkeys(blobs, "(?i)missing|damaged")
    finally:
        for pids in sites.values():
            send(pids, signal.SIGCONT)
    os.kill(child, signal.SIGKILL)  # whoever starts now has to do without that checkpoint
    until(lambda: True if lab.pid(standby, "child") != child else None, 20, f"{standby} is started again")
    lab.wait_whole()
    lab.wait_candidates()
    if kept.parent.is_dir():  # else a later compaction has removed it
        kept.write_bytes(good)


def _until_checkpoint(scene: Scene) -> None:
    """Wait for the first checkpoint: in a new federation it comes after a quarter of a minute."""
    until(lambda: _covered(scene) or None, 60, "the first checkpoint")


def _of_record(scene: Scene, kind: str, key: str, job: str | None = None) -> dict[str, str]:
    """Return a value of the newest record of a kind, of a job if one is named."""

    def look() -> dict[str, str] | None:
        for one in reversed(scene.lab.watch.seen):
            if one.record.kind == kind and job in (None, one.record.body.get("job")):
                return dict(one.record.body[key])
        return None

    return until(look, 10, f"a record {kind}")


def _first_chunk(store: Path, ref: dict[str, str]) -> Path:
    manifest = json.loads(blob_file(store, ref["owner"], f"m-{ref['digest']}").read_bytes())
    return blob_file(store, ref["owner"], f"c-{manifest['chunks'][0]}")
