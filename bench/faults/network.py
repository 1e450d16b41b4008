"""Faults of the network, on the wires between members."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from bench.faults.kinds import Scene, kind
from bench.federation import now

__all__: list[str] = []

_FLAPS = 2
"""Failovers that a link may cost which comes and goes for less than the hold-down of 30 s (docs/ha.md section 3.3)."""


def _wires(scene: Scene) -> Sequence[str]:
    assert scene.lab.wires is not None
    return scene.lab.wires.names


def _set(scene: Scene, names: Sequence[str], mode: str, seconds: float = 0.0) -> None:
    assert scene.lab.wires is not None
    scene.lab.wires.set(names, mode, seconds)


def _around(scene: Scene, server: str) -> list[str]:
    """Return all wires from and to a server that are in use."""
    return [name for name in _wires(scene) if name.endswith(f">{server}") or (name.startswith(f"{server}>"))]


def _cut(scene: Scene, names: Sequence[str], mode: str, least: float = 8, most: float = 15) -> Iterator[None]:
    seconds = scene.seconds(least, most, 5)
    scene.params["mode"] = mode
    yield
    scene.strike(lambda: _set(scene, names, mode))
    time.sleep(seconds)
    scene.lab.heal_wires()


def _to_overseers(scene: Scene, server: str) -> list[str]:
    return [name for name in _wires(scene) if name.startswith(f"{server}>overseer")]


@kind("cut-from-overseers", "host", failover=True, variant="wired", weight=2)
def cut_from_overseers(scene: Scene) -> Iterator[None]:
    """The primary reaches no overseer, but the store and the sites."""
    return _cut(scene, _to_overseers(scene, scene.primary), scene.rng.choice(["drop", "reject"]))


@kind("partition-drop", "host", failover=True, variant="wired", weight=2)
def partition_drop(scene: Scene) -> Iterator[None]:
    """Nothing arrives between the primary and any other member; it still reaches the store."""
    return _cut(scene, _around(scene, scene.primary), "drop")


@kind("partition-reject", "host", failover=True, variant="wired")
def partition_reject(scene: Scene) -> Iterator[None]:
    """Connections between the primary and any other member are reset."""
    return _cut(scene, _around(scene, scene.primary), "reject")


@kind("partition-one-way", "host", failover=True, variant="wired")
def partition_one_way(scene: Scene) -> Iterator[None]:
    """Between the primary and the others nothing arrives in one direction."""
    # What the primary asks is not heard, and what it is asked is: or the other way round.
    mode = scene.rng.choice(["no-requests", "no-answers"])
    return _cut(scene, _around(scene, scene.primary), mode)


def _flap(scene: Scene, seconds: float, least: float, most: float) -> Iterator[None]:
    """Cut one server's link to the overseers again and again, each time for ``least`` to ``most`` seconds."""
    names = _to_overseers(scene, scene.primary)
    yield
    scene.strike(lambda: _set(scene, names, "drop"))
    assert scene.moment is not None
    cuts: list[float] = []
    while now() < scene.moment + seconds:
        if cuts:
            _set(scene, names, "drop")
        cuts.append(round(scene.rng.uniform(least, most), 1))
        time.sleep(cuts[-1])
        scene.lab.heal_wires()
        time.sleep(scene.rng.uniform(0.2, 1.0))
    scene.params["cuts"] = cuts
    scene.expect(scene.lab.watch.epoch - scene.epoch <= _FLAPS, f"more than {_FLAPS} failovers for one flapping link")


@kind("flapping-link", "flapping", failover=None, variant="wired")
def flapping_link(scene: Scene) -> Iterator[None]:
    """The primary's link to the overseer comes and goes, for less than a lease each time."""
    return _flap(scene, scene.seconds(12, 20, 5), 0.5, 2.5)


@kind("flapping-link-long", "flapping", failover=True, variant="wired", bound=5.0)
def flapping_link_long(scene: Scene) -> Iterator[None]:
    """The same for longer than a lease each time: one failover or two, because who lost the lease is held down."""
    return _flap(scene, scene.seconds(16, 24, 6), 3.5, 5.0)


@kind("slow-link", "none", failover=False, variant="wired")
def slow_link(scene: Scene) -> Iterator[None]:
    """All that the primary says or hears takes 50 ms longer."""
    names = _around(scene, scene.primary)
    seconds = scene.seconds(5, 10, 3)
    yield
    scene.strike(lambda: _set(scene, names, "delay", 0.05))
    time.sleep(seconds)
    scene.lab.heal_wires()


@kind("standby-cut-off", "none", failover=False, variant="wired")
def standby_cut_off(scene: Scene) -> Iterator[None]:
    """The standby reaches nobody but the store."""
    return _cut(scene, _around(scene, scene.standby), "drop", 5, 10)


@kind("site-cut-off", "none", failover=False, variant="wired")
def site_cut_off(scene: Scene) -> Iterator[None]:
    """A site reaches no server; its script trains on, and its result waits."""
    site = scene.rng.choice(scene.lab.sites)
    scene.params["site"] = site
    names = [name for name in _wires(scene) if name.startswith(f"{site}>server")]
    return _cut(scene, names, scene.rng.choice(["drop", "reject", "no-requests", "no-answers"]), 5, 15)
