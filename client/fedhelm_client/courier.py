"""Brings one job's lines, results and failure to whoever leads, for as long as that takes.

Lines that were logged before a result are in the log before it is offered. A failover costs nothing but time: the same
id is offered to the next primary, which answers with the receipt that the id has.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from fedhelm.errors import BadInput, Conflict, Corrupt, FedhelmError, NotFound, ProtocolError, RoundOver
from fedhelm.tasks import cancel, spawn
from fedhelm.v1 import common_pb2, fleet_pb2
from fedhelm.wire.bulk import upload_file
from fedhelm_client.journal import Journal
from fedhelm_client.links import Links
from fedhelm_client.outbox import ContributionId, Outbox, Saved, State, is_closed

__all__ = ["Courier", "Failure"]

_log = logging.getLogger("fedhelm.client")

_CALL_SECONDS = 30.0
_PAUSE = 0.1
_PAUSE_DISK = 1.0
_AGAIN = 5.0
"""Seconds after which a result that is only held is offered again, while its task is still assigned."""

Failure = fleet_pb2.FailureReport

_HOPELESS = (BadInput, Conflict, Corrupt, ProtocolError, OSError)
"""What no primary will ever take. A refusal for another reason (rights, the wrong store) an operator can cure."""


class Courier:
    """One job's way to the primary.

    Args:
        job: its id.
        site: this site.
        outbox: the job's results.
        journal: the job's lines.
        links: knows who leads.
        on_change: called when what is unacknowledged has changed.
        on_refused: called with a reason when a result can never be recorded: the round would wait for it for ever.
    """

    def __init__(
        self,
        job: str,
        site: str,
        *,
        outbox: Outbox,
        journal: Journal,
        links: Links,
        on_change: Callable[[], None],
        on_refused: Callable[[str], None],
    ) -> None:
        self._job = job
        self._site = site
        self._outbox = outbox
        self._journal = journal
        self._links = links
        self._on_change = on_change
        self._on_refused = on_refused
        self._refused: set[ContributionId] = set()
        self._answered: dict[ContributionId, int] = {}  # the epoch in which a primary answered for good
        self._lines_refused = False
        self._new_lines = asyncio.Event()
        self._new_results = asyncio.Event()
        self._held = asyncio.Event()
        self._under: tuple[str | None, int] = (None, 0)  # who led when a result was offered last
        self._task: ContributionId | None = None
        self._progress = asyncio.Condition()
        self._disk = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin with what an earlier agent left."""
        self._new_lines.set()
        self._new_results.set()
        for saved in self._outbox.held():  # the earlier agent's; perhaps nobody has it any more
            self._outbox.mark(saved.id, "saved")
        self._tasks = [
            spawn(self._push_lines(), f"lines of {self._job}"),
            spawn(self._offer_results(), f"results of {self._job}"),
            spawn(self._offer_held(), f"held results of {self._job}"),
        ]

    async def stop(self) -> None:
        """Stop; what is not acknowledged stays on disk."""
        await cancel(*self._tasks)

    @property
    def idle(self) -> bool:
        """Whether nothing is left to be brought."""
        lines = self._lines_refused or not self._journal.next_batch()
        return lines and not [saved for saved in self._outbox.to_offer() if saved.id not in self._refused]

    # -- what the executor hands in -----------------------------------------------------------------------------

    def add_lines(self, lines: Sequence[dict[str, Any]]) -> None:
        """Number and keep lines, and bring them."""
        try:
            self._journal.append(lines)
        except OSError as error:
            _log.error("job %s: %d lines are lost, the disk refused: %s", self._job, len(lines), error)
            return
        self._new_lines.set()

    async def add_result(self, result: Saved, source: Any) -> None:
        """Make a result durable, and bring it.

        Raises:
            OSError: the disk refused; nothing is saved.
            ProtocolError: the script's file is no plain file.
        """
        async with self._disk:
            # Its lines first: a result waits for them, and must not find after a power cut that they are lost.
            await asyncio.to_thread(self._journal.sync)
            await asyncio.to_thread(self._outbox.save, result, source)
        self._new_results.set()
        self._on_change()

    async def close_rounds(self, closed: Sequence[fleet_pb2.ClosedRound]) -> None:
        """Delete the results of rounds that the log says are over."""
        if not any(is_closed(saved.id, closed) for saved in self._outbox):
            return
        async with self._disk:
            await asyncio.to_thread(self._outbox.close, closed)
        self._on_change()

    async def clear(self) -> None:
        """The job is over: delete its results."""
        async with self._disk:
            await asyncio.to_thread(self._outbox.clear)
        await self._notify()

    def acknowledge(self, number: int) -> None:
        """The log has this site's lines up to ``number``."""
        self._journal.acknowledge(number)

    async def settled(self) -> None:
        """Wait until nothing is left to be brought."""
        async with self._progress:
            await self._progress.wait_for(lambda: self.idle)

    def assigned(self, task: ContributionId | None) -> None:
        """Take note of the task that the log has for this site now: while it is there, its round is open."""
        self._task = task

    async def reopen(self, task: ContributionId) -> None:
        """The log has just asked for this task. What it has restored from a backup may know less than this site."""
        again = self._links.standing[1] > self._answered.get(task, -1)
        async with self._disk:
            await asyncio.to_thread(self._outbox.reopen, task, again=again)
        self._refused &= {saved.id for saved in self._outbox} - ({task} if again else set())
        self._new_results.set()

    # -- lines --------------------------------------------------------------------------------------------------

    async def _push_lines(self) -> None:
        while True:
            await self._new_lines.wait()
            self._new_lines.clear()
            while lines := self._journal.next_batch():
                try:
                    await asyncio.to_thread(self._journal.sync)
                except OSError as error:  # results wait for their lines: this must go on
                    _log.error("job %s: its lines cannot be made durable: %s", self._job, error)
                    await asyncio.sleep(_PAUSE_DISK)
                    continue
                before = self._journal.acknowledged
                try:
                    ack = await self._push(lines)
                except FedhelmError as error:
                    _log.warning("job %s: the primary takes no more lines: %s", self._job, error)
                    self._lines_refused = True
                    await self._notify()
                    return
                if ack.acknowledged < min(lines[0][0] - 1, before):  # a restored log lacks some that were in it
                    _log.warning("job %s: lines from %d on are pushed again", self._job, ack.acknowledged + 1)
                    self._journal.rewind(ack.acknowledged)
                    continue
                self._journal.acknowledge(ack.acknowledged)
                await self._notify()
                if self._journal.acknowledged == before:
                    await asyncio.sleep(_PAUSE)

    async def _push(self, lines: Sequence[tuple[int, str]]) -> fleet_pb2.LineAck:
        batch = fleet_pb2.LineBatch(
            job=self._job, lines=[fleet_pb2.Line(number=number, json=text) for number, text in lines]
        )
        return await self._links.to_leader(
            f"lines of job {self._job}", lambda stub: stub.push_lines(batch, timeout=_CALL_SECONDS)
        )

    async def _notify(self) -> None:
        async with self._progress:
            self._progress.notify_all()
        self._on_change()

    # -- results ------------------------------------------------------------------------------------------------

    async def _offer_results(self) -> None:
        while True:
            await self._new_results.wait()
            self._new_results.clear()
            while waiting := [saved for saved in self._outbox.to_offer() if saved.id not in self._refused]:
                await self._offer(waiting[0])
                await self._notify()

    async def _offer(self, saved: Saved) -> None:
        what = f"job {self._job}, {saved.id.kind} of round {saved.id.round}"
        under = self._links.standing
        try:
            receipt = await self._deliver(saved, what)
        except (FedhelmError, OSError) as error:
            if saved.id not in {one.id for one in (*self._outbox.to_offer(), *self._outbox.held())}:
                return  # its round was closed while it was on the way
            # The file stays: the next agent of this site offers it once more.
            _log.error("%s: the primary refuses the result: %s", what, error)
            self._refused.add(saved.id)
            self._answered[saved.id] = self._links.standing[1]
            if isinstance(error, _HOPELESS):
                self._on_refused(f"the {saved.id.kind} result of round {saved.id.round} was refused: {error}")
            return
        state: State = "gone" if receipt.gone else "held" if receipt.held else "recorded"
        if receipt.gone:
            _log.info("%s: the round was closed without this result", what)
        elif receipt.held:
            if saved.state != "held":
                _log.info("%s: held for its round, epoch %d; the copy is kept", what, receipt.epoch)
        else:
            _log.info("%s: recorded in slot %d, epoch %d", what, receipt.seq, receipt.epoch)
        if not receipt.held:
            self._answered[saved.id] = self._links.standing[1]
        async with self._disk:
            if state != saved.state:
                await asyncio.to_thread(self._outbox.mark, saved.id, state)
        if receipt.held:
            self._under = under
            self._held.set()

    async def _offer_held(self) -> None:
        """Offer what no log has to each new primary, and now and then to the same one while its task is assigned."""
        while True:
            await self._held.wait()
            moved = await self._links.moved_from(self._under, _AGAIN)
            held = [saved for saved in self._outbox.held() if saved.id not in self._refused]
            if not held:
                self._held.clear()
            for saved in held:
                if moved or saved.id == self._task:
                    await self._offer(saved)

    async def _deliver(self, saved: Saved, what: str) -> common_pb2.Receipt:
        while True:
            blob = None
            file = saved.file
            if file is not None:
                try:
                    blob = await self._links.to_leader(what, partial(upload_file, owner=saved.owner, path=file))
                except RoundOver:
                    return common_pb2.Receipt(gone=True)
            async with self._progress:
                await self._progress.wait_for(lambda: self._lines_refused or self._has_lines_of(saved))
            with contextlib.suppress(NotFound):  # chunks are missing at the primary: upload them again
                return await self._contribute(self._contribution(saved, blob), what)
            if blob is None:
                raise NotFound(f"{what}: the primary does not know it")
            await asyncio.sleep(_PAUSE)

    def _has_lines_of(self, saved: Saved) -> bool:
        # Lines that a damaged disk has lost will never come.
        return self._journal.acknowledged >= min(saved.lines, self._journal.last)

    async def _contribute(self, offer: fleet_pb2.Contribution, what: str) -> common_pb2.Receipt:
        return await self._links.to_leader(what, lambda stub: stub.contribute(offer, timeout=_CALL_SECONDS))

    def _contribution(self, saved: Saved, blob: common_pb2.BlobRef | None) -> fleet_pb2.Contribution:
        return fleet_pb2.Contribution(
            job=self._job,
            attempt=saved.id.attempt,
            step=saved.id.step,
            round=saved.id.round,
            kind=saved.id.kind,
            site=self._site,
            sequence=saved.id.sequence,
            blob=blob,
            weight=saved.weight,
            metrics_json=json.dumps(dict(saved.metrics), sort_keys=True, allow_nan=False),
            filters=saved.filters,
        )

    # -- failure ------------------------------------------------------------------------------------------------

    async def report(self, failure: Failure) -> bool:
        """Have the failure of the job process recorded; False if the primary does not want to know."""
        try:
            await self._links.to_leader(
                f"failure of job {self._job}", lambda stub: stub.report_failure(failure, timeout=_CALL_SECONDS)
            )
        except FedhelmError as error:
            _log.warning("job %s: the primary does not take the failure report: %s", self._job, error)
            return False
        return True
