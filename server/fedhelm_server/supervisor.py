"""The I/O around the keeper: the child's process, the calls to the overseer, signals, ticks, readiness.

A small process that loads neither grpc nor numpy, so that a lease is kept whatever the FL server is busy with.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol, cast

from fedhelm.clock import Clock, SystemClock
from fedhelm.config.kit import Kit
from fedhelm.errors import FedhelmError, NotFound, Refused, error_class
from fedhelm.ids import new_incarnation
from fedhelm.process import child_env, write_state
from fedhelm.tasks import cancel, spawn
from fedhelm.wire import overseer_api as api
from fedhelm_server import keeper
from fedhelm_server import keeper_values as kv
from fedhelm_server.child_link import ChildLink

__all__ = ["LeaseCalls", "Supervisor"]

_log = logging.getLogger("fedhelm.supervisor")

_REAP_S = 0.5
_MAX_REASON = 2000


class LeaseCalls(Protocol):
    """What a supervisor asks of the overseers (``fedhelm.wire.overseer_client.OverseerClient``)."""

    async def register(self, request: api.RegisterRequest) -> api.RegisterReply:
        """Announce an incarnation."""
        ...

    async def beat(self, request: api.BeatRequest) -> api.LeaseView:
        """Send a sign of life."""
        ...

    async def renew(self, request: api.RenewRequest) -> api.RenewReply:
        """Renew the lease."""
        ...

    async def activate(self, request: api.ActivateRequest) -> api.LeaseView:
        """Tell that the fence is in the log."""
        ...

    async def release(self, request: api.ReleaseRequest) -> api.LeaseView:
        """Give the lease back."""
        ...

    async def wait_lease(self, after: int, wait_s: float) -> api.LeaseView:
        """Wait for a change of the lease row."""
        ...


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
        self._state = kv.State()
        self._events: deque[kv.Event] = deque()
        self._feeding = False
        self._link: ChildLink | None = None
        self._following: asyncio.Task[None] | None = None
        self._calls: set[asyncio.Task[None]] = set()
        self._quit: asyncio.Future[kv.Quit] | None = None
        self._written: dict[str, Any] = {}

    def stop(self) -> None:
        """Ask for the end: child, lease, then ``run`` returns."""
        self._feed(kv.StopRequested())

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
                now = self._clock.boottime()
                self._state, actions = keeper.step(self._settings, self._state, self._events.popleft(), now)
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
        state = self._state
        told = {
            "ready": state.ready and state.stopping_since is None,
            "role": str(state.child.report.role) if state.child.phase is kv.Phase.ALIVE else None,
            "epoch": state.hold.epoch if state.hold is not None else None,
            "child": self._link.pid if self._link is not None else None,
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
        """Seconds for a call to any overseer: the client's own limits, and a little more."""
        one = self._settings.timing.request
        if isinstance(call, kv.WaitLease):
            one += call.wait + 1.0
        elif not isinstance(call, kv.Beat | kv.Renew):
            one += 3.0
        return one * max(1, len(self._kit.overseers)) + 0.1


# --- values to models and back ---------------------------------------------------------------------------------------


def _lease(view: api.LeaseView) -> kv.Lease:
    intent = kv.Intent(view.intent.target, view.intent.request_id) if view.intent is not None else None
    return kv.Lease(
        version=view.version,
        epoch=view.epoch,
        holder=view.holder,
        incarnation=view.incarnation,
        state=view.state,
        intent=intent,
        log_seq=view.log_seq,
        cause=view.cause,
    )


async def _register(overseer: LeaseCalls, call: kv.Register, sent_at: float) -> kv.Answered:
    report = call.report
    request = api.RegisterRequest(
        incarnation=call.incarnation,
        replaces=call.replaces,
        cluster=report.cluster,
        log_epoch=report.log_epoch,
        log_seq=report.log_seq,
        unleased=call.unleased,
        store_ok=call.store_ok,
        ready=report.ready,
        role=cast("api.Role", report.role),
        reason=report.reason[:_MAX_REASON] if report.reason else None,
    )
    reply = await overseer.register(request)
    return kv.Answered(call, sent_at, _lease(reply.lease), reply.accepted, reply.retry_after_s, reply.message or "")


async def _beat(overseer: LeaseCalls, call: kv.Beat, sent_at: float) -> kv.Answered:
    report = call.report
    request = api.BeatRequest(
        incarnation=call.incarnation,
        role=cast("api.Role", report.role),
        log_epoch=report.log_epoch,
        log_seq=report.log_seq,
        ready=report.ready,
        store_ok=call.store_ok,
        unleased=call.unleased,
    )
    return kv.Answered(call, sent_at, _lease(await overseer.beat(request)))


async def _renew(overseer: LeaseCalls, call: kv.Renew, sent_at: float) -> kv.Answered:
    request = api.RenewRequest(
        epoch=call.epoch,
        incarnation=call.incarnation,
        log_epoch=call.report.log_epoch,
        log_seq=call.report.log_seq,
        role=cast("api.Role", call.report.role),
    )
    reply = await overseer.renew(request)
    return kv.Answered(call, sent_at, _lease(reply.lease), reply.held)


async def _activate(overseer: LeaseCalls, call: kv.Activate, sent_at: float) -> kv.Answered:
    request = api.ActivateRequest(epoch=call.epoch, incarnation=call.incarnation, log_seq=call.log_seq)
    return kv.Answered(call, sent_at, _lease(await overseer.activate(request)))


async def _release(overseer: LeaseCalls, call: kv.Release, sent_at: float) -> kv.Answered:
    request = api.ReleaseRequest(
        epoch=call.epoch,
        incarnation=call.incarnation,
        reason=call.reason[:_MAX_REASON],
        refused=call.refused,
        handoff=call.handoff,
    )
    return kv.Answered(call, sent_at, _lease(await overseer.release(request)))


async def _wait_lease(overseer: LeaseCalls, call: kv.WaitLease, sent_at: float) -> kv.Answered:
    return kv.Answered(call, sent_at, _lease(await overseer.wait_lease(call.after, call.wait)))


_CALLS: dict[type[kv.OverseerCall], Callable[[LeaseCalls, Any, float], Coroutine[Any, Any, kv.Answered]]] = {
    kv.Register: _register,
    kv.Beat: _beat,
    kv.Renew: _renew,
    kv.Activate: _activate,
    kv.Release: _release,
    kv.WaitLease: _wait_lease,
}
