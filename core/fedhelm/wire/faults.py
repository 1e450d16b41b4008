"""Errors on the wire: a FedhelmError travels as a gRPC status with its code and hint in the trailing metadata."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

import grpc

import fedhelm.wire
from fedhelm.errors import BadCertificate, DeadlineExceeded, FedhelmError, ProtocolError, Unreachable, error_class
from fedhelm.plain_json import parse_plain

__all__ = ["EPOCH_KEY", "ERROR_KEY", "decode_error", "encode_error", "epoch_of", "reason_of", "status_of"]

assert fedhelm.wire  # imported before grpc, for the environment it sets

ERROR_KEY = "fedhelm-error-bin"
EPOCH_KEY = "fedhelm-epoch"

MAX_TEXT = 1000
"""Bytes of a message or a hint that travel; the rest is cut off."""

_MAX_ERROR = 16 * 1024
"""Bytes of an error that is read: more than gRPC lets all metadata of a reply have."""

_MAX_EPOCH_DIGITS = 18
"""Of an epoch, which is a 64-bit number everywhere else."""

MAX_REASON = 160
"""Characters of a reason that gRPC gives and that has no short form here."""

_REASONS = (
    (r"Connection refused", "connection refused"),
    (r"Connection reset|Broken pipe", "connection reset"),
    (r"No route to host", "no route to host"),
    (r"Network is unreachable", "network is unreachable"),
    (r"Connection timed out|FD shutdown.*[Tt]imeout|connect.*timed out", "no answer in time"),
    (r"[Nn]ame resolution|[Dd]omain name not found|address lookup failed|DNS resolution failed", "unknown host name"),
    (r"^Socket closed$", "connection closed"),
)
_BUSY = "Concurrent RPC limit exceeded"
"""What gRPC says where a server has as many calls as it takes."""

_TLS = re.compile(r"[Hh]andshake failed.*?:([A-Z][A-Z_]{5,})(?:: (.*?))?(?:: OK)?$")
_PREAMBLE = re.compile(r"^failed to connect to all addresses; last error: [A-Z_]+: (?:(?:ipv4|ipv6|unix):\S+: )?")

_CONTROL = dict.fromkeys((*range(9), *range(11, 32), 127), " ")

_BROKEN_OFF = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        # "Internal error from Core", "Received RST_STREAM with error code 2": gRPC's words where the other side dies
        # while a message is on its way. A server of ours that fails inside says so in the metadata.
        grpc.StatusCode.INTERNAL,
    }
)
"""Statuses by which gRPC itself tells of a lost connection: another try may succeed."""

Metadata = Iterable[tuple[str, str | bytes]]


def status_of(error: FedhelmError) -> grpc.StatusCode:
    """Return the gRPC status that this error travels as."""
    return grpc.StatusCode[error.grpc_status]


def encode_error(error: FedhelmError) -> bytes:
    """Return the value of ``fedhelm-error-bin``."""
    body = {"code": error.code, "message": _short(error.message), "hint": error.hint and _short(error.hint)}
    return json.dumps(body, ensure_ascii=False).encode()


def _short(text: str) -> str:
    # All metadata of a reply together have 8 KiB: what is longer costs the caller the whole error. JSON doubles a quote
    # or a line end; other control characters, which it makes six times as long, are no part of a message.
    return text.encode(errors="replace")[:MAX_TEXT].decode(errors="ignore").translate(_CONTROL)


def epoch_of(metadata: Metadata | None) -> int | None:
    """Return the epoch a reply carries, if it does."""
    for key, value in metadata or ():
        if key == EPOCH_KEY:
            text = value.decode() if isinstance(value, bytes) else value
            good = len(text) <= _MAX_EPOCH_DIGITS and text.isascii() and text.isdigit()
            return int(text) if good else None
    return None


def _from_metadata(metadata: Metadata | None) -> FedhelmError | None:
    for key, value in metadata or ():
        if key == ERROR_KEY and isinstance(value, bytes):
            try:
                body = parse_plain(value, max_size=_MAX_ERROR)
                hint = body.get("hint")
                error = error_class(str(body["code"]))
                return error(str(body["message"]), hint=hint if isinstance(hint, str) else None)
            except (ValueError, KeyError, TypeError, AttributeError):
                return ProtocolError("the server sent an error that cannot be read")
    return None


def reason_of(details: str) -> str:
    """Return the one thing that a person wants to know of gRPC's text about a lost call.

    A refused connection, an unknown host and the like in a few words; of a broken TLS handshake what TLS said, so that
    trouble with a certificate stays recognisable; anything else without gRPC's preamble, cut to a line.
    """
    for pattern, reason in _REASONS:
        if re.search(pattern, details):
            return reason
    if (tls := _TLS.search(details)) is not None:
        what = tls[1].lower().replace("_", " ")
        return f"TLS handshake failed: {what}" + (f": {tls[2]}" if tls[2] and "certificate" in what else "")
    text = _PREAMBLE.sub("", " ".join(details.split()))
    if (broken := re.match(r"Handshake read failed \((.*)\)", text)) is not None:
        return f"TLS handshake failed: {broken[1][:MAX_REASON].lower()}"
    return text if len(text) <= MAX_REASON else text[: MAX_REASON - 1] + "…"


def decode_error(code: grpc.StatusCode, details: str | None, metadata: Metadata | None, where: str) -> FedhelmError:
    """Return the error that a failed call stands for.

    Args:
        code: the call's status.
        details: its text.
        metadata: its trailing metadata.
        where: who was called, for the message.
    """
    if (error := _from_metadata(metadata)) is not None:
        return error
    text = reason_of(details or code.name)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(f"{where} did not answer in time")
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return BadCertificate(f"{where} refused the certificate: {text}")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and text.startswith(_BUSY):
        return Unreachable(f"{where} has as many calls as it takes", hint="try again later")
    if code in _BROKEN_OFF:
        return Unreachable(f"{where} cannot be reached: {text}")
    return ProtocolError(f"{where} answered {code.name}: {text}")
