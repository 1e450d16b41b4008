"""What is done with every request before and after its route: who calls, whether they may, what is written of it.

Nothing of a request's body is read before its certificate is known to count and both gates let it pass. Every answer
says which version of the list of revoked certificates this overseer has, and what its clock says.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from email.utils import format_datetime
from typing import Any, Final, Protocol

from fedhelm.clock import Clock, SystemClock
from fedhelm.errors import AuditUnavailable, BadCertificate, NotAuthorised
from fedhelm.security.audit import AuditTrail
from fedhelm.security.audit_commands import check_command, write_command
from fedhelm.security.audit_lines import Entry
from fedhelm.security.audit_start import entry_of
from fedhelm.security.authorization import Object, Policy
from fedhelm.security.gates import ENDPOINTS, Touches
from fedhelm.security.passage import Passage
from fedhelm.security.revocation import RevocationList
from fedhelm.wire.overseer_api import REVOCATIONS_HEADER
from fedhelm_overseer.bodies import App, Message, Receive, Scope, Send, answer
from fedhelm_overseer.standing import Standing, identify
from fedhelm_overseer.tls_protocol import client_certificate

__all__ = ["Edge", "Revoked"]

_UNKNOWN: Final = "unknown route"
_PATTERNS = {name: re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", re.escape(name))) for name in ENDPOINTS}


class Revoked(Protocol):
    """Which certificates count no longer, such as :class:`fedhelm.security.kept_revocations.KeptRevocations`."""

    @property
    def current(self) -> RevocationList:
        """The list in force."""

    def check(self, serial: str) -> None:
        """Raise BadCertificate if the certificate with this serial was revoked."""


class Edge:
    """The outermost layer: identity, validity, revocation, both gates; and the audit line after it.

    A command is refused while its line cannot be written, and answered once it is.

    Args:
        app: the layers within. In the request's state they find the caller's ``standing`` and ``passage``, None where
            no route is meant, and they leave there the ``error`` that was answered.
        project: whose certificates count.
        revocations: what was revoked.
        policy: who may do what; asked at each request.
        trail: where lines go; None: nowhere.
        clock: for the certificates' validity, and what answers say of the time.
    """

    def __init__(
        self,
        app: App,
        *,
        project: str,
        revocations: Callable[[], Revoked],
        policy: Callable[[], Policy],
        trail: AuditTrail | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._app = app
        self._project = project
        self._revocations = revocations
        self._policy = policy
        self._trail = trail
        self._clock = clock or SystemClock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        revocations = self._revocations()

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *self._headers(revocations)]}
            await send(message)

        state = scope.setdefault("state", {})
        name, parts = _route(scope)
        state["passage"] = None
        try:
            self._admit(scope, revocations, name, parts)
        except NotAuthorised as error:
            self._write(_refused(scope, name, error))
            status = 401 if isinstance(error, BadCertificate) else 403
            await answer(status, error, close=True)(scope, receive, told)
            return
        passage: Passage | None = state["passage"]
        if passage is None:
            await self._app(scope, receive, told)
            return
        try:
            await check_command(self._trail, passage)
        except AuditUnavailable as error:
            self._write(passage.entry(error))
            await answer(503, error, close=True)(scope, receive, told)
            return
        try:
            await self._app(scope, receive, _Confirmed(self._trail, passage, scope, receive, told))
        except Exception as error:
            state["error"] = error
            raise
        finally:
            self._write(passage.entry(state.get("error")))

    def _admit(self, scope: Scope, revocations: Revoked, name: str | None, parts: Mapping[str, str]) -> None:
        der = client_certificate(scope)
        if der is None:
            raise BadCertificate("a client certificate is needed")
        principal, certificate = identify(der, self._project)
        state = scope["state"]
        state["standing"] = standing = Standing(principal, certificate, revocations.check, self._clock)
        standing.check()
        if name is None:
            return
        state["passage"] = passage = Passage(name, principal, self._policy())
        if "name" in parts:
            passage.tell(server=parts["name"])
        passage.enter()
        if ENDPOINTS[name].touches is Touches.FEDERATION:
            passage.admit(Object())

    def _headers(self, revocations: Revoked) -> list[tuple[bytes, bytes]]:
        date = format_datetime(self._clock.utcnow(), usegmt=True)
        return [
            (REVOCATIONS_HEADER.encode(), str(revocations.current.version).encode()),
            (b"date", date.encode()),
        ]

    def _write(self, entry: Entry | None) -> None:
        if self._trail is not None and entry is not None:
            self._trail.note(entry)


class _Confirmed:
    """Sends an answer on; that of a command which was carried out, once its line is in the audit file."""

    def __init__(self, trail: AuditTrail | None, passage: Passage, scope: Scope, receive: Receive, send: Send) -> None:
        self._trail, self._passage = trail, passage
        self._scope, self._receive, self._send = scope, receive, send
        self._instead = False

    async def __call__(self, message: Message) -> None:
        if self._instead:
            return
        if message["type"] == "http.response.start" and message["status"] < 400:
            try:
                await write_command(self._trail, self._passage)
            except AuditUnavailable as error:
                self._instead = True
                await answer(503, error)(self._scope, self._receive, self._send)
                return
        await self._send(message)


def _route(scope: Scope) -> tuple[str | None, Mapping[str, str]]:
    """Return how the table of what calls touch names the route that is meant, and what its path names; None: none."""
    asked = f"{scope['method']} {scope['path']}"
    for name, pattern in _PATTERNS.items():
        if found := pattern.fullmatch(asked):
            return name, found.groupdict()
    return None, {}


def _refused(scope: Scope, name: str | None, error: NotAuthorised) -> Entry | None:
    """Return what the audit file says of a request that got no further than this."""
    state: Mapping[str, Any] = scope["state"]
    passage: Passage | None = state["passage"]
    if passage is not None:
        return passage.entry(error)
    standing: Standing | None = state.get("standing")
    # Of somebody without a certificate the address is all there is. Without the port, so that repetitions are one line.
    if standing is None:
        return entry_of(name or _UNKNOWN, None, {"from": (scope.get("client") or ("",))[0]}, error)
    return entry_of(name or _UNKNOWN, standing.principal, {}, error)
