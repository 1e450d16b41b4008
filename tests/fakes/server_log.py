"""Bodies of records, and a child's ledger without the child: over any log store, closed as the child would close it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from fedhelm.persist.log import Log
from fedhelm.persist.record import By, Draft
from fedhelm.tasks import cancel, spawn
from fedhelm_server.job_book import JobBook
from fedhelm_server.ledger import Ledger
from fedhelm_server.segments import write_segments

JOB = "abcdefghijkl"
OTHER = "abcdefghijkm"
TIME = "2026-11-22T15:04:05.123Z"
DIGEST = "ab" * 32


class Clock:
    def __init__(self):
        self.now = 100.0

    def boottime(self):
        return self.now

    def utcnow(self):
        return datetime(2026, 11, 22, 15, 4, 5, 123000, tzinfo=UTC)


def blob(owner="jobs/abcdefghijkl/bundle", digest=DIGEST, size=3):
    return {"owner": owner, "digest": digest, "size": size}


def config(rounds=1, **extra):
    return {
        "name": "hello",
        "deploy": {"app": ["@ALL"]},
        "script": "train.py",
        "options": {},
        "workflow": [{"type": "fedavg", "rounds": rounds, **extra}],
    }


def submitted(job=JOB, request_id="request1", submitter="admin@nvidia.com", digest=DIGEST, **extra):
    return {
        "job": job,
        "request_id": request_id,
        "name": "hello",
        "submitter": submitter,
        "bundle": blob(f"jobs/{job}/bundle", digest),
        "config": config(**extra),
        "time": TIME,
    }


def state(status="DISPATCHED", sites=("site-1", "site-2"), job=JOB):
    return {"job": job, "status": status, "sites": list(sites), "reason": "", "time": TIME}


def opened(number=1, members=("site-1", "site-2"), kind="train", job=JOB, step=0, rounds=1):
    return {
        "job": job,
        "attempt": 1,
        "step": step,
        "round": number,
        "rounds": rounds,
        "kind": kind,
        "members": list(members),
        "model": None,
        "model_sha256": None,
        "deadline_s": None,
        "time": TIME,
    }


def contribution(site="site-1", number=1, digest=DIGEST, kind="train", job=JOB, **extra):
    owner = f"jobs/{job}/{extra.get('step', 0)}-{number}/sites"
    return {
        "job": job,
        "attempt": 1,
        "step": 0,
        "round": number,
        "kind": kind,
        "site": site,
        "sequence": 0,
        "blob": None if kind == "evaluate" else blob(owner, digest),
        "weight": 1.0,
        "metrics": {},
        "time": TIME,
        **extra,
    }


def closed(number=1, members=("site-1", "site-2"), kind="train", job=JOB, **extra):
    return {
        "job": job,
        "attempt": 1,
        "step": 0,
        "round": number,
        "kind": kind,
        "members": sorted(members),
        "weights": dict.fromkeys(members, 1.0),
        "metrics": {},
        "site_metrics": {},
        "model": blob(f"jobs/{job}/0-{number}/model"),
        "model_sha256": "cd" * 32,
        "model_blake3": "ef" * 32,
        "time": TIME,
        **extra,
    }


def done(status="FINISHED:COMPLETED", job=JOB, **extra):
    return {"job": job, "status": status, "reason": "", "traceback": "", "time": TIME, **extra}


def line(value, kind="scalar", tag="loss", step=1, time=TIME):
    return {"kind": kind, "tag": tag, "value": value, "step": step, "time": time}


def contribution_key(item):
    return (item["job"], *(item[name] for name in ("attempt", "step", "round", "kind", "site", "sequence")))


def found(store):
    """Write genesis, as `poc prepare` does."""
    log = Log(store)
    log.append(Draft("genesis", 0, By("provision", "p"), {"cluster": "c" * 32, "project": "poc"}))
    return store


class Writer:
    """A direct way into the log, past every decision: what another server, or another time, has appended."""

    def __init__(self, store, name="server1", incarnation="i1", epoch=1, *, fence=True, blobs=None):
        self.by, self.epoch = By(name, incarnation), epoch
        self.log = Log(store, blobs)
        self.log.read_new()
        if fence:
            self.append("fence", {"cause": "test"})

    def append(self, kind, body):
        self.log.read_new()
        return self.log.append(Draft(kind, self.epoch, self.by, body))

    def job(self, job=JOB, sites=("site-1", "site-2"), **extra):
        self.append("job_submitted", submitted(job, request_id=f"request-{job}", **extra))
        self.append("job_state", state(sites=sites, job=job))
        self.append("job_state", state("RUNNING", (), job=job))

    def contribute(self, *items):
        return self.append("contribution", {"items": list(items)})


def cover(store, blobs, writer):
    """Write a checkpoint of the whole log, and shorten it, as the primary that ``writer`` stands for does."""
    log = Log(store, blobs)
    book, _ = fold(log)
    state = book.to_state()
    segments = write_segments(log, blobs, book.seq, state["jobs"])
    blob = log.write_checkpoint_blob(log.tip, state)
    writer.append("checkpoint", {"covered": book.seq, "blob": blob.to_json(), "segments": segments})
    log.read_new()
    log.compact()


def fold(store):
    """Fold the whole log, from its checkpoint where it was shortened; raises where an invariant is broken.

    Takes a log or the store of one; returns book and the records read.
    """
    log = store if isinstance(store, Log) else Log(store)
    batch = log.read_new()
    book = JobBook.restore(batch.base.state) if batch.base else JobBook()
    for record in batch.records:
        book.apply(record)
    return book, batch.records


def items(records, kind="contribution"):
    """(seq, index, epoch, item) of every batched item."""
    return [
        (record.seq, index, record.epoch, item)
        for record in records
        if record.kind == kind
        for index, item in enumerate(record.body["items"])
    ]


def new_ledger(store, name="server1", incarnation="i1", clock=None, blobs=None):
    """Return a ledger that closes itself at a foreign fence, as the child does with it."""
    seen = []

    def applied(records):
        seen.extend(records)
        fence = ledger.book.fence
        if any(one.kind == "fence" for one in records) and ledger.epoch is not None and not ledger.is_mine():
            ledger.close(f"{fence.name} has epoch {fence.epoch}")

    def replaced():
        if ledger.epoch is not None and not ledger.is_mine():
            ledger.close(f"{ledger.book.fence.name} has epoch {ledger.book.fence.epoch}")

    ledger = Ledger(Log(store, blobs), By(name, incarnation), clock or Clock(), applied)
    ledger.on_replaced = replaced
    ledger.seen = seen
    return ledger


@asynccontextmanager
async def serving(*ledgers):
    """Run ledgers; at the end nothing of them is left."""
    tasks = [spawn(ledger.run(), "ledger") for ledger in ledgers]
    try:
        yield ledgers[0] if len(ledgers) == 1 else ledgers
    finally:
        await cancel(*tasks)
        for ledger in ledgers:
            await asyncio.to_thread(ledger._thread.shutdown)
