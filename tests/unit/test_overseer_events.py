"""Events of several overseers: the same thing is told once."""

import pytest

from fedhelm.wire.overseer_api import Event
from fedhelm.wire.overseer_events import Heard


def event(moment, kind="failover", **data):
    return Event(id=1, time=f"2026-11-22T12:{moment}Z", kind=kind, text="", data=data)


@pytest.mark.parametrize(
    ("other", "known"),
    [
        (event("00:10.900", epoch=4, name="server2"), True),
        (event("00:10.900", epoch=5, name="server1"), False),
        (event("00:10.900", kind="active", epoch=4, name="server2"), False),
        (event("00:09.000", epoch=9), True),
        (event("00:16.000", epoch=4, name="server2"), False),
    ],
)
def test_the_same_thing_a_moment_apart(other, known):
    heard = Heard("2026-11-22T12:00:00.000Z")
    assert not heard.knows(event("00:10.000", epoch=4, name="server2"))
    heard.note(event("00:10.000", epoch=4, name="server2"))
    assert heard.knows(other) is known


def test_what_happened_before_one_listened_is_no_news():
    heard = Heard("2026-11-22T12:05:00.000Z")
    assert heard.knows(event("04:59.999"))
    assert not heard.knows(event("05:00.001"))


def test_a_stamp_that_does_not_read_is_compared_as_text():
    heard = Heard("")
    heard.note(Event(id=1, time="t", kind="grant", text=""))
    assert heard.knows(Event(id=2, time="t", kind="grant", text=""))
    assert not heard.knows(Event(id=2, time="u", kind="grant", text=""))
