"""Virtual time: one queue of callbacks, and processes that can be frozen, killed, and have clocks of their own rate.

Every process of the simulation has an event loop (`VirtualLoop`) on which the product's coroutines run unchanged. Its
timers, its worker threads and its messages all become entries of one queue, in an order that the seed alone decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import heapq
import random
from collections import deque
from datetime import UTC, datetime, timedelta

__all__ = ["Dead", "Handle", "Machine", "Process", "VirtualLoop", "World"]

START = datetime(2026, 11, 22, tzinfo=UTC)
MAX_NESTING = 3


class Dead(BaseException):
    """The process that was in the middle of something is gone; what it was about to do does not happen."""


class Handle:
    """A callback in the queue."""

    __slots__ = ("args", "callback", "cancelled_", "context", "process", "when_")

    def __init__(self, process, when, callback, args, context=None):
        self.process = process
        self.when_ = when
        self.callback = callback
        self.args = args
        self.context = context
        self.cancelled_ = False

    def cancel(self):
        self.cancelled_ = True

    def cancelled(self):
        return self.cancelled_

    def when(self):
        return self.when_


class World:
    """The queue, the time, the chance, and the trace of one seed."""

    def __init__(self, seed, *, keep=False):
        self.rng = random.Random(seed)
        self.now = 0.0
        self.machines = {}
        self.failures = []
        self.keep = keep
        self.trace = []
        self._hash = hashlib.sha256()
        self._ready = deque()
        self._timers = []
        self._count = 0
        self.nesting = 0
        self.steps = 0

    # -- the trace

    def note(self, who, text):
        line = f"{self.now:9.4f} {who:14} {text}"
        self._hash.update(line.encode() + b"\n")
        if self.keep:
            self.trace.append(line)

    def digest(self):
        return self._hash.hexdigest()

    def fail(self, text):
        """An invariant does not hold."""
        self.note("INVARIANT", text)
        self.failures.append(f"at {self.now:.3f} s: {text}")

    # -- the queue

    def call_soon(self, callback, *args, process=None, context=None):
        handle = Handle(process, self.now, callback, args, context)
        self._ready.append(handle)
        return handle

    def call_later(self, delay, callback, *args, process=None, context=None):
        return self.call_at(self.now + delay, callback, *args, process=process, context=context)

    def call_at(self, when, callback, *args, process=None, context=None):
        handle = Handle(process, when, callback, args, context)
        self._count += 1
        heapq.heappush(self._timers, (when, self._count, handle))
        return handle

    def run_until(self, end):
        """Run everything that is due up to ``end``; may be called from within a callback (see `pause`)."""
        ready, timers = self._ready, self._timers
        while True:
            if ready:
                handle = ready.popleft()
            elif timers and timers[0][0] <= end:
                when, _, handle = heapq.heappop(timers)
                if when > self.now:
                    self.now = when
            else:
                break
            if not handle.cancelled_:
                self._run(handle)
        self.now = max(self.now, end)

    def _run(self, handle):
        process = handle.process
        self.steps += 1
        if process is not None:
            if process.dead:
                return
            if process.frozen:
                process.stalled.append(handle)
                return
            asyncio._set_running_loop(process.loop)
        try:
            if handle.context is not None:
                handle.context.run(handle.callback, *handle.args)
            else:
                handle.callback(*handle.args)
        except Dead:
            pass
        finally:
            if process is not None:
                asyncio._set_running_loop(None)

    def pause(self, seconds, process):
        """Let the rest of the world go on while the caller, a thread of ``process``, stands still in a system call.

        Raises:
            Dead: the process was killed meanwhile.
        """
        if self.nesting >= MAX_NESTING or seconds <= 0:
            return
        loop = asyncio._get_running_loop()
        asyncio._set_running_loop(None)
        self.nesting += 1
        try:
            self.run_until(self.now + seconds)
            for _ in range(1000):
                if process is None or process.dead or not process.frozen:
                    break
                self.run_until(self.now + 0.1)
        finally:
            self.nesting -= 1
            asyncio._set_running_loop(loop)
        if process is not None and process.dead:
            raise Dead


class Machine:
    """A host: its clocks, and the processes on it."""

    def __init__(self, world, name, rate=1.0):
        self.world = world
        self.name = name
        self.rate = rate
        self.offset = world.rng.uniform(10, 1e6)
        self.wall = 0.0
        self.up = True
        world.machines[name] = self

    def boottime(self):
        return self.offset + self.world.now * self.rate

    def utcnow(self):
        return START + timedelta(seconds=self.world.now * self.rate + self.wall)


class VirtualLoop(asyncio.AbstractEventLoop):
    """As much of an event loop as the product's coroutines ask for."""

    def __init__(self, process):
        self._process = process
        self._world = process.world

    def time(self):
        return self._process.machine.boottime()

    def get_debug(self):
        return False

    def is_running(self):
        return True

    def is_closed(self):
        return False

    def call_exception_handler(self, context):
        pass

    def default_exception_handler(self, context):
        pass

    def call_soon(self, callback, *args, context=None):
        return self._world.call_soon(callback, *args, process=self._process, context=context)

    def call_soon_threadsafe(self, callback, *args, context=None):
        return self.call_soon(callback, *args, context=context)

    def call_later(self, delay, callback, *args, context=None):
        seconds = max(0.0, delay) / self._process.machine.rate
        return self._world.call_later(seconds, callback, *args, process=self._process, context=context)

    def call_at(self, when, callback, *args, context=None):
        return self.call_later(when - self.time(), callback, *args, context=context)

    def create_future(self):
        return asyncio.Future(loop=self)

    def create_task(self, coro, *, name=None, context=None):
        task = asyncio.Task(coro, loop=self, name=name, context=context)
        self._process.tasks[task] = None
        task.add_done_callback(lambda done: self._process.tasks.pop(done, None))
        return task

    def run_in_executor(self, executor, func, *args):
        return self._process.in_thread(func, args)


class Process:
    """Something that runs on a machine until it is killed. Frozen: its callbacks wait until it thaws."""

    def __init__(self, machine, name):
        self.machine = machine
        self.world = machine.world
        self.name = name
        self.dead = False
        self.frozen = False
        self.stalled = []
        self.tasks = {}  # in the order in which they began: of a set, the order would be that of their addresses
        self.loop = VirtualLoop(self)

    def spawn(self, coro, name="task"):
        """Start a coroutine of this process, from anywhere."""
        before = asyncio._get_running_loop()
        asyncio._set_running_loop(self.loop)
        try:
            return self.loop.create_task(coro, name=name)
        finally:
            asyncio._set_running_loop(before)

    def later(self, delay, callback, *args):
        return self.world.call_later(delay, callback, *args, process=self)

    def in_thread(self, func, args):
        """Run a blocking function as a worker thread would; subclasses say how long its disk takes."""
        future = self.loop.create_future()
        self.later(0.0, self._work, future, func, args)
        return future

    def _work(self, future, func, args):
        try:
            result, error = func(*args), None
        except Exception as caught:  # noqa: BLE001 - it belongs to whoever waits for the thread
            result, error = None, caught
        self.later(0.0, settle, future, result, error)

    def freeze(self):
        if not self.dead and not self.frozen:
            self.frozen = True
            self.world.note(self.name, "frozen")

    def thaw(self):
        if not self.dead and self.frozen:
            self.frozen = False
            stalled, self.stalled = self.stalled, []
            self.world.note(self.name, "thawed")
            for handle in stalled:
                self.world._ready.append(handle)

    def kill(self):
        """SIGKILL: nothing of it runs any more."""
        if self.dead:
            return
        self.dead = True
        self.stalled.clear()
        before = asyncio._get_running_loop()
        asyncio._set_running_loop(self.loop)
        try:
            while self.tasks:  # one that unwinds may start others
                close(self.tasks.popitem()[0])
        finally:
            asyncio._set_running_loop(before)


def close(task):
    """Unwind a coroutine whose process is gone, so that nothing of it is left for the garbage collector."""
    with contextlib.suppress(RuntimeError, ValueError):  # it awaits while it unwinds, or is the one that runs just now
        task.get_coro().close()
    task._log_destroy_pending = False


def settle(future, result, error):
    """Give a future its end, unless nobody waits any more."""
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
