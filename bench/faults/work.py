"""The job of a trial: a federated average whose every model is known before it runs."""

from __future__ import annotations

import hashlib
import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

__all__ = ["Call", "JobPlan", "average", "expected_models", "read_calls", "safetensors", "write_job"]

_SCRIPT = """\
import os, pathlib, time
import numpy as np
import fedhelm.script as fl

with fl.connect() as site:
    number = int(site.name.rsplit("-", 1)[1])
    options = site.options
    calls = pathlib.Path(options["folder"]) / f"calls-{site.name}.txt"

    def note(word, task):
        moment = time.clock_gettime(time.CLOCK_BOOTTIME)
        with open(calls, "a") as file:
            file.write(f"{word} {task.kind} {task.round} {os.getpid()} {moment:.4f}\\n")

    for task in site.tasks():
        note("begin", task)
        model = task.model.numpy()["w"] if task.model else np.zeros(options["size"], np.float32)
        noise = np.random.default_rng([number, task.round]).normal(size=options["size"]).astype(np.float32)
        for k in range(options["lines"]):
            site.log("trial", task.round * 1000 + k, task.round)
            time.sleep(options["pause"] / options["lines"])
        note("submit", task)
        task.submit({"w": model + noise}, weight=number)
        note("accepted", task)
"""


@dataclass(frozen=True)
class JobPlan:
    """What a job does.

    Attributes:
        name: of its folder, and in ``job.yaml``.
        sites: that take part, sorted; each has a number at the end of its name, which is its weight.
        rounds: of training.
        size: float32 numbers in the model.
        pause: seconds that a site trains.
        lines: metric lines that it logs meanwhile.
    """

    name: str
    sites: tuple[str, ...]
    rounds: int = 3
    size: int = 100_000
    pause: float = 0.4
    lines: int = 4


@dataclass(frozen=True)
class Call:
    """One line that a site's script wrote: ``begin``, ``submit`` or ``accepted``, and when (boot time)."""

    word: str
    kind: str
    round: int
    pid: int
    at: float


def write_job(folder: Path, plan: JobPlan) -> tuple[Path, Path]:
    """Write the job's folder; return it and the folder that its script writes to."""
    root, shared = folder / plan.name, folder / f"{plan.name}-files"
    shared.mkdir(parents=True)
    (root / "app").mkdir(parents=True)
    (root / "app" / "train.py").write_text(_SCRIPT)
    options = {"folder": str(shared), "size": plan.size, "pause": plan.pause, "lines": plan.lines}
    yaml = f"""\
        name: {plan.name}
        deploy: {{app: {json.dumps(plan.sites)}}}
        options: {json.dumps(options)}
        workflow: [{{type: fedavg, rounds: {plan.rounds}}}]
    """
    (root / "job.yaml").write_text(textwrap.dedent(yaml))
    return root, shared


def read_calls(shared: Path, site: str) -> list[Call]:
    """Return what a site's script wrote so far."""
    try:
        lines = (shared / f"calls-{site}.txt").read_text().split("\n")[:-1]
    except FileNotFoundError:
        return []
    words = [line.split() for line in lines]
    return [Call(one[0], one[1], int(one[2]), int(one[3]), float(one[4])) for one in words if len(one) == 5]


def average(weighted: Sequence[tuple[float, npt.NDArray[np.float32]]]) -> npt.NDArray[np.float32]:
    """Return the weighted average, summed in the order given in float64 and rounded once."""
    total = np.zeros(len(weighted[0][1]), np.float64)
    for weight, values in weighted:
        total += values.astype(np.float64) * weight
    rounded: npt.NDArray[np.float32] = (total / sum(weight for weight, _ in weighted)).astype(np.float32)
    return rounded


def safetensors(values: npt.NDArray[np.float32]) -> bytes:
    """Return the file with the one tensor ``w``."""
    table = {"w": {"dtype": "F32", "shape": [len(values)], "data_offsets": [0, 4 * len(values)]}}
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + values.tobytes()


def expected_models(plan: JobPlan) -> list[str]:
    """Return the sha256 of the global model after each round, by numpy alone."""
    model = np.zeros(plan.size, np.float32)
    found = []
    for number in range(1, plan.rounds + 1):
        given = []
        for site in sorted(plan.sites):
            weight = int(site.rsplit("-", 1)[1])
            noise = np.random.default_rng([weight, number]).normal(size=plan.size).astype(np.float32)
            given.append((float(weight), model + noise))
        model = average(given)
        found.append(hashlib.sha256(safetensors(model)).hexdigest())
    return found
