"""Large models: how fast they go down and up, and how much memory the server needs for it."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Self

from bench.federation import Federation, federation
from bench.machine import load
from bench.report import Figure
from fedhelm.process import marked_processes

__all__ = ["exchange"]

SITES = 2
ROUNDS = 4

_LARGE = """\
import numpy as np
import fedhelm.script as fl

with fl.connect() as site:
    for task in site.tasks():
        count = int(site.options["mebibytes"]) << 18
        model = task.model.numpy()["w"] if task.model else np.arange(count, dtype=np.float32)
        task.submit({"w": model}, weight=1)
"""


class PeakMemory:
    """Watches the largest memory that each process of the servers has had (``VmHWM``)."""

    def __init__(self, made: Federation) -> None:
        self._roots = [home.root for home in made.workspace.running_homes if home.role == "server"]
        self._peak: dict[tuple[Path, str, int], int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.1):
            for root in self._roots:
                for one in marked_processes(root):
                    self._peak[root, one.mark, one.pid] = _peak_kib(one.pid) or self._peak.get(
                        (root, one.mark, one.pid), 0
                    )

    def mebibytes(self) -> float:
        """Return the sum over the processes of the server that needed most."""
        sums = [sum(size for (where, _, _), size in self._peak.items() if where == root) for root in self._roots]
        return max(sums) / 1024


def _peak_kib(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


def _exchange(mebibytes: int) -> tuple[list[float], float]:
    """Return MB/s of each round after the first, and the server's peak memory."""
    with federation(sites=SITES) as made:
        yaml = f"workflow: [{{type: fedavg, rounds: {ROUNDS}}}]"
        folder = made.job("large", _LARGE, yaml)
        text = (folder / "job.yaml").read_text()
        (folder / "job.yaml").write_text(text.replace("options: {", f"options: {{mebibytes: {mebibytes}, "))
        with PeakMemory(made) as memory:
            handle = made.session.submit(folder)
            ended = handle.wait(timeout=900)
        if not ended.summary.succeeded:
            raise RuntimeError(f"the job is {ended.status}: {ended.reason}")
        summary = json.loads((handle.download(made.folder / "results") / "summary.json").read_text())
    closed = [datetime.fromisoformat(one["closed"]).timestamp() for one in summary["rounds"]]
    moved = SITES * 2 * mebibytes * 2**20 / 1e6
    return [moved / (later - earlier) for earlier, later in itertools.pairwise(closed)], memory.mebibytes()


def exchange(quick: bool) -> Iterator[Figure]:
    for size in (64,) if quick else (64, 256):
        rates, peak = _exchange(size)
        yield Figure(
            f"exchange-{size}",
            f"exchange of a {size} MiB model, down and up, {SITES} sites",
            "MB/s",
            rates,
            "bytes down to and up from all sites in a round, divided by the distance of two `round_close` records: "
            "transfer, fsync, digests and the aggregation included",
            None,
            load(),
        )
        yield Figure(
            f"exchange-{size}-memory",
            "the server's peak memory meanwhile",
            "MiB",
            [peak],
            "sum of the peak resident memory (VmHWM) of the primary's processes: supervisor, child, runner",
            None,
            load(),
        )
