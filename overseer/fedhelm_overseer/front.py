"""What an overseer answers while it waits for its lease store."""

from __future__ import annotations

from collections.abc import Callable

from fedhelm.clock import Clock
from fedhelm.errors import FedhelmError
from fedhelm.security.audit import AuditTrail
from fedhelm.security.authorization import Policy
from fedhelm_overseer.bodies import App, Receive, Scope, Send, answer
from fedhelm_overseer.edge import Edge, Revoked
from fedhelm_overseer.lease import StoreAway

__all__ = ["Front"]


class Front:
    """An ASGI application: 503 until ``app`` is set, to those whom the application would hear.

    Args:
        project: whose certificates count.
        kept: what was revoked.
        policy: who may do what.
        trail: where it is written who asked; None: nowhere.
        clock: for the validity of certificates.

    Attributes:
        app: The application, once there is one.
        reason: What keeps it from being there; for the log, callers are told that the store is not open.
    """

    def __init__(
        self,
        project: str,
        kept: Revoked,
        policy: Callable[[], Policy],
        trail: AuditTrail | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.app: App | None = None
        self.reason: FedhelmError | None = None
        self._waiting = Edge(_wait, project=project, revocations=lambda: kept, policy=policy, trail=trail, clock=clock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        await (self.app or self._waiting)(scope, receive, send)


async def _wait(scope: Scope, receive: Receive, send: Send) -> None:
    error = StoreAway("the lease store is not open yet")
    scope["state"]["error"] = error
    await answer(503, error, close=True)(scope, receive, send)  # the body is not read
