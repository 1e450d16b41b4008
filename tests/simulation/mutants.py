"""Federations with one rule broken each: the simulation must notice every one of them."""

from __future__ import annotations

from dataclasses import replace

from fedhelm.errors import SlotTaken, StoreUnavailable
from fedhelm.persist.chain import Tip
from fedhelm.persist.log import Log
from fedhelm_server import keeper
from fedhelm_server import keeper_values as kv
from fedhelm_server.runtime import Runtime
from tests.simulation.federation import Federation
from tests.simulation.overseers import View
from tests.simulation.sites import Site

__all__ = ["MUTANTS"]


class DeadlineFromTheAnswer(Federation):
    """A lease is counted from when the answer to a renewal came, not from before it was sent."""

    def step(self, settings, state, event, now):
        if isinstance(event, kv.Answered):
            event = replace(event, sent_at=now)
        return super().step(settings, state, event, now)


class RenewalsForAWedgedChild(Federation):
    """A supervisor renews whether its child beats or not."""

    def step(self, settings, state, event, now):
        if state.child.beat_at is not None:
            state = replace(state, child=replace(state.child, beat_at=now))
        return keeper.step(settings, state, event, now)


class BlindObserver(Federation):
    """An observer that could not read the row for a while counts that time as time in which it stood still."""

    def make_desk(self, kit, store, clock):
        desk = super().make_desk(kit, store, clock)
        desk._board.observed = lambda now: None
        return desk


class _WallClock:
    def __init__(self, machine):
        self._machine = machine

    def boottime(self):
        return self._machine.boottime() + self._machine.wall

    def utcnow(self):
        return self._machine.utcnow()


class WallClockObserver(Federation):
    """An observer times the row by its wall clock."""

    def make_desk(self, kit, store, clock):
        return super().make_desk(kit, store, _WallClock(clock))


class _Overwriting(View):
    def compare_and_set(self, name, args, kwargs):
        if name == "grant":
            row, epoch = args[0], args[1]
            store = self._database.store
            store._row = replace(
                store._row, epoch=row.epoch, renew_seq=row.renew_seq, state=row.state, version=row.version
            )
            store._history.pop(epoch, None)
        return super().compare_and_set(name, args, kwargs)


class GrantWithoutCompareAndSet(Federation):
    """A grant is written whatever has become of the row since it was decided on."""

    def make_view(self, database, overseer):
        return _Overwriting(database, overseer)


class _Unfenced(Log):
    """A log that lets everybody append."""

    def append(self, draft):
        rule = Tip.overstepping
        Tip.overstepping = lambda _tip, _record: None
        try:
            return super().append(draft)
        finally:
            Tip.overstepping = rule


class _ServesAtOnce(Runtime):
    def __init__(self, *args):
        super().__init__(*args)
        self.ledger.fence = self._no_fence

    async def _no_fence(self, epoch, cause):
        self.ledger.epoch = epoch
        self.ledger.closed_reason = None


class NoFence(Federation):
    """A server that was granted an epoch serves without its fence in the log."""

    def make_log(self, slots, blobs):
        return _Unfenced(slots, blobs)

    def make_runtime(self, *args):
        return _ServesAtOnce(*args)


class _Repeating(Runtime):
    def __init__(self, *args):
        super().__init__(*args)
        append = self.ledger._append

        async def again(*items):
            while True:
                try:
                    return await append(*items)
                except SlotTaken:
                    await self.ledger._read_on()

        self.ledger._append = again


class RetriesWithoutDeciding(Federation):
    """An append that lost its slot is made at the next one, with what was decided before."""

    def make_runtime(self, *args):
        return _Repeating(*args)


class _Hopeful(Log):
    def append(self, draft):
        try:
            return super().append(draft)
        except StoreUnavailable:
            record, _ = self._attempt
            self._advance(self._tip.after(record))
            return record


class AcknowledgesTheUnknown(Federation):
    """An append without an answer is taken for done."""

    def make_log(self, slots, blobs):
        return _Hopeful(slots, blobs)


class _Credulous(Site):
    def follow(self, server, epoch):
        if epoch != self.disk.epoch or self.primary != server:
            self.sim.followed(self, server, epoch, self.disk.epoch)
            self.disk.epoch, self.primary = epoch, server
            self.news.set()
        return True


class SiteFollowsAnyEpoch(Federation):
    """A site obeys whoever says that it leads."""

    def make_site(self, machine, disk):
        return _Credulous(self, machine, disk)


class _Impatient(Site):
    def follow(self, server, epoch):
        if epoch > self.disk.epoch:
            for key in [key for key in self.disk.results if key not in self.disk.receipts]:
                del self.disk.results[key]
                self.sim.thrown_away(key)
        return super().follow(server, epoch)


class SiteDropsAtAFailover(Federation):
    """A site throws away what the old primary did not acknowledge."""

    def make_site(self, machine, disk):
        return _Impatient(self, machine, disk)


MUTANTS = {
    "deadline from the answer": (DeadlineFromTheAnswer, "storm:freeze both in a renewal", 1),
    "renewals for a wedged child": (RenewalsForAWedgedChild, "single:freeze the child", 1),
    "blind observer": (BlindObserver, "benign:freeze the lease store", 1),
    "wall clock observer": (WallClockObserver, "single:primary off", 2),
    "grant without compare-and-set": (GrantWithoutCompareAndSet, "storm:primary off,stalling lease store", 8),
    "no fence": (NoFence, "single:primary off", 1),
    "retries without deciding": (RetriesWithoutDeciding, "storm:ambiguous disks and repeats", 1),
    "acknowledges the unknown": (AcknowledgesTheUnknown, "storm:ambiguous disk,kill any child", 5),
    "site follows any epoch": (SiteFollowsAnyEpoch, "storm:isolate the primary,cut a site,kill a site", 7),
    "site drops at a failover": (SiteDropsAtAFailover, "storm:primary off", 1),
}
"""By name: the federation, the faults under which the broken rule shows, and the seed to begin with."""
