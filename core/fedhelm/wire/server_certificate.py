"""What a gRPC server shows and trusts: of the kit in use, from the next handshake on, while it listens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fedhelm.wire  # before grpc, which reads the environment that this sets when it is imported

# isort: split
import grpc

from fedhelm.config.kit import Kit
from fedhelm.security.tls import read_credentials

__all__ = ["ServerCertificate"]


class ServerCertificate:
    """One for all ports of a server.

    Args:
        kit: the server's.

    Raises:
        KitError: certificate, key or roots cannot be read.
        RuntimeError: this process imported grpc before :mod:`fedhelm.wire`, so that it would speak TLS 1.2 too.
    """

    def __init__(self, kit: Kit) -> None:
        if not fedhelm.wire.TLS_1_3_ONLY:
            raise RuntimeError("grpc was imported before fedhelm.wire: it would accept TLS 1.2")
        self._current = _configuration(kit)

    def take(self, kit: Kit) -> None:
        """Show and trust what ``kit`` says from the next handshake on. Connections that exist go on.

        Raises:
            KitError: certificate, key or roots cannot be read; nothing changes.
        """
        self._current = _configuration(kit)

    def credentials(self) -> grpc.ServerCredentials:
        """Return credentials for one port: TLS 1.3, and a client certificate that one of the roots issued."""
        fetcher: Any = self._fetcher()  # None, for nothing new, is part of grpc's contract, but not of its types
        return grpc.dynamic_ssl_server_credentials(self._current, fetcher, require_client_authentication=True)

    def _fetcher(self) -> Callable[[], grpc.ServerCertificateConfiguration | None]:
        given = self._current

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            nonlocal given
            if given is self._current:
                return None  # nothing new: grpc need not load it again for each handshake
            given = self._current
            return given

        return fetch


def _configuration(kit: Kit) -> grpc.ServerCertificateConfiguration:
    read = read_credentials(kit)
    return grpc.ssl_server_certificate_configuration([(read.key, read.cert)], root_certificates=read.ca)
