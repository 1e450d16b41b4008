"""TLS contexts from a kit: version 1.3 only, both sides show a certificate of the project.

A context that listens follows a kit that was replaced: :func:`refresh_server` changes it in place, for the connections
that begin after that. Those that exist go on. Whoever dials makes a new context.
"""

from __future__ import annotations

import dataclasses
import os
import ssl
from collections.abc import Callable
from typing import Any, Final

from cryptography import x509

from fedhelm.config.kit import Kit
from fedhelm.errors import BadCertificate, KitError
from fedhelm.security.pki import serial_of

__all__ = ["Check", "Credentials", "client_context", "read_credentials", "refresh_server", "server_context"]

Check = Callable[[str], None]
"""Lets a certificate's serial pass, or raises BadCertificate."""

_TRIES: Final = 3


@dataclasses.dataclass(frozen=True)
class Credentials:
    """What TLS needs of one kit, as PEM: the roots, the certificate, and its key."""

    ca: bytes
    cert: bytes
    key: bytes = dataclasses.field(repr=False)


def read_credentials(kit: Kit) -> Credentials:
    """Read roots, certificate and key of one and the same kit, also while another takes its place.

    Raises:
        KitError: a file is missing, or cannot be read.
    """
    for left in reversed(range(_TRIES)):
        try:
            folder = os.open(kit.startup, os.O_RDONLY | os.O_DIRECTORY)
            try:
                ca, cert, key = (_read(folder, path.name) for path in (kit.ca, kit.cert, kit.key))
            finally:
                os.close(folder)
        except OSError as error:
            # `kit install` exchanges the whole folder, and deletes the former one: then the new one is there.
            if not left:
                name = os.path.basename(error.filename or "")  # noqa: PTH119 - relative to an open folder
                raise KitError(f"{kit.startup / name} cannot be read: {error.strerror}") from error
        else:
            return Credentials(ca, cert, key)
    raise AssertionError("unreachable")


def _read(folder: int, name: str) -> bytes:
    with open(os.open(name, os.O_RDONLY, dir_fd=folder), "rb") as file:  # noqa: PTH123 - in a folder that is open
        return file.read()


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


def client_context(kit: Kit, check: Check | None = None) -> ssl.SSLContext:
    """Return a context for dialling. Pass the participant's *name* as ``server_hostname``, whatever host is dialled.

    Args:
        kit: the participant's.
        check: is asked about the serial of the other side's certificate, hex in lower case, at the end of each
            handshake; one that it does not let pass fails the handshake.

    Raises:
        KitError: certificate, key or root cannot be loaded.
    """
    context = _context(kit, ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = True
    if check is not None:
        _check_peers(context, check)
    return context


def _check_peers(context: ssl.SSLContext, check: Check) -> None:
    class CheckedObject(ssl.SSLObject):
        """A connection of asyncio's or httpx's."""

        def do_handshake(self) -> None:
            super().do_handshake()
            _check_peer(self, check)

    class CheckedSocket(ssl.SSLSocket):
        """A blocking connection."""

        def do_handshake(self, block: bool = False) -> None:
            super().do_handshake(block)
            _check_peer(self, check)

    context.sslobject_class = CheckedObject
    context.sslsocket_class = CheckedSocket


def _check_peer(connection: ssl.SSLSocket | ssl.SSLObject, check: Check) -> None:
    der = connection.getpeercert(binary_form=True)
    assert der is not None  # TLS 1.3 with CERT_REQUIRED
    try:
        check(serial_of(x509.load_der_x509_certificate(der)))
    except BadCertificate as error:
        refused: Any = ssl.SSLCertVerificationError(1, error.message)
        refused.verify_message = error.message
        raise refused from error


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
