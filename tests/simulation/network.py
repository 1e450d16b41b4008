"""The virtual network: requests with answers between machines; delayed, lost, repeated, cut in one direction."""

from __future__ import annotations

import asyncio

from fedhelm.errors import FedhelmError, Unreachable

__all__ = ["Network"]


class Network:
    """Who can reach whom, and how long it takes.

    Attributes:
        cut: Pairs (from, to) whose messages vanish.
        loss: Chance that a message is lost, by pair; `slow` adds seconds to each of a pair.
    """

    def __init__(self, world):
        self.world = world
        self.cut = set()
        self.loss = {}
        self.slow = {}
        self.repeat = 0.0
        self.handlers = {}

    def heal(self):
        self.cut.clear()
        self.loss.clear()
        self.slow.clear()
        self.repeat = 0.0

    def reaches(self, source, target):
        """Whether a message passes now."""
        if (source, target) in self.cut:
            return False
        loss = self.loss.get((source, target))
        return not loss or self.world.rng.random() >= loss

    def delay(self, source, target):
        rng = self.world.rng
        base = rng.uniform(0.0003, 0.004)
        extra = self.slow.get((source, target))
        return base + rng.uniform(0, extra) if extra else base

    def send(self, source, target, callback, *args, process=None):
        """Have ``callback`` run at the target after a while, or never."""
        if self.reaches(source, target):
            self.world.call_later(self.delay(source, target), callback, *args, process=process)

    def serve(self, name, handler):
        """``handler(request, reply)`` answers requests to ``name``; None: nobody listens there."""
        if handler is None:
            self.handlers.pop(name, None)
        else:
            self.handlers[name] = handler

    def call(self, process, target, request, timeout):
        """Ask ``target`` from ``process``; a future with the answer, the error told, or Unreachable."""
        future = process.loop.create_future()
        source = process.machine.name
        host = target.split("/")[0]
        done = [False]

        def answered(result, error):
            if not done[0]:
                done[0] = True
                timer.cancel()
                _settle(future, result, error)

        def reply(result, error=None):
            self.send(host, source, answered, result, error, process=process)

        def arrive():
            handler = self.handlers.get(target)
            if handler is None:
                reply(None, Unreachable(f"{target} refuses connections"))
            else:
                handler(request, reply)

        timer = process.later(timeout / process.machine.rate, answered, None, Unreachable(f"{target}: no answer"))
        self.send(source, host, arrive)
        if self.repeat and self.world.rng.random() < self.repeat:
            self.world.call_later(self.world.rng.uniform(0, 0.2), self.send, source, host, arrive)
        return future

    async def ask(self, process, target, request, timeout):
        return await self.call(process, target, request, timeout)


def _settle(future, result, error):
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
        future.exception()  # whoever asked may have gone


async def answer(coro, reply):
    """Run a handler's coroutine and send what comes of it."""
    try:
        result = await coro
    except FedhelmError as error:
        reply(None, error)
    except asyncio.CancelledError:
        raise
    else:
        reply(result)
