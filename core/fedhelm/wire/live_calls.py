"""The calls that run now, by the serial number of the caller's certificate: those of a revoked one have to end."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable, Coroutine
from typing import Any, Final

import grpc

from fedhelm.errors import FedhelmError, Unreachable
from fedhelm.tasks import spawn

__all__ = ["ABORT_S", "MAX_CALLS", "WRITE_S", "LiveCall", "LiveCalls"]

WRITE_S: Final = 0.5
"""How long an answer that is being written when its call has to end may take."""

ABORT_S: Final = 30.0
"""How long a caller that does not read may take to learn that its call has ended."""


MAX_CALLS: Final = 128
"""Calls of one certificate that run at once at one port, over all its connections; a site needs a few for each job."""


class LiveCall:
    """One call that runs in the task which made this.

    Args:
        serial: of the caller's certificate.
        abort: ends the call with an error while grpc writes an answer, which the handler cannot be told of then.

    Attributes:
        error: Why somebody ended it; None while nobody did.
        writing: Whether grpc writes an answer: it waits there for as long as nobody reads.
        forced: Whether it was ended while grpc wrote, so that the caller is told from outside of its task.
    """

    def __init__(self, serial: str, abort: Callable[[FedhelmError], Coroutine[Any, Any, object]]) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.serial, self._task, self._abort = serial, task, abort
        self.error: FedhelmError | None = None
        self.writing = self.forced = False

    def end(self, error: FedhelmError) -> None:
        """Have the call end with this error, wherever it waits."""
        if self.error is not None:
            return
        self.error = error
        if self.writing:  # it ends behind this answer; two writes at once would get in each other's way
            asyncio.get_running_loop().call_later(WRITE_S, self._force, error)
        else:
            self._task.cancel()

    def written(self) -> None:
        """The answer is written.

        Raises:
            FedhelmError: the call was ended meanwhile.
        """
        self.writing = False
        if self.error is not None:
            raise self.error

    def _force(self, error: FedhelmError) -> None:
        if self.writing and not self._task.done():
            self.forced = True
            spawn(self._abort_now(error), "end of a call")
            self._task.cancel()

    async def _abort_now(self, error: FedhelmError) -> None:
        # The caller is told behind what was written before, once it reads that.
        with contextlib.suppress(TimeoutError, grpc.RpcError, grpc.aio.AbortError, grpc.aio.BaseError):
            async with asyncio.timeout(ABORT_S):
                await self._abort(error)

    def meant(self, error: BaseException) -> BaseException:
        """Return the reason of an end: what `end` was told, where the task was cancelled for that."""
        if self.error is None or not isinstance(error, asyncio.CancelledError):
            return error
        self._task.uncancel()
        return self.error


class LiveCalls:
    """All calls of a service. Used in the event loop's thread alone."""

    def __init__(self) -> None:
        self._calls: defaultdict[str, set[LiveCall]] = defaultdict(set)

    def __len__(self) -> int:
        return sum(map(len, self._calls.values()))

    def begin(self, serial: str, abort: Callable[[FedhelmError], Coroutine[Any, Any, object]]) -> LiveCall:
        """Take note of a call that runs in this task; the arguments as of :class:`LiveCall`.

        Raises:
            Unreachable: this certificate has :data:`MAX_CALLS` calls already: nobody else shall wait for it.
        """
        if len(self._calls.get(serial, ())) >= MAX_CALLS:
            raise Unreachable(
                f"this certificate has {MAX_CALLS} calls open already", hint="try again when some have ended"
            )
        call = LiveCall(serial, abort)
        self._calls[serial].add(call)
        return call

    def over(self, call: LiveCall) -> None:
        """Forget a call that has ended; once more does no harm."""
        calls = self._calls.get(call.serial, set())
        calls.discard(call)
        if not calls:
            self._calls.pop(call.serial, None)

    def end(self, serial: str, error: Callable[[], FedhelmError]) -> int:
        """End the calls of this certificate, each with an error of its own; return how many there were."""
        calls = list(self._calls.get(serial, ()))
        for call in calls:
            call.end(error())
        return len(calls)
