"""The lease keeper and watchdog of a server as a pure state machine: (state, event, now) -> (state, actions).

The rules are those of docs/ha.md, sections 1, 3 and 4. In short: the lease counts from *before* a renewal is sent; only
a child that beats has its lease renewed; the lease of a child is given back only after that child was reaped; a holder
that is told "not yours" demotes at once; one that nobody answers goes on, and says so.

`step` is called for every event and often enough with `Tick`. It does no I/O and knows no clock.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from fedhelm_server import keeper_values as kv
from fedhelm_server.keeper_values import Action, Event, Hold, Lease, Phase, Settings, Stage, State

__all__ = ["step", "store_ok"]

_READONLY_AFTER: Final = 10.0  # an append in flight for longer means that the store does not work
_REJOIN_MAX: Final = 5.0
_NO_ACTIONS: Final[tuple[Action, ...]] = ()


def step(settings: Settings, state: State, event: Event, now: float) -> tuple[State, tuple[Action, ...]]:
    """Return the state after ``event`` and what is to be done, in order.

    Args:
        settings: name and times.
        state: what the last step returned, or ``State()``.
        event: what happened.
        now: boot time in seconds.
    """
    if state.done:
        return state, _NO_ACTIONS
    work = _Step(settings, state, now)
    work.notice_own_pause()
    work.hear(event)
    if not work.state.done:
        work.watch_child()
        work.keep_lease()
        work.call_overseer()
        work.say_status()
    return work.state, tuple(work.actions)


def store_ok(report: kv.Report) -> bool:
    """Return whether the child can write: it says so, and no append hangs."""
    return report.store_ok and report.append_age <= _READONLY_AFTER


class _Step:
    """One step: the state so far and the actions collected."""

    def __init__(self, settings: Settings, state: State, now: float) -> None:
        self.settings = settings
        self.timing = settings.timing
        self.state = state
        self.now = now
        self.actions: list[Action] = []

    # --- small verbs

    def set(self, **changes: Any) -> None:
        self.state = replace(self.state, **changes)

    def set_child(self, **changes: Any) -> None:
        self.set(child=replace(self.state.child, **changes))

    def set_hold(self, **changes: Any) -> None:
        assert self.state.hold is not None
        self.set(hold=replace(self.state.hold, **changes))

    def send(self, type: str, **fields: Any) -> None:  # noqa: A002 - the wire's own word
        self.actions.append(kv.SendToChild(type, fields))

    def say(self, text: str) -> None:
        self.actions.append(kv.Say(f"{self.settings.name}: {text}"))

    def ask(self, call: kv.OverseerCall) -> None:
        self.set(in_flight=self.state.in_flight | {type(call).__name__})
        self.actions.append(call)

    def asking(self, kind: type[kv.OverseerCall]) -> bool:
        return kind.__name__ in self.state.in_flight

    def is_current(self, incarnation: str) -> bool:
        return self.state.child.phase in {Phase.ALIVE, Phase.KILLED} and self.state.child.incarnation == incarnation

    def kill(self, why: str, *, counts: bool) -> None:
        child = self.state.child
        if child.phase is Phase.ALIVE:
            # The first reason is the true one: a child told to stop that does not is stopped, not wedged.
            self.set_child(phase=Phase.KILLED, why=child.why or why, counts=child.counts and counts, kill_at=None)
            self.actions.append(kv.KillChild(child.incarnation, why))

    def dismiss(self, why: str, grace: float) -> None:
        """Let the child end by itself within ``grace`` seconds; its successor starts at once."""
        if self.state.child.kill_at is None:
            self.set_child(kill_at=self.now + grace, why=why, counts=False)

    def beats(self) -> bool:
        """Whether the child's last beat is young enough to renew on."""
        child = self.state.child
        if child.phase is not Phase.ALIVE or child.beat_at is None:
            return False
        return self.now - child.beat_at <= self.settings.beat_limit

    # --- events

    def notice_own_pause(self) -> None:
        """After a pause of this process nothing is known of the child's beats, nor of the overseers, for a moment."""
        last = self.state.stepped_at
        if last is None or self.now - last > self.timing.lease / 4:
            self.set(awake_at=self.now)
            if self.state.hold is not None:
                self.set_hold(unanswered=False)
        self.set(stepped_at=self.now)

    def hear(self, event: Event) -> None:
        match event:
            case kv.Tick():
                pass
            case kv.StopRequested():
                self.on_stop()
            case kv.Answered() | kv.Failed():
                self.set(in_flight=self.state.in_flight - {type(event.call).__name__})
                self.on_reply(event)
            case kv.ChildStarted(incarnation):
                self.set_child(phase=Phase.ALIVE, incarnation=incarnation, since=self.now)
                if self.state.stopping_since is not None:
                    self.stop_child()
            case kv.ChildExited(incarnation, how):
                if self.state.child.phase is Phase.STARTING or self.is_current(incarnation):
                    self.on_exit(incarnation, how)
            case _:
                if self.is_current(event.incarnation):
                    self.on_child(event)

    def on_child(
        self,
        event: kv.ChildBeat | kv.ChildActive | kv.ChildDrained | kv.ChildFenced | kv.ChildRefused | kv.ChildHungUp,
    ) -> None:
        hold = self.state.hold
        match event:
            case kv.ChildBeat(_, report):
                ready_at = (self.state.child.ready_at or self.now) if report.ready else None
                self.set_child(beat_at=self.now, report=report, ready_at=ready_at)
            case kv.ChildActive(_, epoch, log_seq):
                if hold is not None and hold.epoch == epoch and hold.stage is Stage.PROMOTING:
                    self.set_hold(stage=Stage.ACTIVE, active_seq=log_seq)
                    self.set(activate_at=self.now, rejoin_pause=0.0)
            case kv.ChildDrained():
                if hold is not None and hold.stage is Stage.DRAINING:
                    self.give_back(f"handoff for {hold.drained_for}", handoff=True)
            case kv.ChildFenced(_, epoch):
                # The row is not this server's any more, or will be adopted by who fenced: nothing to release.
                self.set(hold=None)
                self.say(f"fenced by epoch {epoch}; comes back as a standby")
                self.dismiss(f"fenced by epoch {epoch}", 1.0)
            case kv.ChildRefused(_, reason):
                self.say(f"could not promote: {reason}")
                if hold is not None:
                    self.give_back(reason, refused=True)
                    self.set(hold=None)
            case kv.ChildHungUp():
                self.set_child(kill_at=min(self.state.child.kill_at or self.now + 1.0, self.now + 1.0))

    def on_exit(self, incarnation: str, how: str) -> None:
        child, hold = self.state.child, self.state.hold
        why = child.why or f"child {how}"
        if hold is not None:
            self.say(f"{why} while it held epoch {hold.epoch}; giving the lease back")
            self.give_back(why)
        else:
            self.release_for_the_dead(incarnation, why)
        failures, delay = self.state.failures, 0.0
        if child.counts and self.state.stopping_since is None:
            if child.ready_at is not None and self.now - child.ready_at >= self.timing.lease:
                failures = 0
            delay = self.settings.backoff[min(failures, len(self.settings.backoff) - 1)]
            failures += 1
            self.say(f"{why}; the next child starts {f'in {delay:g} s' if delay else 'now'}")
        # The successor replaces the last incarnation that an overseer heard of, which a child that never
        # registered is not.
        known = incarnation if self.state.registered or self.asking(kv.Register) else self.state.replaces
        self.set(
            child=kv.Child(start_at=self.now + delay, since=self.now),
            hold=None,
            registered=False,
            replaces=known,
            dead=incarnation,
            failures=failures,
            register_at=self.now,
        )

    def on_stop(self) -> None:
        if self.state.stopping_since is not None:
            self.kill("shutdown", counts=False)
            return
        self.set(stopping_since=self.now)
        self.say("stopping")
        child = self.state.child
        if self.state.registered and self.state.hold is None and child.phase is Phase.ALIVE:
            # Nobody should grant the lease to one that is about to go.
            self.ask(kv.Beat(child.incarnation, replace(child.report, ready=False), store_ok(child.report), False))
        if self.state.child.phase is Phase.ALIVE:
            self.stop_child()

    def stop_child(self) -> None:
        self.send("stop")
        self.set_child(kill_at=self.now + self.settings.stop_grace, why="shutdown", counts=False)

    def give_back(self, reason: str, *, refused: bool = False, handoff: bool = False) -> None:
        hold = self.state.hold
        assert hold is not None
        pending = kv.Release(self.state.child.incarnation, hold.epoch, reason, refused, handoff)
        self.set(release=pending, release_at=self.now)

    # --- answers of an overseer

    def on_reply(self, event: kv.Answered | kv.Failed) -> None:
        if isinstance(event, kv.Failed):
            self.on_failure(event)
            return
        if self.state.overseer_lost:
            self.set(overseer_lost=False)
            self.say("the overseer answers again")
        self.on_answer(event)

    def on_answer(self, event: kv.Answered) -> None:
        match event.call:
            case kv.Register():
                self.on_registered(event, event.call)
            case kv.Renew():
                self.on_renewed(event, event.call)
            case kv.Activate():
                if self.state.hold is not None and self.state.hold.epoch == event.call.epoch:
                    self.set_hold(active_seq=None)
            case kv.Release():
                self.on_released(event.call)
            case kv.Beat() | kv.WaitLease():
                pass
        if isinstance(event.call, kv.WaitLease):
            self.set(version=event.lease.version)
        self.see(event.lease, event.sent_at)

    def on_registered(self, event: kv.Answered, call: kv.Register) -> None:
        if not self.is_current(call.incarnation):
            # It died meanwhile; what the overseer now knows is the dead one.
            self.set(replaces=call.incarnation if event.ok else self.state.replaces)
        elif event.ok:
            self.set(registered=True, refused_since=None, replaces=None, register_at=float("inf"), beat_at=self.now)
        else:
            since = self.state.refused_since if self.state.refused_since is not None else self.now
            if event.retry_after is None or self.now - since >= 2 * self.timing.lease:
                message = event.message or "the overseer does not accept this server"
                self.quit(message, "WRONG_STORE" if event.retry_after is None else "ALREADY_RUNNING")
            self.set(refused_since=since, register_at=self.now + min(event.retry_after or 0.0, self.timing.renew))

    def on_renewed(self, event: kv.Answered, call: kv.Renew) -> None:
        hold = self.state.hold
        if hold is None or hold.epoch != call.epoch or self.state.child.incarnation != call.incarnation:
            return
        if not event.ok and event.lease.epoch < hold.epoch:
            # The overseer's database is behind the log (emptied, restored): it adopts who registers with the log.
            self.set_hold(unanswered=True)
            self.set(registered=False, register_at=self.now)
            return
        if not event.ok:
            self.say(f"lost the lease of epoch {hold.epoch}; comes back as a standby")
            self.set(hold=None, release=None)
            self.kill(f"lost the lease of epoch {hold.epoch}", counts=False)
            return
        deadline = max(hold.deadline, event.sent_at + self.timing.holder_lease)
        self.set_hold(deadline=deadline, unleased=False, unanswered=False)
        if hold.stage is Stage.RESUMING:
            self.set_hold(stage=Stage.ACTIVE)
            self.send("resume", deadline=deadline)
        else:
            self.send("lease", deadline=deadline)

    def on_released(self, call: kv.Release) -> None:
        if self.state.release != call:
            return
        self.set(release=None)
        if call.handoff and self.state.hold is not None:
            self.say(f"handed over epoch {call.epoch}; comes back as a standby")
            self.set(hold=None)
            self.send("stop")
            self.dismiss("handed over", self.settings.stop_grace)
        if call.refused and self.is_current(call.incarnation):
            pause = min(max(self.timing.renew, 2 * self.state.rejoin_pause), _REJOIN_MAX)
            self.set(rejoin_pause=pause, register_at=self.now + pause)

    def on_failure(self, event: kv.Failed) -> None:
        hold, pause = self.state.hold, self.timing.renew
        match event.call:
            case kv.Register():
                # An overseer that was away may see this server's last run live for another T: count from new.
                self.set(register_at=self.now + pause, refused_since=None)
            case kv.Beat(incarnation) if event.denied and self.is_current(incarnation):
                self.set(registered=False, register_at=self.now)
            case kv.Renew(_, epoch) if hold is not None and hold.epoch == epoch:
                self.set_hold(unanswered=True)
                if event.denied:
                    self.set(registered=False, register_at=self.now)
            case kv.Activate():
                # Denied: the next renewal says whose the row is.
                self.set(activate_at=self.now + pause / 2, renew_at=self.now if event.denied else self.state.renew_at)
            case kv.Release() as call if call == self.state.release:
                self.on_release_failed(call, event)
            case kv.WaitLease():
                self.set(watch_at=self.now + pause)
            case _:
                pass
        if not event.denied and not self.state.overseer_lost:
            self.set(overseer_lost=True)
            self.say(f"no answer from the overseer: {event.message}")

    def on_release_failed(self, call: kv.Release, event: kv.Failed) -> None:
        if call.handoff and self.state.hold is not None:
            # Unconfirmed: it may have been done. Only a renewal that succeeds shows that it was not.
            self.set(release=None, renew_at=self.now)
            self.set_hold(stage=Stage.RESUMING)
        elif event.denied:
            self.on_released(call)
        else:
            self.set(release_at=self.now + self.timing.renew)

    def see(self, lease: Lease, sent_at: float) -> None:
        """Take in the row as it was at some moment after ``sent_at``."""
        state, child, hold = self.state, self.state.child, self.state.hold
        self.set(lease=lease)
        if state.release is not None and lease.epoch > state.release.epoch:
            self.set(release=None)
        mine = lease.holder == self.settings.name and lease.incarnation == child.incarnation
        if mine and lease.state == "granted" and lease.epoch > state.epoch_seen:
            if hold is None and child.phase is Phase.ALIVE and child.kill_at is None:
                self.on_grant(lease)
        else:
            self.set(ungranted_at=max(self.state.ungranted_at, sent_at))
        if lease.incarnation == state.dead and self.state.release is None:
            self.release_for_the_dead(state.dead, "child is gone")
        if hold is None or lease.epoch < hold.epoch:
            return
        if lease.epoch > hold.epoch or lease.state == "released" or not mine:
            self.set(renew_at=min(self.state.renew_at, self.now))  # the renewal decides, not a hint
        else:
            self.follow_intent(lease, hold)

    def release_for_the_dead(self, incarnation: str | None, reason: str) -> None:
        """A row that names a reaped child: nobody has to wait for the term to end."""
        lease = self.state.lease
        named = lease.holder == self.settings.name and lease.incarnation == incarnation
        if named and incarnation is not None and lease.state in {"granted", "active"}:
            self.set(release=kv.Release(incarnation, lease.epoch, reason), release_at=self.now)

    def on_grant(self, lease: Lease) -> None:
        # The grant was made after the last answer that did not show it was asked for.
        deadline = self.state.ungranted_at + self.timing.holder_lease
        cause = lease.cause or "granted"
        self.set(hold=Hold(lease.epoch, deadline, cause), epoch_seen=lease.epoch, release=None, renew_at=self.now)
        self.send("grant", epoch=lease.epoch, deadline=deadline, cause=cause, log_seq=lease.log_seq)

    def follow_intent(self, lease: Lease, hold: Hold) -> None:
        intent = lease.intent
        if intent is not None and intent.target != self.settings.name:
            if hold.stage is Stage.ACTIVE and not hold.unleased and intent.request_id != hold.drained_for:
                self.set_hold(stage=Stage.DRAINING, drained_for=intent.request_id, drain_since=self.now)
                self.send("drain", to=intent.target, request_id=intent.request_id)
        elif intent is None and hold.stage is Stage.DRAINING and self.state.release is None:
            self.set_hold(stage=Stage.RESUMING)
            self.set(renew_at=self.now)

    # --- what time brings

    def watch_child(self) -> None:
        """Start, kill and give up: the watchdog."""
        state, child, settings = self.state, self.state.child, self.settings
        if state.stopping_since is not None:
            over = self.now - state.stopping_since >= settings.stop_limit
            if over or (child.phase is Phase.ABSENT and state.release is None):
                self.quit(None)
            elif child.phase is Phase.ALIVE and child.kill_at is not None and self.now >= child.kill_at:
                self.kill("shutdown", counts=False)
            return
        if child.phase is Phase.ABSENT and self.now >= child.start_at:
            self.set_child(phase=Phase.STARTING)
            self.actions.append(kv.StartChild())
        elif child.phase is Phase.ALIVE:
            self.watch_beats()

    def watch_beats(self) -> None:
        child, limit = self.state.child, self.settings.beat_limit
        if child.kill_at is not None and self.now >= child.kill_at:
            self.kill(child.why or "child hung up", counts=child.counts)
        elif child.beat_at is None and self.now - max(child.since, self.state.awake_at) > self.settings.start_grace:
            self.kill(f"child did not report within {self.settings.start_grace:g} s of its start", counts=True)
        elif child.beat_at is not None and self.now - max(child.beat_at, self.state.awake_at) > limit:
            self.kill(f"child was wedged: no beat for {self.now - child.beat_at:.1f} s", counts=True)

    def keep_lease(self) -> None:
        """The deadline, and a drain that takes too long."""
        hold = self.state.hold
        if hold is None or not self.beats():
            return
        if self.now > hold.deadline and hold.unanswered and not hold.unleased:
            self.say(f"DEGRADED: no failover: no overseer answers; epoch {hold.epoch} goes on")
            # A handoff without a higher fence is void.
            stage = Stage.ACTIVE if hold.stage is not Stage.PROMOTING else hold.stage
            self.set_hold(unleased=True, stage=stage)
            self.send("unleased", since=hold.deadline)
        elif (
            hold.stage is Stage.DRAINING
            and self.state.release is None
            and self.now - hold.drain_since > self.settings.drain_limit
        ):
            self.say("the drain takes too long; going on")
            self.set_hold(stage=Stage.RESUMING)
            self.set(renew_at=self.now)

    def call_overseer(self) -> None:
        """Whatever is due, one call of each kind at a time."""
        state, child, hold, timing = self.state, self.state.child, self.state.hold, self.timing
        bad_store = not store_ok(child.report)
        unleased = hold is not None and hold.unleased
        if state.release is not None and not self.asking(kv.Release) and self.now >= state.release_at:
            self.ask(state.release)
        if hold is not None and state.release is None and self.beats():
            if not self.asking(kv.Renew) and self.now >= state.renew_at:
                self.set(renew_at=self.now + timing.renew)
                self.ask(kv.Renew(child.incarnation, hold.epoch, child.report))
            if hold.active_seq is not None and not self.asking(kv.Activate) and self.now >= state.activate_at:
                self.ask(kv.Activate(child.incarnation, hold.epoch, hold.active_seq))
        if child.phase is not Phase.ALIVE or child.kill_at is not None or state.stopping_since is not None:
            return
        if self.may_register() and not self.asking(kv.Register):
            self.set(register_at=float("inf"), ungranted_at=max(state.ungranted_at, self.now))
            self.ask(kv.Register(child.incarnation, state.replaces, child.report, not bad_store, unleased))
        if not state.registered:
            return
        if not self.asking(kv.WaitLease) and self.now >= state.watch_at:
            self.ask(kv.WaitLease(state.version, max(5.0, timing.lease)))
        # A renewal is a beat too, but it does not speak of the store.
        due = self.beats() and self.now >= state.beat_at and not self.asking(kv.Beat)
        if due and (hold is None or bad_store or unleased or state.told_bad_store):
            self.set(beat_at=self.now + timing.renew, told_bad_store=bad_store or unleased)
            self.ask(kv.Beat(child.incarnation, child.report, not bad_store, unleased))

    def may_register(self) -> bool:
        """A ready child is announced at once; one that is not ready a little later, so that its reason is seen."""
        child = self.state.child
        if not self.beats() or self.now < self.state.register_at:
            return False
        if self.state.registered:  # once more, after a refusal: when its cause may be cured
            return self.state.hold is None and self.state.release is None and store_ok(child.report)
        return child.report.ready or self.now - child.since >= self.settings.unready_limit

    def quit(self, error: str | None, code: str = "ALREADY_RUNNING") -> None:
        """End: the child, if there still is one, goes first."""
        if self.state.child.phase is Phase.ALIVE:
            self.kill(error or "shutdown", counts=False)
        self.set(done=True)
        self.actions.append(kv.Quit(error, code))

    def say_status(self) -> None:
        text = _status(self.state)
        if text and text != self.state.said:
            self.set(said=text)
            self.say(text)


def _status(state: State) -> str | None:
    """What this server is, in an operator's words; None while it changes."""
    report = state.child.report
    if state.done or state.stopping_since is not None or state.child.phase is not Phase.ALIVE:
        return None
    if state.hold is not None:
        return _holder_status(state.hold)
    if state.refused_since is not None:
        return "waiting: the overseer still sees another run of this server"
    if not report.ready:
        return f"not ready: {report.reason}" if report.reason else None
    return "standby" if state.registered and state.child.kill_at is None else None


def _holder_status(hold: Hold) -> str:
    if hold.stage is Stage.PROMOTING:
        return f"promoting, epoch {hold.epoch} ({hold.cause})"
    if hold.stage is not Stage.ACTIVE:
        return f"handing over, epoch {hold.epoch}"
    alarm = ", DEGRADED: no failover" if hold.unleased else ""
    return f"primary, epoch {hold.epoch} ({hold.cause}){alarm}"
