"""What the keeper makes of the overseers' answers: registration, renewals, grants, releases, planned switchovers."""

from __future__ import annotations

from typing import Final

from fedhelm_server import keeper_values as kv
from fedhelm_server.keeper_step import Step
from fedhelm_server.keeper_values import Hold, Lease, Phase, Stage

__all__ = ["Answers"]

_REJOIN_MAX: Final = 5.0


class Answers(Step):
    """The half of a step that hears the overseers."""

    def on_reply(self, event: kv.Answered | kv.Failed) -> None:
        """Hear what came of a call."""
        if isinstance(event, kv.Failed):
            self.on_failure(event)
            return
        if self.state.overseer_lost:
            self.set(overseer_lost=False)
            self.say("the overseer answers again")
        self.on_answer(event)

    def on_answer(self, event: kv.Answered) -> None:
        """Hear an overseer's answer."""
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
        """Hear whether this incarnation was accepted."""
        if not self.is_current(call.incarnation):
            # It died meanwhile; what the overseer now knows is the dead one.
            self.set(replaces=call.incarnation if event.ok else self.state.replaces)
        elif event.ok:
            self.set(registered=True, refused_since=None, replaces=None, register_at=float("inf"), beat_at=self.now)
            if not self.state.joined:
                self.set(joined=True, shutdown_before=event.lease.shutdown)
        else:
            since = self.state.refused_since if self.state.refused_since is not None else self.now
            if event.retry_after is None or self.now - since >= 2 * self.timing.lease:
                message = event.message or "the overseer does not accept this server"
                self.quit(message, "WRONG_STORE" if event.retry_after is None else "ALREADY_RUNNING")
            self.set(refused_since=since, register_at=self.now + min(event.retry_after or 0.0, self.timing.renew))

    def on_renewed(self, event: kv.Answered, call: kv.Renew) -> None:
        """Hear whether the lease is still this server's."""
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
        """Hear that the lease was given back."""
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
        """Hear that nobody answered, or that the call was denied."""
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
        """Hear that a release was not confirmed."""
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
        self.follow_shutdown(lease)
        if state.release is not None and lease.epoch > state.release.epoch:
            self.set(release=None)
        mine = lease.holder == self.settings.name and lease.incarnation == child.incarnation
        if not (mine and lease.state == "granted" and hold is None):
            self.set(doubted_since=None)
        if mine and lease.state == "granted" and self.is_new_grant(lease):
            if hold is None and child.phase is Phase.ALIVE and child.kill_at is None:
                self.on_grant(lease)
        elif self.state.doubted_since is None:
            self.set(ungranted_at=max(self.state.ungranted_at, sent_at - self.settings.view_age))
        if lease.incarnation == state.dead and self.state.release is None:
            self.release_for_the_dead(state.dead, "child is gone")
        if hold is None or lease.epoch < hold.epoch:
            return
        if lease.epoch > hold.epoch or lease.state == "released" or not mine:
            self.set(renew_at=min(self.state.renew_at, self.now))  # the renewal decides, not a hint
        elif lease.version >= state.lease.version:  # not the older row that another overseer still shows
            self.follow_intent(lease, hold)

    def is_new_grant(self, lease: Lease) -> bool:
        """Tell a new grant from the late view of one that came to nothing.

        Numbers come again when the lease store has lost its memory: a number that was seen before is a new grant when
        it is shown for longer than any old view can be, and nothing else is.
        """
        if lease.epoch > self.state.epoch_seen:
            return True
        if self.state.hold is not None or self.state.release is not None:
            return False
        since = self.state.doubted_since if self.state.doubted_since is not None else self.now
        self.set(doubted_since=since)
        return self.now - since > self.settings.view_age + self.timing.request

    def release_for_the_dead(self, incarnation: str | None, reason: str) -> None:
        """A row that names a reaped child: nobody has to wait for the term to end."""
        lease = self.state.lease
        named = lease.holder == self.settings.name and lease.incarnation == incarnation
        if named and incarnation is not None and lease.state in {"granted", "active"}:
            self.set(release=kv.Release(incarnation, lease.epoch, reason), release_at=self.now)

    def on_grant(self, lease: Lease) -> None:
        """Pass the lease on to the child."""
        # The grant was made after the last answer that did not show it was asked for.
        deadline = self.state.ungranted_at + self.timing.holder_lease
        cause = lease.cause or "granted"
        self.set(
            hold=Hold(lease.epoch, deadline, cause, since=self.now),
            epoch_seen=lease.epoch,
            release=None,
            renew_at=self.now,
        )
        self.send("grant", epoch=lease.epoch, deadline=deadline, cause=cause, log_seq=lease.log_seq)

    def follow_intent(self, lease: Lease, hold: Hold) -> None:
        """Drain for a planned switchover, or go on when it was called off."""
        intent = lease.intent
        if intent is not None and intent.target != self.settings.name:
            if hold.stage is Stage.ACTIVE and not hold.unleased and intent.request_id != hold.drained_for:
                asked = {"drained_for": intent.request_id, "drain_version": lease.version}
                self.set_hold(stage=Stage.DRAINING, drain_since=self.now, **asked)
                self.send("drain", to=intent.target, request_id=intent.request_id)
            return
        # With an older row it was not called off, but not asked for yet.
        called_off = intent is None and lease.version > hold.drain_version
        if called_off and hold.stage is Stage.DRAINING and self.state.release is None:
            self.set_hold(stage=Stage.RESUMING)
            self.set(renew_at=self.now)

    def follow_shutdown(self, lease: Lease) -> None:
        """A shutdown that was asked for after this supervisor registered first is meant for it."""
        state = self.state
        new = lease.shutdown is not None and lease.shutdown != state.shutdown_before
        if new and state.joined and state.shutdown_since is None:
            self.set(shutdown_since=self.now)
            self.say(f"the system is shut down by an admin (request {lease.shutdown})")
