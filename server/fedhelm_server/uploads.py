"""The beginning of an upload: what it announces, before any of it is stored."""

from __future__ import annotations

from collections.abc import AsyncIterator

from google.protobuf.message import DecodeError

from fedhelm.v1 import common_pb2 as common
from fedhelm_server.disk_budget import Coming

__all__ = ["announced", "counted_down"]


def announced(first: bytes) -> common.PutBlobHeader | None:
    """Return the header of an upload; None where there is none, which is said where the upload is read."""
    try:
        return common.PutBlobHeader.FromString(first)
    except DecodeError:
        return None


async def counted_down(first: bytes, rest: AsyncIterator[bytes], coming: Coming) -> AsyncIterator[bytes]:
    """Yield all messages of an upload whose first one was read; what has arrived is not to come any more."""
    yield first
    async for message in rest:
        coming.arrived(len(message))
        yield message
