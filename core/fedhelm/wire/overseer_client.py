"""Calls to the overseers of a kit, over mutual TLS, each with a time-out.

:class:`OverseerClient` is for daemons (asyncio, one pool kept open). :class:`OverseerConsoleClient` is for commands
(blocking), and can follow the events. Both try each overseer of the kit, beginning with the one that answered last, and
raise errors of :mod:`fedhelm.errors` alone: what the overseer answered, ``Unreachable`` when none answered, and
``BadCertificate`` when TLS failed over a certificate.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, Self, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from fedhelm.config.kit import Kit, OverseerAddress
from fedhelm.errors import BadCertificate, FedhelmError, NoPrimary, ProtocolError, Unreachable, error_class
from fedhelm.security.tls import client_context
from fedhelm.wire.overseer_api import (
    ActivateRequest,
    BeatRequest,
    ErrorBody,
    Event,
    Health,
    HistoryEntry,
    LeaseView,
    PrimaryView,
    PromoteReply,
    PromoteRequest,
    RegisterReply,
    RegisterRequest,
    ReleaseRequest,
    RenewReply,
    RenewRequest,
    ServerView,
)

if TYPE_CHECKING:
    import httpx

__all__ = ["OverseerClient", "OverseerConsoleClient"]

_SERVERS = TypeAdapter(tuple[ServerView, ...])
_HISTORY = TypeAdapter(tuple[HistoryEntry, ...])
_CONSOLE_TIMEOUT = 5.0
_SLACK = 3.0
"""What a call may take beyond Q when no deadline of the lease hangs on it: only beats and renewals have to keep Q."""
_EVENT_SILENCE = 15.0
"""Longest silence on an event stream; the overseer pings every 5 s."""
_RECONNECT = (0.1, 0.25, 0.5, 1.0, 2.0)

_ABOUT_US = ("CERTIFICATE", "UNKNOWN_CA")
"""Words of the TLS alerts with which the other side refuses our certificate."""

_M = TypeVar("_M", bound=BaseModel)


class _Answer(Protocol):
    """The part of an HTTP answer that both clients read."""

    @property
    def status_code(self) -> int: ...
    @property
    def content(self) -> bytes: ...


class OverseerClient:
    """Asynchronous client of a daemon; use it from one event loop, and ``aclose`` it.

    Args:
        kit: the participant's opened kit: addresses, certificate, and the request time-out Q.
    """

    def __init__(self, kit: Kit) -> None:
        self._kit = kit
        self._order = list(kit.overseers)
        self._http: httpx.AsyncClient | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        if self._http is not None:
            http, self._http = self._http, None
            await http.aclose()

    async def register(self, request: RegisterRequest) -> RegisterReply:
        """Announce an incarnation; look at ``accepted`` in the answer."""
        return _parse(RegisterReply, await self._call("POST", "/servers/register", request, slack=_SLACK))

    async def beat(self, request: BeatRequest) -> LeaseView:
        """Send a sign of life; return the lease row.

        Raises:
            NotFound: the overseer does not know this incarnation (it was restarted, say): register again.
        """
        return _parse(LeaseView, await self._call("POST", "/servers/beat", request))

    async def renew(self, request: RenewRequest) -> RenewReply:
        """Renew the lease; ``held`` False means: demote now."""
        return _parse(RenewReply, await self._call("POST", "/lease/renew", request))

    async def activate(self, request: ActivateRequest) -> LeaseView:
        """Tell that the fence is in the log; may be repeated.

        Raises:
            Refused: this incarnation does not hold that epoch.
        """
        return _parse(LeaseView, await self._call("POST", "/lease/activate", request, slack=_SLACK))

    async def release(self, request: ReleaseRequest) -> LeaseView:
        """Give the lease back; may be repeated.

        Raises:
            Refused: this incarnation does not hold that epoch.
        """
        return _parse(LeaseView, await self._call("POST", "/lease/release", request, slack=_SLACK))

    async def wait_lease(self, after: int, wait_s: float) -> LeaseView:
        """Return the row as soon as its version differs from ``after``, at the latest after ``wait_s`` seconds.

        ``after=-1`` answers at once.
        """
        path = f"/lease?after={after}&wait={wait_s:.3f}"
        return _parse(LeaseView, await self._call("GET", path, slack=wait_s + _SLACK))

    async def primary(self) -> PrimaryView:
        """Return who leads.

        Raises:
            NoPrimary: nobody does at the moment.
        """
        return _parse(PrimaryView, await self._call("GET", "/primary", slack=_SLACK))

    async def servers(self) -> tuple[ServerView, ...]:
        """Return the project's servers, in the order of the kit."""
        return _parse_all(_SERVERS, await self._call("GET", "/servers", slack=_SLACK))

    async def history(self) -> tuple[HistoryEntry, ...]:
        """Return the epochs, oldest first."""
        return _parse_all(_HISTORY, await self._call("GET", "/history", slack=_SLACK))

    async def promote(self, request: PromoteRequest) -> PromoteReply:
        """Ask for a planned switchover.

        Raises:
            Refused: the target is not fit, or leads already.
            NotFound: no such server.
        """
        return _parse(PromoteReply, await self._call("POST", "/promote", request, slack=_SLACK))

    async def health(self) -> Health:
        """Return what ``/healthz`` says."""
        return _parse(Health, await self._call("GET", "/healthz", slack=_SLACK))

    def _open(self) -> httpx.AsyncClient:
        if self._http is None:
            import httpx

            limits = httpx.Limits(max_connections=8, max_keepalive_connections=8, keepalive_expiry=60.0)
            self._http = httpx.AsyncClient(verify=client_context(self._kit), limits=limits, trust_env=False)
        return self._http

    async def _call(self, method: str, path: str, body: BaseModel | None = None, *, slack: float = 0.0) -> bytes:
        """Return the body of the first overseer that answers, each asked for at most Q + ``slack`` seconds."""
        import httpx

        limit = self._kit.timing.request + slack
        self._open()  # reading keys and certificates is not the overseer's delay
        failures: list[str] = []
        for address in tuple(self._order):
            try:
                async with asyncio.timeout(limit):
                    answer = await self._send(method, address, path, body)
            except (httpx.TransportError, OSError, TimeoutError) as exc:
                failures.append(_failure(exc, address))
                continue
            told = _unable(answer)
            if told is not None:
                failures.append(f"{address.name}: {told}")
                continue
            if address != self._order[0]:
                self._order.remove(address)
                self._order.insert(0, address)
            return _checked(answer, address)
        raise _unreachable(failures)

    async def _send(self, method: str, address: OverseerAddress, path: str, body: BaseModel | None) -> _Answer:
        import httpx

        http = self._open()
        for attempt in (1, 2):
            try:
                return await http.request(
                    method,
                    _url(address, path),
                    content=body.model_dump_json() if body is not None else None,
                    headers=_headers(body),
                    extensions={"sni_hostname": address.name},
                    timeout=None,  # the caller's asyncio.timeout bounds the whole call, handshake included
                )
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                # The other side closed an idle connection as we used it. Every call may be repeated.
                if attempt == 2:
                    raise
        raise AssertionError("unreachable")


class OverseerConsoleClient:
    """Blocking client of a command or of the console; may be shared between threads, and ``close`` it.

    Args:
        kit: the opened kit of any participant.
        timeout: seconds for each step (connect, read) of a call.
    """

    def __init__(self, kit: Kit, timeout: float = _CONSOLE_TIMEOUT) -> None:
        self._kit = kit
        self._timeout = timeout
        self._order = list(kit.overseers)
        self._http: httpx.Client | None = None
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; a running ``events`` iterator ends within its next wait."""
        self._closed.set()
        with self._lock:
            http, self._http = self._http, None
        if http is not None:
            http.close()

    def primary(self) -> PrimaryView:
        """Return who leads.

        Raises:
            NoPrimary: nobody does at the moment.
        """
        return _parse(PrimaryView, self._call("GET", "/primary"))

    def servers(self) -> tuple[ServerView, ...]:
        """Return the project's servers, in the order of the kit."""
        return _parse_all(_SERVERS, self._call("GET", "/servers"))

    def history(self) -> tuple[HistoryEntry, ...]:
        """Return the epochs, oldest first."""
        return _parse_all(_HISTORY, self._call("GET", "/history"))

    def promote(self, target: str, request_id: str) -> PromoteReply:
        """Ask for a planned switchover; returns when the intent is in the row, not when it is done.

        Raises:
            Refused: the target is not fit, or leads already.
            NotFound: no such server.
        """
        return _parse(
            PromoteReply, self._call("POST", "/promote", PromoteRequest(target=target, request_id=request_id))
        )

    def health(self) -> Health:
        """Return what ``/healthz`` says."""
        return _parse(Health, self._call("GET", "/healthz"))

    def events(self, after: int | None = None) -> Iterator[Event]:
        """Yield events until ``close``, across lost connections and restarts of the overseer.

        Args:
            after: the id last seen; 0 for all that the overseer still keeps; None for those from now on.

        Raises:
            NotAuthorised: the certificate is not accepted; other losses are tried again.
        """
        import httpx

        failed = 0
        while not self._closed.is_set():
            for address in tuple(self._order):
                try:
                    for event in self._stream(address, after):
                        failed = 0
                        after = event.id
                        yield event
                except (httpx.HTTPError, httpx.StreamError, OSError, RuntimeError) as exc:
                    # RuntimeError: close() from another thread closed the client between two uses.
                    if self._closed.is_set():
                        return
                    _failure(exc, address)
                except Unreachable:
                    pass
            self._closed.wait(_RECONNECT[min(failed, len(_RECONNECT) - 1)])
            failed += 1

    def _stream(self, address: OverseerAddress, after: int | None) -> Iterator[Event]:
        import httpx

        headers = {"accept": "text/event-stream"}
        if after is not None:
            headers["last-event-id"] = str(after)
        with self._open().stream(
            "GET",
            _url(address, "/events"),
            headers=headers,
            extensions={"sni_hostname": address.name},
            timeout=httpx.Timeout(self._timeout, read=_EVENT_SILENCE),
        ) as answer:
            if answer.status_code != 200:
                answer.read()
                _checked(answer, address)
            for line in answer.iter_lines():
                if self._closed.is_set():
                    return
                if line.startswith("data:"):
                    yield _parse(Event, line[5:].encode())

    def _open(self) -> httpx.Client:
        import httpx

        with self._lock:
            if self._closed.is_set():
                raise Unreachable("this client is closed")
            if self._http is None:
                self._http = httpx.Client(verify=client_context(self._kit), timeout=self._timeout, trust_env=False)
            return self._http

    def _call(self, method: str, path: str, body: BaseModel | None = None) -> bytes:
        import httpx

        failures: list[str] = []
        for address in tuple(self._order):
            try:
                answer = self._open().request(
                    method,
                    _url(address, path),
                    content=body.model_dump_json() if body is not None else None,
                    headers=_headers(body),
                    extensions={"sni_hostname": address.name},
                )
            except (httpx.TransportError, OSError) as exc:
                failures.append(_failure(exc, address))
                continue
            told = _unable(answer)
            if told is not None:
                failures.append(f"{address.name}: {told}")
                continue
            return _checked(answer, address)
        raise _unreachable(failures)


def _url(address: OverseerAddress, path: str) -> str:
    root = "" if path == "/healthz" else address.api_root.rstrip("/")
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"https://{host}:{address.port}{root}{path}"


def _headers(body: BaseModel | None) -> dict[str, str]:
    return {"content-type": "application/json"} if body is not None else {}


def _unable(answer: _Answer) -> str | None:
    """Return why this overseer cannot serve (its store does not answer, say), so that another is asked."""
    if answer.status_code < 500:
        return None
    try:
        told = ErrorBody.model_validate_json(answer.content)
    except ValidationError:
        return f"it answered {answer.status_code}"
    return None if told.code == NoPrimary.code else told.message


def _checked(answer: _Answer, address: OverseerAddress) -> bytes:
    """Return the answer's body, or raise the error it carries."""
    if answer.status_code < 400:
        return answer.content
    try:
        told = ErrorBody.model_validate_json(answer.content)
    except ValidationError:
        raise ProtocolError(f"overseer {address.name} answered {answer.status_code} without a reason") from None
    error: FedhelmError = error_class(told.code)(told.message, hint=told.hint)
    raise error


def _parse(model: type[_M], data: bytes) -> _M:
    try:
        return model.model_validate_json(data)
    except ValidationError as exc:
        raise ProtocolError(f"the overseer's answer is not a {model.__name__}: {exc.errors()[0]['msg']}") from None


_T = TypeVar("_T")


def _parse_all(adapter: TypeAdapter[_T], data: bytes) -> _T:
    try:
        return adapter.validate_json(data)
    except ValidationError as exc:
        raise ProtocolError(f"the overseer's answer is malformed: {exc.errors()[0]['msg']}") from None


def _failure(exc: BaseException, address: OverseerAddress) -> str:
    """Return one line about a lost call.

    Raises:
        BadCertificate: TLS failed over a certificate; another try would not help.
    """
    cause: BaseException | None = exc
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            reason = getattr(cause, "verify_message", None) or cause.reason or ""
            if isinstance(cause, ssl.SSLCertVerificationError) or any(
                word in reason.upper() for word in ("CERTIFICATE", "UNKNOWN_CA")
            ):
                raise BadCertificate(
                    f"TLS with overseer {address.name} at {address.host}:{address.port} failed: {reason}",
                    hint="compare the kit's certificates, their dates, and this machine's clock",
                ) from None
        cause = cause.__cause__ or cause.__context__
    what = "no answer in time" if isinstance(exc, TimeoutError) else (str(exc) or type(exc).__name__)
    return f"{address.name} at {address.host}:{address.port}: {what}"


def _unreachable(failures: Sequence[str]) -> Unreachable:
    told = "; ".join(failures) if failures else "the kit names none"
    return Unreachable(f"no overseer answers ({told})", hint="is the overseer running? See its log.txt")
