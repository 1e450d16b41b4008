"""A connection to one server, shared by the calls that go there: once replaced, it is closed after the last of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Protocol

from fedhelm.wire.channels import FleetStub

__all__ = ["Connection", "Line"]


class Connection(Protocol):
    """A channel with its stub."""

    stub: FleetStub

    async def close(self) -> None:
        """Close the channel."""
        ...


class Line:
    """One connection.

    Args:
        connection: is closed by this.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._users = 0
        self._unused = asyncio.Event()
        self._unused.set()

    @property
    def stub(self) -> FleetStub:
        """For the stream, which ends before the connection is closed."""
        return self._connection.stub

    @contextlib.contextmanager
    def used(self) -> Iterator[FleetStub]:
        """Keep the connection open for an exchange of several calls."""
        self._users += 1
        self._unused.clear()
        try:
            yield self._connection.stub
        finally:
            self._users -= 1
            if not self._users:
                self._unused.set()

    async def retire(self) -> None:
        """Close the connection once no exchange uses it any more; at once when cancelled."""
        try:
            await self._unused.wait()
        finally:
            await self._connection.close()

    async def close(self) -> None:
        """Close the connection now; what is on its way breaks."""
        await self._connection.close()
