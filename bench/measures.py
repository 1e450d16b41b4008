"""Start, jobs, console and demo: how long a person or a script waits."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path

from bench.exchange import exchange
from bench.failover import failover, switchover
from bench.federation import Federation, federation, fedhelm, now
from bench.machine import load
from bench.replay import replay
from bench.report import Figure
from fedhelm_console.commands import REGISTRY
from fedhelm_console.context import Console
from fedhelm_console.grammar import parse
from fedhelm_console.render import Style

__all__ = ["MEASURES", "Measure"]

ROUNDS = 5

_NOOP = """\
import pathlib, time
import numpy as np
import fedhelm.script as fl

with fl.connect() as site:
    for task in site.tasks():
        if task.round == 1:
            moment = time.clock_gettime(time.CLOCK_BOOTTIME)
            (pathlib.Path(site.options["folder"]) / f"{site.job}-{site.name}").write_text(str(moment))
        model = task.model.numpy()["w"] if task.model else np.zeros(10, np.float32)
        task.submit({"w": model + 1}, weight=1)
"""

Measure = Callable[[bool], Iterator[Figure]]
"""Takes "quick" and yields figures."""


def start(quick: bool) -> Iterator[Figure]:
    ready, both = [], []
    for _ in range(2 if quick else 5):
        with federation(start=False) as made:
            seconds = fedhelm("poc", "start", "-w", str(made.workspace.root))
            ready.append(seconds)
            both.append(seconds + fedhelm("console", str(made.kit), "-c", "check_status"))
    yield Figure(
        "start",
        "`poc start` until all are ready and the admin is logged in",
        "s",
        both,
        "wall time of the command `fedhelm poc start` in a new workspace (overseer, 2 servers, 2 sites), plus that of "
        "a console call that logs in and asks the primary for its status",
        "4 s",
        load(),
    )
    yield Figure("start-ready", "of that, until all are ready", "s", ready, "the first command alone", None, load())


def _run_noop(made: Federation, folder: Path) -> tuple[float, float, float]:
    """Run the job once: seconds until it has finished, seconds a round, seconds until the first task."""
    began = now()
    handle = made.session.submit(folder)
    ended = handle.wait(timeout=120)
    took = now() - began
    if not ended.summary.succeeded:
        raise RuntimeError(f"the job is {ended.status}: {ended.reason}")
    summary = json.loads((handle.download(made.folder / "results") / "summary.json").read_text())
    closed = [datetime.fromisoformat(one["closed"]).timestamp() for one in summary["rounds"]]
    files = sorted((made.folder / f"{folder.name}-files").glob(f"{handle.job_id}-*"))
    first = min(float(file.read_text()) for file in files) - began
    return took, (closed[-1] - closed[0]) / (len(closed) - 1), first


def jobs(quick: bool) -> Iterator[Figure]:
    with federation() as made:
        made.session.jobs()
        folder = made.job("noop", _NOOP, f"workflow: [{{type: fedavg, rounds: {ROUNDS}}}]")
        runs = [_run_noop(made, folder) for _ in range(2 if quick else 7)]
    took, rounds, first = ([run[part] for run in runs] for part in range(3))
    yield Figure(
        "job",
        f"{ROUNDS}-round no-op numpy job on 2 sites, submit to finished",
        "s",
        took,
        "from the call of submit in an open session to the answer that the job has finished; the script adds 1 to ten "
        "numbers",
        "3 s",
        load(),
    )
    yield Figure(
        "round",
        "one such round",
        "s",
        rounds,
        "for each job the mean distance of its `round_close` records, from the first to the last",
        "0.15 s",
        load(),
    )
    yield Figure(
        "first-task",
        "submit to first task",
        "s",
        first,
        "from the call of submit to the moment the first of the two scripts has its first task in hand",
        None,
        load(),
    )


def console(quick: bool) -> Iterator[Figure]:
    with federation() as made:
        folder = made.job("noop", _NOOP, f"workflow: [{{type: fedavg, rounds: {ROUNDS}}}]")
        made.session.submit(folder).wait(timeout=120)
        open_console = Console(
            session=made.session,
            registry=REGISTRY,
            style=Style(),
            say=lambda _text: None,
            transfer=made.session.kit.transfer,
        )
        calls = [_list_jobs(open_console) * 1000 for _ in range(50 if quick else 200)]
        walls, used = [], []
        for _ in range(3 if quick else 10):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            walls.append(fedhelm("console", str(made.kit), "-o", "json", "-c", "list_jobs"))
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            used.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    yield Figure(
        "list-jobs",
        "`list_jobs` in an open session",
        "ms",
        calls,
        "the console's command with one job in the list: parsing, the call to the primary, the table",
        "5 ms",
        load(),
    )
    yield Figure(
        "one-call",
        "one command-line call, `-c list_jobs`",
        "s",
        walls,
        "wall time of the process: start, imports, login by certificate, the call",
        "0.5 s",
        load(),
    )
    yield Figure(
        "one-call-cpu",
        "of that, processor time",
        "s",
        used,
        "user and system time of that process: what it would take on an idle machine, waiting left out",
        None,
        load(),
    )


def _list_jobs(open_console: Console) -> float:
    began = now()
    call = parse("list_jobs", REGISTRY)
    assert call is not None
    result = call.command.run(open_console.for_call(call), *call.positional, **call.options)
    text = result.human() if callable(result.human) else result.human
    assert "noop" in text
    return now() - began


def demo(quick: bool) -> Iterator[Figure]:
    walls = []
    for _ in range(1 if quick else 3):
        with federation(start=False) as made:
            walls.append(fedhelm("demo", "-o", "json", "-w", str(made.folder / "demo")))
    yield Figure(
        "demo",
        "`make demo`, once installed",
        "s",
        walls,
        "wall time of `fedhelm demo`: workspace, start, 5 rounds of PyTorch, a kill, download, stop",
        "90 s",
        load(),
    )


MEASURES: Mapping[str, Measure] = {
    "start": start,
    "jobs": jobs,
    "console": console,
    "failover": failover,
    "switchover": switchover,
    "exchange": exchange,
    "demo": demo,
    "replay": replay,
}
"""Name for ``--only`` -> what measures it."""
