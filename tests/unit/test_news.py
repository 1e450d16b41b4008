"""What is told of the overseer's events: one failover one line, what mends itself none."""

import pytest

from fedhelm.admin.models import Event
from fedhelm_console.news import PATIENCE, News
from tests.fakes.admin_session import failover

T = "2026-11-22T12:03:41Z"


def event(kind, text="", **data):
    return Event(1, kind, T, text, data)


def up(name):
    return event("member_up", f"{name} is up", name=name)


def down(name):
    return event("member_down", f"{name} is down", name=name)


class Listener:
    """Hears events at given moments, and what is due in between."""

    def __init__(self, news=None):
        self.news = news or News()
        self.now = 100.0

    def hear(self, *events):
        told = []
        for one in events:
            self.news, items = self.news.hear(one, self.now)
            told += items
        return [self.text(item) for item in told]

    def wait(self, seconds):
        self.now += seconds
        self.news, items = self.news.due(self.now)
        return [self.text(item) for item in items]

    @staticmethod
    def text(item):
        return f"{item.text} {item.note}".strip()


@pytest.fixture
def led():
    return Listener(News.since(("server1", "server2"), "server1"))


def test_the_first_start_is_one_line():
    listener = Listener()
    facts = {"epoch": 1, "name": "server1", "previous": None, "cause": "first grant"}
    told = listener.hear(event("grant", **facts), up("server1"), up("server2"), event("active", **facts, gap_s=None))
    assert told == ["server1 leads, epoch 1"]
    assert listener.wait(60) == []


def test_a_failover_is_one_line_and_the_return_of_the_old_primary_another(led):
    assert led.hear(*failover()) == ["failover server1 → server2  epoch 4  gap 0.3 s (child exited with signal 9)"]
    assert led.wait(2.4) == []
    assert led.hear(up("server1")) == ["server1 is back, standby"]
    assert led.wait(60) == []


def test_an_old_primary_that_stays_away_is_told_once_and_welcomed_once(led):
    led.hear(*failover())
    assert led.news.next_due == pytest.approx(100 + PATIENCE)
    assert led.wait(PATIENCE) == ["server1 is down"]
    assert led.wait(60) == []
    assert led.hear(up("server1")) == ["server1 is back, standby"]
    assert led.hear(up("server1")) == []


def test_a_standby_that_restarts_is_no_news_and_one_that_stays_away_is(led):
    assert led.hear(down("server2")) == []
    assert led.wait(2) == []
    assert led.hear(up("server2")) == []
    assert led.news.next_due is None
    led.hear(down("server2"))
    assert led.wait(PATIENCE) == ["server2 is down"]
    assert led.hear(up("server2")) == ["server2 is back, standby"]


def test_an_overseer_that_restarts_sees_everybody_for_the_first_time_and_tells_nobody(led):
    assert led.hear(up("server1"), up("server2")) == []
    assert led.hear(up("server3")) == ["server3 is up, standby"]


def test_a_lone_server_that_dies_leads_again(led):
    facts = {"epoch": 2, "name": "server1", "previous": "server1", "cause": "child exited with signal 9"}
    assert (
        led.hear(
            event("release", "x", epoch=1, name="server1", cause="child exited with signal 9", refused=False),
            down("server1"),
        )
        == []
    )
    led.wait(2)
    told = led.hear(up("server1"), event("grant", **facts), event("active", **facts, gap_s=2.31))
    assert told == ["server1 leads again, epoch 2  gap 2.3 s (child exited with signal 9)"]
    assert led.wait(60) == []


def test_nobody_leads_is_told_when_it_lasts(led):
    led.hear(event("release", "x", epoch=1, name="server1", cause="store is full", refused=False))
    assert led.wait(PATIENCE - 1) == []
    assert led.wait(1) == ["nobody leads since server1 gave up epoch 1 (store is full)"]
    facts = {"epoch": 2, "name": "server2", "previous": "server1", "cause": "store is full", "gap_s": 9.0}
    assert led.hear(event("failover", **facts)) == ["failover server1 → server2  epoch 2  gap 9.0 s (store is full)"]


def test_a_planned_switchover_is_who_asked_and_that_it_was_done(led):
    facts = {"epoch": 2, "name": "server2", "previous": "server1", "cause": "switchover"}
    told = led.hear(
        event("promote", "lead asked for a switchover server1 -> server2", admin="lead", target="server2"),
        event("release", "x", epoch=1, name="server1", cause="handoff", refused=False),
        event("grant", **facts),
        event("active", **facts, gap_s=0.12),
        event("failover", **facts, gap_s=0.12),
    )
    assert told == [
        "lead asked for a switchover server1 → server2",
        "switchover server1 → server2  epoch 2  gap 0.1 s",
    ]
    assert led.hear(down("server1"), up("server1")) == [], "it did not die: its restart is no return"


def test_a_refusal_and_an_adoption_are_told_at_once(led):
    refused = event("release", "server2 refused epoch 2: its log is shorter", name="server2", refused=True)
    assert led.hear(refused) == ["server2 refused epoch 2: its log is shorter"]
    adopted = event("active", "server1 leads, epoch 3: adopted", name="server1", epoch=3, cause="adopted")
    assert led.hear(adopted) == ["server1 leads, epoch 3: adopted"]


@pytest.mark.parametrize("kind", ["active", "failover", "member_up", "member_down", "promote", "from_the_future"])
def test_events_without_facts_are_told_as_they_are(led, kind):
    assert led.hear(event(kind, "a -> b")) == ["a → b"]


def test_only_a_move_of_the_primary_makes_the_console_count_jobs(led):
    moved = [item.moved for one in (*failover(), up("server1")) for item in led.news.hear(one, 0.0)[1]]
    assert moved == [True]


@pytest.mark.parametrize(
    ("kind", "mood"),
    [("pause", "plain"), ("resume", "good"), ("alarm", "bad"), ("member_added", "good"), ("member_removed", "plain")],
)
def test_what_operators_do_is_one_line(kind, mood):
    _, items = News().hear(event(kind, "what happened"), 0.0)
    assert [(item.mood, item.text) for item in items] == [(mood, "what happened")]


def test_after_a_shutdown_nobodys_going_is_news():
    listener = Listener(News.since(["server1", "server2"], "server1"))
    assert listener.hear(event("shutdown", "admin shuts down")) == ["admin shuts down"]
    assert listener.hear(down("server2"), event("release", "x", name="server1", epoch=1), down("server1")) == []
    assert listener.wait(2 * PATIENCE) == []


def test_that_a_removed_server_is_down_is_no_news_any_more(led):
    assert led.hear(down("server2"), event("member_removed", "server2 was removed", name="server2")) == [
        "server2 was removed"
    ]
    assert led.wait(2 * PATIENCE) == []
