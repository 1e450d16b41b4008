"""Which blobs nobody will need again, and deleting them.

An owner is closed by a record: that of a round's close, of the next model, of a job's end or deletion. It is deleted
once a checkpoint covers that record. Closed is for ever, so a list made from an old book is right as well.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fedhelm.persist.base import BlobStore
from fedhelm_server.job_book import JobBook, JobState
from fedhelm_server.places import job_folder

__all__ = ["collectable", "sweep"]


def collectable(book: JobBook, owners: Iterable[str]) -> list[str]:
    """Return those of ``owners`` that may be deleted. Pure, and safe while another thread folds on."""
    covered, found = book.covered, list[str]()
    rules: dict[str, _Rule] = {}
    for owner in owners:
        parts = owner.split("/", 2)
        if parts[0] != "jobs" or len(parts) < 3:
            continue  # checkpoints belong to the log
        job_id, rest = parts[1:]
        job, tombstone = book.jobs.get(job_id), book.deleted.get(job_id)
        if tombstone is not None:
            closed = tombstone["seq"] <= covered
        elif job is not None:
            if job_id not in rules:
                rules[job_id] = _Rule(job, covered)
            closed = rules[job_id].is_closed(rest)
        else:
            closed = False  # a bundle on its way to its submission
        if closed:
            found.append(owner)
    return found


class _Rule:
    """What of one job is closed by the records up to a slot."""

    def __init__(self, job: JobState, covered: int) -> None:
        self._covered = covered
        self._ended = job.end_seq is not None and job.end_seq <= covered
        self._kept = _kept_models(job, covered) | {"bundle", "provenance"}
        self._closed = _closed_of_running(job, covered)
        self._lines = {segment.blob["owner"].partition(f"jobs/{job.job}/")[2] for segment in job.segments}

    def is_closed(self, rest: str) -> bool:
        kind, _, number = rest.partition("/")
        if kind == "lines":
            return number.isdecimal() and int(number) <= self._covered and rest not in self._lines
        return rest not in self._kept and (self._ended or rest in self._closed)


def _closed_of_running(job: JobState, covered: int) -> set[str]:
    entries = [entry for entry in job.closed if entry["seq"] <= covered]
    models = [entry for entry in entries if entry.get("model")]
    closed = {f"{entry['step']}-{entry['round']}/sites" for entry in models}
    closed |= {f"{entry['step']}-{entry['round']}/model" for entry in models[:-1]}
    if models:
        closed.add(f"{models[0]['step']}-0/model")  # the initial one
    return closed


def _kept_models(job: JobState, covered: int) -> set[str]:
    """The newest model and the best one, now and as of the checkpoint, and what the open round started from."""
    before = [entry for entry in job.closed if entry["seq"] <= covered]
    newest = next((entry for entry in reversed(before) if entry.get("model")), None)
    after = [entry for entry in job.closed if entry["seq"] > covered]
    kept = {_model(entry) for entry in (newest, job.best(before), job.best(), *after) if entry is not None}
    if job.open is not None and job.open.model is not None:
        kept.add(job.open.model["owner"].partition(f"jobs/{job.job}/")[2])
    return kept


def _model(entry: Mapping[str, Any]) -> str:
    return f"{entry['step']}-{entry['round']}/model"


def sweep(book: JobBook, blobs: BlobStore, run: Path) -> int:
    """Delete what may be deleted, and this server's folders of deleted jobs; return the bytes freed. Blocking.

    Args:
        book: may change meanwhile.
        blobs: the store's.
        run: this server's own folder.

    Raises:
        StoreUnavailable: some of it may be left; the next sweep finds it.
    """
    freed = sum(blobs.delete_owner(owner) for owner in collectable(book, blobs.owners("jobs")))
    for job_id in list(book.deleted):
        shutil.rmtree(job_folder(run, job_id), ignore_errors=True)
    return freed
