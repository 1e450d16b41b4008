"""One trial: a running job, one fault at a drawn instant, healing, waiting, and the offline check."""

from __future__ import annotations

import os
import random
import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.faults.check import Evidence, JobEvidence, Receipt, check_history, check_job, check_models
from bench.faults.history import Seen, read_blob
from bench.faults.kinds import BOUNDS, JobRun, Kind, NotPossibleError, Scene
from bench.faults.laboratory import PROBE, Laboratory
from bench.faults.phases import Aim, phase_at, rounds_of, wait_for_phase
from bench.faults.probe import first_under, longest_silence
from bench.faults.stalls import STARVED, is_excused
from bench.faults.work import JobPlan, expected_models, read_calls, write_job
from bench.federation import now, until
from fedhelm.errors import FedhelmError
from fedhelm_lab.whole_log import read_history

__all__ = ["Outcome", "Spec", "gather", "run_trial"]

_BEGIN_SECONDS = 60.0
_FINISH_SECONDS = 90.0
_ACK_SECONDS = 30.0
_LONG_SECONDS = 20.0
_MARGIN_SECONDS = 2.0
_SHORTEN_SECONDS = 120.0
_RECEIPT = re.compile(r"job (\w+), (\w+) of round (\d+): recorded in slot (\d+), epoch (\d+)")
_FOLLOWING = re.compile(r"following \S+, epoch (\d+)")
_DELAYS = {"training": 0.35, "uploading": 0.03, "appending": 0.004, "aggregating": 0.02, "closing": 0.01}


@dataclass(frozen=True)
class Spec:
    """What a trial is to be; all of it follows from ``seed`` and ``trial``."""

    seed: int
    trial: int
    kind: Kind
    phase: str
    quick: bool = False

    @property
    def rng(self) -> random.Random:
        """A generator for this trial alone."""
        return random.Random(f"{self.seed}:{self.trial}:{self.kind.name}:{self.phase}")


Outcome = dict[str, Any]
"""The trial's line of results, without what is the same for the whole run."""


def _plan(spec: Spec, lab: Laboratory, number: int, rng: random.Random) -> tuple[JobPlan, Aim]:
    rounds = 2 if spec.quick else 3
    large = spec.phase in ("uploading", "appending", "aggregating") and not lab.variant.small_disk
    plan = JobPlan(
        f"job-{number}",
        lab.sites[: spec.kind.sites],
        rounds=rounds,
        size=1_000_000 if large else 50_000,
        pause=spec.kind.pause or (0.3 if spec.quick else round(rng.uniform(0.2, 0.6), 2)),
    )
    last = spec.kind.last_round or (spec.phase == "closing" and rng.random() < 0.5)
    aimed = rounds if last else rng.randint(1, rounds)
    return plan, Aim(spec.phase, aimed, rng.uniform(0, _DELAYS[spec.phase]))


def _submit(lab: Laboratory, plan: JobPlan) -> JobRun:
    root, shared = write_job(lab.folder, plan)
    return JobRun(plan, shared, lab.session.submit(root))


def run_trial(lab: Laboratory, spec: Spec) -> Outcome:
    """Run one trial; never raises for what the federation does: that is a finding.

    Raises:
        NotPossibleError: this machine cannot do this kind.
    """
    began, rng = now(), spec.rng
    lab.trials += 1
    first = len(lab.watch.seen)
    scene = Scene(lab, rng, lab.primary(), spec.quick, compactions=lab.compactions)
    load = round(os.getloadavg()[0], 2)
    try:
        _strike(lab, spec, scene, first)
        _settle(lab, spec, scene)
        if not spec.quick:
            _shorten(lab, scene, first, began)
    except NotPossibleError:
        raise
    except (TimeoutError, FedhelmError, AssertionError, OSError) as error:
        # A trial that cannot go on is a finding, not an end of the run.
        where = traceback.extract_tb(error.__traceback__)[-1]
        scene.findings.append(f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})")
        lab.broken = True
    return _outcome(lab, spec, scene, first, began) | {"load": load}


def _strike(lab: Laboratory, spec: Spec, scene: Scene, first: int) -> None:
    def more(plan: JobPlan) -> JobRun:
        run = _submit(lab, plan)
        scene.jobs.append(run)
        return run

    scene.more = more
    lab.jobs += 1
    plan, aim = _plan(spec, lab, lab.jobs, scene.rng)
    scene.params["round"] = aim.round
    if spec.kind.rested:
        lab.wait_candidates()
    fault = spec.kind.fault(scene)
    if spec.kind.prelude:
        next(fault)
    scene.jobs.append(_submit(lab, plan))
    for _ in range(spec.kind.jobs - 1):
        scene.submit("beside", sites=plan.sites)
    main = scene.jobs[0]
    next(fault)
    entered = wait_for_phase(
        aim, main.handle.job_id, plan, main.shared, lambda: lab.watch.since(first), lab.store, _BEGIN_SECONDS
    )
    scene.expect(entered, f"the job did not come to {aim.phase} of round {aim.round}")
    next(fault, None)
    lab.heal()
    scene.healed = now()


def _settle(lab: Laboratory, spec: Spec, scene: Scene) -> None:
    """Wait for service under the new epoch, for the jobs, and until the federation is whole (I10)."""
    assert scene.moment is not None
    healed = scene.healed or now()
    if spec.kind.failover:
        look: Callable[[], Any] = lambda: first_under(lab.acks(), scene.epoch, scene.moment or 0.0)  # noqa: E731
        until(look, _ACK_SECONDS, f"an acknowledgement above epoch {scene.epoch}")
    until(lambda: next((a for a in lab.acks()[-5:] if a.due > healed), None), _ACK_SECONDS, "service after healing")
    for run in scene.jobs:
        run.handle.wait(timeout=_FINISH_SECONDS)
    lab.wait_whole()


def _shorten(lab: Laboratory, scene: Scene, first: int, began: float) -> None:
    """Have a trial that lasts go on until it has seen a checkpoint and a compaction, which more lines bring about."""

    def done() -> bool:
        return _checkpoints(lab.watch.since(first)) > 0 and lab.compactions > scene.compactions

    deadline = now() + _SHORTEN_SECONDS
    while now() - began > _LONG_SECONDS - _MARGIN_SECONDS and not done() and now() < deadline:
        scene.submit("chatty", rounds=1, pause=2.0, lines=400).handle.wait(timeout=_FINISH_SECONDS)


def _checkpoints(seen: tuple[Seen, ...]) -> int:
    return sum(one.record.kind == "checkpoint" for one in seen)


def gather(lab: Laboratory, scene: Scene) -> tuple[Evidence, list[JobEvidence]]:
    """Collect what clients know of the federation and of this trial's jobs."""
    receipts, epochs = [], {}
    for site in lab.sites:
        text = lab.log(site)
        receipts += [Receipt(site, m[1], m[2], int(m[3]), int(m[4]), int(m[5])) for m in _RECEIPT.finditer(text)]
        epochs[site] = [int(m[1]) for m in _FOLLOWING.finditer(text)]
    acks = lab.acks()
    epochs[PROBE] = [ack.epoch for ack in acks]
    acknowledged = {(lab.probe_job, PROBE): acks[-1].number} if acks else {}
    jobs = []
    for run in scene.jobs:
        try:
            status: str | None = run.handle.status(timeout=10).status
        except FedhelmError:
            status = None
        jobs.append(
            JobEvidence(
                run.handle.job_id,
                run.plan,
                expected_models(run.plan),
                status,
                {site: read_calls(run.shared, site) for site in run.plan.sites},
                scene.kills,
                scene.doomed.get(run.handle.job_id),
                run.handle.job_id in scene.aborted,
            )
        )
    return Evidence(receipts, acknowledged, epochs), jobs


def _check(lab: Laboratory, scene: Scene) -> list[str]:
    try:
        evidence, jobs = gather(lab, scene)
        history = read_history(lab.store)
    except (FedhelmError, OSError) as error:
        return [f"I8: the log cannot be read: {error}"]
    findings = check_history(history, evidence)
    for one in jobs:
        findings += check_job(history, one)
        findings += check_models(history, one.job, lambda ref: read_blob(lab.store, ref))
    return findings


def _phase(lab: Laboratory, scene: Scene, first: int) -> str:
    if not scene.jobs or scene.moment is None:
        return "none"
    main, seen = scene.jobs[0], lab.watch.since(first)
    rounds = rounds_of(main.handle.job_id, main.plan, main.shared, seen, lab.store)
    return phase_at(scene.moment, rounds, main.plan.sites, _end(main.handle.job_id, seen))


def _end(job: str, seen: tuple[Seen, ...]) -> float | None:
    return next((s.at for s in seen if s.record.kind == "job_done" and s.record.body["job"] == job), None)


def _figures(lab: Laboratory, spec: Spec, scene: Scene) -> dict[str, float | None]:
    """Return gap and longest silence, in seconds."""
    if scene.moment is None:
        return {"gap_s": None, "silence_s": None}
    acks = lab.acks()
    end = max(acks[-1].at, scene.moment)
    silence = longest_silence(acks, scene.moment, end)
    new = first_under(acks, scene.epoch, scene.moment)
    gap = (new.at - scene.moment if new else None) if spec.kind.failover else silence
    return {"gap_s": None if gap is None else round(gap, 3), "silence_s": round(silence, 3)}


def _needless(lab: Laboratory, spec: Spec, scene: Scene, text: str) -> None:
    """Note a failover that no fault called for; in a quick trial only if the machine had not starved."""
    starved = lab.stalls.longest((scene.moment or 0.0) - STARVED)
    scene.params |= {"needless": text, "starved_s": round(starved, 2)}
    if not is_excused(starved, quick=spec.quick):
        scene.findings.append(f"{text}; the longest that the machine stood still was {starved:.2f} s")


def _outcome(lab: Laboratory, spec: Spec, scene: Scene, first: int, began: float) -> Outcome:
    scene.findings += _check(lab, scene)
    seen = lab.watch.since(first)
    after = lab.watch.epoch
    if scene.moment is not None and spec.kind.failover is False and after != scene.epoch:
        _needless(lab, spec, scene, f"a failover that nobody needed: epoch {scene.epoch} became {after}")
    figures = _figures(lab, spec, scene)
    checkpoints, compactions = _checkpoints(seen), lab.compactions - scene.compactions
    seconds = now() - began
    if seconds > _LONG_SECONDS and not spec.quick and not scene.findings:
        scene.expect(checkpoints and compactions, f"no checkpoint and compaction in a trial of {seconds:.0f} s")
    bound = spec.kind.bound or BOUNDS.get(spec.kind.klass)
    lab.broken = lab.broken or bool(scene.findings)
    return {
        "seed": spec.seed,
        "trial": spec.trial,
        "kind": spec.kind.name,
        "class": spec.kind.klass,
        "variant": lab.variant.name,
        "phase": _phase(lab, scene, first),
        "phase_wanted": spec.phase,
        **figures,
        "late": bound is not None and (figures["gap_s"] or 0.0) > bound,
        "epoch_before": scene.epoch,
        "epoch_after": after,
        "causes": [s.record.body.get("cause") for s in seen if s.record.kind == "fence"],
        "verdict": "failed" if scene.findings else "ok",
        "findings": scene.findings[:20],
        "checkpoints": checkpoints,
        "compactions": compactions,
        "records": len(seen),
        "jobs": len(scene.jobs),
        "params": {name: value for name, value in scene.params.items() if not name.startswith("_")},
        "seconds": round(seconds, 1),
        "quick": spec.quick,
        "time": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
    }
