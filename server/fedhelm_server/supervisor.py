"""The I/O around the keeper: the child's process, the calls to the overseer, signals, ticks, readiness.

A small process that loads neither grpc nor numpy, so that a lease is kept whatever the FL server is busy with.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from fedhelm.clock import Clock, SystemClock
from fedhelm.config.kit import Kit
from fedhelm.errors import BadCertificate, FedhelmError, NotFound, Refused, error_class
from fedhelm.ids import new_incarnation
from fedhelm.process import child_env, write_state
from fedhelm.tasks import cancel, spawn
from fedhelm_server import break_glass, keeper
from fedhelm_server import keeper_values as kv
from fedhelm_server.child_link import ChildLink
from fedhelm_server.keeper_status import trouble
from fedhelm_server.lease_calls import CALLS as _CALLS
from fedhelm_server.lease_calls import LeaseCalls

__all__ = ["Supervisor"]

_log = logging.getLogger("fedhelm.supervisor")

_REAP_S = 0.5


class Supervisor:
    """Keeps one server running and its lease alive.

    Args:
        kit: of this server; ``kit.run`` exists and is locked by the caller.
        overseer: the calls; closed by the caller.
        clock: boot time.
        command: the child's program, without incarnation and descriptor.
        settings: other times than those of the kit, for tests.
    """

    def __init__(
        self,
        kit: Kit,
        overseer: LeaseCalls,
        *,
        clock: Clock | None = None,
        command: Sequence[str] | None = None,
        settings: kv.Settings | None = None,
    ) -> None:
        self._kit = kit
        self._overseer = overseer
        self._clock = clock or SystemClock()
        own = (sys.executable, "-P", "-m", "fedhelm_server.child", "--kit", str(kit.root))
        self._command = tuple(command or own)
        self._settings = settings or kv.Settings(kit.name, kit.timing)
        if len(kit.overseers) > 1:
            # Each overseer shows the row as it read it last, at most 2P + Q ago.
            self._settings = replace(self._settings, view_age=2 * kit.timing.observe + kit.timing.request)
        self._state = kv.State()
        self._events: deque[kv.Event] = deque()
        self._feeding = False
        self._link: ChildLink | None = None
        self._following: asyncio.Task[None] | None = None
        self._calls: set[asyncio.Task[None]] = set()
        self._quit: asyncio.Future[kv.Quit] | None = None
        self._written: dict[str, Any] = {}
        self._trouble: str | None = None  # with this server's certificate, as far as it knows itself
        self._refusal: str | None = None  # why overseers refuse it
        self._figures = {"renewals": 0, "failures": 0, "fenced": 0}

    def stop(self) -> None:
        """Ask for the end: child, lease, then ``run`` returns."""
        self._feed(kv.StopRequested())

    def tell_child(self, kind: str, **fields: Any) -> None:
        """Send the child a frame; lost while there is none: one that starts reads for itself what it says."""
        if self._link is not None:
            self._link.send(kind, **fields)

    def warn(self, trouble: str | None) -> None:
        """Say in ``run/state.json`` why nobody accepts this server's certificate; None when that is over."""
        self._trouble = trouble
        self._publish()

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT (or `stop`); then nothing of it is left.

        Raises:
            AlreadyRunning: the overseer sees this server live on another machine.
            WrongStore: the overseer refuses the log that this server reads.
        """
        loop = asyncio.get_running_loop()
        self._quit = loop.create_future()
        signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        for number in signals:
            loop.add_signal_handler(number, self.stop)
        self._publish()
        ticker = spawn(self._tick(), "ticks")
        try:
            end = await self._quit
        finally:
            for number in signals:
                loop.remove_signal_handler(number)
            await cancel(ticker, *self._calls)
            if self._following is not None:
                # Mostly the child is reaped already; a cancelled follower kills and reaps.
                await asyncio.wait({self._following}, timeout=_REAP_S)
                await cancel(self._following)
            write_state(self._kit.run, ready=False)
        if end.error is not None:
            raise error_class(end.code)(end.error)

    async def _tick(self) -> None:
        period = min(0.05, self._settings.timing.renew / 5)
        while True:
            if (request := break_glass.take(self._kit.run)) is not None:
                self._feed(kv.BreakGlass(request.cause))
            self._feed(kv.Tick())
            await asyncio.sleep(period)

    # --- the keeper

    def _feed(self, event: kv.Event) -> None:
        """Give the keeper one event and do what it says; events that this causes wait for their turn."""
        self._events.append(event)
        if self._feeding:
            return
        self._feeding = True
        try:
            while self._events:
                now, event = self._clock.boottime(), self._events.popleft()
                self._count(event)
                self._state, actions = keeper.step(self._settings, self._state, event, now)
                for action in actions:
                    self._perform(action)
        except BaseException as error:
            # A defect here would leave a supervisor that keeps nothing: end it, and let the child die with it.
            if self._quit is not None and not self._quit.done():
                self._quit.set_exception(error)
            raise
        finally:
            self._feeding = False
        self._publish()

    def _count(self, event: kv.Event) -> None:
        """Count what the child shows as figures: they outlive it."""
        if isinstance(event, kv.ChildFenced):
            self._figures["fenced"] += 1
        elif isinstance(event, kv.Answered | kv.Failed) and isinstance(event.call, kv.Renew):
            self._figures["renewals" if isinstance(event, kv.Answered) and event.ok else "failures"] += 1
        elif not isinstance(event, kv.ChildStarted):
            return
        if self._link is not None:
            self._link.send("figures", **self._figures)

    def _perform(self, action: kv.Action) -> None:
        match action:
            case kv.Say(text):
                _log.info("%s", text)
            case kv.StartChild():
                self._following = spawn(self._run_child(), "child")
            case kv.KillChild(incarnation, why):
                _log.warning("%s: killing child %s: %s", self._kit.name, incarnation, why)
                if self._link is not None:
                    self._link.kill()
            case kv.SendToChild(kind, fields):
                if self._link is not None:
                    self._link.send(kind, **fields)
            case kv.Quit():
                if self._quit is not None and not self._quit.done():
                    self._quit.set_result(action)
            case _:
                task = spawn(self._call(action), type(action).__name__)
                self._calls.add(task)
                task.add_done_callback(self._calls.discard)

    def _publish(self) -> None:
        """Write ``run/state.json`` when it says something new."""
        state, refused = self._state, self._trouble or self._refusal
        told = {
            "ready": state.ready and state.stopping_since is None and refused is None,
            "role": str(state.child.report.role) if state.child.phase is kv.Phase.ALIVE else None,
            "epoch": state.hold.epoch if state.hold is not None else None,
            "child": self._link.pid if self._link is not None else None,
            "reason": refused or trouble(state),
        }
        if told != self._written:
            self._written = told
            write_state(self._kit.run, **cast("dict[str, Any]", told))

    async def _run_child(self) -> None:
        incarnation = new_incarnation()
        try:
            env = child_env(self._kit.root, "child")
            self._link = await ChildLink.start(self._command, env, self._kit.root, incarnation)
        except OSError as error:
            self._feed(kv.ChildExited(incarnation, f"could not be started: {error}"))
            return
        self._feed(kv.ChildStarted(incarnation))
        await self._link.follow(self._heard)

    def _heard(self, event: kv.Event) -> None:
        if isinstance(event, kv.ChildExited):
            self._link = None
        self._feed(event)

    # --- the overseer

    async def _call(self, call: kv.OverseerCall) -> None:
        """Make one call; whatever comes of it is told to the keeper, which waits for that before the next."""
        sent_at = self._clock.boottime()
        try:
            async with asyncio.timeout(self._limit(call)):
                event: kv.Event = await _CALLS[type(call)](self._overseer, call, sent_at)
            self._refusal = None
        except BadCertificate as error:
            self._refusal = error.message
            event = kv.Failed(call, error.message)
        except (NotFound, Refused) as error:
            event = kv.Failed(call, error.message, denied=True)
        except FedhelmError as error:
            hint = f" ({error.hint})" if error.hint else ""
            event = kv.Failed(call, error.message + hint)
        except TimeoutError:
            event = kv.Failed(call, "no answer in time")
        except Exception as error:  # noqa: BLE001 - a defect in one call must not end the renewals: they go on
            _log.exception("%s failed", type(call).__name__)
            event = kv.Failed(call, repr(error))
        self._feed(event)

    def _limit(self, call: kv.OverseerCall) -> float:
        """Seconds for a call to all overseers: the client's own limits, its wait for a better answer, and some more."""
        one = self._settings.timing.request * (1 if len(self._kit.overseers) == 1 else 2)
        if isinstance(call, kv.WaitLease):
            one += call.wait + 4.0
        elif not isinstance(call, kv.Beat | kv.Renew):
            one += 3.0
        return one + 0.1
