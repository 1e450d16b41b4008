"""A desk behind the script's door: hands out prepared tasks, keeps what it is told."""

from __future__ import annotations

import asyncio

from fedhelm.errors import Refused
from fedhelm.local.script_protocol import TaskOrder, Welcome


class FakeDesk:
    def __init__(self, root, *, options=None, members=("site-2", "site-1")):
        self.root = root
        (root / "results").mkdir(exist_ok=True)
        (root / "work").mkdir(exist_ok=True)
        self.options = options or {}
        self.members = members
        self.answers = asyncio.Queue()
        self.results = []
        self.log = []
        self.reject = None
        self.events = []  # ("line", tag) and ("result", key), in the order of their coming

    def task(self, number=1, kind="train", model=None, rounds=3):
        self.answers.put_nowait(
            TaskOrder(f"0-0-{number}-{kind}-0", kind, number, rounds, 0, 0, model, "", self.root / "results")
        )

    def end(self, status="FINISHED:COMPLETED"):
        self.answers.put_nowait(status)

    def welcome(self):
        return Welcome("site-1", "a23456723456", "hello", self.members, self.options, self.root / "work")

    async def next(self):
        return await self.answers.get()

    async def result(self, result):
        if self.reject:
            raise Refused(self.reject)
        self.results.append(result)
        self.events.append(("result", result.key))

    def lines(self, lines):
        self.log.extend(lines)
        self.events.extend(("line", line["tag"]) for line in lines)
