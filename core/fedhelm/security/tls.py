"""TLS contexts from a kit: version 1.3 only, both sides show a certificate of the project."""

from __future__ import annotations

import ssl

from fedhelm.config.kit import Kit
from fedhelm.errors import KitError

__all__ = ["client_context", "server_context"]


def _context(kit: Kit, protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    try:
        context.load_verify_locations(cafile=kit.ca)
        context.load_cert_chain(kit.cert, kit.key)
    except (OSError, ssl.SSLError) as error:
        raise KitError(f"{kit.cert} or its key or root cannot be used for TLS: {error}") from error
    return context


def server_context(kit: Kit) -> ssl.SSLContext:
    """Return a context for listening. A peer without a certificate of the project's root fails its handshake.

    Raises:
        KitError: certificate, key or root cannot be loaded.
    """
    return _context(kit, ssl.PROTOCOL_TLS_SERVER)


def client_context(kit: Kit) -> ssl.SSLContext:
    """Return a context for dialling. Pass the participant's *name* as ``server_hostname``, whatever host is dialled.

    Raises:
        KitError: certificate, key or root cannot be loaded.
    """
    context = _context(kit, ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = True
    return context
