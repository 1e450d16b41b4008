"""The messages of one call as they come in: none is read before the gates let the call pass.

gRPC reads and parses the message of a call with one message before it asks anybody who calls. So every method is
registered as one whose caller streams, which looks the same on the wire, and the chain reads when it is time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final
from weakref import WeakValueDictionary

import grpc.aio
from google.protobuf.message import DecodeError

from fedhelm.errors import BadInput, DeadlineExceeded, ProtocolError

__all__ = ["READS", "READ_S", "Incoming", "Readers"]

READ_S: Final = 30.0
"""How long the first message of a call may take to arrive, in seconds. A site gives up its own calls after as long."""

READS: Final = 8
"""First messages of one certificate that are read at once. One more waits, unread: whoever sends many halves of large
messages has this many of them in the server's memory, whatever the number of calls and connections."""


class Readers:
    """Who reads now, by the serial number of the caller's certificate. Used in the event loop's thread alone."""

    def __init__(self) -> None:
        self._places: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    def of(self, serial: str) -> asyncio.Semaphore:
        """Return the places of a certificate; they are forgotten with the last call that holds them."""
        places = self._places.get(serial)
        if places is None:
            self._places[serial] = places = asyncio.Semaphore(READS)
        return places


class Incoming:
    """An iterator over what the caller of one call sends.

    Args:
        name: ``Service.Method``, for messages.
        context: of grpc.
        parse: makes a message of bytes; None: they are handed on as they are.
        places: how many calls of this caller may read their first message at once.

    Attributes:
        unreadable: Whether a message was no message of this method.

    Raises:
        BadInput: a message cannot be parsed.
        DeadlineExceeded: the first one did not come within :data:`READ_S`.
    """

    def __init__(
        self, name: str, context: Any, parse: Callable[[bytes], Any] | None, places: asyncio.Semaphore
    ) -> None:
        self._name, self._context, self._parse, self._places = name, context, parse, places
        self._begun = self.unreadable = False

    def __aiter__(self) -> Incoming:
        """Return itself."""
        return self

    async def __anext__(self) -> Any:
        """Return the next message."""
        data = await (self._context.read() if self._begun else self._first())
        if data is grpc.aio.EOF:  # type: ignore[attr-defined] # not in the stubs
            raise StopAsyncIteration
        if self._parse is None:
            return data
        try:
            return self._parse(data)
        except DecodeError as error:
            self.unreadable = True
            raise BadInput(f"{self._name}: {len(data)} bytes that are no message of this method") from error

    async def _first(self) -> Any:
        self._begun = True
        try:
            async with asyncio.timeout(READ_S), self._places:
                return await self._context.read()
        except TimeoutError as error:
            raise DeadlineExceeded(f"{self._name}: no whole message came within {READ_S:g} s") from error

    async def only(self) -> Any:
        """Return the message of a call that has one.

        What may follow it is not waited for: gRPC's own servers do not either, and waiting costs every call time.

        Raises:
            ProtocolError: the caller ended the call without a message.
        """
        try:
            return await anext(self)
        except StopAsyncIteration:
            raise ProtocolError(f"{self._name}: the call came without a message") from None
