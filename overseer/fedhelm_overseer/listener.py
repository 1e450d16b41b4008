"""The overseer's listening socket, apart from the service: a taken port is found before anything heavy is loaded."""

from __future__ import annotations

import socket

from fedhelm.errors import BadInput, PortTaken

__all__ = ["listen"]

_BACKLOG = 512


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket at ``host``, or on all interfaces where ``host`` is a name and not an address.

    Raises:
        PortTaken: the message names the port.
        BadInput: the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    literal = ":" in host or host.replace(".", "").isdigit()
    # asyncio turns Nagle's algorithm off only where the protocol is named; else each answer takes 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host if literal else "", port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == 98:
            raise PortTaken(
                f"port {port} of {host} is taken by another process", hint="stop it, or choose another base port"
            ) from None
        raise BadInput(f"cannot listen at {host}:{port}: {error.strerror}") from None
    listener.setblocking(False)
    return listener
