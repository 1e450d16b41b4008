"""How much room the store's disk has: warn first, then take no new jobs, so that running ones can end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import IntEnum

from fedhelm.errors import Refused, StoreUnavailable
from fedhelm.persist.base import BlobStore, Usage

__all__ = ["Coming", "DiskBudget", "Room", "kept_free", "room_of"]

_log = logging.getLogger("fedhelm.server")

GIB = 1 << 30
LOOK_S = 10.0


class Room(IntEnum):
    """What the disk's room allows."""

    ENOUGH = 0
    LITTLE = 1
    NO_NEW_JOBS = 2


def room_of(usage: Usage) -> Room:
    """Judge the room: little below 15 % or 4 GiB, too little for new jobs below 5 % or 1 GiB; the smaller counts."""
    if usage.free < min(usage.total * 0.05, 1 * GIB):
        return Room.NO_NEW_JOBS
    if usage.free < min(usage.total * 0.15, 4 * GIB):
        return Room.LITTLE
    return Room.ENOUGH


def _figures(usage: Usage) -> str:
    return f"{usage.free / GIB:.1f} GiB of {usage.total / GIB:.1f} GiB are free on the store's disk"


@dataclass(frozen=True)
class _Look:
    usage: Usage
    room: Room


def kept_free(total: int) -> int:
    """Return the bytes that no upload may take: log, models and checkpoints of what runs go on with them."""
    return min(total // 100, GIB // 4)


@dataclass(eq=False)
class Coming:
    """An upload on its way: ``left`` is what is still to come, bytes."""

    left: int

    def arrived(self, size: int) -> None:
        """So many bytes of it are there."""
        self.left = max(0, self.left - size)


class DiskBudget:
    """Looks at the disk, and says what follows.

    Args:
        blobs: of the store.
    """

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._last: _Look | None = None
        self._coming: list[Coming] = []

    async def run(self) -> None:
        """Look every 10 s, for the log; until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_S)

    async def look(self) -> Usage | None:
        """Look now; None when the store does not answer."""
        try:
            usage = await asyncio.to_thread(self._blobs.usage)
        except StoreUnavailable:
            return None
        before, self._last = self._last, _Look(usage, room_of(usage))
        if self._last.room is not (before.room if before else Room.ENOUGH):
            level = logging.WARNING if self._last.room else logging.INFO
            _log.log(level, "%s", " ".join(self.warnings()) or _figures(usage))
        return usage

    def warnings(self) -> list[str]:
        """Return what an admin should know, as of the last look."""
        if self._last is None or not self._last.room:
            return []
        effect = "new jobs are refused" if self._last.room is Room.NO_NEW_JOBS else "soon new jobs will be refused"
        return [f"{_figures(self._last.usage)}: {effect}"]

    @contextlib.asynccontextmanager
    async def room_for(self, size: int) -> AsyncIterator[Coming]:
        """Keep room for an upload of a running job while it comes in: what the others still have to send counts too.

        Args:
            size: of the upload, bytes.

        Raises:
            StoreUnavailable: the disk would be as good as full; sites keep what they have, and try again.
        """
        usage = await self.look()
        if usage is not None and usage.free - sum(one.left for one in self._coming) - size < kept_free(usage.total):
            raise StoreUnavailable(
                f"an upload of {size / GIB:.1f} GiB has no room: {_figures(usage)}, and other uploads are on their way"
            )
        coming = Coming(size)
        self._coming.append(coming)
        try:
            yield coming
        finally:
            self._coming.remove(coming)

    async def require_room(self) -> None:
        """Let a new job pass only while the disk has room for it.

        Raises:
            Refused: it has not; the message has the figures.
        """
        await self.look()
        if self._last is not None and self._last.room is Room.NO_NEW_JOBS:
            raise Refused(
                f"{_figures(self._last.usage)}: no new job is taken",
                hint="delete_job frees what ended jobs hold; or make the disk larger. Running jobs go on",
            )
