"""Faults of overseers and of their database."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from bench.faults.kinds import SILENCE, Scene, kind
from bench.faults.laboratory import ADMIN, CLOCK_NOTICED
from bench.faults.processes import power_off, send
from bench.federation import now, until
from fedhelm.admin.session import connect
from fedhelm.errors import Refused

__all__: list[str] = []

_CONSOLE_SECONDS = 10.0


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


def _meanwhile(scene: Scene, seconds: float) -> None:
    """While no overseer answers: jobs start and end, an admin signs in, looks, and goes."""
    assert scene.moment is not None
    began = now()
    with connect(scene.lab.root / ADMIN) as session:
        scene.expect(session.jobs(timeout=_CONSOLE_SECONDS), "an admin sees no jobs without overseers")
    took = now() - began
    scene.expect(took < _CONSOLE_SECONDS, f"an admin's session of one question took {took:.1f} s without overseers")
    count = 1 if scene.quick else 4
    for number in range(count):
        ended = scene.submit(f"meanwhile-{number}").handle.wait(timeout=30)
        scene.expect(ended.summary.succeeded, f"a job submitted without overseers is {ended.status}")
        time.sleep(max(0.0, scene.moment + seconds * (number + 1) / count - now()))
    time.sleep(max(0.0, scene.moment + seconds - now()))


@kind("overseers-gone-60s", "none", failover=False, bound=SILENCE)
def overseers_gone(scene: Scene) -> Iterator[None]:
    """All overseers are away for a minute; meanwhile new jobs are submitted, and start."""
    seconds = scene.seconds(60, 60, 6)
    yield
    scene.strike(lambda: _kill_overseer(scene))
    _meanwhile(scene, seconds)
    _return(scene)


@kind("overseers-hang-60s", "none", failover=False, variant="pair", bound=SILENCE)
def overseers_hang(scene: Scene) -> Iterator[None]:
    """SIGSTOP for all overseers for a minute: they take connections and say nothing; new jobs start."""
    pids = [one.pid for name in scene.lab.overseers for one in scene.lab.processes(name)]
    seconds = scene.seconds(60, 60, 6)
    yield
    scene.strike(lambda: send(pids, signal.SIGSTOP))
    try:
        _meanwhile(scene, seconds)
    finally:
        send(pids, signal.SIGCONT)


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
    time.sleep(CLOCK_NOTICED + 0.5)  # a job that is signed now would be from another hour for who still has the old one
