"""One stream to each server, for ever, and calls that go to whoever leads.

A stream that breaks is opened again after 50 to 200 ms, with jitter. A call that finds no primary, or loses it, is made
again: at once when another server leads, else after the same pause.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

from fedhelm.config.kit import Kit, ServerAddress
from fedhelm.errors import (
    Corrupt,
    DeadlineExceeded,
    FedhelmError,
    ProtocolError,
    StoreError,
    Unreachable,
    WrongStore,
)
from fedhelm.tasks import cancel, spawn
from fedhelm.v1 import fleet_pb2
from fedhelm.wire.channels import EpochGuard, FleetStub, aio_channel
from fedhelm.wire.roster import known_servers
from fedhelm_client.follow import Following, load_epoch, save_epoch

__all__ = ["Dial", "Links", "dial_with_tls", "is_transient"]

_log = logging.getLogger("fedhelm.client")

T = TypeVar("T")

WIRE_VERSIONS = (2, 1)
"""Versions of the wire that this site speaks, best first; the server chooses."""

BEAT_SECONDS = 5.0
_WELCOME_SECONDS = 5.0
_CANCELS = 3
_CANCEL_SECONDS = 1.0
_PAUSE = (0.05, 0.2)


class Connection(Protocol):
    """A channel with its stub."""

    stub: FleetStub

    async def close(self) -> None:
        """Close the channel."""
        ...


Dial = Callable[[ServerAddress], Connection]


class _TlsConnection:
    def __init__(self, kit: Kit, server: ServerAddress, guard: EpochGuard) -> None:
        self._channel = aio_channel(kit, server.host, server.fed_learn_port, server.name)
        self.stub = FleetStub(self._channel, server.name, guard)

    async def close(self) -> None:
        await self._channel.close(None)


def dial_with_tls(kit: Kit) -> Dial:
    """Return the way a real site dials: mutual TLS with its kit; answers with an old epoch are refused."""
    guard = EpochGuard()
    return lambda server: _TlsConnection(kit, server, guard)


def is_transient(error: FedhelmError) -> bool:
    """Whether the same call may succeed later, or elsewhere. Pure."""
    if isinstance(error, Corrupt | WrongStore):
        return False
    return isinstance(error, Unreachable | DeadlineExceeded | StoreError) or type(error) is FedhelmError


def _pause() -> float:
    return random.uniform(*_PAUSE)


class Links:
    """The streams of one site and what they say.

    Args:
        kit: the site's.
        incarnation: of this agent.
        dial: opens a connection to a server.
        held: what this site holds, for hello and beats.
        on_assignment: called with each assignment that counts.
        on_change: called with the leader and the epoch when one of them has changed.
        on_order: called with each order of the leader to this agent.
    """

    def __init__(
        self,
        kit: Kit,
        incarnation: str,
        dial: Dial,
        *,
        held: Callable[[], Sequence[fleet_pb2.HeldJob]],
        on_assignment: Callable[[fleet_pb2.Assignment], None],
        on_change: Callable[[str | None, int], None],
        on_order: Callable[[fleet_pb2.Order], None],
    ) -> None:
        self._kit = kit
        self._incarnation = incarnation
        self._dial = dial
        self._held = held
        self._on_assignment = on_assignment
        self._on_change = on_change
        self._on_order = on_order
        self._epoch_file = kit.run / "epoch.json"
        self._view = Following(kit.cluster, load_epoch(self._epoch_file, kit.project, kit.cluster))
        self._stubs: dict[str, FleetStub] = {}
        self._changed = asyncio.Condition()
        self._beats: dict[ServerAddress, asyncio.Event] = {}
        self._links: dict[ServerAddress, asyncio.Task[None]] = {}

    @property
    def view(self) -> Following:
        """What is known now."""
        return self._view

    @property
    def standing(self) -> tuple[str | None, int]:
        """Who leads, and the highest epoch."""
        return self._view.leader, self._view.highest

    async def moved_from(self, standing: tuple[str | None, int], timeout: float) -> bool:
        """Wait until another server leads, or nobody; False after ``timeout`` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._until(lambda: self.standing != standing)
        except TimeoutError:
            return False
        return True

    def start(self) -> None:
        """Open a stream to each known server; each is opened again for as long as this object runs."""
        self.set_servers(known_servers(self._kit))

    @property
    def dialled(self) -> list[str]:
        """Names of the servers to which there is a stream, or one is tried."""
        return [server.name for server in self._links]

    def set_servers(self, servers: Sequence[ServerAddress]) -> None:
        """Dial these servers and no others. Whoever leads stays, whatever the list says: its stream is the proof."""
        for server in [one for one in self._links if one not in servers and one.name != self._view.leader]:
            _log.info("%s is not dialled any more", server.name)
            self._links.pop(server).cancel()
        for server in servers:
            if server.name not in self.dialled:
                self._links[server] = spawn(self._keep_link(server), f"link {server.name}")

    async def stop(self) -> None:
        """Close all streams.

        One that does not end at once is cancelled again: a stream that is being closed may wait for its server.
        """
        links = set(self._links.values())
        for _ in range(_CANCELS):
            for link in links:
                link.cancel()
            if links:
                _, links = await asyncio.wait(links, timeout=_CANCEL_SECONDS)
        for link in links:
            _log.error("%s does not end", link.get_name())

    def beat_soon(self) -> None:
        """What this site holds has changed: tell every server."""
        for event in self._beats.values():
            event.set()

    async def to_leader(self, what: str, call: Callable[[FleetStub], Awaitable[T]]) -> T:
        """Make a call to whoever leads until it is answered.

        Args:
            what: for the log.
            call: makes it; must be safe to repeat. It is cancelled when another server takes over.

        Raises:
            FedhelmError: the primary refused for a reason that will not pass.
        """
        failures = 0
        while True:
            leader, epoch = await self._wait_for_leader()
            try:
                return await self._while_leading(leader, epoch, call(self._stubs[leader]))
            except _LeaderChangedError:
                _log.info("%s: %s no longer leads, asking again", what, leader)
                continue
            except FedhelmError as error:
                if not is_transient(error):
                    raise
                failures += 1
                # Every attempt of an outage would fill the log: say the first, then each doubling.
                if failures & (failures - 1) == 0:
                    _log.info("%s: %s (attempt %d)", what, error, failures)
            await self.moved_from((leader, epoch), _pause())

    async def _wait_for_leader(self) -> tuple[str, int]:
        await self._until(lambda: self._view.leader is not None)
        assert self._view.leader is not None
        return self._view.leader, self._view.highest

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with self._changed:
            await self._changed.wait_for(condition)

    async def _while_leading(self, leader: str, epoch: int, call: Awaitable[T]) -> T:
        work = asyncio.ensure_future(call)
        # Not at the end of the stream alone: the call may still be answered, and nobody better is known.
        lost = asyncio.ensure_future(
            self._until(lambda: self._view.highest != epoch and self._view.leader not in (None, leader))
        )
        try:
            await asyncio.wait({work, lost}, return_when=asyncio.FIRST_COMPLETED)
            if work.cancelled():  # by grpc, when what it was to send could not be read
                raise Unreachable(f"the call to {leader} was broken off")
            if work.done():
                return work.result()
            raise _LeaderChangedError
        finally:
            await cancel(work, lost)

    # -- one stream ---------------------------------------------------------------------------------------------

    async def _keep_link(self, server: ServerAddress) -> None:
        connection = self._dial(server)
        self._stubs[server.name] = connection.stub
        said = ""
        try:
            while True:
                try:
                    await self._one_stream(server, connection.stub)
                    reason = "the stream ended"
                except FedhelmError as error:
                    reason = str(error)
                except Exception as error:  # noqa: BLE001 - a defect in one stream must not cut this site off for good
                    _log.error("the stream to %s failed", server.name, exc_info=error)
                    reason = repr(error)
                finally:
                    await self._set_view(self._view.gone(server.name))
                if reason != said:
                    _log.info("no stream to %s: %s", server.name, reason)
                    said = reason
                await asyncio.sleep(_pause())
        finally:
            if self._stubs.get(server.name) is connection.stub:
                del self._stubs[server.name]
            await connection.close()

    async def _one_stream(self, server: ServerAddress, stub: FleetStub) -> None:
        changed = self._beats[server] = asyncio.Event()
        stream = stub.connect(self._messages(changed))
        try:
            try:
                async with asyncio.timeout(_WELCOME_SECONDS):
                    first = await anext(stream, None)
            except TimeoutError:
                raise Unreachable(f"{server.name} does not answer") from None
            if first is None or first.WhichOneof("message") != "welcome":
                raise ProtocolError(f"{server.name} did not begin with a welcome")
            await self._welcomed(server, first.welcome)
            async for message in stream:
                await self._take(server.name, message)
        finally:
            await _aclose(stream)
            self._beats.pop(server, None)

    async def _messages(self, changed: asyncio.Event) -> AsyncIterator[fleet_pb2.SiteMessage]:
        hello = fleet_pb2.Hello(
            wire_versions=WIRE_VERSIONS,
            cluster=self._kit.cluster,
            incarnation=self._incarnation,
            highest_epoch=self._view.highest,
            jobs=self._held(),
        )
        yield fleet_pb2.SiteMessage(hello=hello)
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BEAT_SECONDS):
                    await changed.wait()
            changed.clear()
            yield fleet_pb2.SiteMessage(beat=fleet_pb2.Beat(jobs=self._held()))

    async def _welcomed(self, server: ServerAddress, welcome: fleet_pb2.Welcome) -> None:
        if welcome.wire_version not in WIRE_VERSIONS:
            spoken = " and ".join(str(one) for one in WIRE_VERSIONS)
            raise ProtocolError(f"{server.name} wants wire version {welcome.wire_version}, this site speaks {spoken}")
        view = self._view.welcome(server.name, welcome.server, welcome.cluster, welcome.epoch, leading=welcome.leading)
        role = "leads" if welcome.leading else "stands by"
        _log.info("connected to %s, which %s; epoch %d", server.name, role, welcome.epoch)
        await self._set_view(view)

    async def _take(self, server: str, message: fleet_pb2.ServerMessage) -> None:
        kind = message.WhichOneof("message")
        if kind == "announce":
            await self._set_view(self._view.announce(server, message.announce.epoch))
        elif kind == "order":
            if server == self._view.leader:
                self._on_order(message.order)
            else:
                _log.warning("an order of %s, which does not lead, is ignored", server)
        elif kind == "assignment":
            assignment = message.assignment
            view, counts = self._view.assignment(server, assignment.epoch, assignment.seq)
            await self._set_view(view)
            if counts:
                self._on_assignment(assignment)
            else:
                _log.info("an older assignment of %s (epoch %d) is ignored", server, assignment.epoch)

    async def _set_view(self, view: Following) -> None:
        old, self._view = self._view, view
        if view.highest != old.highest:
            try:
                save_epoch(self._epoch_file, self._kit.project, self._kit.cluster, view.highest)
            except OSError as error:  # a full disk: it is still known as long as this agent lives
                _log.warning("epoch %d cannot be kept on disk: %s", view.highest, error)
        if (old.leader, old.highest) != (view.leader, view.highest):
            if view.leader is not None and view.leader != old.leader:
                _log.info("following %s, epoch %d", view.leader, view.highest)
            self._on_change(view.leader, view.highest)
            async with self._changed:
                self._changed.notify_all()


class _LeaderChangedError(Exception):
    """Another server leads; the call in flight was cancelled."""


async def _aclose(stream: Any) -> None:
    with contextlib.suppress(RuntimeError, FedhelmError):
        await stream.aclose()
