"""A keeper driven by hand, so that its rules read as scripts: on A expect B."""

from __future__ import annotations

import math
from dataclasses import replace

from fedhelm.config.timing import PROFILES
from fedhelm_server import keeper
from fedhelm_server import keeper_values as kv

TICK = 1 / 32  # exact in binary, so that sums are too
T = PROFILES["default"]  # lease 3, renew 0.5, request 0.5, margin 0.5


class Script:
    def __init__(self, name="server1"):
        self.settings = kv.Settings(name, T)
        self.state = kv.State()
        self.now = 1000.0
        self.actions = []
        self.said = []
        self.children = 0
        self.beating = True

    # --- on A

    def on(self, event):
        """Feed one event; return its actions but for what is said."""
        self.state, actions = keeper.step(self.settings, self.state, event, self.now)
        self.said += [action.text for action in actions if isinstance(action, kv.Say)]
        self.actions = [action for action in actions if not isinstance(action, kv.Say)]
        return self.actions

    def after(self, seconds, beats=True):
        """Let time pass in ticks; the child beats meanwhile, or not. Return all actions of that time."""
        seen = []
        for _ in range(math.ceil(seconds / TICK - 1e-9)):
            self.now += TICK
            if beats and self.state.child.phase is kv.Phase.ALIVE and self.state.child.beat_at is not None:
                seen += self.on(kv.ChildBeat(self.incarnation, self.state.child.report))
            seen += self.on(kv.Tick())
        self.actions = seen
        return seen

    def beat(self, **report):
        return self.on(kv.ChildBeat(self.incarnation, replace(self.state.child.report, **report)))

    def answer(self, kind, lease=None, ok=True, **fields):
        """The overseer answers the call of this kind that is in flight."""
        call, sent_at = self.calls[kind]
        return self.on(kv.Answered(call, sent_at, lease or self.state.lease, ok, **fields))

    def fail(self, kind, message="time-out", denied=False):
        return self.on(kv.Failed(self.calls[kind][0], message, denied))

    # --- expect B

    def take(self, kind):
        """Return the only action of this kind among those of the last step, and remember the call."""
        found = [action for action in self.actions if isinstance(action, kind)]
        assert len(found) == 1, f"{kind.__name__} expected once, got {self.actions}"
        return found[0]

    def none_of(self, *kinds):
        assert not [action for action in self.actions if isinstance(action, kinds)], self.actions

    def frames(self):
        return [(action.type, dict(action.fields)) for action in self.actions if isinstance(action, kv.SendToChild)]

    @property
    def incarnation(self):
        return self.state.child.incarnation

    @property
    def hold(self):
        return self.state.hold


class Driven(Script):
    """Also notes every call with the time it was sent."""

    def __init__(self, name="server1"):
        self.calls = {}
        super().__init__(name)

    def on(self, event):
        actions = super().on(event)
        for action in actions:
            if isinstance(action, kv.OverseerCall):
                self.calls[type(action)] = (action, self.now)
        return actions

    # --- shortcuts to a situation

    def start_child(self):
        self.children += 1
        return self.on(kv.ChildStarted(f"c{self.children}"))

    def standby(self, lease=None):
        """A registered standby; the long poll is out."""
        if self.state.child.phase is not kv.Phase.STARTING:
            self.on(kv.Tick())
            self.take(kv.StartChild)
        self.start_child()
        self.beat(ready=True)
        self.take(kv.Register)
        self.answer(kv.Register, lease or kv.Lease(version=1))
        asked = self.actions
        if kv.Beat in self.calls:
            self.answer(kv.Beat)
        self.actions = asked
        return asked

    def granted(self, epoch=3, cause="server2 died"):
        row = self.row("granted", epoch, cause=cause)
        return self.answer(kv.WaitLease, row)

    def row(self, state, epoch, **fields):
        values = {"holder": "server1", "incarnation": self.incarnation, "log_seq": 41, **fields}
        return kv.Lease(version=self.state.version + 1, epoch=epoch, state=state, **values)

    def active(self, epoch=3):
        """The primary, all calls answered."""
        self.standby()
        self.granted(epoch)
        self.answer(kv.Renew)
        self.beat(role="PROMOTING")
        self.on(kv.ChildActive(self.incarnation, epoch, 42))
        self.answer(kv.Activate, self.row("active", epoch))
        self.beat(role="ACTIVE")
        return self
