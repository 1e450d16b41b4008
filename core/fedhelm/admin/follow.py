"""Follow the primary: find it, log in completely, swap the connection whole, ask again after a loss.

Every question gets one deadline across all its attempts. A read is simply asked again; a write carries a request id
made by its caller and asks the same thing again, so the server answers from its table and nothing happens twice.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from fedhelm.admin import decode
from fedhelm.admin.deadline import Deadline
from fedhelm.admin.models import Primary, SignedIn
from fedhelm.admin.network import AdminCalls, Network
from fedhelm.admin.remember import Remembered, forget, recall, remember
from fedhelm.clock import Clock
from fedhelm.config.kit import ServerAddress
from fedhelm.errors import (
    BadCertificate,
    DeadlineExceeded,
    FedhelmError,
    Fenced,
    NoPrimary,
    NotPrimary,
    SlotTaken,
    Unreachable,
)
from fedhelm.wire.roster import known_servers, learn_servers

if TYPE_CHECKING:
    from fedhelm.config.kit import Kit, OverseerAddress

__all__ = ["LOGIN_PREFIX", "Connection", "Follower", "Note", "told"]

T = TypeVar("T")

LOGIN_PREFIX = b"fedhelm-login\0"
WIRE_VERSIONS = (2, 1)

CALL_LIMIT = 5.0
"""Seconds one attempt may take: a stopped server still accepts TCP, so every call has its own end."""

LOGIN_LIMIT = 3.0
GUESS_LIMIT = 1.0
FAIR = 1.0
"""Seconds that a server must have been given before its silence says anything of it: others may use the connection."""

PAUSE = 0.1
GRACE = 1.0
"""Seconds for which "nobody answers at all" may be a moment's gap, before it is an error."""

# The server is there and does not lead, or is gone: ask who leads.
_LOST = (Unreachable, Fenced, SlotTaken)


@dataclass(frozen=True)
class Note:
    """Talk for a person: ``kind`` is following, electing, overseer or retry; ``seconds`` since it began."""

    kind: str
    text: str
    seconds: float = 0.0


@dataclass(frozen=True)
class Connection:
    """One login that is complete; nothing half-built is ever visible."""

    server: str
    stub: AdminCalls
    channel: Any
    signed_in: SignedIn


def _address(one: ServerAddress | OverseerAddress, port: int) -> str:
    return f"{one.name} at {one.host}:{port}"


def _without_name(name: str, why: str) -> str:
    return why.removeprefix(f"{name} ").removeprefix("cannot be reached: ")


def told(reasons: Sequence[tuple[str, str]]) -> str:
    """Return who was asked, each with why it is no primary; a reason that all share is said once, at the end."""
    short = [(who, _without_name(who.partition(" ")[0], why)) for who, why in reasons]
    shared = {why for _, why in short}
    if len(shared) == 1:
        return f"{', '.join(who for who, _ in short)}: {shared.pop()}"
    return ", ".join(f"{who} ({why})" for who, why in short)


class Follower:
    """Keeps at most one connection, to the server that leads with the highest epoch seen.

    Safe to use from more than one thread.

    Args:
        kit: the admin's.
        network: servers, overseers and the key.
        clock: the time.
        notice: is told what a person may want to know while waiting.
        pause: waits that many seconds (injected, so that tests need not).
    """

    def __init__(
        self,
        kit: Kit,
        network: Network,
        clock: Clock,
        notice: Callable[[Note], None],
        pause: Callable[[float], object] | None = None,
    ) -> None:
        self._kit = kit
        self._network = network
        self._clock = clock
        self.notice = notice
        self._pause = pause or threading.Event().wait
        self._lock = threading.RLock()
        self._current: Connection | None = None
        self._guess = recall(kit.run)
        self._epoch = 0
        self._overseer_told = ""
        self._paused = False
        self.primary: Primary | None = None

    @property
    def current(self) -> Connection | None:
        """The connection in use, if there is one."""
        return self._current

    def ask(self, deadline: Deadline, question: Callable[[AdminCalls, float], T], *, limit: float = CALL_LIMIT) -> T:
        """Put a question to the primary, whoever it is by the time it answers.

        Args:
            deadline: for everything together.
            question: gets the service and the seconds of this attempt. Called again after a loss, so a write must
                carry the same request id each time.
            limit: seconds for one attempt.

        Raises:
            DeadlineExceeded: the time is over.
            Unreachable: nobody answers at all.
            BadCertificate: this certificate counts no longer; another one is tried at the next call.
        """
        failures = 0
        while True:
            connection = self.connect(deadline)
            given = deadline.within(limit)
            try:
                return question(connection.stub, given)
            except (*_LOST, DeadlineExceeded) as lost:
                if isinstance(lost, DeadlineExceeded) and given < min(FAIR, limit):
                    deadline.check(str(lost))
                    raise
                self.lost(connection, lost, deadline)
            except BadCertificate:
                self.drop(connection)  # the next call logs in with the certificate that lies in the kit by then
                raise
            if failures:
                self._pause(deadline.within(PAUSE))
            failures += 1

    def attempt(
        self, deadline: Deadline, question: Callable[[AdminCalls, float], object], *, limit: float = CALL_LIMIT
    ) -> bool:
        """Put a question once; False when the line broke, and the caller says where to go on.

        Raises:
            DeadlineExceeded: the time is over.
            Unreachable: nobody answers at all.
        """
        connection = self.connect(deadline)
        try:
            question(connection.stub, deadline.within(limit))
        except (*_LOST, DeadlineExceeded) as lost:
            self.lost(connection, lost, deadline)
            self._pause(deadline.within(PAUSE))
            return False
        return True

    def lost(self, connection: Connection, why: Exception, deadline: Deadline) -> None:
        """Forget a connection that failed, and say so.

        Raises:
            DeadlineExceeded: there is no time for another attempt.
        """
        self.drop(connection)
        deadline.check(str(why))
        what = "does not lead any more" if isinstance(why, NotPrimary | Fenced | SlotTaken) else "does not answer"
        self.notice(Note("following", f"{connection.server} {what}; asking who leads"))

    def connect(self, deadline: Deadline) -> Connection:
        """Return the connection, after finding the primary and logging in where there is none.

        Raises:
            DeadlineExceeded: nobody led within the time.
            Unreachable: neither overseer nor any server answers.
            NotAuthorised: the primary refuses this certificate.
        """
        current = self._current
        if current is not None:
            return current
        with self._locked(deadline):
            if self._current is None:
                self._current = self._find(deadline)
            return self._current

    def drop(self, connection: Connection) -> None:
        """Forget a connection that failed; another one made meanwhile stays."""
        with self._lock:
            if self._current is connection:
                self._current = None
        connection.channel.close()

    def close(self) -> None:
        """Close the connection in use."""
        if self._current is not None:
            self.drop(self._current)

    @contextlib.contextmanager
    def _locked(self, deadline: Deadline) -> Iterator[None]:
        left = deadline.left()
        if not self._lock.acquire(timeout=-1 if left is None else left):
            deadline.check("electing")
            raise NoPrimary("another call is still looking for the primary")
        try:
            yield
        finally:
            self._lock.release()

    def _find(self, deadline: Deadline) -> Connection:
        if (found := self._try_guess(deadline)) is not None:
            return found
        began = self._clock.boottime()
        alone: float | None = None
        last = ""
        while True:
            deadline.check(last or "no primary")
            found, answered, last = self._round(deadline)
            if found is not None:
                return found
            now = self._clock.boottime()
            alone = None if answered else now if alone is None else alone
            if alone is not None and now - alone >= GRACE:
                raise Unreachable(f"nobody answers: {last}", hint="are the participants running? `fedhelm poc status`")
            # Nobody leads, or who leads does not answer: that is an election, whatever the reason.
            if answered:
                what = "no primary, failover is paused…" if self._paused else "electing…"
                self.notice(Note("electing", f"{what} {now - began:.1f} s", now - began))
            self._pause(deadline.within(PAUSE))

    def _try_guess(self, deadline: Deadline) -> Connection | None:
        guess, self._guess = self._guess, None
        if guess is None:
            return None
        for server in known_servers(self._kit):
            if server.name == guess.server:
                with contextlib.suppress(*_LOST, DeadlineExceeded):
                    return self._log_in(server, deadline.within(GUESS_LIMIT), guess.epoch)
        forget(self._kit.run)
        return None

    def _round(self, deadline: Deadline) -> tuple[Connection | None, bool, str]:
        """Ask the overseer, then the server it names, or every server: (connection, somebody answered, why not)."""
        try:
            view = decode.primary(self._network.overseer().primary(deadline.left()))
        except NoPrimary as nobody:
            self._check_up(deadline)
            return None, True, str(nobody)
        except (Unreachable, DeadlineExceeded) as away:
            if self._overseer_told != str(away):
                self._overseer_told = str(away)
                self.notice(Note("overseer", f"{away}; trying every server"))
            tried = getattr(away, "tried", ()) or tuple(
                (_address(one, one.port), str(away)) for one in self._kit.overseers
            )
            return self._try_all(deadline, tried)
        self._overseer_told = ""
        self.primary = view
        server = ServerAddress(view.name, view.host, view.fed_learn_port, view.admin_port)
        if server not in known_servers(self._kit):
            with contextlib.suppress(FedhelmError):
                learn_servers(self._kit, self._network.overseer().servers(deadline.left()))
        try:
            return self._log_in(server, deadline.within(LOGIN_LIMIT), 0), True, ""
        except (*_LOST, DeadlineExceeded) as lost:
            return None, True, told([(_address(server, server.admin_port), str(lost))])

    def _check_up(self, deadline: Deadline) -> None:
        """Do nothing while a primary may still come.

        Raises:
            NoPrimary: the servers were shut down: nobody will lead until they are started.
        """
        try:
            system = decode.system(self._network.overseer().system(deadline.left()))
        except FedhelmError:  # no answer just now, or an overseer of the version before
            return
        self._paused = system.paused
        if system.down:
            raise NoPrimary("the system is down: an admin has shut it down", hint="start the servers and sites again")

    def _try_all(self, deadline: Deadline, tried: tuple[tuple[str, str], ...]) -> tuple[Connection | None, bool, str]:
        answered = False
        reasons = list(tried)
        for server in known_servers(self._kit):
            try:
                return self._log_in(server, deadline.within(LOGIN_LIMIT), 0), True, ""
            except NotPrimary as standby:
                answered = True
                reasons.append((_address(server, server.admin_port), str(standby)))
            except (*_LOST, DeadlineExceeded) as lost:
                reasons.append((_address(server, server.admin_port), str(lost)))
        return None, answered, told(reasons)

    def _log_in(self, server: ServerAddress, limit: float, least_epoch: int) -> Connection:
        from fedhelm.v1 import admin_pb2

        deadline = Deadline(self._clock, limit)
        stub, channel = self._network.dial(server)
        try:
            nonce = stub.challenge(timeout=deadline.within(limit)).nonce
            request = admin_pb2.LoginRequest(
                nonce=nonce, signature=self._network.sign(LOGIN_PREFIX + nonce), wire_versions=WIRE_VERSIONS
            )
            signed_in = decode.signed_in(stub.login(request, timeout=deadline.within(limit)))
            self._check_epoch(signed_in, least_epoch)
        except BaseException:
            channel.close()
            raise
        self._epoch = max(self._epoch, signed_in.epoch)
        remember(self._kit.run, Remembered(server.name, signed_in.epoch))
        return Connection(server.name, stub, channel, signed_in)

    def _check_epoch(self, signed_in: SignedIn, least_epoch: int) -> None:
        least = max(self._epoch, least_epoch)
        if signed_in.epoch < least:
            raise NotPrimary(f"{signed_in.server} says epoch {signed_in.epoch}, and {least} was seen already")
