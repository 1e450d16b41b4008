"""Real logs of several servers over one faulty store, in random order: what the model says holds for the code."""

from __future__ import annotations

from contextlib import suppress

import hypothesis.strategies as st
from hypothesis import HealthCheck, event, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fedhelm.errors import Fenced, SlotTaken, StoreUnavailable
from fedhelm.persist.log import Log
from fedhelm.persist.record import By, Draft, decode, encode
from tests.fakes.persist_memory import LOST, REPEATED, UNAVAILABLE, MemoryBlobStore, MemoryLogStore

SITES = ("site-1", "site-2", "site-3")


class Server:
    """A child: reads, decides from what it has read, appends, acknowledges."""

    def __init__(self, name: str, incarnation: int, store: MemoryLogStore, blobs: MemoryBlobStore) -> None:
        self.by = By(name, str(incarnation))
        self.log = Log(store, blobs)
        self.epoch = 0
        self.records = []

    def read(self):
        batch = self.log.read_new()
        if batch.base is not None:
            self.records = [decode(text.encode(), seq) for seq, text in enumerate(batch.base.state["records"])]
        self.records += batch.records

    def append(self, kind, body):
        record = self.log.append(Draft(kind, self.epoch, self.by, body))
        self.records.append(record)
        return record

    def recorded(self):
        return {record.body["site"]: record.seq for record in self.records if record.kind == "contribution"}


class Federation(RuleBasedStateMachine):
    servers = st.integers(0, 1)
    faults = st.sampled_from([None, None, LOST, UNAVAILABLE, REPEATED])

    @initialize()
    def found(self):
        self.store, self.blobs = MemoryLogStore(), MemoryBlobStore()
        Log(self.store).append(Draft("genesis", 0, By("provision", "p"), {"cluster": "c", "project": "p"}))
        self.server = [Server(f"server{index + 1}", 0, self.store, self.blobs) for index in (0, 1)]
        self.checkpoints: list[list] = [[], []]
        self.late: list[tuple[int, bytes]] = []
        self.acknowledged: dict[str, int] = {}
        self.served_epoch, self.served_from = 0, 0
        for server in self.server:
            server.read()

    def arm(self, fault):
        self.store.faults.clear()
        self.store.faults.append(fault)

    def attempt(self, server, kind, body):
        """Append once, as the role does: a lost slot and a lost answer both mean to decide again later."""
        try:
            record = server.append(kind, body)
        except (SlotTaken, Fenced):
            server.read()
            return None
        except StoreUnavailable:
            self.late.append((server.log.next_seq, server.log._attempt[1]))
            return None
        # A fence whose answer was lost may be found again long after: in its old slot, below its successor's.
        assert record.epoch >= self.served_epoch or record.seq < self.served_from, "a stale primary wrote"
        return record

    @rule(index=servers, epoch=st.integers(1, 4), fault=faults)
    def promote(self, index, epoch, fault):
        server = self.server[index]
        if server.epoch == 0:
            server.epoch = epoch
        if not server.log.leads(server.epoch, server.by):
            self.arm(fault)
            self.attempt(server, "fence", {"cause": "test"})
        if server.log.leads(server.epoch, server.by) and server.epoch > self.served_epoch:
            self.served_epoch, self.served_from = server.epoch, server.log.fence.seq

    @rule(index=servers, site=st.sampled_from(SITES), fault=faults)
    def contribute(self, index, site, fault):
        server = self.server[index]
        if not server.log.leads(server.epoch, server.by):
            return
        seq = server.recorded().get(site)
        if seq is None:
            self.arm(fault)
            record = self.attempt(server, "contribution", {"site": site})
            seq = record.seq if record else None
        if seq is not None:
            assert self.acknowledged.setdefault(site, seq) == seq

    @rule(index=servers)
    def read(self, index):
        self.server[index].read()

    @rule(index=servers)
    def restart(self, index):
        old = self.server[index]
        self.server[index] = Server(old.by.name, int(old.by.incarnation) + 1, self.store, self.blobs)
        self.checkpoints[index].clear()
        self.server[index].read()

    @rule()
    def arrive_late(self):
        if self.late:
            seq, data = self.late.pop()
            # Also where the slot was deleted meanwhile: a ghost.
            if seq <= max(self.store.contents) + 1:
                self.store.contents.setdefault(seq, data)

    @rule(index=servers)
    def write_a_checkpoints_blob(self, index):
        server = self.server[index]
        state = {"records": [encode(record).decode() for record in server.records]}
        self.checkpoints[index].append((server.log.tip, server.log.write_checkpoint_blob(server.log.tip, state)))

    @rule(index=servers, fault=faults)
    def record_a_checkpoint(self, index, fault):
        server = self.server[index]
        if not self.checkpoints[index] or not server.log.leads(server.epoch, server.by):
            return
        position, ref = self.checkpoints[index].pop()
        known = server.log.tip.checkpoints
        if known and position.next_seq - 1 <= known[-1].covered:
            return
        self.arm(fault)
        self.attempt(server, "checkpoint", {"covered": position.next_seq - 1, "blob": ref.to_json()})

    @rule(index=servers)
    def take_over_and_checkpoint_twice(self, index):
        """What happens sooner or later: all slots so far may go."""
        server = self.server[index]
        if not server.log.leads(server.epoch, server.by):
            self.restart(index)
            self.promote(index, self.server[index].log.epoch + 1, None)
        for _ in range(2):
            self.write_a_checkpoints_blob(index)
            self.record_a_checkpoint(index, None)

    @rule(index=servers)
    def compact(self, index):
        before = self.server[index].log.low_water
        done = self.server[index].log.compact()
        assert done.low_water >= before
        event("a compaction deleted slots" if done.slots else "a compaction had nothing to do")

    @rule(index=servers, stop=st.integers(0, 3))
    def compact_and_die(self, index, stop):
        left = [stop]

        def die(name, _):
            if name in {"create_mark", "delete"}:
                left[0] -= 1
                if left[0] < 0:
                    raise StoreUnavailable("dead")

        self.store.called = die
        with suppress(StoreUnavailable):
            self.server[index].log.compact()
        self.store.called = None
        self.restart(index)

    def history(self):
        """Every record there ever was: what was deleted is in the archive, and what is below the mark may be a ghost."""
        log = Log(self.store, self.blobs)
        log.read_new()
        contents = {seq: data for seq, data in self.store.contents.items() if seq >= log.low_water}
        whole = MemoryLogStore()
        whole.contents = {0: self.store.contents[0], **self.store.contents, **self.store.archive, **contents}
        return Log(whole).read_new().records

    @invariant()
    def the_log_is_whole(self):
        records = self.history()
        contributions = {}
        for record in records:
            if record.kind == "contribution":
                assert record.body["site"] not in contributions, "recorded twice"
                contributions[record.body["site"]] = record.seq
        assert self.acknowledged.items() <= contributions.items()
        fences = [record.epoch for record in records if record.kind == "fence"]
        assert len(fences) == len(set(fences))
        writers = {(record.epoch, record.by) for record in records}
        assert len(writers) == len({epoch for epoch, _ in writers}), "two writers in one epoch"
        for server in self.server:
            assert server.records == records[: server.log.next_seq]
        fresh = Server("reader", 0, self.store, self.blobs)
        fresh.read()
        assert fresh.records == records


Federation.TestCase.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestFederation = Federation.TestCase
