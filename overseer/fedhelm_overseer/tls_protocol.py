"""The client's certificate, from uvicorn's TLS connection into the ASGI scope; and how long a request may be coming.

uvicorn verifies the certificate and does not pass it on. This protocol class puts it, in DER, under
``scope["extensions"]["tls"]["client_cert_der"]`` of each request. Whatever a request says of itself is not looked at.
uvicorn waits for the head of a request as long as it takes; here a connection ends that leaves one unfinished.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping, MutableMapping
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["HEAD_S", "ClientCertificateProtocol", "client_certificate"]

HEAD_S: Final = 10.0
"""Seconds from the first byte of a request's head to its end; and from a handshake to the end of the first head."""


def client_certificate(scope: Mapping[str, Any]) -> bytes | None:
    """Return the verified certificate of the peer of this request, in DER; None without TLS or certificate."""
    der = scope.get("extensions", {}).get("tls", {}).get("client_cert_der")
    return der if isinstance(der, bytes) else None


class ClientCertificateProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 protocol, whose requests carry the peer's certificate, and whose heads come in time."""

    head_s = HEAD_S
    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Read the certificate once for each connection; the handshake is over by now."""
        super().connection_made(transport)
        self._head = self.loop.call_later(self.head_s, transport.abort)
        connection = transport.get_extra_info("ssl_object")
        der = connection.getpeercert(binary_form=True) if isinstance(connection, ssl.SSLObject) else None
        inner = self.app

        async def app(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
            scope["extensions"] = {**scope.get("extensions", {}), "tls": {"client_cert_der": der}}
            await inner(scope, receive, send)

        self.app = app

    def data_received(self, data: bytes) -> None:
        """Read on; begin or end the time that a head has."""
        super().data_received(data)
        coming = self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])
        if not coming:
            self._end_head()
        elif self._head is None:
            self._head = self.loop.call_later(self.head_s, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the time-out."""
        self._end_head()
        super().connection_lost(exc)

    def _end_head(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None
