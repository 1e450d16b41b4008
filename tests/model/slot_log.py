"""The protocol of the log, small enough to try every behaviour of it. No assumption about time is made.

* Anybody may be granted any epoch at any moment, also one that somebody else was granted, or a lower one.
* A server decides with what it has read, which may be old; then, any time later, asks the store to create the slot.
  Between decision and creation everything else may happen (a paused process).
* The store may not answer. The request then may be carried out at once, much later, or never, also after its sender
  gave up, decided something else, or died.
* A server may die and come back as another incarnation.

The servers record contributions (each id at most once, acknowledged once recorded) and close the round with exactly
the set recorded before. `Rules` switches single rules off: each such mutant must break one of the invariants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

STANDBY, PROMOTING, ACTIVE, FENCED, WRONGLY_REFUSED = "standby", "promoting", "active", "fenced", "wrongly refused"
FENCE, PUT, CLOSE = "fence", "put", "close"


@dataclass(frozen=True)
class Rules:
    """The rules of the protocol, each of which can be broken."""

    exclusive_create: bool = True  # else a taken slot is overwritten
    fence: bool = True  # else a granted server serves without a record that says so
    epoch_check: bool = True  # else a server never looks whether somebody fenced it
    equal_epoch_fences: bool = True  # else only a higher epoch does
    incarnation_counts: bool = True  # else a server takes the fence of its own other life for its own
    decide_again: bool = True  # else who loses a slot tries the same record at the next
    know_own_record: bool = True  # else a record of one's own whose answer was lost looks like somebody else's
    answer_before_ack: bool = True  # else a contribution is acknowledged when the request was sent


@dataclass(frozen=True)
class Scope:
    """How much is tried."""

    names: tuple[str, ...] = ("server1", "server2")
    epochs: int = 2
    lives: int = 1
    contributions: str = "ab"
    silences: int = 2  # requests that get no answer
    longest_log: int = 7


class Author(NamedTuple):
    """One life of one server process."""

    place: int
    name: str
    life: int


class Entry(NamedTuple):
    """A record. Two tries of one decision are equal: they share the nonce."""

    epoch: int
    author: Author
    kind: str
    content: frozenset[str] = frozenset()


class Request(NamedTuple):
    """A create that was decided, or is under way."""

    slot: int
    entry: Entry


class Server(NamedTuple):
    author: Author
    role: str = STANDBY
    epoch: int = 0
    read: int = 0  # slots read so far: what it knows is the log up to here
    request: Request | None = None
    unanswered: bool = False  # the request was sent, and no answer came


class World(NamedTuple):
    log: tuple[Entry, ...]
    servers: tuple[Server, ...]
    under_way: frozenset[Request]  # requests without an answer that may still be carried out
    acknowledged: frozenset[str]
    opened: int = 0  # the highest epoch that was open for service
    silences: int = 0  # requests that got no answer so far
    overtaken: bool = False  # a record of a lower epoch was written after that


def recorded(log: tuple[Entry, ...]) -> frozenset[str]:
    return frozenset().union(*(entry.content for entry in log if entry.kind == PUT))


def closed(log: tuple[Entry, ...]) -> bool:
    return any(entry.kind == CLOSE for entry in log)


def highest_epoch(log: tuple[Entry, ...]) -> int:
    return max((entry.epoch for entry in log), default=0)


class SlotLog:
    """The steps of the protocol under some rules."""

    def __init__(self, rules: Rules, scope: Scope) -> None:
        self.rules = rules
        self.scope = scope

    def initial(self) -> World:
        servers = tuple(Server(Author(place, name, 0)) for place, name in enumerate(self.scope.names))
        return World((), servers, frozenset(), frozenset())

    # ---- what may happen

    def steps(self, world: World) -> Iterator[tuple[str, World]]:
        for request in world.under_way:
            yield f"{request.entry.kind} of {_who(request.entry.author)} arrives late", self._carry_out(world, request)
        for place, server in enumerate(world.servers):
            for label, following in self._server_steps(world, place, server):
                yield f"{_who(server.author)}: {label}", following

    def _server_steps(self, world: World, place: int, server: Server) -> Iterator[tuple[str, World]]:
        if server.role == STANDBY:
            for epoch in range(1, self.scope.epochs + 1):
                yield f"is granted epoch {epoch}", _with(world, place, server._replace(role=PROMOTING, epoch=epoch))
        if server.role != STANDBY and server.author.life + 1 < self.scope.lives:
            reborn = Server(server.author._replace(life=server.author.life + 1))
            yield "dies, comes back", _with(world, place, reborn)
        if server.role not in {PROMOTING, ACTIVE}:
            return
        if server.request is not None:
            yield from self._create(world, place, server, server.request)
            return
        if server.read < len(world.log):
            yield "reads on", _with(world, place, server._replace(read=len(world.log)))
        yield from self._decide(world, place, server)

    def _decide(self, world: World, place: int, server: Server) -> Iterator[tuple[str, World]]:
        known = world.log[: server.read]
        if server.role == PROMOTING:
            yield self._promote(world, place, server, known)
            return
        if self.rules.epoch_check and self._is_fenced(server, known):
            yield "sees that it is fenced", _with(world, place, server._replace(role=FENCED))
            return
        for item in self.scope.contributions:
            content = frozenset({item})
            if item in recorded(known):
                if item not in world.acknowledged:
                    yield f"acknowledges {item} again", world._replace(acknowledged=world.acknowledged | content)
            elif not closed(known):
                yield f"decides to record {item}", self._ask(world, place, server, PUT, content)
        if recorded(known) and not closed(known):
            yield "decides to close", self._ask(world, place, server, CLOSE, recorded(known))

    def _promote(self, world: World, place: int, server: Server, known: tuple[Entry, ...]) -> tuple[str, World]:
        if not self.rules.fence:
            return "opens without a fence", self._open(_with(world, place, server._replace(role=ACTIVE)), server.epoch)
        if self.rules.know_own_record and self._leads(server, known):
            return "finds its fence", self._open(_with(world, place, server._replace(role=ACTIVE)), server.epoch)
        highest = highest_epoch(known)
        if self.rules.epoch_check and (
            highest > server.epoch or (self.rules.equal_epoch_fences and highest == server.epoch)
        ):
            own = any(entry.kind == FENCE and entry.author == server.author for entry in known[-1:])
            return "refuses", _with(world, place, server._replace(role=WRONGLY_REFUSED if own else FENCED))
        return "decides to fence", self._ask(world, place, server, FENCE, frozenset())

    def _create(self, world: World, place: int, server: Server, request: Request) -> Iterator[tuple[str, World]]:
        kind, slot = request.entry.kind, request.slot
        if server.unanswered:
            yield "gives up", _with(world, place, server._replace(request=None, unanswered=False))
        elif world.silences < self.scope.silences:
            waiting = _with(world, place, server._replace(unanswered=True))
            waiting = waiting._replace(under_way=waiting.under_way | {request}, silences=world.silences + 1)
            if not self.rules.answer_before_ack:
                waiting = self._acknowledge(waiting, request.entry)
            yield f"sends {kind} to slot {slot}, no answer", waiting
        taken = slot < len(world.log)
        if not taken or not self.rules.exclusive_create:
            if slot < self.scope.longest_log:
                yield (
                    f"creates slot {slot}: {kind}",
                    self._succeed(self._carry_out(world, request), place, server, request),
                )
        elif self.rules.know_own_record and world.log[slot] == request.entry:
            yield f"finds its {kind} in slot {slot}", self._succeed(world, place, server, request)
        elif self.rules.decide_again:
            # The next decision needs the slot that was lost.
            lost = server._replace(request=None, unanswered=False, read=len(world.log))
            yield f"loses slot {slot} and reads on", _with(world, place, lost)
        else:
            again = server._replace(request=request._replace(slot=slot + 1), unanswered=False)
            yield f"loses slot {slot} and tries {kind} at the next", _with(world, place, again)

    # ---- the store and the effects

    def _carry_out(self, world: World, request: Request) -> World:
        log, (slot, entry) = world.log, request
        if slot == len(log):
            log = (*log, entry)
        elif not self.rules.exclusive_create:
            log = (*log[:slot], entry, *log[slot + 1 :])
        under_way = world.under_way - {request}
        if self.rules.exclusive_create:  # the others for this slot can do nothing any more
            under_way = frozenset(one for one in under_way if one.slot >= len(log))
        overtaken = world.overtaken or (log != world.log and entry.epoch < world.opened)
        return world._replace(log=log, under_way=under_way, overtaken=overtaken)

    def _succeed(self, world: World, place: int, server: Server, request: Request) -> World:
        done = server._replace(request=None, unanswered=False, read=max(server.read, request.slot + 1))
        if request.entry.kind == FENCE:
            return self._open(_with(world, place, done._replace(role=ACTIVE)), server.epoch)
        return self._acknowledge(_with(world, place, done), request.entry)

    def _acknowledge(self, world: World, entry: Entry) -> World:
        return world._replace(acknowledged=world.acknowledged | entry.content) if entry.kind == PUT else world

    def _open(self, world: World, epoch: int) -> World:
        return world._replace(opened=max(world.opened, epoch))

    def _ask(self, world: World, place: int, server: Server, kind: str, content: frozenset[str]) -> World:
        request = Request(server.read, Entry(server.epoch, server.author, kind, content))
        return _with(world, place, server._replace(request=request))

    # ---- who may write

    def _owns(self, server: Server, entry: Entry) -> bool:
        if self.rules.incarnation_counts:
            return entry.author == server.author
        return entry.author.name == server.author.name

    def _leads(self, server: Server, known: tuple[Entry, ...]) -> bool:
        fences = [entry for entry in known if entry.kind == FENCE]
        return bool(fences) and fences[-1].epoch == server.epoch and self._owns(server, fences[-1])

    def _is_fenced(self, server: Server, known: tuple[Entry, ...]) -> bool:
        if self.rules.fence and self.rules.equal_epoch_fences:
            return not self._leads(server, known)
        return highest_epoch(known) > server.epoch


def epochs_of(log: tuple[Entry, ...]) -> list[int]:
    return [entry.epoch for entry in log]


def puts_of(log: tuple[Entry, ...]) -> list[frozenset[str]]:
    return [entry.content for entry in log if entry.kind == PUT]


def wrong_set(log: tuple[Entry, ...]) -> bool:
    closes = [place for place, entry in enumerate(log) if entry.kind == CLOSE]
    return any(log[place].content != recorded(log[:place]) or recorded(log[place:]) for place in closes)


# What must never be: true of a bad world.
WRONGS: dict[str, Callable[[World], bool]] = {
    "the epoch went backwards": lambda world: epochs_of(world.log) != sorted(epochs_of(world.log)),
    "two writers in one epoch": lambda world: (
        len(set(epochs_of(world.log))) != len({(entry.epoch, entry.author) for entry in world.log})
    ),
    "two fences in one epoch": lambda world: (
        sum(entry.kind == FENCE for entry in world.log) > len(set(epochs_of(world.log)))
    ),
    "a server wrote after its successor had opened for service": lambda world: world.overtaken,
    "a server refused because of its own fence": lambda world: any(
        server.role == WRONGLY_REFUSED for server in world.servers
    ),
    "a contribution was recorded twice": lambda world: len(puts_of(world.log)) != len(set(puts_of(world.log))),
    "an acknowledged contribution is lost": lambda world: not world.acknowledged <= recorded(world.log),
    "a round was closed twice": lambda world: sum(entry.kind == CLOSE for entry in world.log) > 1,
    "a round was closed with another set than was recorded": lambda world: wrong_set(world.log),
}


def wrong(world: World) -> str | None:
    """Say what is wrong with this world, None if nothing is."""
    return next((name for name, is_so in WRONGS.items() if is_so(world)), None)


def _with(world: World, place: int, server: Server) -> World:
    return world._replace(servers=(*world.servers[:place], server, *world.servers[place + 1 :]))


def _who(author: Author) -> str:
    return f"{author.name}/{author.place}.{author.life}"
