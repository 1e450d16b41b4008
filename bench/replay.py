"""What a server reads before it can lead: the newest checkpoint and the slots after it, however long the log was."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.federation import now
from bench.machine import load
from bench.report import Figure
from fedhelm.persist.log import Log
from fedhelm.persist.record import By, Draft
from fedhelm.persist.store import Store, init_store, open_store
from fedhelm_server.checkpoints import EVERY
from fedhelm_server.job_book import JobBook
from fedhelm_server.segments import write_segments

__all__ = ["replay"]

SITES = tuple(f"site-{number}" for number in range(1, 21))
_CLUSTER = "c" * 32
_ROUNDS = 10
_TIMES = 5
_TIME = "2026-11-22T15:04:05.123Z"


def replay(quick: bool) -> Iterator[Figure]:
    """Write logs of growing length, with a checkpoint and a compaction every 256 slots, and read them as a newcomer."""
    for rounds in (10, 100) if quick else (10, 100, 1000):
        yield _figure(f"replay-rounds-{rounds}", f"a job that runs, after {rounds} rounds", [rounds], running=True)
    for jobs in (10, 100) if quick else (10, 100, 1000):
        yield _figure(f"replay-jobs-{jobs}", f"{jobs} jobs of {_ROUNDS} rounds", [_ROUNDS] * jobs, running=False)


def _figure(name: str, what: str, jobs: Sequence[int], *, running: bool) -> Figure:
    with tempfile.TemporaryDirectory(prefix="fedhelm-replay-") as folder:
        root = Path(folder) / "store"
        init_store(root, _CLUSTER, "poc")
        slots = _Past(open_store(root, _CLUSTER)).write(jobs, running=running)
        milliseconds, read = [], 0
        for _ in range(_TIMES):
            began = now()
            read = _fold(open_store(root, _CLUSTER).log)[1]
            milliseconds.append((now() - began) * 1e3)
        size = sum(path.stat().st_size for path in (root / "log").iterdir())
    how = (
        f"a log with {len(SITES)} sites, a checkpoint and a compaction every {EVERY} slots; of {slots} slots ever "
        f"written {read} were read after the checkpoint, {size / 2**10:.0f} KiB of log were on the disk; a newcomer "
        "opens the store and folds it"
    )
    return Figure(name, f"a newcomer reads the log: {what} ({slots} slots)", "ms", milliseconds, how, None, load())


def _fold(log: Log) -> tuple[JobBook, int]:
    """Fold a whole log as a server does; returns the book and how many records came after the checkpoint."""
    batch = log.read_new()
    book = JobBook.restore(batch.base.state) if batch.base else JobBook()
    for record in batch.records:
        book.apply(record)
    return book, len(batch.records)


class _Past:
    """Writes what a primary would have written, slot by slot, checkpoints included."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._log = store.log
        self._covered = 0
        self._log.read_new()
        self._append("fence", {"cause": "test"})

    def write(self, jobs: Sequence[int], *, running: bool) -> int:
        """Write jobs of so many rounds each, one after the other; returns the number of slots ever written."""
        for number, rounds in enumerate(jobs):
            job = f"{number:012d}"
            self._begin(job, rounds)
            for one in range(1, rounds + 1):
                self._round(job, one, rounds)
            if not running:
                end = {"job": job, "status": "FINISHED:COMPLETED", "reason": "", "traceback": "", "time": _TIME}
                self._append("job_done", end)
        return self._log.next_seq

    def _append(self, kind: str, body: dict[str, Any]) -> None:
        self._log.append(Draft(kind, 1, By("server1", "i1"), body))
        if kind != "checkpoint" and self._log.next_seq - self._covered >= EVERY:
            self._cover()
            self._covered = self._log.next_seq

    def _cover(self) -> None:
        log = open_store(self._store.root, _CLUSTER).log
        book, _ = _fold(log)
        state = book.to_state()
        segments = write_segments(log, self._store.blobs, book.seq, state["jobs"])
        blob = log.write_checkpoint_blob(log.tip, state)
        self._append("checkpoint", {"covered": book.seq, "blob": blob.to_json(), "segments": segments})
        log.read_new()
        log.compact()

    def _begin(self, job: str, rounds: int) -> None:
        bundle = {"owner": f"jobs/{job}/bundle", "digest": "ab" * 32, "size": 3}
        step = {"type": "fedavg", "rounds": rounds}
        config = {
            "name": "hello",
            "deploy": {"app": ["@ALL"]},
            "script": "train.py",
            "options": {},
            "workflow": [step],
        }
        common = {"job": job, "time": _TIME}
        self._append(
            "job_submitted",
            {
                **common,
                "request_id": f"request-{job}",
                "name": "hello",
                "submitter": "admin@nvidia.com",
                "bundle": bundle,
                "config": config,
            },
        )
        self._append("job_state", {**common, "status": "DISPATCHED", "sites": list(SITES), "reason": ""})
        self._append("job_state", {**common, "status": "RUNNING", "sites": [], "reason": ""})

    def _round(self, job: str, number: int, rounds: int) -> None:
        """A round of a busy primary: five contributions in a slot, and a line of each site."""
        common = {"job": job, "attempt": 1, "step": 0, "round": number, "kind": "train", "time": _TIME}
        begun = {"rounds": rounds, "members": list(SITES), "model": None, "model_sha256": None, "deadline_s": None}
        self._append("round_open", {**common, **begun})
        for first, after in pairwise(range(0, len(SITES) + 1, 5)):
            some = SITES[first:after]
            blob = {"owner": f"jobs/{job}/0-{number}/sites", "digest": "ab" * 32, "size": 3}
            result = {**common, "sequence": 0, "blob": blob, "weight": 1.0, "metrics": {"loss": 0.5}}
            self._append("contribution", {"items": [{**result, "site": site} for site in some]})
            line = {"kind": "scalar", "tag": "loss", "value": 0.5, "step": number, "time": _TIME}
            items = [{"job": job, "source": site, "first": number, "lines": [line]} for site in some]
            self._append("metrics", {"items": items})
        self._append(
            "round_close",
            {
                **common,
                "members": sorted(SITES),
                "weights": dict.fromkeys(SITES, 1.0),
                "metrics": {"loss": 0.5},
                "site_metrics": {site: {"loss": 0.5} for site in SITES},
                "model": {"owner": f"jobs/{job}/0-{number}/model", "digest": "ab" * 32, "size": 3},
                "model_sha256": "cd" * 32,
                "model_blake3": "ef" * 32,
            },
        )
