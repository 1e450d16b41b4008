"""Calls of a daemon to the overseers of its kit, over mutual TLS, each with a time-out (asyncio, pools kept open).

What a server tells (registration, beat, renewal, activation, release) goes to **all** overseers at once, and the first
good answer counts: each keeps its own view of who lives, and one that hangs costs nothing. They decide on one row, so a
refusal ("not yours", "unknown") counts too, once no other answered better within Q. What did not answer, or answered
5xx, counts as nothing. A slower call runs on to its own time-out, and until then no other of its kind goes to that
overseer. Reads go to the overseer that answered last, and to the next as well when it is slow.

Errors are those of :mod:`fedhelm.errors` alone: what an overseer answered, ``Unreachable`` when none answered, and
``BadCertificate`` when TLS failed over a certificate. Commands have :mod:`fedhelm.wire.overseer_console`.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from typing import Generic, Self, TypeVar

from pydantic import BaseModel

from fedhelm.config.kit import Kit
from fedhelm.errors import NotFound, ProtocolError
from fedhelm.security.tls import Check, client_context
from fedhelm.wire.overseer_answers import HISTORY, SERVERS, Body, parse, parse_all
from fedhelm.wire.overseer_api import (
    ActivateRequest,
    BeatRequest,
    Health,
    HistoryEntry,
    LeaseView,
    PrimaryView,
    PromoteReply,
    PromoteRequest,
    RegisterReply,
    RegisterRequest,
    ReleaseRequest,
    RenewReply,
    RenewRequest,
    RevocationsView,
    ServerView,
)
from fedhelm.wire.overseer_lane import Outcome, OverseerLane, blame
from fedhelm.wire.overseer_watch import LeaseWatch

__all__ = ["OverseerClient"]

_SLACK = 3.0
"""What a call may take beyond Q when no deadline of the lease hangs on it: only beats and renewals have to keep Q."""

_LIST_SLACK = 10.0
"""What reading or handing over the list of revoked certificates, some megabytes, may take beyond Q."""

_M = TypeVar("_M", bound=BaseModel)


class OverseerClient:
    """Asynchronous client of a daemon; use it from one event loop, and ``aclose`` it.

    Args:
        kit: the participant's opened kit: addresses, certificate, and the request time-out Q.
        announced: called in the event loop when an overseer's answer names another version of the list of revoked
            certificates than its answer before; with that version, 0 for none. It may be lower than what is known
            here: then this overseer lost the list, and :meth:`revoke` gives it back.
        check: is asked about the serial of an overseer's certificate before anything is sent to it; raises
            BadCertificate for one that was revoked.
    """

    def __init__(
        self,
        kit: Kit,
        *,
        announced: Callable[[int], None] = lambda _version: None,
        check: Check | None = None,
    ) -> None:
        self._kit = kit
        self._check = check
        context = functools.cache(lambda: client_context(kit, check))
        self._lanes = [OverseerLane(address, context, announced) for address in kit.overseers]
        self._registration: RegisterRequest | None = None
        self._watch = LeaseWatch(self._lanes, kit.timing)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Break off what still runs, and close the connections."""
        await asyncio.gather(*(lane.aclose() for lane in self._lanes))

    def reconnect(self, kit: Kit | None = None) -> None:
        """Let calls that begin now open new connections; those on their way end on the ones that they have.

        Args:
            kit: the new one, whose certificate and roots they use; None where only what ``check`` says has changed.
                Its addresses count from the next start.
        """
        self._kit = kit = kit or self._kit
        context = functools.cache(lambda: client_context(kit, self._check))
        for lane in self._lanes:
            lane.reconnect(context)

    # --- told to all

    async def register(self, request: RegisterRequest) -> RegisterReply:
        """Announce an incarnation; look at ``accepted`` in the answer."""
        path, slack = "/servers/register", _SLACK
        reply = await self._tell(RegisterReply, path, request, slack=slack, good=lambda answer: answer.accepted)
        if reply.accepted:
            self._registration = request
        return reply

    async def beat(self, request: BeatRequest) -> LeaseView:
        """Send a sign of life; return the lease row.

        An overseer that does not know this incarnation, while another does, is told the registration again.

        Raises:
            NotFound: no overseer knows this incarnation (they were restarted, say): register again.
        """
        return await self._tell(LeaseView, "/servers/beat", request)

    async def renew(self, request: RenewRequest) -> RenewReply:
        """Renew the lease; ``held`` False means: demote now."""
        return await self._tell(RenewReply, "/lease/renew", request, good=lambda answer: answer.held)

    async def activate(self, request: ActivateRequest) -> LeaseView:
        """Tell that the fence is in the log; may be repeated.

        Raises:
            Refused: this incarnation does not hold that epoch.
        """
        return await self._tell(LeaseView, "/lease/activate", request, slack=_SLACK)

    async def release(self, request: ReleaseRequest) -> LeaseView:
        """Give the lease back; may be repeated.

        Raises:
            Refused: this incarnation does not hold that epoch.
        """
        return await self._tell(LeaseView, "/lease/release", request, slack=_SLACK)

    async def _tell(
        self,
        model: type[_M],
        path: str,
        body: BaseModel,
        *,
        slack: float = 0.0,
        good: Callable[[_M], bool] = lambda _: True,
    ) -> _M:
        """Return the first good answer; without one, what was refused first; each is asked for Q + ``slack``."""
        limit = self._kit.timing.request + slack
        telling = _Telling(model, good)
        pending = set()
        for lane in self._lanes:
            if lane.running(path) is not None:
                telling.failures.append(Outcome(lane, why="still busy with the call before"))
                continue
            task = lane.start(path, "POST", path, body, limit)
            task.add_done_callback(functools.partial(self._after, body, telling))
            pending.add(task)
        until: float | None = None
        while pending:
            left = None if until is None else max(0.0, until - time.monotonic())
            done, pending = await asyncio.wait(pending, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                telling.hear(task.result())
            if telling.answer is not None:
                self._remind(body, telling)
                return telling.answer
            if not done:
                break
            if telling.refused and until is None:
                until = time.monotonic() + self._kit.timing.request
        return telling.result()

    def _after(self, body: BaseModel, telling: _Telling[_M], task: asyncio.Task[Outcome]) -> None:
        if not task.cancelled() and isinstance(task.result().error, NotFound):
            telling.strangers.append(task.result().lane)
            if telling.answer is not None:
                self._remind(body, telling)

    def _remind(self, beat: BaseModel, telling: _Telling[_M]) -> None:
        """Register again with overseers that know nothing of an incarnation that another one knows."""
        known = self._registration
        if not isinstance(beat, BeatRequest) or known is None or known.incarnation != beat.incarnation:
            return
        path, limit = "/servers/register", self._kit.timing.request + _SLACK
        now = known.model_copy(update=beat.model_dump())
        while telling.strangers:
            lane = telling.strangers.pop()
            if lane.running(path) is None:
                lane.start(path, "POST", path, now, limit)

    async def wait_lease(self, after: int, wait_s: float) -> LeaseView:
        """Return the row as soon as its version differs from ``after``, at the latest after ``wait_s`` seconds.

        Every overseer is polled. ``after=-1`` answers at once.
        """
        return await self._watch.wait(after, wait_s)

    # --- the list of revoked certificates

    @property
    def revocations_version(self) -> int:
        """The highest version of the list that the last answer of an overseer named; 0 for none."""
        return max((lane.revocations or 0 for lane in self._lanes), default=0)

    @property
    def revocations_lowest(self) -> int:
        """The lowest version that one of those overseers has that answered so far; 0 where none has."""
        return min((lane.revocations for lane in self._lanes if lane.revocations is not None), default=0)

    async def revocations(self, after: int = 0, wait_s: float = 0.0) -> bytes:
        """Return the list as the root signed it, from an overseer that named the highest version.

        Whoever gets it verifies it: :meth:`fedhelm.security.kept_revocations.KeptRevocations.offer`.

        Args:
            after: the version that is known here.
            wait_s: how long to wait for a newer one, at most 30 s.

        Returns:
            Empty if there is none that is newer.
        """
        lanes = sorted(self._lanes, key=lambda lane: -(lane.revocations or 0))
        path = f"/revocations?after={after}&wait={wait_s:.3f}"
        try:
            return await self._ask("GET", path, lanes=lanes, slack=_LIST_SLACK + wait_s, patience=wait_s)
        except NotFound:  # overseers of before
            return b""

    async def revoke(self, data: bytes) -> RevocationsView:
        """Hand the list to every overseer; return what the first said that took it, or has it already.

        Args:
            data: the list as the root signed it.

        Raises:
            Refused: no overseer took it, and one has a newer one.
            BadInput: it is not this project's.
        """
        path, limit = "/revocations", self._kit.timing.request + _LIST_SLACK
        outcomes = await asyncio.gather(*(lane.read("POST", path, data, limit) for lane in self._lanes))
        best = next((one for one in outcomes if one.data is not None), None)
        best = best or next((one for one in outcomes if one.definite), None) or blame(outcomes)
        return parse(RevocationsView, best.result())

    # --- reads

    async def primary(self) -> PrimaryView:
        """Return who leads.

        Raises:
            NoPrimary: nobody does at the moment.
        """
        return parse(PrimaryView, await self._ask("GET", "/primary"))

    async def servers(self) -> tuple[ServerView, ...]:
        """Return the project's servers, in the order of the kit."""
        return parse_all(SERVERS, await self._ask("GET", "/servers"))

    async def history(self) -> tuple[HistoryEntry, ...]:
        """Return the epochs, oldest first."""
        return parse_all(HISTORY, await self._ask("GET", "/history"))

    async def promote(self, request: PromoteRequest) -> PromoteReply:
        """Ask for a planned switchover.

        Raises:
            Refused: the target is not fit, or leads already.
            NotFound: no such server.
        """
        return parse(PromoteReply, await self._ask("POST", "/promote", request))

    async def health(self) -> Health:
        """Return what ``/healthz`` says."""
        return parse(Health, await self._ask("GET", "/healthz"))

    async def _ask(
        self,
        method: str,
        path: str,
        body: Body = None,
        *,
        lanes: list[OverseerLane] | None = None,
        slack: float = _SLACK,
        patience: float = 0.0,
    ) -> bytes:
        """Return the body of the first overseer that answers; the next is asked too when one is slow or fails.

        Args:
            method: of the call.
            path: with its query.
            body: what it carries.
            lanes: whom to ask, the first one first; as they answered last where it is not given.
            slack: what the call may take beyond Q.
            patience: how much later than Q/2 the next one is asked.
        """
        limit = self._kit.timing.request + slack
        waiting = list(self._lanes if lanes is None else lanes)
        running: set[asyncio.Task[Outcome]] = set()
        failures: list[Outcome] = []
        while waiting or running:
            if waiting:
                running.add(waiting.pop(0).read(method, path, body, limit))
            pause = self._kit.timing.request / 2 + patience if waiting else None
            done, running = await asyncio.wait(running, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                outcome = task.result()
                if outcome.data is None and not outcome.definite:
                    failures.append(outcome)
                    continue
                if lanes is None:
                    self._lanes.remove(outcome.lane)
                    self._lanes.insert(0, outcome.lane)
                return outcome.result()
        return blame(failures).result()


class _Telling(Generic[_M]):
    """What came of one call to all overseers so far."""

    def __init__(self, model: type[_M], good: Callable[[_M], bool]) -> None:
        self._model = model
        self._good = good
        self.answer: _M | None = None
        self.refusal: _M | None = None
        self.denial: Outcome | None = None
        self.failures: list[Outcome] = []
        self.strangers: list[OverseerLane] = []

    @property
    def refused(self) -> bool:
        """Whether an overseer refused."""
        return self.refusal is not None or self.denial is not None

    def hear(self, outcome: Outcome) -> None:
        """Take note of one overseer's outcome; the first good one stays."""
        if outcome.data is None:
            if outcome.definite:
                self.denial = self.denial or outcome
            else:
                self.failures.append(outcome)
            return
        try:
            told = parse(self._model, outcome.data)
        except ProtocolError as error:
            self.failures.append(Outcome(outcome.lane, error=error))
            return
        if self._good(told):
            self.answer = self.answer or told
        else:
            self.refusal = self.refusal or told

    def result(self) -> _M:
        """Return or raise what there is when nobody accepted."""
        if self.refusal is not None:
            return self.refusal
        return parse(self._model, (self.denial or blame(self.failures)).result())
