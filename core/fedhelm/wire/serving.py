"""How a gRPC server is made: what a caller can make it hold has bounds, before anybody asks who calls and after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import grpc
import grpc.aio

import fedhelm.wire
from fedhelm.process import open_files
from fedhelm.wire.alive import keep_alive

__all__ = ["MAX_RPCS", "MAX_STREAMS", "WINDOW", "connections_of", "new_server", "serve_options"]

assert fedhelm.wire  # imported before grpc, for the environment it sets

MAX_CONTROL: Final = 4 * 1024 * 1024
"""Largest message, bytes. Bulk streams cut theirs at 1 MiB."""

WINDOW: Final = MAX_CONTROL
"""Bytes of one call that may lie in memory unread. gRPC would measure the line and let up to 64 MiB of each call come,
whoever calls. An upload over a line of 50 ms gets 55 MiB/s with this, and more where the line is shorter."""

MAX_STREAMS: Final = 64
"""Calls that one connection makes at once; those of a client that makes more wait there. A site has one for its stream
and a few for each job that runs. With :data:`WINDOW` it bounds what a connection leaves in memory: 256 MiB."""

MAX_RPCS: Final = 4096
"""Calls that are served at once at one port; one more is told to come again. Each of 500 sites may have eight."""

MAX_CONNECTIONS: Final = 4096
"""Connections of one port, with and without a certificate; one more is closed at once. A site has one."""

KEPT_FILES: Final = 256
"""Open files that connections leave to the rest of a server: the log, blobs, runners."""

HANDSHAKE_MS = 10_000
"""Time that a connection has to finish TLS; one that does not is closed (grpc's own limit is 120 s)."""


def connections_of(open_files: int) -> int:
    """Return how many connections a port may have in a process with two ports that may open so many files. Pure."""
    return max(KEPT_FILES // 4, min(MAX_CONNECTIONS, (open_files - KEPT_FILES) // 2))


def serve_options() -> list[tuple[str, int]]:
    """Return the options of a gRPC server: keep-alive, limits, and no silent sharing of a port."""
    return [
        ("grpc.max_allowed_incoming_connections", connections_of(open_files())),
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", MAX_CONTROL),
        ("grpc.max_send_message_length", MAX_CONTROL),
        ("grpc.max_concurrent_streams", MAX_STREAMS),
        # It counts calls that are over too, until they are freed, and refuses a client that keeps to the limit.
        ("grpc.http.overload_protection", 0),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", WINDOW),
        *keep_alive(),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 4_000),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.max_metadata_size", 16_384),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
    ]


def new_server(handlers: Sequence[grpc.GenericRpcHandler] = ()) -> grpc.aio.Server:  # type: ignore[type-arg] # generic in the stubs alone
    """Make a server with all limits; it has no port yet."""
    return grpc.aio.server(handlers=list(handlers), options=serve_options(), maximum_concurrent_rpcs=MAX_RPCS)
