"""An operator makes a standby lead while no overseer is left."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedhelm_server import keeper_values as kv
from fedhelm_server.break_glass import Request, leave, take, withdraw
from tests.fakes.server_script import Driven

CAUSE = "break-glass by root: both machines burnt"


@pytest.fixture
def script():
    return Driven()


def lost(script):
    """A standby that no overseer answers."""
    script.standby()
    script.beat(log_epoch=4, log_seq=99)
    script.fail(kv.WaitLease)
    return script


def test_it_takes_the_epoch_above_all_that_are_known_without_a_lease(script):
    lost(script).on(kv.BreakGlass(CAUSE))
    assert script.frames() == [
        ("grant", {"epoch": 5, "deadline": script.now, "cause": CAUSE, "log_seq": -1}),
    ]
    assert script.hold.unleased
    script.on(kv.ChildActive(script.incarnation, 5, 100))
    script.beat(role="UNLEASED")
    script.after(30)
    script.none_of(kv.KillChild, kv.Release)
    assert any("DEGRADED" in text for text in script.said)


def test_an_overseer_that_returns_with_an_older_row_is_asked_to_adopt_and_the_child_lives_on(script):
    lost(script).on(kv.BreakGlass(CAUSE))
    script.on(kv.ChildActive(script.incarnation, 5, 100))
    script.after(1)
    script.answer(kv.Renew, kv.Lease(version=7, epoch=4, holder="server2", incarnation="x", state="active"), ok=False)
    script.none_of(kv.KillChild)
    script.after(1)
    call = script.calls[kv.Register][0]
    assert call.incarnation == script.incarnation
    script.answer(kv.Register, script.row("active", 5))
    script.after(1)
    script.answer(kv.Renew, script.row("active", 5))
    assert not script.hold.unleased


def spoilt(script, how):
    if how == "an overseer answers":
        return script.standby()
    lost(script)
    if how == "it stops when no overseer answers":
        script.settings = replace(script.settings, stop_when_unleased=True)
    elif how == "no standby that is ready":
        script.beat(ready=False)
    elif how == "it is stopping":
        script.on(kv.StopRequested())
    return script


@pytest.mark.parametrize(
    "how",
    ["an overseer answers", "it stops when no overseer answers", "no standby that is ready", "it is stopping"],
)
def test_it_is_refused_where_it_would_be_wrong_or_in_vain(script, how):
    spoilt(script, how)
    script.on(kv.BreakGlass(CAUSE))
    assert ("grant" in dict(script.frames())) is False
    assert script.hold is None
    assert "refused" in script.said[-1]


def test_who_leads_already_is_left_alone(script):
    script.active()
    script.fail(kv.WaitLease)
    before = script.hold
    script.on(kv.BreakGlass(CAUSE))
    assert script.hold == before


def test_a_request_is_taken_once(tmp_path):
    assert take(tmp_path) is None
    leave(tmp_path, Request("root", "both machines burnt"))
    assert take(tmp_path).cause == CAUSE
    assert take(tmp_path) is None
    assert not withdraw(tmp_path)


def test_a_request_that_cannot_be_read_is_none_and_does_not_come_again(tmp_path):
    (tmp_path / "break-glass.json").write_text('["not", "an", "object"]')
    assert take(tmp_path) is None
    assert list(tmp_path.iterdir()) == []
