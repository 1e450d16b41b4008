"""The protocol of a log that is shortened, small enough to try every behaviour of it. No assumption about time is made.

As in `tests.model.slot_log`: anybody may be granted any epoch, a server may sleep between any two steps, a request
without an answer may be carried out much later, a server may come back as another incarnation. In addition:

* A primary records checkpoints: the blob, which holds its fold, is durable before the record is asked for.
* Anybody who has read two checkpoints may make the next mark, any time after it decided to.
* What lies below the newest mark is deleted slot by slot, the blobs of older checkpoints one by one, by anybody.
* A slot that was deleted can be created a second time: a ghost.
* A reader reads slots, and later looks at the marks. A writer creates its slot, and later looks at the marks.

`Rules` switches single rules off: each such mutant must break one of the invariants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from tests.model.slot_log import ACTIVE, FENCE, FENCED, PROMOTING, PUT, STANDBY, Author

CHECKPOINT = "checkpoint"


@dataclass(frozen=True)
class Rules:
    """The rules of compaction, each of which can be broken."""

    exclusive_create: bool = True  # else a taken slot is overwritten
    mark_after_create: bool = True  # else a slot that could be created counts
    mark_after_own: bool = True  # else one's own record in a taken slot counts
    mark_after_read: bool = True  # else what was read, or was missing, counts
    marks_numbered: bool = True  # else there is one mark, which the last writer wins
    marks_rise: bool = True  # else a mark that was decided on long ago is made all the same
    mark_before_deletion: bool = True  # else slots are deleted as soon as two checkpoints cover them
    mark_at_older: bool = True  # else the mark is above the newer checkpoint's record
    blob_before_record: bool = True  # else a checkpoint's blob is written after its record
    sound_before_mark: bool = True  # else a mark is made without looking at the blobs it relies on
    blobs_by_mark: bool = True  # else the blobs older than the newest checkpoint go, whatever the mark says
    decide_again: bool = True  # else a writer whose slot was compacted away goes on as if its fold were new


@dataclass(frozen=True)
class Scope:
    """How much is tried."""

    names: tuple[str, ...] = ("server1", "server2")
    epochs: int = 2
    lives: int = 1
    contributions: str = "a"
    silences: int = 0
    checkpoints: int = 2
    longest_log: int = 6


class Entry(NamedTuple):
    """A record. Two tries of one decision are equal: they share the nonce."""

    epoch: int
    author: Author
    kind: str
    content: str = ""
    fold: tuple[Entry, ...] = ()  # of a checkpoint: what its blob holds


class Request(NamedTuple):
    """A create that was decided, or is under way."""

    slot: int
    entry: Entry


class Mark(NamedTuple):
    low_water: int = 0
    fold: tuple[Entry, ...] = ()  # of the checkpoint that a reader starts from


class Server(NamedTuple):
    author: Author
    role: str = STANDBY
    epoch: int = 0
    view: tuple[Entry, ...] = ()  # what it has folded
    found: tuple[Entry, ...] | None = None  # read, and not applied before a look at the marks
    request: Request | None = None
    created: bool = False  # the request was carried out, and the marks were not looked at yet
    unanswered: bool = False
    mark: tuple[int, Mark] | None = None  # decided to be made, and its number


class World(NamedTuple):
    log: tuple[Entry, ...]  # the first record that each slot ever held
    deleted: frozenset[int]
    ghosts: frozenset[Request]
    marks: tuple[Mark, ...]
    blobs: frozenset[tuple[Entry, ...]]
    servers: tuple[Server, ...]
    under_way: frozenset[Request]
    acknowledged: frozenset[str]
    silences: int = 0


def newest(world: World) -> Mark:
    return world.marks[-1] if world.marks else Mark()


def checkpoints(log: tuple[Entry, ...]) -> list[int]:
    return [slot for slot, entry in enumerate(log) if entry.kind == CHECKPOINT]


def recorded(log: tuple[Entry, ...]) -> frozenset[str]:
    return frozenset(entry.content for entry in log if entry.kind == PUT)


def held(world: World, slot: int) -> Entry | None:
    """What can be read in a slot now."""
    for ghost in world.ghosts:
        if ghost.slot == slot:
            return ghost.entry
    return world.log[slot] if slot < len(world.log) and slot not in world.deleted else None


class CompactedLog:
    """The steps of the protocol under some rules."""

    def __init__(self, rules: Rules, scope: Scope) -> None:
        self.rules = rules
        self.scope = scope

    def initial(self) -> World:
        servers = tuple(Server(Author(place, name, 0)) for place, name in enumerate(self.scope.names))
        return World((), frozenset(), frozenset(), (), frozenset(), servers, frozenset(), frozenset())

    # ---- what may happen

    def steps(self, world: World) -> Iterator[tuple[str, World]]:
        yield from self._collect(world)
        for request in world.under_way:
            done = self._carry_out(world, request)
            yield f"{request.entry.kind} for slot {request.slot} arrives late", done
        for place, server in enumerate(world.servers):
            for label, following in self._server_steps(world, place, server):
                yield f"{server.author.name}/{server.author.place}.{server.author.life}: {label}", following

    def _collect(self, world: World) -> Iterator[tuple[str, World]]:
        """What anybody does who saw the newest mark: nobody's own knowledge matters."""
        low_water = newest(world).low_water
        known = checkpoints(world.log)
        if not self.rules.mark_before_deletion and len(known) > 1:
            low_water = max(low_water, len(world.log[known[-2]].fold))
        there = [slot for slot in range(min(low_water, len(world.log))) if held(world, slot) is not None]
        if there:  # ascending
            ghosts = frozenset(one for one in world.ghosts if one.slot != there[0])
            deleted = world._replace(deleted=world.deleted | {there[0]}, ghosts=ghosts)
            yield f"slot {there[0]} is deleted", deleted
        bound = low_water
        if not self.rules.blobs_by_mark and known:
            bound = len(world.log[known[-1]].fold)
        for blob in world.blobs:
            if len(blob) < bound:
                yield f"the blob up to slot {len(blob) - 1} is deleted", world._replace(blobs=world.blobs - {blob})

    def _server_steps(self, world: World, place: int, server: Server) -> Iterator[tuple[str, World]]:
        if server.role == STANDBY:
            for epoch in range(1, self.scope.epochs + 1):
                yield f"is granted epoch {epoch}", _with(world, place, server._replace(role=PROMOTING, epoch=epoch))
            return
        if server.author.life + 1 < self.scope.lives:
            reborn = Server(server.author._replace(life=server.author.life + 1))
            yield "dies, comes back", _with(world, place, reborn)
        if server.role == FENCED:
            return
        if server.mark is not None:
            yield self._make_mark(world, place, server, *server.mark)
        if server.found is not None:
            yield self._apply(world, place, server)
        elif server.created:
            yield self._look(world, place, server)
        elif server.request is not None:
            yield from self._create(world, place, server, server.request)
        else:
            yield from self._read(world, place, server)
            yield from self._decide(world, place, server)

    # ---- reading

    def _read(self, world: World, place: int, server: Server) -> Iterator[tuple[str, World]]:
        at, found = len(server.view), list[Entry]()
        while (entry := held(world, at + len(found))) is not None:
            found.append(entry)
        if not self.rules.mark_after_read and (found or server.view):
            yield "reads on", _with(world, place, server._replace(view=(*server.view, *found)))
        elif found or at < newest(world).low_water:
            yield f"reads {len(found)} slots", _with(world, place, server._replace(found=tuple(found)))

    def _apply(self, world: World, place: int, server: Server) -> tuple[str, World]:
        assert server.found is not None
        mark = newest(world)
        if len(server.view) >= mark.low_water:
            return "finds no newer mark", _with(
                world, place, server._replace(view=server.view + server.found, found=None)
            )
        if mark.fold in world.blobs:
            return "starts from the checkpoint", _with(world, place, server._replace(view=mark.fold, found=None))
        return "finds no checkpoint", _with(world, place, server._replace(found=None))

    # ---- deciding

    def _decide(self, world: World, place: int, server: Server) -> Iterator[tuple[str, World]]:
        fences = [entry for entry in server.view if entry.kind == FENCE]
        leads = bool(fences) and (fences[-1].epoch, fences[-1].author) == (server.epoch, server.author)
        if server.role == PROMOTING:
            if leads:
                yield "finds its fence", _with(world, place, server._replace(role=ACTIVE))
            elif fences and fences[-1].epoch >= server.epoch:
                yield "refuses", _with(world, place, server._replace(role=FENCED))
            else:
                yield "decides to fence", self._ask(world, place, server, Entry(server.epoch, server.author, FENCE))
            return
        if not leads:
            yield "sees that it is fenced", _with(world, place, server._replace(role=FENCED))
            return
        for item in self.scope.contributions:
            if item not in recorded(server.view):
                entry = Entry(server.epoch, server.author, PUT, item)
                yield f"decides to record {item}", self._ask(world, place, server, entry)
            elif item not in world.acknowledged:
                yield f"acknowledges {item} again", world._replace(acknowledged=world.acknowledged | {item})
        known = checkpoints(server.view)
        if len(known) < self.scope.checkpoints and recorded(server.view):
            entry = Entry(server.epoch, server.author, CHECKPOINT, fold=server.view)
            asked = self._ask(world, place, server, entry)
            if self.rules.blob_before_record:
                asked = asked._replace(blobs=asked.blobs | {server.view})
            yield "writes a checkpoint and decides to record it", asked
        if len(known) > 1 and server.mark is None:
            yield from self._decide_mark(world, place, server, known)

    def _decide_mark(self, world: World, place: int, server: Server, known: list[int]) -> Iterator[tuple[str, World]]:
        older, newer = (server.view[slot] for slot in known[-2:])
        low_water = len(older.fold) if self.rules.mark_at_older else known[-1] + 1
        sound = {older.fold, newer.fold} <= world.blobs or not self.rules.sound_before_mark
        if sound and low_water > newest(world).low_water:
            mark = len(world.marks), Mark(low_water, newer.fold)
            yield f"decides on mark {low_water}", _with(world, place, server._replace(mark=mark))

    def _make_mark(self, world: World, place: int, server: Server, number: int, mark: Mark) -> tuple[str, World]:
        world = _with(world, place, server._replace(mark=None))
        if not self.rules.marks_numbered:
            return f"makes the mark {mark.low_water}", world._replace(marks=(mark,))
        if number < len(world.marks) and self.rules.marks_rise:
            return "finds its mark's number taken", world
        return f"makes mark {mark.low_water}", world._replace(marks=(*world.marks, mark))

    def _ask(self, world: World, place: int, server: Server, entry: Entry) -> World:
        return _with(world, place, server._replace(request=Request(len(server.view), entry)))

    # ---- writing

    def _create(self, world: World, place: int, server: Server, request: Request) -> Iterator[tuple[str, World]]:
        slot, kind = request.slot, request.entry.kind
        if server.unanswered:
            yield "gives up", _with(world, place, server._replace(request=None, unanswered=False))
        elif world.silences < self.scope.silences:
            silent = _with(world, place, server._replace(unanswered=True))
            under_way = world.under_way | {request}
            yield f"sends {kind}, no answer", silent._replace(under_way=under_way, silences=world.silences + 1)
        present = held(world, slot)
        if present is None or not self.rules.exclusive_create:
            if slot < self.scope.longest_log:
                yield (
                    f"creates slot {slot}: {kind}",
                    self._landed(
                        self._carry_out(world, request), place, server, looked=not self.rules.mark_after_create
                    ),
                )
        elif present == request.entry:
            mine = self._landed(world, place, server, looked=not self.rules.mark_after_own)
            yield f"finds its {kind} in slot {slot}", mine
        else:
            lost = server._replace(request=None, unanswered=False)
            yield f"loses slot {slot}", _with(world, place, lost)

    def _carry_out(self, world: World, request: Request) -> World:
        world = world._replace(under_way=world.under_way - {request})
        slot, entry = request
        if slot == len(world.log):
            world = world._replace(log=(*world.log, entry))
        elif slot < len(world.log) and held(world, slot) is None:
            world = world._replace(ghosts=world.ghosts | {request})
        elif slot < len(world.log) and not self.rules.exclusive_create:
            world = world._replace(log=(*world.log[:slot], entry, *world.log[slot + 1 :]))
        return world

    def _landed(self, world: World, place: int, server: Server, *, looked: bool) -> World:
        server = server._replace(unanswered=False)
        if looked:
            return self._succeed(world, place, server)
        return _with(world, place, server._replace(created=True))

    def _look(self, world: World, place: int, server: Server) -> tuple[str, World]:
        request = server.request
        assert request is not None
        if request.slot >= newest(world).low_water:
            return "finds no newer mark", self._succeed(world, place, server)
        world = world._replace(ghosts=frozenset(one for one in world.ghosts if one.slot != request.slot))
        world = world._replace(deleted=world.deleted | {request.slot})
        if not self.rules.decide_again:
            return "takes the next slot instead", _with(
                world, place, server._replace(created=False, request=request._replace(slot=len(world.log)))
            )
        return "finds its slot below the mark", _with(world, place, server._replace(created=False, request=None))

    def _succeed(self, world: World, place: int, server: Server) -> World:
        assert server.request is not None
        entry = server.request.entry
        role = ACTIVE if entry.kind == FENCE else server.role
        server = server._replace(view=(*server.view, entry), request=None, created=False, role=role)
        world = _with(world, place, server)
        if entry.kind == CHECKPOINT:
            world = world._replace(blobs=world.blobs | {entry.fold})
        return world._replace(acknowledged=world.acknowledged | {entry.content}) if entry.kind == PUT else world


def unreadable(world: World) -> bool:
    """Whether somebody who starts now cannot read the log."""
    mark = newest(world)
    if mark.low_water and mark.fold not in world.blobs:
        return True
    return any(slot in world.deleted for slot in range(mark.low_water, len(world.log)))


# What must never be: true of a bad world.
WRONGS: dict[str, Callable[[World], bool]] = {
    "the epoch went backwards": lambda world: (
        [entry.epoch for entry in world.log] != sorted(entry.epoch for entry in world.log)
    ),
    "two writers in one epoch": lambda world: (
        len({entry.epoch for entry in world.log}) != len({(entry.epoch, entry.author) for entry in world.log})
    ),
    "a contribution was recorded twice": lambda world: (
        len([entry for entry in world.log if entry.kind == PUT]) != len(recorded(world.log))
    ),
    "an acknowledged contribution is lost": lambda world: not world.acknowledged <= recorded(world.log),
    "a server holds for the log what is not in it": lambda world: any(
        server.view != world.log[: len(server.view)] for server in world.servers
    ),
    "the log cannot be read any more": unreadable,
    "the mark went back": lambda world: (
        [mark.low_water for mark in world.marks] != sorted({mark.low_water for mark in world.marks})
    ),
}


def wrong(world: World) -> str | None:
    """Say what is wrong with this world, None if nothing is."""
    return next((name for name, is_so in WRONGS.items() if is_so(world)), None)


def _with(world: World, place: int, server: Server) -> World:
    return world._replace(servers=(*world.servers[:place], server, *world.servers[place + 1 :]))
