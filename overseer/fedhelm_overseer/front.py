"""What an overseer answers while it waits for its lease store."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.responses import JSONResponse

from fedhelm.errors import FedhelmError, StoreUnavailable
from fedhelm.wire.overseer_api import ErrorBody

__all__ = ["Front"]

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Front:
    """An ASGI application: 503 with the reason, until ``app`` is set.

    TLS has asked for a certificate of this project by then; which one does not matter for this answer.
    """

    def __init__(self) -> None:
        self.app: Callable[[_Scope, _Receive, _Send], Awaitable[None]] | None = None
        self.reason: FedhelmError = StoreUnavailable("the lease store is not open yet")

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Pass the request on, or refuse it."""
        if self.app is not None:
            await self.app(scope, receive, send)
            return
        body = ErrorBody(code=self.reason.code, message=self.reason.message, hint=self.reason.hint)
        # Its body is not read: the connection is of no use any more.
        refusal = JSONResponse(body.model_dump(), status_code=503, headers={"connection": "close"})
        await refusal(scope, receive, send)
