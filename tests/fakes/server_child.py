"""A child's side of a runner's channel, and the sites behind it: everything appended to a real log by the real rules."""

from __future__ import annotations

import socket
import threading

import numpy as np

from fedhelm.errors import FedhelmError, StoreUnavailable
from fedhelm.local.frames import SyncChannel
from fedhelm.persist.blobs import BlobWriter
from fedhelm.persist.store import open_store
from fedhelm.tensors.codec import encode
from fedhelm_server import decisions
from fedhelm_server.holding import Holding
from fedhelm_server.job_book import JobBook
from fedhelm_server.ledger import Answer
from fedhelm_server.places import sites_owner
from tests.fakes.server_log import JOB, TIME, Writer, contribution


def arrays_of(site, number):
    """What a site sends in a round; integers, so that the average can be known by heart."""
    base = 10 * number + int(site.rpartition("-")[2])
    return {"w": np.full((3, 2), base, np.float32), "b": np.arange(4, dtype=np.float64) + base}


def upload(blobs, owner, arrays):
    writer = BlobWriter(blobs, owner)
    for view in encode(arrays):
        writer.write(view)
    return writer.finish().to_json()


class FaultyBlobs:
    """A blob store that refuses: `full` many manifests, or everything while `down`."""

    def __init__(self, blobs):
        self._blobs = blobs
        self.full = 0
        self.refused = 0

    def __getattr__(self, name):
        return getattr(self._blobs, name)

    def put_manifest(self, owner, manifest):
        if self.full:
            self.full -= 1
            self.refused += 1
            raise StoreUnavailable("no space left")
        return self._blobs.put_manifest(owner, manifest)


class Child:
    """Serves one runner after the other, in a thread; `on_open` plays the sites."""

    def __init__(self, root, cluster, on_open=None, writer=None):
        self.store = open_store(root, cluster)
        self.writer = writer or Writer(self.store.log._store, incarnation="i1", fence=False)
        self.book = JobBook()
        self.holding = Holding()
        self.holding.on_take.append(self._hand)
        self.said = []
        self.proposed = []
        self.hold_after = None  # kill the runner once this kind was appended
        self.refuse = {}  # kind -> list of codes to answer with
        self.on_open = on_open or self.everybody
        self.channel = None
        self.gone = threading.Event()
        self._fold()

    def _hand(self, item):
        if not self.gone.is_set():
            self.channel.send("held", item=item)

    def _fold(self):
        batch = self.store.log.read_new()
        if batch.base:
            self.book = JobBook.restore(batch.base.state)
        for record in batch.records:
            self.book.apply(record)

    @property
    def job(self):
        self._fold()
        return self.book.jobs[JOB]

    def connect(self):
        """Return the runner's end; the child serves the other until the runner is gone."""
        ours, theirs = socket.socketpair()
        self.channel = SyncChannel(ours)
        self.gone = threading.Event()
        for item in self.holding.of(JOB).values():
            self.channel.send("held", item=item)
        threading.Thread(target=self._serve, args=(self.channel, self.gone), daemon=True).start()
        return SyncChannel(theirs)

    def _serve(self, channel, gone):
        try:
            while (frame := channel.receive()) is not None:
                self._on_frame(channel, frame)
        except ConnectionError:
            pass
        finally:
            channel.close()
            gone.set()

    def _on_frame(self, channel, frame):
        if frame["type"] == "log":
            self.said += [line["value"] for line in frame["lines"]]
            self._append("metrics", decisions.own_lines(JOB, "server1", frame["first"], frame["lines"]))
            return
        kind, body = frame["kind"], {**frame["body"], "job": JOB, "time": TIME}
        self.proposed.append(kind)
        if self.refuse.get(kind):
            channel.send("rejected", id=frame["id"], code=self.refuse[kind].pop(0), reason="for a test")
            return
        decide = {
            "round_open": lambda: decisions.round_open(body),
            "round_close": lambda: decisions.round_close(body, lambda: self.holding.of(JOB)),
            "job_state": lambda: decisions.running(JOB, TIME),
            "job_done": lambda: decisions.finish(
                JOB, body["status"], body["reason"], body["traceback"], TIME, provenance=body.get("provenance")
            ),
        }[kind]()
        try:
            self._append(kind, decide)
        except FedhelmError as error:
            channel.send("rejected", id=frame["id"], code=error.code, reason=str(error))
            return
        if self.hold_after == kind:
            self.hold_after = None
            channel._socket.shutdown(socket.SHUT_RDWR)
            return
        channel.send("committed", id=frame["id"], seq=self.book.seq)
        if kind == "round_open":
            self.on_open(self)

    def _append(self, kind, decide):
        self._fold()
        item = decide(self.book)
        if not isinstance(item, Answer):
            self.writer.append(kind, {"items": [item]} if kind in ("metrics", "contribution") else item)
        self._fold()

    def give(self, site, weight=1.0, arrays=None, metrics=None):
        """One site's contribution to the open round, then a poke, as after a real one."""
        now = self.job.open
        item = contribution(site, now.round, kind=now.kind, weight=weight, metrics=metrics or {})
        if now.kind == "train":
            owner = sites_owner(JOB, now.step, now.round)
            item["blob"] = upload(self.store.blobs, owner, arrays or arrays_of(site, now.round))
        if self.job.ephemeral:
            assert decisions.offer(self.book, item)
            self.holding.take(item)
            return
        self._append("contribution", decisions.contribute(item))
        self.poke()

    def fail(self, site, reason="boom", traceback=""):
        body = {"job": JOB, "attempt": 1, "site": site, "round": 1, "reason": reason, "traceback": traceback}
        self._append("site_failed", decisions.fail_site({**body, "time": TIME}))
        self.poke()

    def poke(self):
        if not self.gone.is_set():
            self.channel.send("poke")

    @staticmethod
    def everybody(child):
        for weight, site in enumerate(child.job.open.members, 1):
            child.give(site, float(weight), metrics={"accuracy": child.job.open.round / 8})
