"""What is done with every request before and after its route: who calls, how much may be sent, what is written of it.

Nothing of a request is read before its certificate is known to count. Every answer says which version of the list of
revoked certificates this overseer has.
"""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final

from fastapi.responses import JSONResponse

from fedhelm.errors import BadCertificate, BadInput, FedhelmError
from fedhelm.security.audit import AuditTrail
from fedhelm.security.audit_start import entry_of
from fedhelm.security.gates import ENDPOINTS
from fedhelm.security.identity import Principal, principal_from_der
from fedhelm.security.passage import Passage
from fedhelm.security.revocation import MAX_BYTES
from fedhelm.wire.overseer_api import API_ROOT, REVOCATIONS_HEADER, ErrorBody
from fedhelm_overseer.revocations import Revocations
from fedhelm_overseer.tls_protocol import client_certificate

__all__ = ["BODY_S", "MAX_BODY", "MAX_REGISTRATION", "BodyLimit", "Edge", "answer"]

MAX_BODY: Final = 64 * 1024
"""Largest body of a request, in bytes, but for a registration and a list of revoked certificates."""
MAX_REGISTRATION: Final = 1536 * 1024
"""Largest body of a registration, which may carry a kit's configuration."""
BODY_S: Final = 60.0
"""Seconds that a body may take."""

_LIMITS: Mapping[str, int] = {
    f"{API_ROOT}/servers/register": MAX_REGISTRATION,
    f"{API_ROOT}/revocations": MAX_BYTES,
}

_Scope = MutableMapping[str, Any]
_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
App = Callable[[_Scope, _Receive, _Send], Awaitable[None]]

_identify = functools.lru_cache(maxsize=256)(principal_from_der)
_PATTERNS = {name: re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(name))) for name in ENDPOINTS}


def answer(status: int, error: FedhelmError) -> JSONResponse:
    """Return an error as the API tells it."""
    body = ErrorBody(code=error.code, message=error.message, hint=error.hint)
    return JSONResponse(body.model_dump(), status_code=status)


class Edge:
    """The outermost layer: identity, revocation, the header of every answer, and the audit line after it.

    Args:
        app: the layers within. They find the caller as ``principal`` in the request's state, and leave there their
            ``passage`` and the ``error`` that was answered.
        project: whose certificates count.
        revocations: what was revoked.
        trail: where lines go; None: nowhere.
    """

    def __init__(
        self, app: App, project: str, revocations: Callable[[], Revocations], trail: AuditTrail | None
    ) -> None:
        self._app = app
        self._project = project
        self._revocations = revocations
        self._trail = trail

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        revocations = self._revocations()

        async def told(message: _Message) -> None:
            if message["type"] == "http.response.start":
                version = (REVOCATIONS_HEADER.encode(), str(revocations.current.version).encode())
                message = {**message, "headers": [*message.get("headers", ()), version]}
            await send(message)

        state = scope.setdefault("state", {})
        try:
            self._admit(scope, revocations)
        except BadCertificate as error:
            self._write(entry_name(scope["method"], scope["path"]), state.get("principal"), error)
            refusal = answer(401, error)
            refusal.headers["connection"] = "close"  # the body is not read
            await refusal(scope, receive, told)
            return
        try:
            await self._app(scope, receive, told)
        except Exception as error:
            state["error"] = error
            raise
        finally:
            passage: Passage | None = state.get("passage")
            if self._trail is not None and passage is not None and (entry := passage.entry(state.get("error"))):
                self._trail.note(entry)

    def _admit(self, scope: _Scope, revocations: Revocations) -> None:
        der = client_certificate(scope)
        if der is None:
            raise BadCertificate("a client certificate is needed")
        principal = _identify(der, self._project)
        scope["state"]["principal"] = principal
        revocations.check(principal.serial)

    def _write(self, name: str, principal: Principal | None, error: BadCertificate) -> None:
        if self._trail is not None:
            self._trail.note(entry_of(name, principal, {}, error))


def entry_name(method: str, path: str) -> str:
    """Return how the audit file calls a request that was refused before its route was looked for."""
    asked = f"{method} {path}"
    return next((name for name, pattern in _PATTERNS.items() if pattern.fullmatch(asked)), "unknown route")


class BodyLimit:
    """Answers 413 to a body of more than is allowed for the path, whatever length it announced; 408 to a slow one."""

    def __init__(self, app: App, seconds: float = BODY_S) -> None:
        self._app = app
        self._seconds = seconds

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Read the body, then pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = _LIMITS.get(scope["path"], MAX_BODY)
        messages: list[_Message] = []
        try:
            async with asyncio.timeout(self._seconds):
                whole = await self._read(receive, limit, messages)
        except TimeoutError:
            await self._refuse(408, f"the body did not come within {self._seconds:g} s", scope, receive, send)
            return
        if not whole:
            await self._refuse(413, f"the body is larger than {limit} bytes", scope, receive, send)
            return

        async def replay() -> _Message:
            return messages.pop(0) if messages else await receive()

        await self._app(scope, replay, send)

    @staticmethod
    async def _read(receive: _Receive, limit: int, messages: list[_Message]) -> bool:
        """Return whether the whole body is within the limit."""
        size, more = 0, True
        while more:
            message = await receive()
            messages.append(message)
            size += len(message.get("body", b""))
            more = message["type"] == "http.request" and bool(message.get("more_body", False))
            if size > limit:
                return False
        return True

    @staticmethod
    async def _refuse(status: int, why: str, scope: _Scope, receive: _Receive, send: _Send) -> None:
        refusal = answer(status, BadInput(why))
        refusal.headers["connection"] = "close"  # else the rest would be read and thrown away, without end
        await refusal(scope, receive, send)
