"""TLS contexts from a kit: version 1.3 only, both sides show a certificate of the project.

A context follows a kit that was replaced: :func:`refresh_server` and :func:`refresh_client` change it in place, for the
connections that begin after that. Those that exist go on.
"""

from __future__ import annotations

import ssl

from fedhelm.config.kit import Kit
from fedhelm.errors import KitError

__all__ = ["client_context", "refresh_client", "refresh_server", "server_context"]


def _context(kit: Kit, protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    _load(context, kit)
    return context


def _load(context: ssl.SSLContext, kit: Kit) -> None:
    try:
        context.load_verify_locations(cafile=kit.ca)
        context.load_cert_chain(kit.cert, kit.key)
    except (OSError, ssl.SSLError) as error:
        raise KitError(f"{kit.cert} or its key or root cannot be used for TLS: {error}") from error


def server_context(kit: Kit) -> ssl.SSLContext:
    """Return a context for listening. A peer without a certificate of the project's root fails its handshake.

    No session is resumed, so that every connection shows its certificate to the roots of today.

    Raises:
        KitError: certificate, key or root cannot be loaded.
    """
    context = _context(kit, ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0
    return context


def client_context(kit: Kit) -> ssl.SSLContext:
    """Return a context for dialling. Pass the participant's *name* as ``server_hostname``, whatever host is dialled.

    Raises:
        KitError: certificate, key or root cannot be loaded.
    """
    context = _context(kit, ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = True
    return context


def refresh_server(context: ssl.SSLContext, kit: Kit) -> None:
    """Let a listening context take the certificate and the roots of ``kit`` from the next connection on.

    A context cannot forget a root that it loaded; so each handshake is handed to a context that was made anew.

    Args:
        context: what :func:`server_context` returned, which something listens with.
        kit: the new kit, verified.

    Raises:
        KitError: certificate, key or root cannot be loaded; the context stays as it was.
    """
    new = server_context(kit)

    def hand_over(connection: ssl.SSLSocket | ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = new

    context.sni_callback = hand_over


def refresh_client(context: ssl.SSLContext, kit: Kit) -> None:
    """Let a context that dials take the certificate and the roots of ``kit`` from the next connection on.

    A root that the new kit no longer names is trusted until the process makes a new context.

    Args:
        context: what :func:`client_context` returned.
        kit: the new kit, verified.

    Raises:
        KitError: certificate, key or root cannot be loaded; the context stays as it was.
    """
    _context(kit, ssl.PROTOCOL_TLS_CLIENT)  # what cannot be loaded shows before anything is changed
    _load(context, kit)
