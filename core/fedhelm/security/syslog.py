"""Audit lines to a syslog receiver (RFC 5424): over UDP a datagram a line, over TCP with octet counts (RFC 6587).

The message is the line itself, number and sha256 included, so that the receiver's copy shows where the participant's
own file was cut off or written anew. The number is in the structured data too, as the registered ``meta sequenceId``.
Neither UDP nor TCP says what arrived: what was sent shortly before a receiver went away may be lost without anybody's
knowing.
"""

from __future__ import annotations

import os
import re
import select
import socket
from typing import Final
from urllib.parse import urlsplit

from fedhelm.errors import BadInput
from fedhelm.security.audit_lines import Line, Outcome

__all__ = ["SYSLOG_URL", "SyslogSink", "syslog_message"]

SYSLOG_URL: Final = "udp://HOST:PORT or tcp://HOST:PORT"
"""How a receiver is named."""

TIMEOUT_S: Final = 2.0
"""For a connection, and for each message."""

_FACILITY: Final = 13  # "log audit"
_INFORMATIONAL, _WARNING = 6, 4
_MOST: Final = 2**31 - 1  # of a sequenceId; 1 follows
_PIECES: Final = 64
_NOT_PRINTABLE = re.compile(r"[^!-~]+")


def syslog_message(line: Line, participant: str, pid: str = "-") -> bytes:
    """Return the RFC 5424 message for a line; ``participant`` stands where the host's name belongs."""
    severity = _INFORMATIONAL if line.body.get("outcome") == Outcome.ALLOWED else _WARNING
    host = _NOT_PRINTABLE.sub("", participant)[:255] or "-"
    time = _NOT_PRINTABLE.sub("", str(line.body.get("time") or ""))[:32] or "-"
    # A name of its own would need an enterprise number; 32473 is for examples. RFC 5424, 7.3.1 has one that fits.
    data = f'[meta sequenceId="{(line.number - 1) % _MOST + 1}"]'
    head = f"<{_FACILITY * 8 + severity}>1 {time} {host} fedhelm {pid} audit {data} "
    return head.encode() + line.raw  # the line is ASCII


class SyslogSink:
    """Sends each line to a receiver; a :data:`fedhelm.security.audit.Sink`.

    Args:
        url: ``udp://HOST:PORT`` or ``tcp://HOST:PORT``; without a port 514.
        participant: whose lines they are.

    Raises:
        BadInput: the URL is another one.
    """

    def __init__(self, url: str, participant: str) -> None:
        try:
            parts = urlsplit(url)
            self._address = (parts.hostname or "", parts.port or 514)
        except ValueError:
            raise BadInput(f"{url!r:.100} is not {SYSLOG_URL}") from None
        rest = parts.path.strip("/") + parts.query + parts.fragment + (parts.username or "")
        if parts.scheme not in ("udp", "tcp") or not parts.hostname or rest:
            raise BadInput(f"{url!r:.100} is not {SYSLOG_URL}")
        self._tcp = parts.scheme == "tcp"
        self._participant, self._pid = participant, str(os.getpid())
        self._socket: socket.socket | None = None

    def __call__(self, line: Line) -> None:
        """Send one line.

        Raises:
            OSError: over TCP, the receiver does not take it within 2 s; over UDP nobody knows.
        """
        message = syslog_message(line, self._participant, self._pid)
        try:
            if self._socket is not None and self._tcp and _is_over(self._socket):
                self.close()
            if self._socket is None:
                self._socket = self._connect()
            if self._tcp:
                self._socket.sendall(b"%d %s" % (len(message), message))
            else:
                self._socket.send(message)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connect(self) -> socket.socket:
        if self._tcp:
            return socket.create_connection(self._address, TIMEOUT_S)
        family, kind, protocol, _, address = socket.getaddrinfo(*self._address, type=socket.SOCK_DGRAM)[0]
        found = socket.socket(family, kind, protocol)
        found.settimeout(TIMEOUT_S)
        found.connect(address)
        return found


def _is_over(connection: socket.socket) -> bool:
    """Tell whether the other end has closed: what is sent then would be lost, and the first time without an error."""
    look = select.poll()
    look.register(connection, select.POLLIN)
    for _ in range(_PIECES):
        if not look.poll(0):
            return False
        try:
            if not connection.recv(4096):  # a receiver has nothing to say; what it says all the same is let go
                return True
        except OSError:
            return True
    return False
