"""The life of blobs under owners, small enough to try every behaviour of it.

Rounds follow one another. Each has an owner: blobs are uploaded to it, records name them, a record closes the round and
with it the owner, and then anybody who has read that may delete the owner, any time later. A server decides with what
it has read, which may be old, and may sleep between any two steps; its record fits only at the end of the log.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

PUT, CLOSE = "put", "close"


@dataclass(frozen=True)
class Rules:
    """The rules of collection, each of which can be broken."""

    close_before_delete: bool = True  # else an owner is deleted when its closing record was decided on
    owner_never_reused: bool = True  # else all rounds share one owner
    blob_before_record: bool = True  # else a record is appended while its blob is on its way
    decide_again: bool = True  # else a record whose slot was lost is appended at the next


class Entry(NamedTuple):
    kind: str
    round: int


class Server(NamedTuple):
    read: int = 0  # records it knows
    uploaded: frozenset[int] = frozenset()  # rounds for which it holds that a blob is there
    request: Entry | None = None
    slot: int = 0  # where it goes
    deleting: int | None = None  # an owner that it has decided to delete


class World(NamedTuple):
    log: tuple[Entry, ...] = ()
    blobs: frozenset[tuple[int, int]] = frozenset()  # (owner, round)
    servers: tuple[Server, ...] = (Server(), Server())


class Collection:
    """The steps under some rules, for two servers and some rounds."""

    def __init__(self, rules: Rules, rounds: int = 2) -> None:
        self.rules = rules
        self.rounds = rounds

    def owner(self, number: int) -> int:
        return number if self.rules.owner_never_reused else 0

    def steps(self, world: World) -> Iterator[tuple[str, World]]:
        for place, server in enumerate(world.servers):
            for label, changed, following in self._steps(world, server):
                servers = (*world.servers[:place], changed, *world.servers[place + 1 :])
                yield f"server{place + 1} {label}", following._replace(servers=servers)

    def _steps(self, world: World, server: Server) -> Iterator[tuple[str, Server, World]]:
        if server.deleting is not None:
            left = frozenset(one for one in world.blobs if one[0] != server.deleting)
            yield f"deletes owner {server.deleting}", server._replace(deleting=None), world._replace(blobs=left)
        if server.request is not None:
            yield from self._append(world, server, server.request)
            return
        if server.read < len(world.log):
            yield "reads on", server._replace(read=len(world.log)), world
        known = world.log[: server.read]
        number = sum(entry.kind == CLOSE for entry in known)
        if number < self.rounds:
            yield from self._work(world, server, known, number)
        if server.deleting is None:
            for closed in range(number):
                yield (
                    f"decides to delete the owner of round {closed}",
                    server._replace(deleting=self.owner(closed)),
                    world,
                )

    def _work(
        self, world: World, server: Server, known: tuple[Entry, ...], number: int
    ) -> Iterator[tuple[str, Server, World]]:
        if Entry(PUT, number) in known:
            closing = server._replace(request=Entry(CLOSE, number), slot=server.read)
            if not self.rules.close_before_delete:
                closing = closing._replace(deleting=self.owner(number))
            yield f"decides to close round {number}", closing, world
            return
        putting = server._replace(request=Entry(PUT, number), slot=server.read)
        if number in server.uploaded or not self.rules.blob_before_record:
            yield f"decides to record a contribution to round {number}", putting, world
        if number not in server.uploaded:
            yield f"takes an upload for round {number}", *self._upload(world, server, number)

    def _upload(self, world: World, server: Server, number: int) -> tuple[Server, World]:
        uploaded = server._replace(uploaded=server.uploaded | {number})
        return uploaded, world._replace(blobs=world.blobs | {(self.owner(number), number)})

    def _append(self, world: World, server: Server, entry: Entry) -> Iterator[tuple[str, Server, World]]:
        done = server._replace(request=None)
        if server.slot == len(world.log):
            longer = world._replace(log=(*world.log, entry))
            yield f"appends {entry.kind} {entry.round}", done._replace(read=len(longer.log)), longer
        elif self.rules.decide_again:
            yield "loses the slot", done, world
        else:
            yield "loses the slot and takes the next", server._replace(slot=len(world.log)), world


def lost_blob(world: World, owner: int, number: int) -> bool:
    """Whether a record of a round that is open names a blob that is not there."""
    needed = Entry(PUT, number) in world.log and Entry(CLOSE, number) not in world.log
    # Round 1 follows round 0: a put after the round was closed is one that nobody can aggregate any more.
    late = (
        Entry(CLOSE, number) in world.log and Entry(PUT, number) in world.log[world.log.index(Entry(CLOSE, number)) :]
    )
    return (needed and (owner, number) not in world.blobs) or late
