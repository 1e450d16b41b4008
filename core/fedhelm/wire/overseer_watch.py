"""The lease row followed at every overseer at once, by long polls.

Overseers read one row, each at its own times. What is old at one and was seen at another is no news; a row that goes
back at the overseer that showed it is: its database was emptied or restored. Polls go on from one wait to the next.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from fedhelm.config.timing import Timing
from fedhelm.tasks import cancel
from fedhelm.wire.overseer_answers import parse
from fedhelm.wire.overseer_api import LeaseView
from fedhelm.wire.overseer_lane import Outcome, OverseerLane, blame

__all__ = ["LeaseWatch"]

_SLACK = 3.0


class LeaseWatch:
    """Waits for changes of the row.

    Args:
        lanes: one for each overseer.
        timing: Q, and R, more often than which an overseer that shows nothing new is not asked.
    """

    def __init__(self, lanes: Sequence[OverseerLane], timing: Timing) -> None:
        self._lanes = lanes
        self._timing = timing
        self._delivered: int | None = None
        self._latest: LeaseView | None = None

    async def wait(self, after: int, wait_s: float) -> LeaseView:
        """Return the row as soon as its version differs from ``after``, at the latest after ``wait_s`` seconds.

        Raises:
            Unreachable: no overseer answered.
            FedhelmError: what one answered instead.
        """
        if after != self._delivered:
            for lane in self._lanes:
                lane.version = None
                await cancel(lane.running("lease"))
            self._delivered = after
        self._latest = None
        until = time.monotonic() + wait_s
        polls = {self._poll(lane, until) for lane in self._lanes}
        failures: list[Outcome] = []
        while polls:
            left = None if self._latest is None else max(0.0, until - time.monotonic())
            done, polls = await asyncio.wait(polls, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                outcome = task.result()
                if outcome.data is None:
                    failures.append(outcome)
                elif (view := self._news(outcome)) is not None:
                    return self._deliver(view)
                elif self._may_go_on(outcome, until):
                    polls.add(self._poll(outcome.lane, until))
            if not done:
                break
        return self._deliver(self._latest or parse(LeaseView, blame(failures).result()))

    def _poll(self, lane: OverseerLane, until: float) -> asyncio.Task[Outcome]:
        wait = max(0.0, until - time.monotonic())
        after = self._delivered if lane.version is None else lane.version
        assert after is not None
        return lane.poll(after, wait, wait + self._timing.request + _SLACK)

    def _news(self, outcome: Outcome) -> LeaseView | None:
        """Return the row if it is new: newer than any seen, or this overseer went back."""
        assert outcome.data is not None
        assert self._delivered is not None
        lane, view = outcome.lane, parse(LeaseView, outcome.data)
        before, lane.version = lane.version, view.version
        if self._latest is None or view.version > self._latest.version:
            self._latest = view
        back = before is not None and view.version < before
        changed = view.version != self._delivered
        return view if changed and (back or view.version > self._delivered or len(self._lanes) == 1) else None

    def _may_go_on(self, outcome: Outcome, until: float) -> bool:
        """Whether to poll this overseer on: not one that answers at once and shows nothing new."""
        now, lane = time.monotonic(), outcome.lane
        return now < until and (lane.version != lane.asked or now - lane.polled_at > self._timing.renew)

    def _deliver(self, view: LeaseView) -> LeaseView:
        self._delivered = view.version
        return view
