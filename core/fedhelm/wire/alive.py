"""How either end of a gRPC connection notices that the other one is gone, frozen or cut off."""

from __future__ import annotations

__all__ = ["keep_alive"]

PING_TIMEOUT_MS = 10_000
"""A slow line has to carry what is queued before a ping, and its answer, in this time."""


def keep_alive() -> list[tuple[str, int]]:
    """Return the options of a channel or a server: a peer that says nothing is asked, and given up in 10 to 15 s."""
    return [
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # gRPC also pings to measure a line, with a time-out of its own: 60 s. While such a ping is unanswered it sends
        # none to keep alive, so that a call to a process that was stopped before would wait for a minute.
        ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_MS),
    ]
