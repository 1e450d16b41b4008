"""The one place where a child reads and appends the log: decisions, group commit, fencing.

A caller hands in a *decision*: a function of the job book that returns the item to append, or an :class:`Answer` when
nothing needs to be appended. It runs on the newest book, and runs again when another writer took the slot. So what is
appended was decided on exactly the log it follows. Items that arrive while an append is on its way to the disk go
together into the next slot.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fedhelm.clock import Clock, iso
from fedhelm.errors import BadInput, Conflict, Corrupt, Fenced, NotPrimary, SlotTaken, StoreUnavailable
from fedhelm.persist.chain import Tip
from fedhelm.persist.log import Base, Batch, Log
from fedhelm.persist.record import By, Draft, Record
from fedhelm_server.job_book import CONTRIBUTION_KEY, JobBook

__all__ = ["BATCHED", "Answer", "Ledger", "Placement"]

_log = logging.getLogger("fedhelm.server")

BATCHED: Mapping[str, tuple[str, ...]] = {"contribution": ("job", *CONTRIBUTION_KEY), "metrics": ("job", "source")}
"""Record kinds whose items share a slot, and what no two items of one slot may have in common."""

MAX_BATCH = 512
MAX_BATCH_BYTES = 1024 * 1024

T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """A decision that needs no append: what the log says already."""

    value: Any


@dataclass(frozen=True)
class Placement:
    """Where an item went."""

    seq: int
    index: int
    epoch: int


Decision = Callable[[JobBook], dict[str, Any] | Answer]


@dataclass
class _Proposal:
    kind: str
    decide: Decision
    key: Hashable
    size: int
    future: asyncio.Future[Any] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Ledger:
    """Reads on, appends, and folds into the book.

    Args:
        log: the shared log; used from one worker thread at a time.
        me: name and incarnation that records carry.
        clock: for the age of an append.
        applied: called on the event loop with every batch of records folded, own and foreign.
    """

    def __init__(self, log: Log, me: By, clock: Clock, applied: Callable[[list[Record]], None]) -> None:
        self.book = JobBook()
        self.epoch: int | None = None
        self.closed_reason: str | None = "this server does not lead"
        self.store_ok = True
        self.breathing_space = 0.0
        """Seconds the next slot is left free after an append: an unleased writer must not starve a fence."""
        self.on_replaced: Callable[[], None] = lambda: None
        """Called after the book was replaced by a checkpoint and what follows it: every job may have changed."""
        self.on_append: Callable[[float], None] = lambda _: None
        """Called with the seconds that each append took."""
        self._log = log
        self._me = me
        self._clock = clock
        self._applied = applied
        self._lock = asyncio.Lock()
        self._queue: deque[_Proposal] = deque()
        self._wake = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="log")
        self._append_since: float | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._broken: Corrupt | None = None

    @property
    def append_age(self) -> float | None:
        """Seconds since the append now in flight began, or None."""
        return None if self._append_since is None else self._clock.boottime() - self._append_since

    def record_at(self, seq: int) -> Record:
        """Read one slot again (blocking; call it in a thread)."""
        return self._log.at(seq)

    async def _in_thread(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    async def read_on(self) -> list[Record]:
        """Fold every record up to the end of the log.

        A caller that is cancelled meanwhile loses nothing: what was read is folded all the same.

        Raises:
            Corrupt: a record is broken; nothing after it was applied, and nothing ever will be.
            StoreUnavailable: the store cannot be read.
        """
        return await asyncio.shield(asyncio.ensure_future(self._read_alone()))

    async def _read_alone(self) -> list[Record]:
        async with self._lock:
            return await self._read_on()

    async def _read_on(self) -> list[Record]:
        if self._broken is not None:
            raise self._broken
        batch: Batch = await self._in_thread(self._log.read_new)
        if batch.base is not None:
            self._replace(batch.base)
        self._fold(batch.records)
        if batch.base is not None:
            self.on_replaced()
        return batch.records

    def _replace(self, base: Base) -> None:
        try:
            self.book = JobBook.restore(base.state)
        except Corrupt as error:
            self._broken = error
            self.close(str(error))
            raise

    async def snapshot(self) -> tuple[Tip, dict[str, Any]]:
        """Return the position in the log and the state of the book there, taken between two appends."""
        async with self._lock:
            return self._log.tip, self.book.to_state()

    def _fold(self, records: list[Record]) -> None:
        before = self.book.seq
        try:
            for record in records:
                self.book.apply(record)
        except Corrupt as error:
            # The log has gone on and the book cannot follow: whatever is decided on it from now on is wrong.
            self._broken = error
            self.close(str(error))
            raise
        finally:
            if folded := [record for record in records if before < record.seq <= self.book.seq]:
                self._applied(folded)

    def is_mine(self) -> bool:
        """Tell whether the last fence in the log is this writer's own."""
        fence = self.book.fence
        return fence is not None and (fence.epoch, fence.name, fence.incarnation) == (
            self.epoch,
            self._me.name,
            self._me.incarnation,
        )

    async def fence(self, epoch: int, cause: str) -> Record:
        """Append this server's fence and open for appends.

        Raises:
            Conflict: the log has an epoch that is not below ``epoch`` (docs/ha.md 3.5).
            Corrupt: a record is broken.
            StoreUnavailable: not appended, or it cannot be known.
        """
        async with self._lock:
            while True:
                await self._read_on()
                if self.book.max_epoch >= epoch:
                    self.epoch = epoch
                    if self.is_mine():  # an earlier try whose answer was lost
                        record = await self._in_thread(self._log.at, self.book.fence.seq)  # type: ignore[union-attr]
                        break
                    self.epoch = None
                    raise Conflict(f"the log has epoch {self.book.max_epoch}, the grant is for epoch {epoch}")
                body = {"cause": cause}
                if self._log.version > 1:
                    body["time"] = iso(self._clock.utcnow())
                try:
                    draft = Draft(kind="fence", epoch=epoch, by=self._me, body=body)
                    record = await self._in_thread(self._log.append, draft)
                except SlotTaken:
                    continue
                except Fenced:  # it landed in a slot that was compacted away: start again from the checkpoint
                    if not await self._moved_on():
                        raise
                    continue
                self.epoch = epoch
                self._fold([record])
                break
            self.closed_reason = None
            return record

    def close(self, reason: str) -> None:
        """Take no more proposals; those that wait fail."""
        self.closed_reason = reason
        waiting, self._queue = list(self._queue), deque()
        for proposal in waiting:
            if not proposal.future.done():
                proposal.future.set_exception(NotPrimary(reason))
        if not self._append_since:
            self._idle.set()

    def reopen(self) -> None:
        """Take proposals again (a handoff that was called off)."""
        if self._broken is None:
            self.closed_reason = None

    async def drained(self) -> None:
        """Wait until no append is in flight."""
        await self._idle.wait()

    async def propose(self, kind: str, decide: Decision, *, key: Hashable = None, size: int = 256) -> Any:
        """Append what ``decide`` returns; return its :class:`Placement`, or the value of its :class:`Answer`.

        Args:
            kind: of the record.
            decide: runs on the newest book, on the event loop; may raise.
            key: two proposals with one key are never decided in the same batch; None: nobody else has the same.
            size: bytes of the item, about.

        Raises:
            NotPrimary: this server does not lead.
            BadInput: what ``decide`` returned does not fit into a record.
            StoreUnavailable: it may or may not be in the log; propose it again to learn which.
            FedhelmError: what ``decide`` raised.
        """
        if self.closed_reason is not None:
            raise NotPrimary(self.closed_reason)
        proposal = _Proposal(kind, decide, key if key is not None else object(), size)
        self._queue.append(proposal)
        self._idle.clear()
        self._wake.set()
        return await proposal.future

    async def run(self) -> None:
        """Serve proposals until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                batch = self._take()
                try:
                    async with self._lock:
                        await self._commit(batch)
                except (StoreUnavailable, Fenced, NotPrimary, BadInput) as error:
                    _fail(batch, error)
                except Exception as error:  # noqa: BLE001 - the callers must learn of a bug, and the writer must go on
                    _log.error("an append failed", exc_info=error)
                    _fail(batch, error)
                if self.breathing_space:
                    await asyncio.sleep(self.breathing_space)
            self._idle.set()

    def _take(self) -> list[_Proposal]:
        first = self._queue.popleft()
        batch, keys, size = [first], {first.key}, first.size
        if first.kind in BATCHED:
            while self._queue and len(batch) < MAX_BATCH:
                following = self._queue[0]
                size += following.size
                if following.kind != first.kind or following.key in keys or size > MAX_BATCH_BYTES:
                    break
                batch.append(self._queue.popleft())
                keys.add(following.key)
        return batch

    async def _commit(self, batch: Sequence[_Proposal]) -> None:
        while batch:
            if self.closed_reason is not None:
                raise NotPrimary(self.closed_reason)
            decided, later = _decide(batch, self.book)
            if not decided:
                return
            try:
                record = await self._append([item for _, item in decided], decided[0][0].kind)
            except (SlotTaken, Fenced) as error:
                # `applied` fences this server if what is read then ends with a newer primary's fence. Fenced: the slot
                # was compacted away, and a checkpoint is read; or nothing new is there, and it is for good.
                if not await self._moved_on() and isinstance(error, Fenced):
                    raise
                continue
            except BadInput:
                if len(decided) == 1:
                    raise
                # One of them is no JSON, or all are too large for one slot: the others must not suffer.
                await self._commit_halves([proposal for proposal, _ in decided])
                batch = later
                continue
            self._fold([record])
            for index, (proposal, _) in enumerate(decided):
                if not proposal.future.done():
                    proposal.future.set_result(Placement(record.seq, index, record.epoch))
            batch = later

    async def _moved_on(self) -> bool:
        before, seq = self.book, self.book.seq
        await self._read_on()
        return self.book is not before or self.book.seq != seq

    async def raise_log_version(self, version: int) -> None:
        """Have what is appended from now on be of ``version``, for good: every server of the project reads it.

        Raises:
            FedhelmError: it could not be recorded; try again.
        """

        def decide(book: JobBook) -> dict[str, Any] | Answer:
            return Answer(None) if book.log_version >= version else {"log_version": version}

        await self.propose("config", decide)

    async def _commit_halves(self, batch: Sequence[_Proposal]) -> None:
        middle = len(batch) // 2
        for half in (batch[:middle], batch[middle:]):
            try:
                await self._commit(half)
            except BadInput as error:
                _fail(half, error)

    async def _append(self, items: list[dict[str, Any]], kind: str) -> Record:
        assert self.epoch is not None
        body = {"items": items} if kind in BATCHED else items[0]
        draft = Draft(kind=kind, epoch=self.epoch, by=self._me, body=body)
        began = self._append_since = self._clock.boottime()
        try:
            record = await self._in_thread(self._log.append, draft)
        except StoreUnavailable:
            self.store_ok = False
            raise
        except Corrupt as error:
            self._broken = error
            self.close(str(error))
            raise
        finally:
            self._append_since = None
        self.store_ok = True
        self.on_append(self._clock.boottime() - began)
        return record


_Decided = tuple[_Proposal, dict[str, Any]]


def _decide(batch: Iterable[_Proposal], book: JobBook) -> tuple[list[_Decided], list[_Proposal]]:
    """Run the decisions; return what goes into the next slot, and who must be decided after that slot."""
    decided: list[_Decided] = []
    later: list[_Proposal] = []
    taken = set()
    for proposal in batch:
        if proposal.future.done():
            continue
        try:
            item = proposal.decide(book)
        except Exception as error:  # noqa: BLE001 - it belongs to its proposer, whatever it is
            _fail([proposal], error)
            continue
        if isinstance(item, Answer):
            proposal.future.set_result(item.value)
            continue
        identity = tuple(item[name] for name in BATCHED.get(proposal.kind, ()))
        if decided and identity in taken:  # it was decided without the one that goes before it
            later.append(proposal)
            continue
        taken.add(identity)
        decided.append((proposal, item))
    return decided, later


def _fail(batch: Iterable[_Proposal], error: Exception) -> None:
    for proposal in batch:
        if not proposal.future.done():
            # A future takes any exception but this one.
            proposal.future.set_exception(RuntimeError(repr(error)) if isinstance(error, StopIteration) else error)
