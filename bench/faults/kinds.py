"""The table of fault kinds, and what a fault may do in a trial."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.faults.laboratory import Laboratory, NotPossibleError
from bench.faults.phases import PHASES
from bench.faults.work import JobPlan
from bench.federation import now
from fedhelm.admin.session import JobHandle

__all__ = [
    "BOUNDS",
    "CLASSES",
    "KINDS",
    "SILENCE",
    "Fault",
    "JobRun",
    "Kind",
    "NotPossibleError",
    "Scene",
    "class_of",
    "kind",
]

CLASSES: Mapping[str, str] = {
    "crash": "process crash",
    "host": "host loss, freeze, partition",
    "switchover": "planned switchover",
    "compound": "two blows in a row",
    "flapping": "link that comes and goes",
    "none": "no failover needed",
    "outage": "outage of store or overseers",
    "operator": "needs an operator",
}
"""Class of a kind -> its name in tables."""

BOUNDS: Mapping[str, float] = {"crash": 1.0, "host": 5.0, "switchover": 1.0}
"""Class -> what the project promises for its gap, in seconds."""

SILENCE = 2.0
"""Seconds without an acknowledgement while no overseer is there: less than the holder's lease of 2.5 s would cost."""


@dataclass
class JobRun:
    """A job of a trial, running."""

    plan: JobPlan
    shared: Path
    handle: JobHandle


@dataclass
class Scene:
    """One trial, as its fault sees it.

    Attributes:
        lab: the federation.
        rng: of this trial.
        primary: the server that leads before the fault.
        quick: shortest durations.
        params: what the fault chose, for the results.
        kills: moments at which it killed a site's processes.
        aborted: jobs that were aborted on purpose: they have to end so, and never to run again.
        findings: what the fault itself saw go wrong.
        jobs: that have to complete; the first one is aimed at.
        doomed: job -> what the reason of its failure has to say, where the fault is meant to cost the job.
        epoch: the highest one before it struck.
        compactions: how often the log had been shortened before.
        moment: when it struck (boot time).
        healed: when it had undone all (boot time).
    """

    lab: Laboratory
    rng: random.Random
    primary: str
    quick: bool = False
    params: dict[str, Any] = field(default_factory=dict)
    kills: dict[str, list[float]] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    jobs: list[JobRun] = field(default_factory=list)
    doomed: dict[str, str] = field(default_factory=dict)
    aborted: set[str] = field(default_factory=set)
    more: Callable[[JobPlan], JobRun] | None = None
    epoch: int = 0
    compactions: int = 0
    moment: float | None = None
    healed: float | None = None

    @property
    def standby(self) -> str:
        """A server that does not lead."""
        return next(name for name in self.lab.servers if name != self.primary)

    def strike(self, blow: Callable[[], object]) -> None:
        """Do it, and note the moment just before."""
        self.epoch = self.lab.watch.epoch
        self.moment = now()
        blow()

    def seconds(self, least: float, most: float, quick: float | None = None) -> float:
        """Return how long something lasts, drawn; ``quick`` or else the least where the trial is quick."""
        drawn = self.rng.uniform(least, most)
        chosen = round((least if quick is None else quick) if self.quick else drawn, 1)
        self.params["seconds"] = chosen
        return chosen

    def submit(
        self,
        name: str,
        *,
        rounds: int = 2,
        size: int = 10_000,
        pause: float = 0.2,
        lines: int = 4,
        sites: tuple[str, ...] | None = None,
    ) -> JobRun:
        """Submit one more job, which has to complete too; on all sites unless some are named."""
        assert self.more is not None
        self.lab.jobs += 1
        return self.more(JobPlan(f"{name}-{self.lab.jobs}", sites or self.lab.sites, rounds, size, pause, lines))

    def expect(self, truth: object, finding: str) -> None:
        """Note a finding unless it is so."""
        if not truth:
            self.findings.append(finding)


Fault = Callable[[Scene], Iterator[None]]
"""Looks up what it needs, yields once when it is armed, then strikes, waits, and heals."""


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes:
        name: short and stable.
        fault: does it.
        klass: see :data:`CLASSES`.
        failover: whether a new epoch must follow (True), must not (False), or may (None).
        variant: of the federation.
        phases: in which it is tried.
        jobs: how many run at once.
        weight: how often it is drawn.
        rested: whether it needs a federation in which no lease has expired just now: for 30 s afterwards its loser may
            not be chosen.
        prelude: whether its generator yields once more, at first: before the job is submitted.
        last_round: whether it always strikes in the last round.
        bound: seconds that the gap may have, where it is not that of the class.
        sites: how many of the sites its own jobs are for; None: all of them.
        pause: seconds that its job trains in each round, where that has to outlast what the fault does; None: drawn.
    """

    name: str
    fault: Fault
    klass: str
    failover: bool | None
    variant: str = "plain"
    phases: tuple[str, ...] = PHASES
    jobs: int = 1
    weight: int = 1
    rested: bool = False
    prelude: bool = False
    last_round: bool = False
    bound: float | None = None
    sites: int | None = None
    pause: float | None = None


KINDS: dict[str, Kind] = {}


def class_of(line: Mapping[str, Any]) -> str:
    """Return the class that the kind of a line of results has now: an older line may say another one."""
    known = KINDS.get(str(line["kind"]))
    return str(line["class"]) if known is None else known.klass


def kind(name: str, klass: str, *, failover: bool | None, **more: Any) -> Callable[[Fault], Fault]:
    """Enter a fault into the table."""

    def enter(fault: Fault) -> Fault:
        KINDS[name] = Kind(name, fault, klass, failover, **more)
        return fault

    return enter
