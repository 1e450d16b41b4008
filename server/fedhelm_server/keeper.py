"""The lease keeper and watchdog of a server as a pure state machine: (state, event, now) -> (state, actions).

The rules are those of docs/ha.md, sections 1, 3 and 4. In short: the lease counts from *before* a renewal is sent; only
a child that beats has its lease renewed; the lease of a child is given back only after that child was reaped; a holder
that is told "not yours" demotes at once; one that nobody answers goes on, and says so.

`step` is called for every event and often enough with `Tick`. It does no I/O and knows no clock. Here is what the child
and time bring; what the overseers answer is heard in `keeper_answers`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from fedhelm_server import keeper_values as kv
from fedhelm_server.keeper_answers import Answers
from fedhelm_server.keeper_status import status
from fedhelm_server.keeper_step import store_ok
from fedhelm_server.keeper_values import Action, Event, Phase, Settings, Stage, State
from fedhelm_server.role import Role

__all__ = ["step"]

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
        work.mind_store()
        work.inform_child()
        work.mind_shutdown()
        work.call_overseer()
        work.say_status()
    return work.state, tuple(work.actions)


class _Step(Answers):
    """One step: the child, the clock, and what is due."""

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
            case kv.BreakGlass(cause):
                self.on_break_glass(cause)
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
        event: kv.ChildBeat
        | kv.ChildActive
        | kv.ChildDrained
        | kv.ChildFenced
        | kv.ChildRefused
        | kv.ChildFailed
        | kv.ChildWantsRestart
        | kv.ChildHungUp,
    ) -> None:
        hold = self.state.hold
        match event:
            case kv.ChildBeat(_, report):
                self.on_beat(report)
            case kv.ChildActive(_, epoch, log_seq, jobs):
                if hold is not None and hold.epoch == epoch and hold.stage is Stage.PROMOTING:
                    self.set_hold(stage=Stage.ACTIVE, active_seq=log_seq, jobs=jobs)
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
            case _:
                self.on_child_going(event)

    def on_child_going(self, event: kv.ChildFailed | kv.ChildWantsRestart | kv.ChildHungUp) -> None:
        match event:
            case kv.ChildFailed(_, reason):
                self.set_child(last_words=reason)
            case kv.ChildWantsRestart(_, reason):
                self.say(f"restarting: {reason}")
                self.send("stop")
                self.dismiss(reason, self.settings.stop_grace)
            case kv.ChildHungUp():
                self.set_child(kill_at=min(self.state.child.kill_at or self.now + 1.0, self.now + 1.0))

    def on_beat(self, report: kv.Report) -> None:
        child = self.state.child
        ready_at = (child.ready_at or self.now) if report.ready else None
        # What hangs longer than half a lease counts from its beginning (docs/ha.md, section 4).
        slow = report.append_age > self.settings.beat_limit
        bad_since = child.bad_store_since if not report.store_ok or slow else None
        if bad_since is None and (slow or not report.store_ok):
            bad_since = self.now - report.append_age
        self.set_child(beat_at=self.now, report=report, ready_at=ready_at, bad_store_since=bad_since)
        if report.ready:
            self.set(failure=None)

    def on_exit(self, incarnation: str, how: str) -> None:
        child, hold = self.state.child, self.state.hold
        why = child.why or child.last_words or f"child {how}"
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
            failure=why if child.counts else self.state.failure,
            register_at=self.now,
        )

    def on_break_glass(self, cause: str) -> None:
        """Take the epoch above all that are known, without a lease; the fence in the log decides whether it holds."""
        state, child = self.state, self.state.child
        obstacles = (
            (not state.overseer_lost, "an overseer answers: failover is its business"),
            (state.hold is not None or state.release is not None, "it holds the lease already"),
            (self.settings.stop_when_unleased, "it stops when no overseer answers"),
            (child.phase is not Phase.ALIVE or child.kill_at is not None, "its child does not run"),
            (child.report.role != Role.STANDBY or not child.report.ready, "its child is no standby that is ready"),
            (state.stopping_since is not None, "it is stopping"),
        )
        for obstructs, why in obstacles:
            if obstructs:
                self.say(f"{cause}: refused, {why}")
                return
        epoch = max(child.report.log_epoch, state.lease.epoch, state.epoch_seen) + 1
        hold = kv.Hold(epoch, self.now, cause, since=self.now, unleased=True, unanswered=True)
        self.set(hold=hold, epoch_seen=epoch)
        self.say(f"{cause}: takes epoch {epoch} without a lease")
        self.send("grant", epoch=epoch, deadline=self.now, cause=cause, log_seq=-1)

    def on_stop(self) -> None:
        if self.state.stopping_since is not None:
            self.kill("shutdown", counts=False)
            return
        self.set(stopping_since=self.now)
        self.say("stopping")
        child = self.state.child
        if self.state.registered and self.state.hold is None and child.phase is Phase.ALIVE:
            # Nobody should grant the lease to one that is about to go.
            fine = store_ok(child.report, self.settings)
            report = replace(child.report, ready=False, reason="it stops")
            self.ask(kv.Beat(child.incarnation, report, fine, leaving=True, about=self.settings.about))
        if self.state.child.phase is Phase.ALIVE:
            self.stop_child()

    def stop_child(self) -> None:
        self.send("stop")
        self.set_child(kill_at=self.now + self.settings.stop_grace, why="shutdown", counts=False)

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
        if self.settings.stop_when_unleased and self.now > hold.deadline + self.timing.margin / 2:
            self.say(f"no overseer answers; epoch {hold.epoch} stops, as local/server.json says")
            self.kill("its lease was over, and it stops without one", counts=False)
        elif self.now > hold.deadline and hold.unanswered and not hold.unleased:
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

    def mind_store(self) -> None:
        """A holder that cannot write for 10 s gives way, but only to a server that can."""
        hold, child = self.state.hold, self.state.child
        if hold is None or self.state.release is not None or not self.beats():
            return
        since = hold.since if hold.stage is Stage.PROMOTING else child.bad_store_since
        if since is None or self.now - since < self.settings.readonly_limit:
            if hold.stuck:
                self.set_hold(stuck=False)
            return
        told = f"it could not write to the store for {self.settings.readonly_limit:g} s"
        if hold.stage is Stage.PROMOTING:
            told = f"it did not serve within {self.settings.readonly_limit:g} s of its grant"
        if self.state.lease.standby_store_ok:
            self.kill(told, counts=False)
        elif not hold.stuck:
            self.set_hold(stuck=True)
            self.say(f"{told}; no standby can write either, so epoch {hold.epoch} stays here")

    def inform_child(self) -> None:
        """What the overseers say of the other servers and the child has to act on."""
        child, lease = self.state.child, self.state.lease
        if child.phase is not Phase.ALIVE or child.beat_at is None:
            return
        # What was told before no overseer answered is stale by and by: see `store_tokens`.
        told = {} if self.state.overseer_lost else lease.store_tokens
        others = {name: token for name, token in told.items() if name != self.settings.name}
        primary = lease.holder  # who led last has the right store
        if (others, primary) != (child.told_tokens, child.told_primary) and (others or child.told_tokens):
            self.set_child(told_tokens=others, told_primary=primary)
            self.send("tokens", tokens=others, primary=primary)
        if lease.log_version > child.told_log_version:
            self.set_child(told_log_version=lease.log_version)
            self.send("log_version", version=lease.log_version)

    def mind_shutdown(self) -> None:
        """An admin shut the system down: standbys go at once, the primary when they are gone."""
        state = self.state
        if state.shutdown_since is None or state.stopping_since is not None:
            return
        tokens = state.lease.store_tokens
        alone = set(tokens) == {self.settings.name}
        if state.hold is None or alone or self.now - state.shutdown_since >= self.settings.shutdown_limit:
            self.on_stop()

    def call_overseer(self) -> None:
        """Whatever is due, one call of each kind at a time."""
        state, child, hold, timing = self.state, self.state.child, self.state.hold, self.timing
        bad_store = not store_ok(child.report, self.settings)
        unleased = hold is not None and hold.unleased
        if state.release is not None and not self.asking(kv.Release) and self.now >= state.release_at:
            self.ask(state.release)
        if hold is not None and state.release is None and self.beats():
            if not self.asking(kv.Renew) and self.now >= state.renew_at:
                self.set(renew_at=self.now + timing.renew)
                self.ask(kv.Renew(child.incarnation, hold.epoch, child.report))
            if hold.active_seq is not None and not self.asking(kv.Activate) and self.now >= state.activate_at:
                self.ask(kv.Activate(child.incarnation, hold.epoch, hold.active_seq, hold.jobs))
        if child.phase is not Phase.ALIVE or child.kill_at is not None or state.stopping_since is not None:
            return
        if self.may_register() and not self.asking(kv.Register):
            self.set(register_at=float("inf"), ungranted_at=max(state.ungranted_at, self.now))
            about = self.settings.about
            self.ask(kv.Register(child.incarnation, state.replaces, child.report, not bad_store, unleased, about))
        if not state.registered:
            return
        if not self.asking(kv.WaitLease) and self.now >= state.watch_at:
            self.ask(kv.WaitLease(state.version, max(5.0, timing.lease)))
        # A renewal is a beat too, but it does not speak of the store: a holder does so every T.
        due = self.beats() and self.now >= state.beat_at and not self.asking(kv.Beat)
        seldom = hold is not None and not (bad_store or unleased or state.told_bad_store)
        if due and not (seldom and self.now - state.beat_at < timing.lease - timing.renew):
            self.set(beat_at=self.now + timing.renew, told_bad_store=bad_store or unleased)
            self.ask(kv.Beat(child.incarnation, child.report, not bad_store, unleased, about=self.settings.about))

    def may_register(self) -> bool:
        """A ready child is announced at once; one that is not ready a little later, so that its reason is seen."""
        child = self.state.child
        if not self.beats() or self.now < self.state.register_at:
            return False
        if self.state.registered:  # once more, after a refusal: when its cause may be cured
            cured = store_ok(child.report, self.settings) and child.report.log_seq >= self.state.lease.log_seq
            return self.state.hold is None and self.state.release is None and cured
        return child.report.ready or self.now - child.since >= self.settings.unready_limit

    def say_status(self) -> None:
        text = status(self.state)
        if text and text != self.state.said:
            self.set(said=text)
            self.say(text)
