"""Everything `download_job` brings, made from the log and the blobs by a process of its own.

The same log position gives the same files on every server, so a download that began at one goes on at another.
Models are not copied: their entries name the blob, and the server streams it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from blake3 import blake3

from fedhelm.config.kit import read_kit
from fedhelm.errors import Corrupt, JobNotFound, NotFound, StoreUnavailable
from fedhelm.ids import SITE_NAME
from fedhelm.persist.blobs import BlobReader, BlobRef
from fedhelm.persist.record import Record
from fedhelm.persist.store import Store, open_store
from fedhelm.process import atomic_write, die_with_parent
from fedhelm.security.provenance import PROVENANCE_FILE
from fedhelm_server.blob_copy import copy_blob
from fedhelm_server.job_book import JobBook, JobState
from fedhelm_server.job_state import counted
from fedhelm_server.projection import LiveProjection
from fedhelm_server.segments import line_items, read_rounds, read_segments

__all__ = ["MANIFEST", "POSITION_GONE", "export", "main", "summary"]

MANIFEST = "export.json"
POSITION_GONE = 3
"""Exit status: the log was shortened, and does not tell any more how the job was at that position."""


def summary(job: JobState) -> dict[str, Any]:
    """Return ``summary.json``: the job, and every round with members, weights, metrics, model hash and epoch."""
    rounds = [
        {
            "step": entry["step"],
            "round": entry["round"],
            "kind": entry["kind"],
            "members": counted(entry),
            "weights": entry["weights"],
            "metrics": entry["metrics"],
            "site_metrics": entry["site_metrics"],
            "model_sha256": entry["model_sha256"],
            "epoch": entry["epoch"],
            "primary": entry["primary"],
            "closed": entry["time"],
            **({"refused": entry["refused"]} if entry.get("refused") else {}),
        }
        for entry in job.closed
    ]
    best = job.best()
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


class _Logs:
    """``logs/<source>.log``: the log lines of each site and server."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def add(self, item: Mapping[str, Any]) -> None:
        if not SITE_NAME.fullmatch(item["source"]):
            return
        # A site may send any object as a line: what lacks its parts must not cost the job its download.
        logs = [line for line in item["lines"] if line.get("kind") == "log"]
        texts = [f"{line.get('time', '-')} {line.get('value', '')}\n" for line in logs]
        if texts:
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


def _read(store: Store, job_id: str, seq: int) -> tuple[JobState, Iterator[Mapping[str, Any]]]:
    """Return the job as of log position ``seq``, and its lines up to there."""
    batch = store.log.read_new()
    book = JobBook.restore(batch.base.state) if batch.base else JobBook()
    then: JobState | None = None
    for record in batch.records:
        if record.seq == seq + 1 and job_id in book.jobs:
            then = JobState.from_state(book.jobs[job_id].to_state())  # the book goes on: to the newest segments
        book.apply(record)
    if book.seq < seq:
        raise StoreUnavailable(f"the log can be read up to slot {book.seq}, not {seq}")
    now = book.jobs.get(job_id)
    if now is None or now.seq > seq:
        raise JobNotFound(f"no job {job_id} at slot {seq}")
    if then is None:
        then = now
        changed = book.seq > seq and (now.end_seq is None or now.end_seq > seq)
        if changed:  # a checkpoint covers that position, and the job went on since
            raise NotFound(f"the log does not tell any more how job {job_id} was at slot {seq}; download it again")
    rounds = {entry["seq"]: entry for entry in (*then.closed, *read_rounds(store.blobs, now.segments))}
    then.closed = [rounds[slot] for slot in sorted(rounds) if slot <= seq]
    return then, _lines(store, now, batch.records, book.covered, seq)


def _lines(
    store: Store, job: JobState, records: Sequence[Record], covered: int, seq: int
) -> Iterator[Mapping[str, Any]]:
    for item in read_segments(store.blobs, job.segments):
        if item["seq"] <= seq:
            yield item
    for record in records:
        if record.kind == "metrics" and covered < record.seq <= seq:
            yield from line_items(record, job.job)


def export(store: Store, job_id: str, seq: int, target: Path) -> list[dict[str, Any]]:
    """Write the files of ``job_id`` as of log position ``seq`` below ``target``; return the list of all files.

    Raises:
        NotFound: the log was shortened, and does not tell any more how the job was there.
        FedhelmError: the store cannot be read, or something in it is damaged.
    """
    from fedhelm.job.bundle import unpack

    job, lines = _read(store, job_id, seq)
    events, logs = LiveProjection(target / "tensorboard"), _Logs(target / "logs")
    for item in lines:
        events.add(item)
        logs.add(item)
    events.close()
    archive = target / "bundle"
    reader = BlobReader(store.blobs, BlobRef.from_json(job.bundle))
    with archive.open("wb") as file:
        copy_blob(reader, file.write)
    unpack(archive, target / "job")
    archive.unlink()
    if job.provenance is not None:
        with (target / PROVENANCE_FILE).open("wb") as file:
            copy_blob(BlobReader(store.blobs, BlobRef.from_json(job.provenance)), file.write)
    (target / "summary.json").write_text(json.dumps(summary(job), indent=2) + "\n", encoding="utf-8")
    files = [_entry(path, target) for path in sorted(target.rglob("*")) if path.is_file()]
    return files + _model("final.safetensors", job.model) + _model("best.safetensors", job.best())


def _export_patiently(root: Path, cluster: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    try:
        return export(open_store(root, cluster), options.job, options.seq, options.target)
    except Corrupt:  # a segment may have been merged into another one under our hands: once more, from the log
        shutil.rmtree(options.target)
        options.target.mkdir()
        return export(open_store(root, cluster), options.job, options.seq, options.target)


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
    try:
        files = _export_patiently(kit.store, kit.cluster, options)
    except JobNotFound:
        raise
    except NotFound as error:
        sys.stderr.write(f"{error}\n")
        return POSITION_GONE
    atomic_write(options.target / MANIFEST, json.dumps(files).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
