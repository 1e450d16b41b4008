"""One overseer as a daemon calls it: its own connections, and at most one call of a kind on its way.

A call never raises: its outcome says what the overseer answered, or why it counts as not having answered. A call that
nobody waits for any more ends within its own time-out.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedhelm.config.kit import OverseerAddress
from fedhelm.errors import BadCertificate, FedhelmError, ProtocolError
from fedhelm.tasks import cancel, spawn
from fedhelm.wire.overseer_answers import (
    Body,
    checked,
    content_of,
    failure,
    headers,
    path_of,
    revocations_of,
    unable,
    unreachable,
    who,
)

if TYPE_CHECKING:
    import httpx

__all__ = ["Outcome", "OverseerLane", "blame"]

_LAST_S = 0.2
"""What is on its way when the client is closed may take this long: a release to the slower overseer, say."""


@dataclass(frozen=True)
class Outcome:
    """What came of one call: exactly one of ``data``, ``error`` and ``why`` is set.

    Attributes:
        lane: the overseer that was called.
        data: the body of a good answer.
        error: what the overseer answered instead, or that TLS failed over a certificate.
        why: why this overseer counts as not having answered.
    """

    lane: OverseerLane
    data: bytes | None = None
    error: FedhelmError | None = None
    why: str | None = None

    @property
    def definite(self) -> bool:
        """Whether the overseer refused, in so many words, rather than failed at its own side."""
        return self.error is not None and not isinstance(self.error, BadCertificate | ProtocolError)

    def result(self) -> bytes:
        """Return the body, or raise the error; only for an outcome that has one."""
        if self.error is not None:
            raise self.error
        assert self.data is not None
        return self.data

    @property
    def failure(self) -> tuple[str, str]:
        """Who did not answer, and why."""
        return who(self.lane.address), self.why or ""


class OverseerLane:
    """The calls to one overseer.

    Args:
        address: where it answers.
        context: makes the TLS context; called once, at the first call of all lanes.
        announced: called when an answer names another version of the list of revoked certificates than the one before.
    """

    def __init__(
        self,
        address: OverseerAddress,
        context: Callable[[], ssl.SSLContext],
        announced: Callable[[int], None] = lambda _version: None,
    ) -> None:
        self.address = address
        self.revocations: int | None = None
        """Version of the list of revoked certificates that its last answer named."""
        self.version: int | None = None
        """Of the lease row that a long poll last brought from here."""
        self.asked: int | None = None
        """The version that the long poll that runs, or ran last, waits to differ from."""
        self.polled_at = 0.0
        """When the long poll that runs, or ran last, was begun (``time.monotonic``)."""
        self._context = context
        self._announced = announced
        self._http: httpx.AsyncClient | None = None
        self._running: dict[str, asyncio.Task[Outcome]] = {}
        self._reads: set[asyncio.Task[Outcome]] = set()
        self._retiring: set[asyncio.Task[None]] = set()

    def reconnect(self, context: Callable[[], ssl.SSLContext]) -> None:
        """Let calls that begin now open new connections; those on their way end on the ones that they have.

        Args:
            context: makes the TLS context from now on.
        """
        self._context = context
        http, self._http = self._http, None
        if http is not None:
            task = spawn(_retire(http, {*self._running.values(), *self._reads}), f"retired: {self.address.name}")
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    def running(self, kind: str) -> asyncio.Task[Outcome] | None:
        """Return the call of this kind that is on its way."""
        task = self._running.get(kind)
        return None if task is None or task.done() else task

    def start(self, kind: str, method: str, path: str, body: Body, limit: float) -> asyncio.Task[Outcome]:
        """Begin a call of a kind of which none is on its way; it ends within ``limit`` seconds."""
        assert self.running(kind) is None
        self._open()  # reading keys and certificates is not the overseer's delay
        task = spawn(self._call(method, path, body, limit), f"{kind} to {self.address.name}")
        self._running[kind] = task
        return task

    def poll(self, after: int, wait: float, limit: float) -> asyncio.Task[Outcome]:
        """Return the long poll that is on its way, or begin one."""
        task = self.running("lease")
        if task is None:
            self.asked, self.polled_at = after, time.monotonic()
            task = self.start("lease", "GET", f"/lease?after={after}&wait={wait:.3f}", None, limit)
        return task

    def read(self, method: str, path: str, body: Body, limit: float) -> asyncio.Task[Outcome]:
        """Begin a call of which there may be any number."""
        self._open()
        task = spawn(self._call(method, path, body, limit), f"{path} at {self.address.name}")
        self._reads.add(task)
        task.add_done_callback(self._reads.discard)
        return task

    async def aclose(self) -> None:
        """Give what is on its way a moment, break the rest off, and close the connections."""
        left = {*self._running.values(), *self._reads}
        if left:
            await asyncio.wait(left, timeout=_LAST_S)
        await cancel(*left)
        self._running.clear()
        if self._retiring:
            await asyncio.wait(self._retiring)  # nothing of theirs is left on its way
        if self._http is not None:
            http, self._http = self._http, None
            await http.aclose()

    def _open(self) -> httpx.AsyncClient:
        if self._http is None:
            import httpx

            # A pool for each overseer: one that hangs keeps its own connections busy, not those of the others.
            limits = httpx.Limits(max_connections=16, max_keepalive_connections=8, keepalive_expiry=60.0)
            self._http = httpx.AsyncClient(verify=self._context(), limits=limits, trust_env=False)
        return self._http

    async def _call(self, method: str, path: str, body: Body, limit: float) -> Outcome:
        import httpx

        try:
            async with asyncio.timeout(limit):
                answer = await self._send(method, path, body, limit)
            self._hear(answer)
            told = unable(answer)
            if told is not None:
                return Outcome(self, why=told)
            return Outcome(self, data=checked(answer, self.address))
        except (httpx.TransportError, OSError, TimeoutError) as exc:
            try:
                return Outcome(self, why=failure(exc, self.address)[1])
            except BadCertificate as error:
                return Outcome(self, error=error)
        except FedhelmError as error:
            return Outcome(self, error=error)

    def _hear(self, answer: httpx.Response) -> None:
        version = revocations_of(answer.headers)
        if version is not None and version != self.revocations:
            self.revocations = version
            self._announced(version)

    async def _send(self, method: str, path: str, body: Body, limit: float) -> httpx.Response:
        import httpx

        http = self._open()
        for attempt in (1, 2):
            try:
                return await http.request(
                    method,
                    _url(self.address, path),
                    content=content_of(body),
                    headers=headers(body),
                    extensions={"sni_hostname": self.address.name},
                    # The caller's time-out bounds the whole call. This one comes first in a handshake that does not
                    # end, since httpx leaves the socket open when it is cancelled there.
                    timeout=httpx.Timeout(None, connect=0.9 * limit),
                )
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                # The other side closed an idle connection as we used it. Every call may be repeated.
                if attempt == 2:
                    raise
        raise AssertionError("unreachable")


async def _retire(http: httpx.AsyncClient, left: set[asyncio.Task[Outcome]]) -> None:
    if left:
        await asyncio.wait(left)  # each has its time-out
    await http.aclose()


def _url(address: OverseerAddress, path: str) -> str:
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"https://{host}:{address.port}{path_of(address, path)}"


def blame(outcomes: Sequence[Outcome]) -> Outcome:
    """Return the outcome to report when no overseer answered well: one with an error.

    Raises:
        Unreachable: nothing but silence; it names each overseer.
    """
    told = next((outcome for outcome in outcomes if outcome.error is not None), None)
    if told is None:
        raise unreachable([outcome.failure for outcome in outcomes])
    return told
