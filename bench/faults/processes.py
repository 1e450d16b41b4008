"""Faults of processes and hosts: killed, stopped, switched over."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator

from bench.faults.kinds import Scene, kind
from bench.federation import now, until
from fedhelm.errors import FedhelmError
from fedhelm.process import ParticipantLock

__all__: list[str] = []

_ORPHANS_SECONDS = 10.0
"""How long runners may outlive their server: they end with it, or at the next thing that they ask of it."""


def send(pids: Iterable[int], number: signal.Signals) -> None:
    """Signal processes; those that are gone are passed over."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def power_off(scene: Scene, name: str) -> None:
    """Kill all that a participant has, at one instant: stopped first, so that none sees another die.

    Returns when all of it is gone: what is dying still holds its lock and its ports.
    """
    while pids := [one.pid for one in scene.lab.processes(name)]:
        send(pids, signal.SIGSTOP)
        send(pids, signal.SIGKILL)
        time.sleep(0.002)
    # One that has lost its memory has no mark any more, and its files stay open until its last thread is dead.
    run = scene.lab.root / name / "run"
    until(lambda: ParticipantLock.holder(run) is None or None, 10, f"the end of {name}")


@kind("kill-child", "crash", failover=True, weight=6)
def kill_child(scene: Scene) -> Iterator[None]:
    """SIGKILL for the FL server; its supervisor lives. Its runners end with it."""
    pid = scene.lab.pid(scene.primary, "child")
    yield
    scene.strike(lambda: os.kill(pid, signal.SIGKILL))
    _expect_no_orphans(scene)


def _expect_no_orphans(scene: Scene) -> None:
    """See that no runner outlives its server: as a standby its next child has none."""
    deadline = now() + _ORPHANS_SECONDS
    while runners := scene.lab.processes(scene.primary, "runner"):
        if now() > deadline:
            leads = scene.lab.primary() == scene.primary
            scene.expect(leads, f"runners outlive their server: {[one.pid for one in runners]}")
            return
        time.sleep(0.02)


@kind("kill-host", "host", failover=True, weight=3)
def kill_host(scene: Scene) -> Iterator[None]:
    """SIGKILL for supervisor, child and runners at once; started again a little later."""
    pids = [one.pid for one in scene.lab.processes(scene.primary)]
    away = scene.seconds(4, 8, 3.5)

    def blow() -> None:
        send(pids, signal.SIGSTOP)
        power_off(scene, scene.primary)

    yield
    scene.strike(blow)
    time.sleep(away)
    scene.lab.restart(scene.primary)


def _freeze(scene: Scene, *marks: str) -> Iterator[None]:
    for mark in marks:
        scene.lab.pid(scene.primary, mark)
    pids = [one.pid for one in scene.lab.processes(scene.primary, *marks)]
    seconds = scene.seconds(10, 60, 7)
    yield
    scene.strike(lambda: send(pids, signal.SIGSTOP))
    time.sleep(seconds)
    if scene.rng.random() < 0.5:
        pids.reverse()
    send(pids, signal.SIGCONT)


@kind("stop-child", "host", failover=True)
def stop_child(scene: Scene) -> Iterator[None]:
    """SIGSTOP for the FL server, then SIGCONT."""
    return _freeze(scene, "child")


@kind("stop-supervisor", "host", failover=True)
def stop_supervisor(scene: Scene) -> Iterator[None]:
    """SIGSTOP for the supervisor, then SIGCONT: the child cannot know, and must not go on as if it led."""
    return _freeze(scene, "supervisor")


@kind("stop-host", "host", failover=True, weight=2)
def stop_host(scene: Scene) -> Iterator[None]:
    """SIGSTOP for supervisor, child and runners, then SIGCONT: a zombie primary."""
    return _freeze(scene, "supervisor", "child", "runner")


@kind("switchover", "switchover", failover=True, weight=8, rested=True)
def switchover(scene: Scene) -> Iterator[None]:
    """``promote_sp`` of the standby, by an operator."""
    target = scene.standby
    yield
    scene.strike(lambda: scene.lab.session.promote(target, timeout=30))
    scene.expect(scene.lab.session.primary(timeout=10).name == target, f"{target} does not lead after promote_sp")


@kind("several-jobs", "crash", failover=True, jobs=2, weight=2, prelude=True, sites=1)
def several_jobs(scene: Scene) -> Iterator[None]:
    """As ``kill-child``, with two jobs running, one being aborted, and one that waits for a site."""
    lab = scene.lab
    away = lab.sites[-1]
    power_off(scene, away)
    scene.kills[away] = [now()]
    until(lambda: True if not _connected(scene, away) else None, 20, f"{away} is seen to be away")
    yield
    # It would train for a minute: nothing but the abort ends it.
    doomed = scene.submit("aborted", rounds=20, pause=3.0, sites=lab.sites[:1]).handle
    scene.aborted.add(doomed.job_id)
    waiting = scene.submit("waiting").handle
    before = scene.params["abort"] = scene.rng.choice(["before", "during"])
    if before == "before":
        lab.session.abort(doomed.job_id, reason="on purpose", timeout=20)
    pid = lab.pid(scene.primary, "child")
    asking = threading.Thread(target=_abort, args=(scene, doomed.job_id), name="abort")
    yield
    if before == "during":
        asking.start()
        time.sleep(scene.rng.uniform(0, 0.03))
    scene.strike(lambda: os.kill(pid, signal.SIGKILL))
    _expect_no_orphans(scene)
    if before == "during":
        asking.join()
    until(lambda: lab.watch.epoch > scene.epoch or None, 30, "another server leads")
    status = waiting.status(timeout=20).status
    if status != "SUBMITTED":
        seen = "it shows it as connected" if _connected(scene, away) else "it knows that it is away"
        who = f"{lab.primary()} leads, after {scene.primary}; {seen}"
        scene.findings.append(f"a job that waits for {away}, which is dead, is {status} after the failover: {who}")
    lab.restart(away)
    scene.kills[away].append(now())


def _connected(scene: Scene, site: str) -> bool:
    return next(one.connected for one in scene.lab.session.check_status(timeout=10).sites if one.name == site)


def _abort(scene: Scene, job: str) -> None:
    try:
        scene.lab.session.abort(job, reason="on purpose", timeout=30)
    except FedhelmError as error:
        scene.findings.append(f"an abort across a failover was answered with {error}")


@kind("before-end", "crash", failover=True, phases=("closing",), last_round=True, weight=3)
def before_end(scene: Scene) -> Iterator[None]:
    """As ``kill-child``, while the last round closes or the job ends."""
    return kill_child(scene)


@kind("kill-runner", "none", failover=False)
def kill_runner(scene: Scene) -> Iterator[None]:
    """SIGKILL for every runner of the primary: aggregation waits for new ones, acknowledgements do not."""
    yield
    pids = [one.pid for one in scene.lab.processes(scene.primary, "runner")]
    scene.strike(lambda: send(pids, signal.SIGKILL))


@kind("kill-agent", "none", failover=False, weight=2)
def kill_agent(scene: Scene) -> Iterator[None]:
    """SIGKILL for a site's agent; its job process goes with it; started again."""
    site = scene.rng.choice(scene.lab.sites)
    scene.params["site"] = site
    pid = scene.lab.pid(site, "agent")
    yield
    scene.strike(lambda: os.kill(pid, signal.SIGKILL))
    scene.kills[site] = [now()]
    power_off(scene, site)
    time.sleep(scene.rng.uniform(0.1, 1.0))
    scene.lab.restart(site)
    scene.kills[site].append(now())


@kind("site-lost-after-upload", "none", failover=False, phases=("appending",))
def site_lost_after_upload(scene: Scene) -> Iterator[None]:
    """All processes of a site die after the upload, before it has its receipt; started again."""
    return kill_agent(scene)


@kind("stop-standby", "none", failover=False)
def stop_standby(scene: Scene) -> Iterator[None]:
    """SIGSTOP for the standby, then SIGCONT: it must catch up, from a checkpoint if it has to."""
    name = scene.standby
    pids = [one.pid for one in scene.lab.processes(name)]
    seconds = scene.seconds(7, 12, 5)
    yield
    scene.strike(lambda: send(pids, signal.SIGSTOP))
    time.sleep(seconds)
    send(pids, signal.SIGCONT)


@kind("restart-all-servers", "outage", failover=True)
def restart_all_servers(scene: Scene) -> Iterator[None]:
    """All servers lose power at once, and come back."""
    away = scene.seconds(0.2, 2)

    def blow() -> None:
        for name in scene.lab.servers:
            power_off(scene, name)

    yield
    scene.strike(blow)
    time.sleep(away)
    for name in scene.lab.servers:
        scene.lab.restart(name)


@kind("kill-new-primary", "compound", failover=True, variant="three", bound=10.0, weight=2)
def kill_new_primary(scene: Scene) -> Iterator[None]:
    """The primary's child dies, and then the server that was granted its lease, while it promotes or just after."""
    lab = scene.lab
    pid = lab.pid(scene.primary, "child")
    others = {name: lab.pid(name, "child") for name in lab.servers if name != scene.primary}
    read = {name: len(lab.log(name)) for name in others}
    yield
    epoch = lab.watch.epoch
    scene.strike(lambda: os.kill(pid, signal.SIGKILL))
    deadline = now() + 10
    while lab.watch.epoch == epoch and now() < deadline:
        promoting = [name for name in others if ": PROMOTING" in lab.log(name)[read[name] :]]
        if promoting:
            break
        time.sleep(0.001)
    else:
        promoting = [lab.primary()]
    send([others[name] for name in promoting], signal.SIGKILL)
    scene.params["when"] = "promoting" if lab.watch.epoch == epoch else "just after its fence"


def _until_compacted(scene: Scene, beyond: int) -> None:
    """Have jobs fill the log until the slot ``beyond`` was compacted away: at the second checkpoint from now.

    Where writing one takes long, as on a busy machine, they are fewer, down to one in 4,096 slots.
    """
    deadline = now() + 240
    while scene.lab.low_water <= beyond and now() < deadline:
        scene.submit("chatty", rounds=1, pause=3.0, lines=600).handle.wait(timeout=60)
    scene.expect(scene.lab.low_water > beyond, f"the log was not shortened beyond slot {beyond} in four minutes")


@kind("compaction-while-standby-stopped", "none", failover=None, jobs=2)
def compaction_while_standby_stopped(scene: Scene) -> Iterator[None]:
    """The standby is stopped until what it had to read next is deleted; then it has to lead."""
    lab, name = scene.lab, scene.standby
    pids = [one.pid for one in lab.processes(name)]
    yield
    scene.strike(lambda: send(pids, signal.SIGSTOP))
    beyond = len(lab.watch.seen)
    try:
        _until_compacted(scene, beyond)
    finally:
        send(pids, signal.SIGCONT)
    lab.wait_whole()
    os.kill(lab.pid(scene.primary, "child"), signal.SIGKILL)
    until(lambda: lab.watch.epoch > scene.epoch or None, 30, f"{name} leads")


@kind("compaction-while-primary-stopped", "host", failover=True)
def compaction_while_primary_stopped(scene: Scene) -> Iterator[None]:
    """The primary is stopped; its successor shortens the log beyond the slot that the zombie will write."""
    lab = scene.lab
    pids = [one.pid for one in lab.processes(scene.primary)]
    yield
    scene.strike(lambda: send(pids, signal.SIGSTOP))
    beyond = len(lab.watch.seen)
    try:
        until(lambda: lab.watch.epoch > scene.epoch or None, 30, "another server leads")
        _until_compacted(scene, beyond)
    finally:
        send(pids, signal.SIGCONT)
