"""Calls of a daemon to the overseers of its kit, over mutual TLS, each with a time-out (asyncio, one pool kept open).

Each overseer of the kit is tried, beginning with the one that answered last. Errors are those of
:mod:`fedhelm.errors` alone: what the overseer answered, ``Unreachable`` when none answered, and ``BadCertificate`` when
TLS failed over a certificate. Commands have :mod:`fedhelm.wire.overseer_console`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

from pydantic import BaseModel

from fedhelm.config.kit import Kit, OverseerAddress
from fedhelm.security.tls import client_context
from fedhelm.wire.overseer_answers import (
    HISTORY,
    SERVERS,
    Answer,
    checked,
    failure,
    headers,
    parse,
    parse_all,
    path_of,
    unable,
    unreachable,
    who,
)
from fedhelm.wire.overseer_api import (
    ActivateRequest,
    BeatRequest,
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

__all__ = ["OverseerClient"]

_SLACK = 3.0
"""What a call may take beyond Q when no deadline of the lease hangs on it: only beats and renewals have to keep Q."""


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
        return parse(RegisterReply, await self._call("POST", "/servers/register", request, slack=_SLACK))

    async def beat(self, request: BeatRequest) -> LeaseView:
        """Send a sign of life; return the lease row.

        Raises:
            NotFound: the overseer does not know this incarnation (it was restarted, say): register again.
        """
        return parse(LeaseView, await self._call("POST", "/servers/beat", request))

    async def renew(self, request: RenewRequest) -> RenewReply:
        """Renew the lease; ``held`` False means: demote now."""
        return parse(RenewReply, await self._call("POST", "/lease/renew", request))

    async def activate(self, request: ActivateRequest) -> LeaseView:
        """Tell that the fence is in the log; may be repeated.

        Raises:
            Refused: this incarnation does not hold that epoch.
        """
        return parse(LeaseView, await self._call("POST", "/lease/activate", request, slack=_SLACK))

    async def release(self, request: ReleaseRequest) -> LeaseView:
        """Give the lease back; may be repeated.

        Raises:
            Refused: this incarnation does not hold that epoch.
        """
        return parse(LeaseView, await self._call("POST", "/lease/release", request, slack=_SLACK))

    async def wait_lease(self, after: int, wait_s: float) -> LeaseView:
        """Return the row as soon as its version differs from ``after``, at the latest after ``wait_s`` seconds.

        ``after=-1`` answers at once.
        """
        path = f"/lease?after={after}&wait={wait_s:.3f}"
        return parse(LeaseView, await self._call("GET", path, slack=wait_s + _SLACK))

    async def primary(self) -> PrimaryView:
        """Return who leads.

        Raises:
            NoPrimary: nobody does at the moment.
        """
        return parse(PrimaryView, await self._call("GET", "/primary", slack=_SLACK))

    async def servers(self) -> tuple[ServerView, ...]:
        """Return the project's servers, in the order of the kit."""
        return parse_all(SERVERS, await self._call("GET", "/servers", slack=_SLACK))

    async def history(self) -> tuple[HistoryEntry, ...]:
        """Return the epochs, oldest first."""
        return parse_all(HISTORY, await self._call("GET", "/history", slack=_SLACK))

    async def promote(self, request: PromoteRequest) -> PromoteReply:
        """Ask for a planned switchover.

        Raises:
            Refused: the target is not fit, or leads already.
            NotFound: no such server.
        """
        return parse(PromoteReply, await self._call("POST", "/promote", request, slack=_SLACK))

    async def health(self) -> Health:
        """Return what ``/healthz`` says."""
        return parse(Health, await self._call("GET", "/healthz", slack=_SLACK))

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
        failures: list[tuple[str, str]] = []
        for address in tuple(self._order):
            try:
                async with asyncio.timeout(limit):
                    answer = await self._send(method, address, path, body)
            except (httpx.TransportError, OSError, TimeoutError) as exc:
                failures.append(failure(exc, address))
                continue
            told = unable(answer)
            if told is not None:
                failures.append((who(address), told))
                continue
            if address != self._order[0]:
                self._order.remove(address)
                self._order.insert(0, address)
            return checked(answer, address)
        raise unreachable(failures)

    async def _send(self, method: str, address: OverseerAddress, path: str, body: BaseModel | None) -> Answer:
        import httpx

        http = self._open()
        for attempt in (1, 2):
            try:
                return await http.request(
                    method,
                    _url(address, path),
                    content=body.model_dump_json() if body is not None else None,
                    headers=headers(body),
                    extensions={"sni_hostname": address.name},
                    timeout=None,  # the caller's asyncio.timeout bounds the whole call, handshake included
                )
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                # The other side closed an idle connection as we used it. Every call may be repeated.
                if attempt == 2:
                    raise
        raise AssertionError("unreachable")


def _url(address: OverseerAddress, path: str) -> str:
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"https://{host}:{address.port}{path_of(address, path)}"
