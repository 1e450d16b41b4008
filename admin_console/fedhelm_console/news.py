"""What a person is told of the overseer's events: one failover is one line, and what mends itself is none. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from fedhelm.admin.models import Event

__all__ = ["Item", "News"]

PATIENCE = 5.0
"""Seconds for which a server may be away, or nobody lead, before that is news: a restart takes less."""

_LEASE = "the lease"


@dataclass(frozen=True)
class Item:
    """One line for people.

    ``time`` is the event's; ``note`` may go to a line of its own; ``moved``: the jobs went along to another primary.
    """

    time: str
    mood: Literal["good", "bad", "plain"]
    text: str
    note: str = ""
    moved: bool = False


@dataclass(frozen=True)
class _Held:
    due: float
    about: str
    item: Item


@dataclass(frozen=True)
class News:
    """What was heard so far, as far as it decides what is worth a line.

    Args:
        up: servers that are known to be up.
        missed: servers whose absence was told, or that lost the lead by dying: their return is news.
        leader: who leads, if known.
        electing: a grant was heard, and not yet that its holder leads.
        held: what is told when it lasts.
        going: the system is being shut down.
    """

    up: frozenset[str] = frozenset()
    missed: frozenset[str] = frozenset()
    leader: str | None = None
    electing: bool = False
    held: tuple[_Held, ...] = ()
    going: bool = False

    @staticmethod
    def since(up: Iterable[str], leader: str | None) -> News:
        """Begin with what is known already."""
        return News(up=frozenset(up), leader=leader)

    @property
    def next_due(self) -> float | None:
        """When :meth:`due` has something to say, if nothing else is heard; boot time in seconds."""
        return min((one.due for one in self.held), default=None)

    def due(self, now: float) -> tuple[News, list[Item]]:
        """Return what has lasted long enough."""
        over = [one for one in self.held if one.due <= now]
        missed = self.missed | {one.about for one in over if one.about != _LEASE}
        after = replace(self, held=tuple(one for one in self.held if one.due > now), missed=missed)
        return after, [one.item for one in over]

    def hear(self, event: Event, now: float) -> tuple[News, list[Item]]:
        """Take an event; return what follows from it at once.

        Args:
            event: the next one of the stream.
            now: boot time, seconds.
        """
        return _RULES.get(event.kind, _as_it_is)(self, event, now)

    def holding(self, about: str, item: Item, now: float) -> News:
        """Return the news with an item that is told unless it is taken back in time."""
        if self.going:
            return self
        return replace(self, held=(*self.without(about).held, _Held(now + PATIENCE, about, item)))

    def without(self, about: str) -> News:
        """Return the news without what is held about something."""
        return replace(self, held=tuple(one for one in self.held if one.about != about))


def _gap(data: Mapping[str, Any]) -> str:
    gap = data.get("gap_s")
    return f"  gap {gap:.1f} s" if isinstance(gap, int | float) else ""


def _as_it_is(news: News, event: Event, _now: float) -> tuple[News, list[Item]]:
    return news, [Item(event.time, "plain", event.text.replace(" -> ", " → "))]


def _grant(news: News, _event: Event, _now: float) -> tuple[News, list[Item]]:
    return replace(news, electing=True), []


def _active(news: News, event: Event, now: float) -> tuple[News, list[Item]]:
    data = event.data
    name, previous = data.get("name"), data.get("previous")
    if name is None:
        return _as_it_is(news, event, now)
    after = replace(news.without(_LEASE), electing=False, leader=name, up=news.up | {name}, going=False)
    if data.get("cause") == "adopted":
        return after, [Item(event.time, "good", event.text)]
    if previous is None:
        return after, [Item(event.time, "good", f"{name} leads, epoch {data['epoch']}")]
    if previous != name:
        return after, []  # the failover says it
    text = f"{name} leads again, epoch {data['epoch']}{_gap(data)}"
    return replace(after, missed=after.missed - {name}), [Item(event.time, "good", text, _cause(data), moved=True)]


def _cause(data: Mapping[str, Any]) -> str:
    cause = str(data.get("cause") or "")
    return "" if cause in ("", "switchover") else f"({cause})"


def _failover(news: News, event: Event, now: float) -> tuple[News, list[Item]]:
    data = event.data
    name, previous = data.get("name"), data.get("previous")
    if name is None or previous is None:
        return _as_it_is(news, event, now)
    planned = data.get("cause") == "switchover"
    text = f"{'switchover' if planned else 'failover'} {previous} → {name}  epoch {data['epoch']}{_gap(data)}"
    missed = news.missed if planned else news.missed | {previous}
    after = replace(news.without(_LEASE), electing=False, leader=name, missed=missed - {name})
    return after, [Item(event.time, "good", text, _cause(data), moved=True)]


def _release(news: News, event: Event, now: float) -> tuple[News, list[Item]]:
    data = event.data
    if data.get("refused"):
        return news, [Item(event.time, "bad", event.text)]
    text = f"nobody leads since {data['name']} gave up epoch {data['epoch']}" if "name" in data else event.text
    return news.holding(_LEASE, Item(event.time, "bad", text, _cause(data)), now), []


def _promote(news: News, event: Event, _now: float) -> tuple[News, list[Item]]:
    mood: Literal["plain", "bad"] = "plain" if "admin" in event.data else "bad"
    return news, [Item(event.time, mood, event.text.replace(" -> ", " → "))]


def _member_down(news: News, event: Event, now: float) -> tuple[News, list[Item]]:
    name = event.data.get("name")
    if name is None:
        return _as_it_is(news, event, now)
    return replace(news, up=news.up - {name}).holding(name, Item(event.time, "bad", f"{name} is down"), now), []


def _member_up(news: News, event: Event, now: float) -> tuple[News, list[Item]]:
    name = event.data.get("name")
    if name is None:
        return _as_it_is(news, event, now)
    brief = any(one.about == name for one in news.held)
    after = replace(news.without(name), up=news.up | {name}, missed=news.missed - {name})
    standby = ", standby" if news.leader is not None and news.leader != name else ""
    if name in news.missed:
        return after, [Item(event.time, "good", f"{name} is back{standby}")]
    first = news.electing and news.leader is None
    if brief or first or name in news.up:
        return after, []
    return after, [Item(event.time, "good", f"{name} is up{standby}")]


def _alarm(news: News, event: Event, _now: float) -> tuple[News, list[Item]]:
    # That nobody leads is told once, with the reason.
    return news.without(_LEASE), [Item(event.time, "bad", event.text)]


def _removed(news: News, event: Event, now: float) -> tuple[News, list[Item]]:
    name = str(event.data.get("name", ""))
    return _as_it_is(replace(news.without(name), missed=news.missed - {name}), event, now)


def _better(news: News, event: Event, _now: float) -> tuple[News, list[Item]]:
    return news, [Item(event.time, "good", event.text)]


def _shutdown(news: News, event: Event, _now: float) -> tuple[News, list[Item]]:
    # Everything goes now, as it was told to: that is no news.
    return replace(news, up=frozenset(), held=(), going=True), [Item(event.time, "bad", event.text)]


_RULES: Mapping[str, Callable[[News, Event, float], tuple[News, list[Item]]]] = {
    "grant": _grant,
    "active": _active,
    "failover": _failover,
    "release": _release,
    "promote": _promote,
    "member_down": _member_down,
    "member_up": _member_up,
    "member_added": _better,
    "member_removed": _removed,
    "resume": _better,
    "alarm": _alarm,
    "shutdown": _shutdown,
}
