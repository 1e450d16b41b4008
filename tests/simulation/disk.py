"""The virtual shared store: one log, one set of blobs, and each machine's own way to them, which can fail."""

from __future__ import annotations

from fedhelm.errors import SlotTaken, StoreUnavailable
from tests.fakes.persist_memory import LOST, REPEATED, UNAVAILABLE, MemoryBlobStore, MemoryLogStore

__all__ = ["Disk", "SharedStore"]


class SharedStore:
    """What survives everything."""

    def __init__(self):
        self.slots = MemoryLogStore()
        self.blobs = MemoryBlobStore()
        self.tokens = set()


class Disk:
    """One machine's mount of the shared store.

    Attributes:
        down: Every call fails. `hung`: every call waits until it is not. `full`: nothing can be created.
        latency: Seconds a call takes, at most. `ambiguous`: chance that a create is answered wrongly.
        stall: Chance that a create stands still just before it is done, for up to `stall_s`.
    """

    def __init__(self, world, machine, shared):
        self.world = world
        self.machine = machine
        self.shared = shared
        self.heal()
        self._waiting = []

    def heal(self):
        self.down = self.hung = self.full = False
        self.latency = 0.004
        self.ambiguous = 0.0
        self.stall = 0.0
        self.stall_s = 0.0
        self.release()

    def release(self):
        """Let those go on that waited for a hung disk."""
        self.hung = False
        waiting, self._waiting = getattr(self, "_waiting", []), []
        for callback, args, process in waiting:
            self.world.call_soon(callback, *args, process=process)

    def when_it_answers(self, process, callback, *args):
        if self.hung:
            self._waiting.append((callback, args, process))
        else:
            self.world.call_later(self.world.rng.uniform(0, self.latency), callback, *args, process=process)

    def slots(self, process):
        return SlotsOf(self, process)

    def blobs(self):
        return BlobsOf(self)

    def require(self, *, write=False):
        if self.down:
            raise StoreUnavailable(f"{self.machine.name}: the store does not answer")
        if write and self.full:
            raise StoreUnavailable(f"{self.machine.name}: no space left on the store")


class SlotsOf:
    """The log's slots as one process sees them: the fake store with this machine's faults."""

    def __init__(self, disk, process):
        self._disk = disk
        self._process = process
        self._slots = disk.shared.slots

    def _create(self, create, *args):
        disk, rng = self._disk, self._disk.world.rng
        disk.require(write=True)
        fault = None
        if disk.ambiguous and rng.random() < disk.ambiguous:
            fault = rng.choice((UNAVAILABLE, LOST, REPEATED))
        if disk.stall and rng.random() < disk.stall:
            disk.world.pause(rng.uniform(0, disk.stall_s), self._process)
        if fault == UNAVAILABLE:
            raise StoreUnavailable("no answer")
        create(*args)
        if fault == LOST:
            raise StoreUnavailable("the answer was lost")
        if fault == REPEATED:
            raise SlotTaken(f"{args[0]} is taken")
        if disk.stall and rng.random() < disk.stall:
            disk.world.pause(rng.uniform(0, disk.stall_s), self._process)

    def create(self, seq, data):
        self._create(self._slots.create, seq, data)

    def delete(self, seq):
        disk, rng = self._disk, self._disk.world.rng
        disk.require()
        self._slots.delete(seq)
        if disk.stall and rng.random() < disk.stall:
            disk.world.pause(rng.uniform(0, disk.stall_s), self._process)

    def create_mark(self, number, data):
        self._create(self._slots.create_mark, number, data)

    def __getattr__(self, name):
        attribute = getattr(self._slots, name)

        def call(*args):
            self._disk.require(write=name == "sync")
            return attribute(*args)

        return call


class BlobsOf:
    """The blobs as one machine sees them."""

    def __init__(self, disk):
        self._disk = disk
        self._blobs = disk.shared.blobs

    def __getattr__(self, name):
        attribute = getattr(self._blobs, name)
        if not callable(attribute):
            return attribute

        def call(*args):
            self._disk.require(write=name.startswith("put_"))
            return attribute(*args)

        return call
