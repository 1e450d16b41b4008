"""What a person commands is not answered before its line is in the audit file. Awaited by the event loop, and bounded.

Before a command acts, the trail is asked whether its line can be written; afterwards its line is waited for. So a full
disk refuses commands, and only a disk that breaks in between leaves one that was carried out and not confirmed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any, Final, Protocol

from fedhelm.errors import AuditUnavailable
from fedhelm.security.audit_lines import Entry
from fedhelm.security.passage import Passage

__all__ = ["WAIT_S", "Commands", "check_command", "confirmed", "write_before", "write_command"]

WAIT_S: Final = 3.0
"""How long a command waits for the disk of the audit file, each time."""

_HINT: Final = "see to its disk; jobs and looks go on, and commands pass again within seconds"
_WITHOUT: Final = frozenset({"POST /api/v1/revocations"})
"""Carried out whatever the disk does: a stolen key is refused at once, and a list that the root signed is proof."""


class Commands(Protocol):
    """A trail that can be waited for, such as :class:`fedhelm.security.audit.AuditTrail`."""

    def ready(self) -> Future[None]:
        """Ask whether a line can be written; the future may end with AuditUnavailable."""

    def write(self, entry: Entry, /) -> Future[None]:
        """Have an entry written; the future may end with AuditUnavailable."""


class _Call(Protocol):
    @property
    def passage(self) -> Passage: ...


async def check_command(trail: Commands | None, passage: Passage) -> None:
    """Before a call that passed gate one acts: see that its line can be written, if it is a command.

    Args:
        trail: the participant's; None: nothing is noted.
        passage: the call's.

    Raises:
        AuditUnavailable: it cannot be written; the command is refused.
    """
    if trail is not None and passage.answered_when_written and passage.name not in _WITHOUT:
        await _wait(trail.ready(), "refused: its line cannot be written to the audit file")


async def write_command(trail: Commands | None, passage: Passage) -> None:
    """Before a command is answered that was carried out: have its line written.

    Raises:
        AuditUnavailable: it is not on the disk yet. It is tried again, but nobody may be told that it is there.
    """
    if trail is None or not passage.answered_when_written or (entry := passage.entry()) is None:
        return
    passage.written = True
    await _wait(trail.write(entry), "carried out, but its line is not in the audit file yet")


async def write_before(trail: Commands, entry: Entry, what: str) -> None:
    """Have an entry written before what it says is done.

    Args:
        trail: the participant's.
        entry: what is about to be done.
        what: what does not happen otherwise, for the error: ``not run``.

    Raises:
        AuditUnavailable: it is not on the disk.
    """
    told = f"{what}: its line cannot be written to the audit file"
    await _wait(trail.ready(), told)
    await _wait(trail.write(entry), told)


def confirmed(handler: Callable[[Any, _Call], Awaitable[Any]], trail: Commands | None) -> Callable[[Any, Any], Any]:
    """Return the handler of a command, with the questions to the audit file before and after it."""

    async def answer(request: Any, call: _Call) -> Any:
        await check_command(trail, call.passage)
        reply = await handler(request, call)
        call.passage.check_asked()
        await write_command(trail, call.passage)
        return reply

    return answer


async def _wait(future: Future[None], what: str) -> None:
    try:
        async with asyncio.timeout(WAIT_S):
            await asyncio.wrap_future(future)
    except TimeoutError:
        raise AuditUnavailable(f"{what}: the disk did not answer within {WAIT_S:g} s", hint=_HINT) from None
    except AuditUnavailable as error:
        raise AuditUnavailable(f"{what}: {error.message}", hint=_HINT) from error
