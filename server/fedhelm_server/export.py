"""Everything `download_job` brings, made from the log and the blobs by a process of its own.

The same log position gives the same files on every server, so a download that began at one goes on at another.
Models are not copied: their entries name the blob, and the server streams it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blake3 import blake3

from fedhelm.config.kit import read_kit
from fedhelm.errors import JobNotFound, StoreUnavailable
from fedhelm.ids import SITE_NAME
from fedhelm.learning.workflow import ClosedView, best_round
from fedhelm.persist.blobs import BlobReader, BlobRef
from fedhelm.persist.record import Record
from fedhelm.persist.store import Store, open_store
from fedhelm.process import atomic_write, die_with_parent
from fedhelm_server.blob_copy import copy_blob
from fedhelm_server.job_book import JobBook, JobState
from fedhelm_server.projection import LiveProjection

__all__ = ["MANIFEST", "export", "main", "summary"]

MANIFEST = "export.json"


def summary(job: JobState, fences: Mapping[int, str]) -> dict[str, Any]:
    """Return ``summary.json``: the job, and every round with members, weights, metrics, model hash and epoch."""
    rounds = [
        {
            "step": entry["step"],
            "round": entry["round"],
            "kind": entry["kind"],
            "members": entry["members"],
            "weights": entry["weights"],
            "metrics": entry["metrics"],
            "site_metrics": entry["site_metrics"],
            "model_sha256": entry["model_sha256"],
            "epoch": entry["epoch"],
            "primary": fences.get(entry["epoch"]),
            "closed": entry["time"],
        }
        for entry in job.closed
    ]
    best = _best(job)
    return {
        "schema_version": 1,
        "job_id": job.job,
        "name": job.name,
        "submitter": job.submitter,
        "status": job.status,
        "reason": job.reason or None,
        "submit_time": job.submit_time,
        "end_time": job.end_time,
        "sites": list(job.sites),
        "rounds": rounds,
        "final_model_sha256": job.model["model_sha256"] if job.model else None,
        "best_round": best["round"] if best else None,
    }


def _best(job: JobState) -> Mapping[str, Any] | None:
    step = job.config["workflow"][0]
    closed = [ClosedView(entry["round"], entry["kind"], entry["metrics"]) for entry in job.closed]
    number = best_round(closed, step.get("best_metric"))
    return next((entry for entry in job.closed if entry["round"] == number and entry.get("model")), None)


class _Logs:
    """``logs/<source>.log``: the log lines of each site and server."""

    def __init__(self, root: Path, job: str) -> None:
        self._root = root
        self._job = job

    def apply(self, record: Record) -> None:
        for item in record.body["items"]:
            if item["job"] != self._job or not SITE_NAME.fullmatch(item["source"]):
                continue
            # A site may send any object as a line: what lacks its parts must not cost the job its download.
            logs = [line for line in item["lines"] if line.get("kind") == "log"]
            texts = [f"{line.get('time', '-')} {line.get('value', '')}\n" for line in logs]
            if not texts:
                continue
            self._root.mkdir(parents=True, exist_ok=True)
            with (self._root / f"{item['source']}.log").open("a", encoding="utf-8") as file:
                file.writelines(texts)


def _entry(path: Path, root: Path) -> dict[str, Any]:
    hasher = blake3()
    size = 0
    with path.open("rb") as file:
        while data := file.read(1 << 20):
            hasher.update(data)
            size += len(data)
    return {"path": path.relative_to(root).as_posix(), "size": size, "blake3": hasher.hexdigest(), "blob": None}


def _model(name: str, entry: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    if entry is None:
        return []
    size = entry["model"]["size"]
    return [{"path": f"models/{name}", "size": size, "blake3": entry["model_blake3"], "blob": entry["model"]}]


def export(store: Store, job_id: str, seq: int, target: Path) -> list[dict[str, Any]]:
    """Write the files of ``job_id`` as of log position ``seq`` below ``target``; return the list of all files.

    Raises:
        FedhelmError: the store cannot be read, or something in it is damaged.
    """
    from fedhelm.job.bundle import unpack

    book, fences = JobBook(), dict[int, str]()
    events, logs = LiveProjection(target / "tensorboard", job_id), _Logs(target / "logs", job_id)
    for record in store.log.read_new().records:
        if record.seq > seq:
            break
        book.apply(record)
        if record.kind == "fence":
            fences[record.epoch] = record.by.name
        elif record.kind == "metrics":
            events.apply(record)
            logs.apply(record)
    events.close()
    if book.seq < seq:
        raise StoreUnavailable(f"the log can be read up to slot {book.seq}, not {seq}")
    if job_id not in book.jobs:
        raise JobNotFound(f"no job {job_id} at slot {seq}")
    job = book.jobs[job_id]
    archive = target / "bundle"
    reader = BlobReader(store.blobs, BlobRef.from_json(job.bundle))
    with archive.open("wb") as file:
        copy_blob(reader, file.write)
    unpack(archive, target / "job")
    archive.unlink()
    (target / "summary.json").write_text(json.dumps(summary(job, fences), indent=2) + "\n", encoding="utf-8")
    files = [_entry(path, target) for path in sorted(target.rglob("*")) if path.is_file()]
    return files + _model("final.safetensors", job.model) + _model("best.safetensors", _best(job))


def main(argv: list[str]) -> int:
    """Make one export; the server's own command, not for people."""
    parser = argparse.ArgumentParser(prog="fedhelm_server.export")
    parser.add_argument("--kit", type=Path, required=True)
    parser.add_argument("--job", required=True)
    parser.add_argument("--seq", type=int, required=True)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--parent-pid", type=int, required=True)
    options = parser.parse_args(argv)
    die_with_parent(options.parent_pid)
    kit = read_kit(options.kit)
    assert kit.store is not None
    files = export(open_store(kit.store, kit.cluster), options.job, options.seq, options.target)
    atomic_write(options.target / MANIFEST, json.dumps(files).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
