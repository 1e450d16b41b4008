"""Faults of the overseer and of its database, and what operators and other kits do at the wrong moment."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from bench.faults.kinds import Scene, kind
from bench.faults.processes import power_off, send
from bench.federation import now, until
from fedhelm.config.kit import read_kit
from fedhelm.errors import FedhelmError, Refused
from fedhelm.provision.launch import spawn
from fedhelm.provision.stop import Home, stop_all
from fedhelm.v1 import common_pb2, fleet_pb2
from fedhelm.wire.channels import FleetStub, aio_channel

__all__: list[str] = []


def _kill_overseer(scene: Scene) -> None:
    power_off(scene, "overseer")


def _return(scene: Scene) -> None:
    scene.lab.restart("overseer")
    scene.lab.wait_ready("overseer")


@kind("overseer-restarted", "none", failover=False)
def overseer_restarted(scene: Scene) -> Iterator[None]:
    """The overseer dies and is started again at once."""
    yield
    scene.strike(lambda: _kill_overseer(scene))
    _return(scene)


@kind("overseer-down", "none", failover=False)
def overseer_down(scene: Scene) -> Iterator[None]:
    """The only overseer is away for longer than a lease: training goes on, nothing fails over."""
    seconds = scene.seconds(8, 12, 5)
    yield
    scene.strike(lambda: _kill_overseer(scene))
    time.sleep(seconds)
    _return(scene)


@kind("overseers-gone-60s", "none", failover=False)
def overseers_gone(scene: Scene) -> Iterator[None]:
    """All overseers are away for a minute; meanwhile new jobs are submitted, and start."""
    seconds = scene.seconds(60, 60, 8)
    yield
    scene.strike(lambda: _kill_overseer(scene))
    assert scene.moment is not None
    for number in range(2 if scene.quick else 4):
        run = scene.submit(f"meanwhile-{number}")
        ended = run.handle.wait(timeout=30)
        scene.expect(ended.summary.succeeded, f"a job submitted without overseers is {ended.status}")
        time.sleep(max(0.0, scene.moment + seconds * (number + 1) / 4 - now()))
    time.sleep(max(0.0, scene.moment + seconds - now()))
    _return(scene)


@kind("overseer-stopped", "none", failover=False)
def overseer_stopped(scene: Scene) -> Iterator[None]:
    """SIGSTOP for the overseer: it accepts connections and says nothing; then SIGCONT."""
    pids = [one.pid for one in scene.lab.processes("overseer")]
    seconds = scene.seconds(7, 20)
    yield
    scene.strike(lambda: send(pids, signal.SIGSTOP))
    time.sleep(seconds)
    send(pids, signal.SIGCONT)


@kind("overseer-and-primary", "outage", failover=True)
def overseer_and_primary(scene: Scene) -> Iterator[None]:
    """The overseer dies, then the primary's host; nothing can lead until the overseer returns."""
    away = scene.seconds(3, 8)
    yield
    scene.strike(lambda: _kill_overseer(scene))
    time.sleep(scene.rng.uniform(0.1, 1.0))
    power_off(scene, scene.primary)
    time.sleep(away)
    _return(scene)
    time.sleep(scene.rng.uniform(0, 2))
    scene.lab.restart(scene.primary)


def _database(scene: Scene) -> Path:
    return scene.lab.root / "overseer" / "run" / "overseer.db"


def _remove_database(scene: Scene) -> None:
    for path in _database(scene).parent.glob("overseer.db*"):
        path.unlink()


@kind("overseer-emptied", "none", failover=False)
def overseer_emptied(scene: Scene) -> Iterator[None]:
    """The overseer comes back with an empty database: it adopts who leads."""
    yield
    scene.strike(lambda: _kill_overseer(scene))
    _remove_database(scene)
    _return(scene)


def _promoted(scene: Scene) -> bool | None:
    """Promote the standby; None while it is a few records behind, as it is while much is written."""
    try:
        scene.lab.session.promote(scene.standby, timeout=30)
    except Refused:
        return None
    return True


@kind("overseer-restored", "none", failover=False, rested=True, prelude=True)
def overseer_restored(scene: Scene) -> Iterator[None]:
    """The overseer comes back with a database from before two failovers."""
    lab = scene.lab
    backup = lab.folder / "overseer-backup.db"
    backup.unlink(missing_ok=True)
    with closing(sqlite3.connect(_database(scene))) as source, closing(sqlite3.connect(backup)) as target:
        source.backup(target)
    for _ in range(2):
        until(lambda: _promoted(scene), 20, f"{scene.standby} has read the log and may lead")
        lab.wait_whole()
        lab.wait_candidates()
        scene.primary = lab.primary()
    yield
    yield
    scene.strike(lambda: _kill_overseer(scene))
    _remove_database(scene)
    shutil.copy(backup, _database(scene))
    _return(scene)


@kind("overseer-emptied-primary-dead", "outage", failover=True)
def overseer_emptied_primary_dead(scene: Scene) -> Iterator[None]:
    """The overseer's database is lost together with the primary's host: the epoch comes from the log."""
    yield

    def blow() -> None:
        _kill_overseer(scene)
        power_off(scene, scene.primary)

    scene.strike(blow)
    _remove_database(scene)
    time.sleep(scene.rng.uniform(0, 2))
    _return(scene)
    time.sleep(scene.rng.uniform(0, 4))
    scene.lab.restart(scene.primary)


@kind("power-cut", "outage", failover=True)
def power_cut(scene: Scene) -> Iterator[None]:
    """Everything dies at once, sites too, and comes back in any order."""
    names = list(scene.lab.names)
    scene.rng.shuffle(names)

    def blow() -> None:
        for name in names:
            power_off(scene, name)

    yield
    scene.strike(blow)
    for site in scene.lab.sites:
        scene.kills[site] = [now()]
    for name in names:
        scene.lab.restart(name)
        time.sleep(scene.rng.uniform(0, 0.5))
    for site in scene.lab.sites:
        scene.kills[site].append(now())


# -- one of two overseers, and their database ------------------------------------------------------------------------


def _one(scene: Scene) -> str:
    chosen: str = scene.rng.choice(scene.lab.overseers)
    scene.params["overseer"] = chosen
    return chosen


@kind("one-overseer-killed", "none", failover=False, variant="pair")
def one_overseer_killed(scene: Scene) -> Iterator[None]:
    """One of two overseers dies, and is started again later."""
    name, seconds = _one(scene), scene.seconds(7, 15, 4)
    yield
    scene.strike(lambda: power_off(scene, name))
    time.sleep(seconds)
    scene.lab.restart(name)


@kind("one-overseer-stopped", "none", failover=False, variant="pair")
def one_overseer_stopped(scene: Scene) -> Iterator[None]:
    """SIGSTOP for one of two overseers: it accepts connections and says nothing; then SIGCONT."""
    name, seconds = _one(scene), scene.seconds(7, 20)
    pids = [one.pid for one in scene.lab.processes(name)]
    yield
    scene.strike(lambda: send(pids, signal.SIGSTOP))
    time.sleep(seconds)
    send(pids, signal.SIGCONT)


@kind("one-overseer-black-holed", "none", failover=False, variant="pair")
def one_overseer_black_holed(scene: Scene) -> Iterator[None]:
    """Nothing that servers send to one of two overseers arrives, and no connection is refused."""
    wires = scene.lab.wires
    assert wires is not None
    name, seconds = _one(scene), scene.seconds(7, 20)
    names = [one for one in wires.names if one.startswith("server") and one.endswith(f">{name}")]
    yield
    scene.strike(lambda: wires.set(names, "drop"))
    time.sleep(seconds)
    scene.lab.heal_wires()


@kind("one-overseer-and-primary", "host", failover=True, variant="pair", weight=2)
def one_overseer_and_primary(scene: Scene) -> Iterator[None]:
    """One of two overseers dies together with the primary's host: the other one sees to it."""
    name, seconds = _one(scene), scene.seconds(5, 10, 3.5)

    def blow() -> None:
        power_off(scene, scene.primary)
        power_off(scene, name)

    yield
    scene.strike(blow)
    time.sleep(seconds)
    scene.lab.restart(name)
    scene.lab.restart(scene.primary)


@kind("lease-store-frozen", "none", failover=False, variant="pair")
def lease_store_frozen(scene: Scene) -> Iterator[None]:
    """The overseers' PostgreSQL hangs: both overseers live, and none can renew."""
    seconds = scene.seconds(7, 20)
    assert scene.lab.postgres is not None
    yield
    frozen = scene.lab.postgres.frozen()
    scene.strike(frozen.__enter__)
    try:
        time.sleep(seconds)
    finally:
        frozen.__exit__(None, None, None)


@kind("clock-step", "none", failover=False, variant="clocks")
def clock_step(scene: Scene) -> Iterator[None]:
    """Wall clocks step by up to an hour: of the primary, the standby, the overseer, or all of them."""
    lab = scene.lab
    who = scene.params["whose"] = scene.rng.choice(["primary", "standby", "overseer", "all"])
    groups = {"primary": [scene.primary], "standby": [scene.standby], "overseer": ["overseer"]}
    names = groups.get(who, [*lab.servers, "overseer"])
    step = scene.params["step"] = scene.rng.choice([3600, 600, -240])
    seconds = scene.seconds(7, 12, 4)

    def step_all(by: int) -> None:
        for name in names:
            lab.set_clock(name, by)

    yield
    scene.strike(lambda: step_all(step))
    time.sleep(seconds)
    step_all(0)


# -- what operators and kits do --------------------------------------------------------------------------------------


@kind("switchover-refused", "none", failover=False, rested=True, prelude=True, weight=2)
def switchover_refused(scene: Scene) -> Iterator[None]:
    """``promote_sp`` of a server that is dead, lagging, unknown or leads already: refused before anything drains."""
    lab, target = scene.lab, scene.standby
    why = scene.params["target"] = scene.rng.choice(["dead", "lagging", "unknown", "active"])
    pids = [one.pid for one in lab.processes(target)]
    if why == "dead":
        power_off(scene, target)
        until(lambda: True if _state(scene, target) == "DOWN" else None, 20, f"{target} is down")
    name = {"unknown": "server99", "active": scene.primary}.get(why, target)
    yield
    yield
    if why == "lagging":
        send(pids, signal.SIGSTOP)
        time.sleep(1.5)
    try:
        scene.strike(lambda: lab.session.promote(name, timeout=10))
    except FedhelmError as error:
        scene.params["said"] = str(error)[:120]
    else:
        scene.findings.append(f"promote_sp of a server that is {why} was not refused")
    send(pids, signal.SIGCONT)


def _state(scene: Scene, name: str) -> str:
    return next(one.state for one in scene.lab.session.servers(timeout=5) if one.name == name)


@kind("switchover-interrupted", "host", failover=True, weight=2, rested=True)
def switchover_interrupted(scene: Scene) -> Iterator[None]:
    """The old or the new primary's child dies in the middle of a planned switchover."""
    import threading

    lab, target = scene.lab, scene.standby
    victim = scene.rng.choice([scene.primary, target])
    scene.params["victim"] = "old" if victim == scene.primary else "new"
    pid = lab.pid(victim, "child")
    delay = scene.rng.uniform(0.0, 0.15)

    def ask() -> None:
        try:
            lab.session.promote(target, timeout=30)
        except FedhelmError as error:
            scene.params["said"] = str(error)[:120]

    asking = threading.Thread(target=ask, name="promote")
    yield
    scene.strike(asking.start)
    time.sleep(delay)
    send([pid], signal.SIGKILL)
    asking.join()


@kind("name-used-twice", "none", failover=False)
def name_used_twice(scene: Scene) -> Iterator[None]:
    """A second kit of a server's name is started, as on another machine: it is refused by name."""
    lab = scene.lab
    name = scene.rng.choice([scene.primary, scene.standby])
    scene.params["of"] = "primary" if name == scene.primary else "standby"
    twin = lab.second_kit(name)
    yield
    launched = []
    scene.strike(lambda: launched.append(spawn(read_kit(twin))))
    try:
        until(lambda: launched[0].exited or None, 30, f"the second {name} ends")
        said = (twin / "log.txt").read_text().strip().splitlines()[-1]
        scene.params["said"] = said[:160]
        scene.expect(name in said and "error[" in said, f"the second {name} does not say why it ends: {said[:300]}")
    finally:
        stop_all([Home(twin, "server", name)])
        shutil.rmtree(twin.parent)


@kind("duplicates", "none", failover=False)
def duplicates(scene: Scene) -> Iterator[None]:
    """Contributions and lines are sent again, with other contents too, and late: one receipt, or "gone"."""
    yield
    scene.strike(lambda: None)
    asyncio.run(_again(scene))


async def _again(scene: Scene) -> None:
    lab, job = scene.lab, scene.jobs[0].handle.job_id
    placed = [
        (one.record, index, item)
        for one in lab.watch.seen
        if one.record.kind == "contribution"
        for index, item in enumerate(one.record.body["items"])
        if item["job"] == job
    ]
    for site in lab.sites:
        kit = lab.kit(site)
        address = kit.server(lab.primary())
        channel = aio_channel(kit, address.host, address.fed_learn_port, address.name)
        stub = FleetStub(channel, address.name)
        try:
            for record, index, item in placed:
                if item["site"] == site:
                    others = [o for _, _, o in placed if o["round"] == item["round"] and o["site"] != site]
                    await _offer_again(scene, stub, item, (record.seq, index, record.epoch), others)
            await _lines_again(scene, stub, job, site)
        finally:
            await channel.close(None)


def _contribution(item: Any, blob: Any, attempt: int) -> fleet_pb2.Contribution:
    return fleet_pb2.Contribution(
        job=item["job"],
        attempt=attempt,
        step=item["step"],
        round=item["round"],
        kind=item["kind"],
        site=item["site"],
        sequence=item["sequence"],
        blob=common_pb2.BlobRef(**blob),
        weight=item["weight"],
        metrics_json=json.dumps(item["metrics"]),
    )


async def _offer_again(scene: Scene, stub: FleetStub, item: Any, where: tuple[int, int, int], others: Any) -> None:
    async def offer(blob: Any, attempt: int) -> common_pb2.Receipt | None:
        try:
            return await stub.contribute(_contribution(item, blob, attempt), timeout=10)
        except FedhelmError as error:  # the blobs of a closed round may be gone already
            scene.params["refused"] = str(error)[:120]
            return None

    # Receipts are kept for the open round and the one before; of an older one the answer is that it is over.
    same = await offer(item["blob"], item["attempt"])
    if same is not None and not same.gone:
        got = (same.seq, same.index, same.epoch)
        scene.expect(got == where and not same.superseded, f"sent again, {where} was answered with {got}")
    if same is not None and same.gone:
        scene.expect(_closed(scene, item), f"sent again, {where} of a round that is not closed is gone")
    for other in others:
        answer = await offer(other["blob"], item["attempt"])
        told = answer is None or answer.superseded or (answer.gone and _closed(scene, item))
        scene.expect(told, "another result under a recorded id is not superseded")
    late = await offer(item["blob"], item["attempt"] + 1)
    scene.expect(late is None or late.gone, "a result of another attempt was recorded")


def _closed(scene: Scene, item: Any) -> bool:
    which = ("job", "step", "round", "kind")
    closes = (one.record.body for one in scene.lab.watch.seen if one.record.kind == "round_close")
    return any(all(body[key] == item[key] for key in which) for body in closes)


async def _lines_again(scene: Scene, stub: FleetStub, job: str, site: str) -> None:
    recorded = [
        line
        for one in scene.lab.watch.seen
        if one.record.kind == "metrics"
        for item in one.record.body["items"]
        if (item["job"], item["source"]) == (job, site)
        for line in item["lines"]
    ]
    lines = [fleet_pb2.Line(number=number, json=json.dumps(line)) for number, line in enumerate(recorded, 1)]
    if lines:
        ack = await stub.push_lines(fleet_pb2.LineBatch(job=job, lines=lines), timeout=10)
        scene.expect(ack.acknowledged >= len(lines), "lines that are in the log are not acknowledged again")
