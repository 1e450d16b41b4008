"""Blocking calls to the overseers of a kit, for commands: the standard library alone, so that a command starts fast.

Overseers are asked one after the other, each 0.3 s after the one before if nobody has answered, and the first good
answer counts. So one that is dead, hangs, or is cut off costs that much, once: it is asked last from then on.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self
from urllib.parse import quote

from fedhelm.clock import SystemClock, iso
from fedhelm.config.kit import Kit, OverseerAddress
from fedhelm.errors import BadCertificate, FedhelmError, Unreachable
from fedhelm.security.tls import Check, client_context
from fedhelm.wire.overseer_answers import (
    EVENTS,
    HISTORY,
    SERVERS,
    Body,
    HandedOver,
    checked,
    content_of,
    failure,
    headers,
    parse,
    parse_all,
    path_of,
    unable,
    who,
)
from fedhelm.wire.overseer_api import (
    Event,
    ExplainView,
    Health,
    HistoryEntry,
    OperateRequest,
    PrimaryView,
    PromoteReply,
    PromoteRequest,
    RevocationsView,
    ServerView,
    SystemView,
)
from fedhelm.wire.overseer_events import Heard
from fedhelm.wire.overseer_race import Race

__all__ = ["OverseerConsoleClient"]

_LOOK = 2.0
"""Seconds that one overseer may take to say what it knows: one that is stopped must not hold up a person."""
_WORK = 5.0
"""The same where it reads or writes its store."""
_LIST = 20.0
"""The same for the list of revoked certificates, which may be some megabytes."""
_EVENT_SILENCE = 12.0
"""Longest silence on an event stream; the overseer pings every 5 s."""
_RECONNECT = (0.1, 0.25, 0.5, 1.0, 2.0)

_LOST = (http.client.HTTPException, OSError)


@dataclass(frozen=True)
class _Asked:
    method: str
    path: str
    body: Body = None


@dataclass(frozen=True)
class _Answered:
    status_code: int
    content: bytes


class _Line(http.client.HTTPConnection):
    """A connection to an overseer's address, under its name in TLS."""

    def __init__(self, address: OverseerAddress, context: ssl.SSLContext, limit: float) -> None:
        super().__init__(address.host, address.port, timeout=limit)
        self._name = address.name
        self._tls = context

    def connect(self) -> None:
        """Connect and shake hands, both within the time-out."""
        end = time.monotonic() + (self.timeout or 0.0)
        plain = socket.create_connection((self.host, self.port), self.timeout)
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.limit(plain, end - time.monotonic())
            self.sock = self._tls.wrap_socket(plain, server_hostname=self._name)
        except BaseException:
            plain.close()
            raise
        self.limit(self.sock, end - time.monotonic())

    def is_of(self, context: ssl.SSLContext | None) -> bool:
        """Tell whether this was connected with the context."""
        return self._tls is context

    @staticmethod
    def limit(sock: socket.socket, seconds: float) -> None:
        """Let each operation of a socket take so long; zero would mean not to wait, and not to connect."""
        sock.settimeout(max(seconds, 0.001))

    def cut(self) -> None:
        """End whatever another thread waits for on this connection."""
        sock = self.sock
        if sock is not None:
            with contextlib.suppress(OSError):
                # Not SSLSocket's own: that one takes the TLS state away from the thread that reads.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)


class OverseerConsoleClient:
    """Blocking client; its methods may be called from several threads at once.

    Every overseer of the kit is asked, beginning with the one that answered last. A call may reach more than one, so
    writes carry a request id. Errors are those of :mod:`fedhelm.errors`: what the overseer answered, ``Unreachable``
    when none answered, and ``BadCertificate`` when TLS failed over a certificate. Each call takes at most ``timeout``
    seconds (None: no limit of the caller's), and one overseer at most about 2 s of them, 5 s where it needs its store.

    Args:
        kit: an opened kit of any participant.
        check: is asked about the serial of an overseer's certificate before anything is sent to it; raises
            BadCertificate for one that was revoked.
    """

    def __init__(self, kit: Kit, *, check: Check | None = None) -> None:
        self._kit = kit
        self._check = check
        self._order = list(kit.overseers)
        self._idle: dict[OverseerAddress, list[_Line]] = {}
        self._streams: dict[_Line, OverseerAddress] = {}
        self._tls: ssl.SSLContext | None = None
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; a running ``events`` iterator ends."""
        self._closed.set()
        with self._lock:
            lines = [line for idle in self._idle.values() for line in idle]
            self._idle.clear()
            streams = list(self._streams)
        for line in lines:
            line.close()
        for line in streams:
            line.cut()

    def reconnect(self) -> None:
        """Let calls that begin now open new connections, with the kit that lies there now.

        Those on their way end on the ones that they have. What else changed in the kit counts for a new client.
        """
        with self._lock:
            lines = [line for idle in self._idle.values() for line in idle]
            self._idle.clear()
            self._tls = None
        for line in lines:
            line.close()

    def revocations(self, after: int = 0, wait_s: float = 0.0, timeout: float | None = None) -> bytes:
        """Return the list of revoked certificates as the root signed it; empty if there is none above ``after``.

        Whoever gets it verifies it.

        Args:
            after: the version that is known here.
            wait_s: how long an overseer may wait for a newer one, at most 30 s.
            timeout: seconds for all of it.

        Raises:
            NotFound: an overseer of before.
        """
        asked = _Asked("GET", f"/revocations?after={after}&wait={wait_s:.3f}")
        return self._call(asked, timeout, _WORK + wait_s)

    def primary(self, timeout: float | None = None) -> PrimaryView:
        """Return who leads.

        Raises:
            NoPrimary: nobody does at the moment.
        """
        return parse(PrimaryView, self._call(_Asked("GET", "/primary"), timeout))

    def servers(self, timeout: float | None = None) -> tuple[ServerView, ...]:
        """Return the project's servers, in the order of the kit."""
        return parse_all(SERVERS, self._call(_Asked("GET", "/servers"), timeout))

    def history(self, timeout: float | None = None) -> tuple[HistoryEntry, ...]:
        """Return the epochs, oldest first."""
        return parse_all(HISTORY, self._call(_Asked("GET", "/history"), timeout, _WORK))

    def recent(self, limit: int, timeout: float | None = None) -> tuple[Event, ...]:
        """Return the last events that the overseer keeps, oldest first."""
        return parse_all(EVENTS, self._call(_Asked("GET", f"/events/recent?limit={limit}"), timeout))

    def promote(self, target: str, request_id: str, timeout: float | None = None) -> PromoteReply:
        """Ask for a planned switchover; returns when the intent is in the row, not when it is done.

        Raises:
            Refused: the target is not fit, or leads already.
            NotFound: no such server.
        """
        request = PromoteRequest(target=target, request_id=request_id)
        return parse(PromoteReply, self._call(_Asked("POST", "/promote", request), timeout, _WORK))

    def explain(self, server: str, timeout: float | None = None) -> ExplainView:
        """Return why a server is or is not a candidate.

        Raises:
            NotFound: no such server.
        """
        return parse(ExplainView, self._call(_Asked("GET", f"/servers/{quote(server, safe='')}/explain"), timeout))

    def system(self, timeout: float | None = None) -> SystemView:
        """Return what admins decided of the whole system."""
        return parse(SystemView, self._call(_Asked("GET", "/system"), timeout))

    def pause(self, request: OperateRequest, timeout: float | None = None) -> None:
        """Have nothing granted but what an admin asks for."""
        self._call(_Asked("POST", "/failover/pause", request), timeout, _WORK)

    def resume(self, request: OperateRequest, timeout: float | None = None) -> None:
        """End a pause."""
        self._call(_Asked("POST", "/failover/resume", request), timeout, _WORK)

    def shutdown(self, request: OperateRequest, timeout: float | None = None) -> None:
        """Have every server shut down, the primary last."""
        self._call(_Asked("POST", "/shutdown", request), timeout, _WORK)

    def remove(self, server: str, request: OperateRequest, timeout: float | None = None) -> None:
        """Forget a server that is down.

        Raises:
            NotFound: no such server.
            Refused: it is not down.
        """
        self._call(_Asked("POST", f"/servers/{quote(server, safe='')}/remove", request), timeout, _WORK)

    def revoke(self, data: bytes, timeout: float | None = None) -> tuple[HandedOver, ...]:
        """Hand the list, as the root signed it, to every overseer of the kit; return what each said, in its order."""
        said: dict[OverseerAddress, HandedOver] = {}
        limit = _LIST if timeout is None else min(timeout, _LIST)
        asked = _Asked("POST", "/revocations", data)
        threads = [
            threading.Thread(target=self._hand_over, args=(address, asked, limit, said), name="overseer", daemon=True)
            for address in self._kit.overseers
        ]
        for thread in threads:
            thread.start()
        end = time.monotonic() + limit + _LOOK
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        late = Unreachable("no answer in time")
        return tuple(said.get(one) or HandedOver(one.name, error=late) for one in self._kit.overseers)

    def _hand_over(
        self, address: OverseerAddress, asked: _Asked, limit: float, said: dict[OverseerAddress, HandedOver]
    ) -> None:
        try:
            answer = self._exchange(address, asked, limit)
            view = parse(RevocationsView, checked(answer, address))
            said[address] = HandedOver(address.name, view)
        except FedhelmError as error:
            said[address] = HandedOver(address.name, error=error)
        except Exception as error:  # noqa: BLE001 - whatever happened in this thread belongs to the caller's
            try:
                said[address] = HandedOver(address.name, error=Unreachable(failure(error, address)[1]))
            except BadCertificate as ours:
                said[address] = HandedOver(address.name, error=ours)

    def health(self, timeout: float | None = None) -> Health:
        """Return what ``/healthz`` says."""
        return parse(Health, self._call(_Asked("GET", "/healthz"), timeout))

    def events(self, after: int | None = None) -> Iterator[Event]:
        """Yield events until ``close``, across lost connections and restarts of the overseer.

        Args:
            after: the id last seen; 0 for all that the overseer still keeps; None for those from now on.

        Raises:
            NotAuthorised: the certificate is not accepted; other losses are tried again.
        """
        failed = 0
        source: OverseerAddress | None = None
        heard = Heard(iso(SystemClock().utcnow()) if after is None else "")
        while not self._closed.is_set():
            for address in tuple(self._order):
                # From another overseer, or one that told nothing yet: all it keeps, but for what was heard.
                sift = source is not None and (address != source or after is None)
                try:
                    for event in self._stream(address, 0 if sift else after):
                        failed = 0
                        source = address if source is None else source
                        if event is None or (sift and heard.knows(event)):
                            continue
                        sift = False
                        source, after = address, event.id
                        heard.note(event)
                        yield event
                except (*_LOST, ValueError) as exc:
                    # ValueError: the connection was cut in the middle of a chunk's length.
                    if self._closed.is_set():
                        return
                    failure(exc, address)
                except Unreachable:
                    pass
            self._closed.wait(_RECONNECT[min(failed, len(_RECONNECT) - 1)])
            failed += 1

    def _stream(self, address: OverseerAddress, after: int | None) -> Iterator[Event | None]:
        """Yield None once the stream is there, then its events."""
        line = self._dial(address, _LOOK)
        with self._lock:
            self._streams[line] = address
        try:
            wanted = {"accept": "text/event-stream"} | ({} if after is None else {"last-event-id": str(after)})
            line.request("GET", path_of(address, "/events"), headers=wanted)
            sock = line.sock  # an answer may take it away from the connection
            with line.getresponse() as answer:
                if answer.status != 200:
                    checked(_Answered(answer.status, answer.read()), address)
                sock.settimeout(_EVENT_SILENCE)
                yield None
                for text in answer:
                    if self._closed.is_set():
                        return
                    if text.startswith(b"data:"):
                        yield parse(Event, text[5:])
        finally:
            with self._lock:
                self._streams.pop(line, None)
            line.close()

    def _call(self, asked: _Asked, timeout: float | None, each: float = _LOOK) -> bytes:
        with self._lock:
            order = tuple(self._order)
            if self._closed.is_set():
                raise Unreachable("this client is closed")
        race = Race(order, timeout, each)
        while (place := race.next_to_ask()) is not None:
            threading.Thread(
                target=self._ask, args=(race, place, order[place], asked), name="overseer", daemon=True
            ).start()
            race.wait()
        if race.winner is not None:
            self._prefer(order[race.winner])
        try:
            return race.result()
        except BadCertificate:
            self.reconnect()  # the next call shows the certificate that lies in the kit by then
            raise

    def _ask(self, race: Race, place: int, address: OverseerAddress, asked: _Asked) -> None:
        """Ask one overseer, in a thread of its own: one that hangs holds up nobody."""
        try:
            answer = self._exchange(address, asked, race.limits[place])
            told = unable(answer)
            race.answers.put((place, checked(answer, address) if told is None else (who(address), told)))
        except FedhelmError as error:
            race.answers.put((place, error))
        except Exception as error:  # noqa: BLE001 - whatever happened in this thread belongs to the caller's
            try:
                race.answers.put((place, failure(error, address)))
            except BadCertificate as ours:
                race.answers.put((place, ours))

    def _exchange(self, address: OverseerAddress, asked: _Asked, limit: float) -> _Answered:
        idle = self._take(address)
        if idle is not None:
            try:
                return self._send(address, idle, asked, limit)
            except TimeoutError:
                raise
            except _LOST:
                # The overseer closed an idle connection as we used it. Every call may be repeated.
                pass
        return self._send(address, self._dial(address, limit), asked, limit)

    def _send(self, address: OverseerAddress, line: _Line, asked: _Asked, limit: float) -> _Answered:
        body = asked.body
        try:
            if line.sock is None:
                line.connect()
            else:
                line.limit(line.sock, limit)
            line.request(asked.method, path_of(address, asked.path), content_of(body), headers(body))
            reply = line.getresponse()
            answer = _Answered(reply.status, reply.read())
        except BaseException:
            line.close()
            raise
        with self._lock:
            keep = not (reply.will_close or self._closed.is_set()) and line.is_of(self._tls)
            if keep:
                self._idle.setdefault(address, []).append(line)
        if not keep:
            line.close()
        return answer

    def _take(self, address: OverseerAddress) -> _Line | None:
        with self._lock:
            idle = self._idle.get(address)
            return idle.pop() if idle else None

    def _dial(self, address: OverseerAddress, limit: float) -> _Line:
        with self._lock:
            if self._closed.is_set():
                raise Unreachable("this client is closed")
            if self._tls is None:
                self._tls = client_context(self._kit, self._check)
            return _Line(address, self._tls, max(limit, 0.001))

    def _prefer(self, address: OverseerAddress) -> None:
        with self._lock:
            before = self._order[0]
            if before == address:
                return
            self._order.remove(address)
            self._order.insert(0, address)
            silent = [line for line, source in self._streams.items() if source == before]
        for line in silent:
            line.cut()  # it did not answer in time: its events may not come, either
