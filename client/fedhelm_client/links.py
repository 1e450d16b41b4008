"""One stream to each server, for ever, and calls that go to whoever leads.

A stream that breaks is opened again after 50 to 200 ms, with jitter; after some seconds where the server refused this
site's certificate. A call that finds no primary, or loses it, is made again: at once when another server leads, else
after the same pause. A new kit gets new connections; calls on their way end on those that they have.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from fedhelm.config.kit import Kit, ServerAddress
from fedhelm.errors import (
    BadCertificate,
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
from fedhelm_client.line import Connection, Line

__all__ = ["Dial", "Links", "dial_with_tls", "is_transient"]

_log = logging.getLogger("fedhelm.client")

T = TypeVar("T")

WIRE_VERSIONS = (2, 1)
"""Versions of the wire that this site speaks, best first; the server chooses."""

BEAT_SECONDS = 5.0
_MAX_REFUSAL = 500
_WELCOME_SECONDS = 5.0
_MAX_ANSWERS = 50
_CANCELS = 3
_CANCEL_SECONDS = 1.0
_PAUSE = (0.05, 0.2)
_REFUSED_PAUSE = (5.0, 10.0)
"""Until a server that refused this site's certificate is asked again; a new kit is tried at once."""

Dial = Callable[[ServerAddress], Connection]


class _TlsConnection:
    def __init__(self, kit: Kit, server: ServerAddress, guard: EpochGuard) -> None:
        self._channel = aio_channel(kit, server.host, server.fed_learn_port, server.name)
        self.stub = FleetStub(self._channel, server.name, guard)

    async def close(self) -> None:
        await self._channel.close(None)


def dial_with_tls(kit: Kit) -> Dial:
    """Return the way a real site dials: mutual TLS with its kit; answers with an old epoch are refused.

    Certificate, key and roots are read from the kit's folder at each call: those of the kit that lies there then.
    """
    guard = EpochGuard()
    return lambda server: _TlsConnection(kit, server, guard)


def is_transient(error: FedhelmError) -> bool:
    """Whether the same call may succeed later, or elsewhere. Pure."""
    if isinstance(error, Corrupt | WrongStore):
        return False
    # A certificate that is refused may be another one after the next kit, or the next overseer's list.
    passing = Unreachable | DeadlineExceeded | StoreError | BadCertificate
    return isinstance(error, passing) or type(error) is FedhelmError


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
        self._lines: dict[str, Line] = {}
        self._renewals: dict[ServerAddress, asyncio.Event] = {}
        self._retired: set[asyncio.Task[None]] = set()
        self._refusals: dict[str, str] = {}
        self._changed = asyncio.Condition()
        self._beats: dict[ServerAddress, asyncio.Event] = {}
        self._answers: defaultdict[str, deque[fleet_pb2.OrderAnswer]] = defaultdict(lambda: deque(maxlen=_MAX_ANSWERS))
        self._links: dict[ServerAddress, asyncio.Task[None]] = {}

    @property
    def view(self) -> Following:
        """What is known now."""
        return self._view

    @property
    def standing(self) -> tuple[str | None, int]:
        """Who leads, and the highest epoch."""
        return self._view.leader, self._view.highest

    @property
    def refusal(self) -> str | None:
        """Why servers refuse this site's certificate; None while one of them does not."""
        return None if self._view.leader is not None else next(iter(self._refusals.values()), None)

    def take(self, kit: Kit) -> None:
        """Go on with a kit that took the former one's place: with new connections, to the servers that it names."""
        former, self._kit = self._kit, kit
        if kit.servers != former.servers:
            self.set_servers(known_servers(kit))
        for event in self._renewals.values():
            event.set()

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
        await cancel(*self._retired)

    def beat_soon(self) -> None:
        """What this site holds has changed: tell every server."""
        for event in self._beats.values():
            event.set()

    def answer(self, server: str, order: str, refusal: str = "") -> None:
        """Tell a server, with the next beat, that an order of its is not obeyed now.

        Args:
            server: its name.
            order: the order's id.
            refusal: why; empty: it was obeyed before.
        """
        self._answers[server].append(fleet_pb2.OrderAnswer(id=order[:64], refusal=refusal[:_MAX_REFUSAL]))
        self.beat_soon()

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
                with self._lines[leader].used() as stub:
                    return await self._while_leading(leader, epoch, call(stub))
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
        while True:
            renew = self._renewals[server] = asyncio.Event()
            line = self._lines[server.name] = Line(self._dial(server))
            try:
                await self._keep_line(server, line, renew)
            except BaseException:  # cancelled: this server is not dialled any more
                self._refusals.pop(server.name, None)
                self._renewals.pop(server, None)
                await line.close()
                raise
            finally:
                if self._lines.get(server.name) is line:
                    del self._lines[server.name]
            former = spawn(line.retire(), f"former connection to {server.name}")
            self._retired.add(former)
            former.add_done_callback(self._retired.discard)

    async def _keep_line(self, server: ServerAddress, line: Line, renew: asyncio.Event) -> None:
        """Open the stream again and again, until a new kit asks for a new connection."""
        said = ""
        while not renew.is_set():
            pause = _PAUSE
            try:
                if not await self._until_renewed(renew, self._one_stream(server, line.stub)):
                    return  # what this server said counts until its next stream says otherwise
                reason = "the stream ended"
            except BadCertificate as error:
                reason, pause = str(error), _REFUSED_PAUSE
            except FedhelmError as error:
                reason = str(error)
            except Exception as error:  # noqa: BLE001 - a defect in one stream must not cut this site off for good
                _log.error("the stream to %s failed", server.name, exc_info=error)
                reason = repr(error)
            finally:
                if not renew.is_set():
                    await self._set_view(self._view.gone(server.name))
            refused = pause is _REFUSED_PAUSE
            if reason != said and not (refused and reason in self._refusals.values()):  # one server's word is enough
                _log.log(logging.WARNING if refused else logging.INFO, "no stream to %s: %s", server.name, reason)
            said = reason
            self._take_refusal(server.name, reason if refused else None)
            await self._until_renewed(renew, asyncio.sleep(random.uniform(*pause)))

    @staticmethod
    async def _until_renewed(renew: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
        """Do something, but break it off when a new kit came; False then."""
        task, asked = asyncio.ensure_future(work), asyncio.ensure_future(renew.wait())
        try:
            await asyncio.wait({task, asked}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                return False
            if task.cancelled():  # by grpc, when what it was to send could not be read
                raise Unreachable("the stream was broken off")
            task.result()
        finally:
            await cancel(task, asked)
        return True

    def _take_refusal(self, server: str, reason: str | None) -> None:
        before = self.refusal
        if reason is None:
            self._refusals.pop(server, None)
        else:
            self._refusals[server] = reason
        if self.refusal != before:
            self._on_change(*self.standing)

    async def _one_stream(self, server: ServerAddress, stub: FleetStub) -> None:
        changed = self._beats[server] = asyncio.Event()
        stream = stub.connect(self._messages(server.name, changed))
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

    async def _messages(self, server: str, changed: asyncio.Event) -> AsyncIterator[fleet_pb2.SiteMessage]:
        hello = fleet_pb2.Hello(
            wire_versions=WIRE_VERSIONS,
            cluster=self._kit.cluster,
            incarnation=self._incarnation,
            highest_epoch=self._view.highest,
            jobs=self._held(),
            enable_byoc=self._kit.enable_byoc,
            answers_orders=True,
        )
        yield fleet_pb2.SiteMessage(hello=hello)
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BEAT_SECONDS):
                    await changed.wait()
            changed.clear()
            answers = self._answers.pop(server, ())
            yield fleet_pb2.SiteMessage(beat=fleet_pb2.Beat(jobs=self._held(), answers=answers))

    async def _welcomed(self, server: ServerAddress, welcome: fleet_pb2.Welcome) -> None:
        if welcome.wire_version not in WIRE_VERSIONS:
            spoken = " and ".join(str(one) for one in WIRE_VERSIONS)
            raise ProtocolError(f"{server.name} wants wire version {welcome.wire_version}, this site speaks {spoken}")
        view = self._view.welcome(server.name, welcome.server, welcome.cluster, welcome.epoch, leading=welcome.leading)
        role = "leads" if welcome.leading else "stands by"
        _log.info("connected to %s, which %s; epoch %d", server.name, role, welcome.epoch)
        self._take_refusal(server.name, None)
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
