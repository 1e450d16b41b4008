"""An overseer in the same process: a lease row, and a note of every call. It grants at once what is free."""

from __future__ import annotations

import asyncio
import time

from fedhelm.errors import NotFound, Refused, Unreachable
from fedhelm.wire import overseer_api as api


class FakeOverseer:
    def __init__(self, name="server1", grants=True):
        self.name = name
        self.row = api.LeaseView(version=0, epoch=0)
        self.calls = []  # (name, request, monotonic time)
        self.grants = grants
        self.away = False  # True, or the error that it answers with
        self.elsewhere = None  # the incarnation that is live on another machine
        self.known = set()
        self.barred = set()
        self._changed = asyncio.Event()

    # --- what tests do and ask

    def of(self, call):
        return [request for name, request, _ in self.calls if name == call]

    def times(self, call):
        return [when for name, _, when in self.calls if name == call]

    def change(self, **fields):
        self.row = self.row.model_copy(update={"version": self.row.version + 1, **fields})
        self._changed.set()
        self._changed = asyncio.Event()

    def grant(self, incarnation, cause="granted", holder=None):
        self.change(
            epoch=self.row.epoch + 1, holder=holder or self.name, incarnation=incarnation, state="granted", cause=cause,
            intent=None,
        )  # fmt: skip

    # --- LeaseCalls

    def _note(self, name, request):
        if self.away:
            raise Unreachable("no overseer answers (fake)") if self.away is True else self.away
        self.calls.append((name, request, time.monotonic()))

    def _holds(self, request):
        mine = (request.epoch, request.incarnation) == (self.row.epoch, self.row.incarnation)
        return mine and self.row.holder == self.name and self.row.state != "released"

    def _grant_if_free(self, incarnation):
        if self.grants and self.row.state in {"never", "released"} and incarnation not in self.barred:
            self.grant(incarnation, self.row.cause or "first")

    async def register(self, request):
        self._note("register", request)
        if self.elsewhere is not None:
            return api.RegisterReply(
                accepted=False, lease=self.row, retry_after_s=0.2, message=f"server1 is live as {self.elsewhere}"
            )
        self.known.add(request.incarnation)
        self.known.discard(request.replaces)
        self._grant_if_free(request.incarnation)
        return api.RegisterReply(accepted=True, lease=self.row)

    async def beat(self, request):
        self._note("beat", request)
        if request.incarnation not in self.known:
            raise NotFound("no such incarnation")
        return self.row

    async def renew(self, request):
        self._note("renew", request)
        return api.RenewReply(held=self._holds(request), lease=self.row)

    async def activate(self, request):
        self._note("activate", request)
        if not self._holds(request):
            raise Refused("not the holder")
        self.change(state="active")
        return self.row

    async def release(self, request):
        self._note("release", request)
        if not self._holds(request):
            raise Refused("not the holder")
        self.barred.add(request.incarnation)
        self.change(state="released", cause=f"released: {request.reason}")
        return self.row

    async def wait_lease(self, after, wait_s):
        self._note("wait_lease", after)
        if self.row.version == after:
            try:
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()
            except TimeoutError:
                pass
        if self.away:
            raise Unreachable("no overseer answers (fake)") if self.away is True else self.away
        return self.row
