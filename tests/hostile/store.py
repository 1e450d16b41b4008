"""Decoders of the shared store: slots, marks, checkpoints, blobs, segments."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fedhelm.errors import BadInput
from fedhelm.local.script_values import png
from fedhelm.persist.blobs import BlobRef, BlobWriter, Manifest, blake3_hex, check_digest, check_owner
from fedhelm.persist.chain import Checkpoint, Tip, checkpoint_owner
from fedhelm.persist.checkpoint import load
from fedhelm.persist.log import Log
from fedhelm.persist.marks import Mark, decode_mark
from fedhelm.persist.posix import PosixBlobStore, make_layout
from fedhelm.persist.record import canonical, decode
from fedhelm.persist.references import blobs_in
from fedhelm_server.export import _Logs
from fedhelm_server.job_book import JobBook
from fedhelm_server.job_state import Segment
from fedhelm_server.projection import LiveProjection
from fedhelm_server.segments import read_rounds, read_segments
from tests.fakes.persist_memory import MemoryBlobStore, MemoryLogStore
from tests.fakes.server_log import JOB, Writer, blob, closed, contribution, fold, found, line, opened
from tests.hostile.decoder import Decoder, as_json, as_text, dump

SLOT = 5


def _slots() -> MemoryLogStore:
    slots = found(MemoryLogStore())
    writer = Writer(slots)
    writer.job()
    writer.append("round_open", opened())
    writer.contribute(contribution("site-1"), contribution("site-2"))
    writer.append("round_close", closed(members=("site-1", "site-2")))
    return slots


def _rehashed(data: bytes) -> bytes:
    """Give a changed record the hash that it should have, in canonical form, in the slot that is read."""
    try:
        value = json.loads(data)
        value["seq"] = SLOT
        value.pop("sha256", None)
        plain = canonical(value)
        return canonical({**value, "sha256": hashlib.sha256(plain).hexdigest()}) + b"\n"
    except Exception:  # noqa: BLE001 - what cannot be repaired is eaten as it is
        return data


def _remarked(data: bytes) -> bytes:
    try:
        value = json.loads(data)
        value.pop("sha256", None)
        return canonical({**value, "sha256": hashlib.sha256(canonical(value)).hexdigest()}) + b"\n"
    except Exception:  # noqa: BLE001 - as above
        return data


class _Checkpoint:
    """A checkpoint whose blob is the input; blob and record fit each other, as a writer's would."""

    def __init__(self, slots: MemoryLogStore) -> None:
        self.log = Log(slots, MemoryBlobStore())
        book, _ = fold(self.log)
        self.seed = canonical({"position": self.log.tip.to_json(), "state": book.to_state()})

    def __call__(self, data: bytes) -> object:
        slots, blobs = _slots(), MemoryBlobStore()
        writer = Writer(slots, fence=False)
        covered = writer.log.next_seq - 1
        blob_writer = BlobWriter(blobs, checkpoint_owner(covered))
        blob_writer.write(data)
        writer.append("checkpoint", {"covered": covered, "blob": blob_writer.finish().to_json(), "segments": {}})
        _, base = load(slots, blobs, covered + 1)
        return JobBook.restore(base.state)


def decoders(place: Path) -> Iterator[Decoder]:
    slots = _slots()
    data = slots.contents[SLOT]
    yield Decoder("record", lambda text: decode(text, SLOT), (data,))
    yield Decoder("record: with a right hash", lambda text: decode(text, SLOT), (data,), repair=_rehashed)
    mark = Mark(3, 10, 12).encode()
    yield Decoder("low-water mark", lambda text: decode_mark(text, 3), (mark,), repair=_remarked)
    log = Log(slots, MemoryBlobStore())
    book, _ = fold(log)
    position = log.tip.to_json()
    yield Decoder("checkpoint: position", as_json(lambda value: Tip.from_json(value, log.next_seq)), (dump(position),))
    yield Decoder("checkpoint: state", as_json(_restore), (dump(book.to_state()),))
    yield Decoder("checkpoint: blob", _Checkpoint(slots), (_Checkpoint(slots).seed,))
    named = {"slot": 9, "covered": 8, "blob": blob(checkpoint_owner(8))}
    yield Decoder("checkpoint: reference", as_json(Checkpoint.from_json), (dump(named),))
    yield from _blobs(place)
    yield from _segments()
    yield from _lines(place)


def _restore(value: object) -> object:
    return JobBook.restore(value) if isinstance(value, dict) else None


def _blobs(place: Path) -> Iterator[Decoder]:
    root = place / "store"
    make_layout(root)
    store = PosixBlobStore(root)
    folder = root / "blobs" / "jobs" / JOB / "bundle"
    folder.mkdir(parents=True)

    def manifest_file(data: bytes) -> object:
        digest = blake3_hex(data)
        path = folder / f"m-{digest}"
        path.write_bytes(data)
        try:
            return store.manifest(BlobRef(f"jobs/{JOB}/bundle", digest, 20))
        finally:
            path.unlink()

    manifest = Manifest(20, 16, ("ab" * 32, "cd" * 32)).canonical()
    yield Decoder("blob: manifest file", manifest_file, (manifest,))
    yield Decoder("blob: manifest", as_json(Manifest.from_json), (manifest,))
    yield Decoder("blob: reference", as_json(BlobRef.from_json), (dump(blob(f"jobs/{JOB}/0-1/sites")),))
    yield Decoder("blob: references in a body", as_json(lambda value: list(blobs_in(value))), (dump(closed()),))
    yield Decoder("blob: owner", as_text(check_owner), (f"jobs/{JOB}/0-3/sites".encode(),))
    yield Decoder("blob: digest", as_text(check_digest), (b"0" * 64,))


def _lines(place: Path) -> Iterator[Decoder]:
    """What a site says of itself: any JSON objects, which a download turns into event files and logs."""
    events, logs = place / "tensorboard", place / "logs"

    def decode(value: object) -> object:
        if not isinstance(value, dict):
            return None  # refused where lines arrive
        try:
            item = {"seq": 3, "source": "site-1", "lines": [json.loads(canonical(value))]}
        except BadInput:
            return None  # refused by the log
        projection = LiveProjection(events)
        projection.add(item)
        projection.close()
        _Logs(logs).add(item)
        (logs / "site-1.log").unlink(missing_ok=True)
        return item

    image = base64.b64encode(png(np.zeros((2, 2), np.uint8), "HW")).decode()
    seeds = (line(0.5), line("nan"), line("text", "text"), line(image, "image"), line("said", "log"))
    yield Decoder("lines for a download", as_json(decode), tuple(map(dump, seeds)))


def _segments() -> Iterator[Decoder]:
    lines = canonical({"seq": 4, "source": "site-1", "first": 1, "lines": [{"kind": "log"}]}) + b"\n"
    rounds = canonical({"seq": 6, "closed": closed()}) + b"\n"

    def decode(data: bytes) -> object:
        blobs = MemoryBlobStore()
        writer = BlobWriter(blobs, f"jobs/{JOB}/lines/{9:016d}")
        writer.write(data)
        segments = [Segment(9, writer.finish().to_json())]
        return list(read_segments(blobs, segments)), read_rounds(blobs, segments)

    yield Decoder("segment of lines and rounds", decode, (lines + rounds,))
