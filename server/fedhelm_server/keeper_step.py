"""What every rule of the keeper uses: the state of one step, the actions collected, and small verbs."""

from __future__ import annotations

from typing import Any, TypeVar

from fedhelm_server import keeper_values as kv
from fedhelm_server.keeper_values import Action, Phase, Settings, State

__all__ = ["Step", "store_ok"]

_Value = TypeVar("_Value", State, kv.Child, kv.Hold)


def _changed(value: _Value, changes: dict[str, Any]) -> _Value:
    """What `dataclasses.replace` does, at a tenth of its price: these have forty fields and change all the time."""
    if not changes.keys() <= value.__dict__.keys():
        raise TypeError(f"{type(value).__name__} has no {', '.join(changes.keys() - value.__dict__.keys())}")
    new = object.__new__(type(value))
    new.__dict__.update(value.__dict__)
    new.__dict__.update(changes)
    return new


def store_ok(report: kv.Report, settings: Settings) -> bool:
    """Return whether the child can write: it says so, and no append hangs."""
    return report.store_ok and report.append_age <= settings.readonly_limit


class Step:
    """One step: the state so far and the actions collected."""

    def __init__(self, settings: Settings, state: State, now: float) -> None:
        self.settings = settings
        self.timing = settings.timing
        self.state = state
        self.now = now
        self.actions: list[Action] = []

    def set(self, **changes: Any) -> None:
        """Change the state."""
        self.state = _changed(self.state, changes)

    def set_child(self, **changes: Any) -> None:
        """Change what is known of the child."""
        self.set(child=_changed(self.state.child, changes))

    def set_hold(self, **changes: Any) -> None:
        """Change what is known of the lease held."""
        assert self.state.hold is not None
        self.set(hold=_changed(self.state.hold, changes))

    def send(self, type: str, **fields: Any) -> None:  # noqa: A002 - the wire's own word
        """Send the child one frame."""
        self.actions.append(kv.SendToChild(type, fields))

    def say(self, text: str) -> None:
        """Tell the operator."""
        self.actions.append(kv.Say(f"{self.settings.name}: {text}"))

    def ask(self, call: kv.OverseerCall) -> None:
        """Call the overseers."""
        self.set(in_flight=self.state.in_flight | {type(call).__name__})
        self.actions.append(call)

    def asking(self, kind: type[kv.OverseerCall]) -> bool:
        """Tell whether such a call is on its way."""
        return kind.__name__ in self.state.in_flight

    def is_current(self, incarnation: str) -> bool:
        """Tell whether this incarnation is the child's, and not reaped."""
        return self.state.child.phase in {Phase.ALIVE, Phase.KILLED} and self.state.child.incarnation == incarnation

    def kill(self, why: str, *, counts: bool) -> None:
        """End the child now; with ``counts``, as its own failure."""
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

    def give_back(self, reason: str, *, refused: bool = False, handoff: bool = False) -> None:
        """Release the lease, until an overseer has taken note."""
        hold = self.state.hold
        assert hold is not None
        pending = kv.Release(self.state.child.incarnation, hold.epoch, reason, refused, handoff)
        self.set(release=pending, release_at=self.now)

    def quit(self, error: str | None, code: str = "ALREADY_RUNNING") -> None:
        """End: the child, if there still is one, goes first."""
        if self.state.child.phase is Phase.ALIVE:
            self.kill(error or "shutdown", counts=False)
        self.set(done=True)
        self.actions.append(kv.Quit(error, code))
