"""The client's certificate, from uvicorn's TLS connection into the ASGI scope.

uvicorn verifies the certificate and does not pass it on. This protocol class puts it, in DER, under
``scope["extensions"]["tls"]["client_cert_der"]`` of each request. Whatever a request says of itself is not looked at.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping, MutableMapping
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["ClientCertificateProtocol", "client_certificate"]


def client_certificate(scope: Mapping[str, Any]) -> bytes | None:
    """Return the verified certificate of the peer of this request, in DER; None without TLS or certificate."""
    der = scope.get("extensions", {}).get("tls", {}).get("client_cert_der")
    return der if isinstance(der, bytes) else None


class ClientCertificateProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 protocol, whose requests carry the peer's certificate."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Read the certificate once for each connection; the handshake is over by now."""
        super().connection_made(transport)
        connection = transport.get_extra_info("ssl_object")
        der = connection.getpeercert(binary_form=True) if isinstance(connection, ssl.SSLObject) else None
        inner = self.app

        async def app(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
            scope["extensions"] = {**scope.get("extensions", {}), "tls": {"client_cert_der": der}}
            await inner(scope, receive, send)

        self.app = app
