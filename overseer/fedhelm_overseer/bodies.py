"""How much a request may send, and how slowly; and how an error is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final

from fastapi.responses import JSONResponse

from fedhelm.errors import BadInput, FedhelmError
from fedhelm.security.revocation import MAX_BYTES
from fedhelm.wire.overseer_api import API_ROOT, ErrorBody
from fedhelm_overseer.lease import StoreAway

__all__ = [
    "BODY_S",
    "MAX_BODY",
    "MAX_REGISTRATION",
    "App",
    "BodyLimit",
    "Message",
    "Receive",
    "Scope",
    "Send",
    "answer",
]

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

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def answer(status: int, error: FedhelmError, *, close: bool = False) -> JSONResponse:
    """Return an error as the API tells it.

    Args:
        status: of HTTP.
        error: what happened. What a database said of itself is for the overseer's log, and is left out.
        close: whether the connection ends with it: else a body that nobody wants would be read to its end.
    """
    message, hint = (error.public, StoreAway.HINT) if isinstance(error, StoreAway) else (error.message, error.hint)
    body = ErrorBody(code=error.code, message=message, hint=hint)
    return JSONResponse(body.model_dump(), status_code=status, headers={"connection": "close"} if close else None)


class BodyLimit:
    """Answers 413 to a body of more than is allowed for the path, whatever length it announced; 408 to a slow one."""

    def __init__(self, app: App, seconds: float = BODY_S) -> None:
        self._app = app
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body, then pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = _LIMITS.get(scope["path"], MAX_BODY)
        messages: list[Message] = []
        try:
            async with asyncio.timeout(self._seconds):
                whole = await self._read(receive, limit, messages)
        except TimeoutError:
            await self._refuse(408, f"the body did not come within {self._seconds:g} s", scope, receive, send)
            return
        if not whole:
            await self._refuse(413, f"the body is larger than {limit} bytes", scope, receive, send)
            return

        async def replay() -> Message:
            return messages.pop(0) if messages else await receive()

        await self._app(scope, replay, send)

    @staticmethod
    async def _read(receive: Receive, limit: int, messages: list[Message]) -> bool:
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
    async def _refuse(status: int, why: str, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["error"] = error = BadInput(why)
        await answer(status, error, close=True)(scope, receive, send)
