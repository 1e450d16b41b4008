"""What of a job has left the log and the checkpoints: blobs of the job, one line of JSON for each item.

A checkpoint covers slots that compaction then deletes. So the lines in them are copied first, and the checkpoint's
record names the copies. What a closed round says of each site goes the same way: a checkpoint must not grow with every
round that ever was. Small segments are merged, so that a job that runs for weeks has few of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from fedhelm.errors import Corrupt
from fedhelm.persist.base import BlobStore
from fedhelm.persist.blobs import BlobReader, BlobRef, BlobWriter
from fedhelm.persist.log import Log
from fedhelm.persist.record import Record, canonical
from fedhelm.plain_json import parse_plain
from fedhelm_server.blob_copy import BLOCK, copy_blob
from fedhelm_server.job_state import Segment, is_whole
from fedhelm_server.places import lines_owner

__all__ = ["line_items", "read_rounds", "read_segments", "write_segments"]

LineItem = Mapping[str, Any]
"""``{seq, source, first, lines}``: one item and the slot it stood in."""

SMALL = 1024 * 1024
RUN = 16
"""So many segments of less than ``SMALL`` bytes at the end of a job's list become one."""


def line_items(record: Record, job: str) -> Iterator[LineItem]:
    """Yield what a ``metrics`` record has of one job."""
    for item in record.body["items"]:
        if item["job"] == job:
            yield {"seq": record.seq, "source": item["source"], "first": item["first"], "lines": item["lines"]}


def read_segments(blobs: BlobStore, segments: Iterable[Segment], after: int = -1) -> Iterator[LineItem]:
    """Yield the lines of the slots above ``after`` that the segments hold, in the order of the log.

    Raises:
        Corrupt: a segment is damaged, or was merged into another one meanwhile: read on in the log, and try again.
        StoreUnavailable: the store cannot be read.
    """
    return (item for item in _read(blobs, segments, after) if "lines" in item)


def read_rounds(blobs: BlobStore, segments: Iterable[Segment]) -> list[Mapping[str, Any]]:
    """Return the closed rounds that the segments hold, whole, in the order of closing; raises as `read_segments`."""
    return [item["closed"] for item in _read(blobs, segments, -1) if "closed" in item]


def _read(blobs: BlobStore, segments: Iterable[Segment], after: int) -> Iterator[Mapping[str, Any]]:
    for segment in segments:
        if segment.last <= after:
            continue
        for line in _split(BlobReader(blobs, BlobRef.from_json(segment.blob))):
            try:
                item = parse_plain(line)
                wanted = item["seq"] > after
            except (ValueError, KeyError, TypeError) as error:
                raise Corrupt(f"what left the log up to slot {segment.last} is damaged: {error!r}") from error
            if wanted:
                yield item


def _split(reader: BlobReader) -> Iterator[bytes]:
    rest = b""
    for offset in range(0, reader.size, BLOCK):
        *whole, rest = (rest + reader.read(offset, min(BLOCK, reader.size - offset))).split(b"\n")
        yield from whole


def write_segments(log: Log, blobs: BlobStore, covered: int, jobs: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Copy what a checkpoint of slot ``covered`` covers and does not keep itself; blocking.

    Args:
        log: only slots that it has read are read.
        blobs: where the copies go.
        covered: the last slot.
        jobs: as the book's state has them there.

    Returns:
        What the checkpoint's record says as ``segments``: job id -> ``{keep, blob}``. The job keeps so many of its
        segments, and this one follows.
    """
    made = {}
    for job in jobs:
        rounds = [entry for entry in job["closed"] if is_whole(entry)]
        if not job["line_slots"] and not rounds:
            continue
        keep = _kept(job["segments"])
        writer = BlobWriter(blobs, lines_owner(job["job"], covered))
        for _, merged in job["segments"][keep:]:
            copy_blob(BlobReader(blobs, BlobRef.from_json(merged)), writer.write)
        for entry in rounds:
            writer.write(canonical({"seq": entry["seq"], "closed": entry}) + b"\n")
        for slot in job["line_slots"]:
            for item in line_items(log.at(slot), job["job"]):
                writer.write(canonical(item) + b"\n")
        made[job["job"]] = {"keep": keep, "blob": writer.finish().to_json()}
    return made


def _kept(segments: Sequence[Sequence[Any]]) -> int:
    small = 0
    while small < len(segments) and segments[-1 - small][1]["size"] < SMALL:
        small += 1
    return len(segments) - small if small >= RUN else len(segments)
