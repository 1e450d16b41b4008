"""Faults of the shared store: away, full, read-only, damaged."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from bench.faults.history import blob_file
from bench.faults.kinds import Scene, kind
from bench.faults.processes import send
from bench.federation import until

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


@kind("blob-flipped", "operator", failover=False, jobs=2, phases=("training",))
def blob_flipped(scene: Scene) -> Iterator[None]:
    """A contribution's blob is damaged before it is aggregated: its job fails and says so, the other one goes on."""
    lab, main = scene.lab, scene.jobs[0]
    held = lab.sites[-1]
    job, aimed = main.handle.job_id, scene.params["round"]
    yield
    pids = [one.pid for one in lab.processes(held)]
    scene.strike(lambda: send(pids, signal.SIGSTOP))

    def given() -> Path | None:
        for one in lab.watch.seen[-200:]:
            for item in one.record.body.get("items", ()) if one.record.kind == "contribution" else ():
                if item["job"] == job and item["round"] == aimed:
                    return _first_chunk(lab.store, item["blob"])
        return None

    try:
        chunk = until(given, 20, "the other site's contribution")
        data = bytearray(chunk.read_bytes())
        data[len(data) // 2] ^= 1
        with contextlib.suppress(FileNotFoundError):
            chunk.unlink()
        chunk.write_bytes(data)
        scene.doomed[job] = "(?i)chunk|digest|damaged|blob"
    finally:
        send(pids, signal.SIGCONT)


def _first_chunk(store: Path, ref: dict[str, str]) -> Path:
    names = blob_file(store, ref["owner"], f"m-{ref['digest']}").parent.iterdir()
    return next(path for path in names if path.name.startswith("c-"))
