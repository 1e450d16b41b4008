"""Do all servers see one store, and at once? Each leaves a token in it, and looks there for those of the others.

The overseers pass the tokens on. A server whose store lacks the token of who leads, or led last, has another directory
(a copy, an unmounted share) or an old view of it: it must not lead. Where that token is not known, most of the others
count.

Each life of a server leaves a new token, and what is told of it may be a life or two old. Such a stale token alarms
nobody: the last few of a name stay in the store (`leave_token`), and the supervisor takes back what it told when no
overseer answers, because the others may start again any number of times before one does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from pathlib import Path

from fedhelm.config.timing import Timing
from fedhelm.errors import StoreUnavailable
from fedhelm.persist.store import check_tokens, leave_token

__all__ = ["StoreTokens", "wrong_store"]

_log = logging.getLogger("fedhelm.server")

_AGAIN_S = 30.0


def wrong_store(tokens: Collection[str], failed: Collection[str], primary: str | None) -> bool:
    """Return whether this server is the one with the wrong store, rather than one of those whose tokens it lacks.

    Args:
        tokens: names of the other servers whose tokens were looked for.
        failed: those whose tokens were not as they should be.
        primary: who leads or led last, another server.
    """
    if primary in tokens:
        return primary in failed
    return 2 * len(failed) > len(tokens)


class StoreTokens:
    """Leaves this server's token and checks the others'.

    Args:
        root: the store.
        name: this server.
        incarnation: this life of it.
        timing: how soon a failure is looked at again.
    """

    def __init__(self, root: Path, name: str, incarnation: str, timing: Timing) -> None:
        self.token: str | None = None
        self.problem: str | None = None
        """Why this server must not lead."""
        self._root = root
        self._name = name
        self._incarnation = incarnation
        self._timing = timing
        self._tokens: Mapping[str, str] = {}
        self._primary: str | None = None
        self._told = asyncio.Event()
        self._said: set[str] = set()
        self._proven = False
        self._failures = 0

    def told(self, tokens: Mapping[str, str], primary: str | None) -> None:
        """Take the other live servers' tokens, and who leads or led last, from an overseer."""
        if (dict(tokens), primary) != (dict(self._tokens), self._primary):
            self._tokens, self._primary = dict(tokens), primary
            self._told.set()

    async def run(self) -> None:
        """Leave the token, then check the others' whenever they change and every 30 s, until cancelled.

        Raises:
            FedhelmError: the store lets a name be created twice.
        """
        while self.token is None:
            try:
                self.token = await asyncio.to_thread(leave_token, self._root, self._name, self._incarnation)
            except StoreUnavailable:  # as `watch_store` says, too
                await asyncio.sleep(self._timing.renew)
        while True:
            await self._wait(4 * self._timing.renew if self._failures else _AGAIN_S)
            if self._tokens:  # else the verdict stays: a copy of the store does not become the store when others go
                await self._check()

    async def _wait(self, limit: float) -> None:
        try:
            async with asyncio.timeout(limit):
                await self._told.wait()
        except TimeoutError:
            pass
        self._told.clear()

    async def _check(self) -> None:
        tokens, primary = self._tokens, self._primary
        failed: dict[str, str] = {}
        try:
            for name, token in tokens.items():
                found = await asyncio.to_thread(check_tokens, self._root, {name: token})
                if found:
                    failed[name] = found[0]
        except StoreUnavailable:
            return
        wrong = primary != self._name and wrong_store(tokens, failed, primary)
        self._failures = self._failures + 1 if wrong else 0
        self._proven = self._proven or not wrong
        # An overseer that was itself stopped for long tells old tokens for a moment. Who never saw another's token does
        # not get the benefit of that doubt.
        sure = wrong and (self._failures > 1 or not self._proven)
        told = next(iter(failed[name] for name in (primary, *failed) if name in failed), None)
        self._settle(told if sure else None)
        if self._failures != 1:
            self._say(failed)

    def _settle(self, problem: str | None) -> None:
        if problem != self.problem:
            self.problem = problem
            if problem is None:
                _log.info("%s sees the same store as the others", self._name)
            else:
                _log.error("%s must not lead: %s", self._name, problem)

    def _say(self, failed: Mapping[str, str]) -> None:
        for name, sentence in failed.items():
            if name not in self._said and sentence != self.problem:
                _log.warning("%s", sentence)
        self._said = set(failed)
