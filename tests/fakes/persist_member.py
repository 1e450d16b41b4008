"""A server as far as the log knows it: it folds, appends, and checkpoints."""

from __future__ import annotations

from fedhelm.persist.log import Log
from fedhelm.persist.record import By, Draft

ONE, TWO = By("server1", "a1"), By("server2", "b1")


class Member:
    """A server: its log, and as its fold the list of all contributions."""

    def __init__(self, store, blobs, by=ONE):
        self.log = Log(store, blobs)
        self.by = by
        self.fold = []
        self.bases = 0

    def read(self):
        batch = self.log.read_new()
        if batch.base is not None:
            self.bases += 1
            self.fold = list(batch.base.state["fold"])
        for record in batch.records:
            self._apply(record)
        return batch

    def _apply(self, record):
        if record.kind == "contribution":
            self.fold.append(record.body["items"][0])

    def append(self, kind, body, epoch=None):
        record = self.log.append(Draft(kind, self.log.epoch if epoch is None else epoch, self.by, body))
        self._apply(record)
        return record

    def fence(self, epoch):
        return self.append("fence", {"cause": "test"}, epoch)

    def put(self, *items):
        return [self.append("contribution", {"items": [item]}) for item in items][-1]

    def checkpoint(self):
        position = self.log.tip
        ref = self.log.write_checkpoint_blob(position, {"fold": self.fold})
        return self.append("checkpoint", {"covered": position.next_seq - 1, "blob": ref.to_json()})
