from __future__ import annotations

import asyncio

from fedhelm.tasks import cancel, spawn
from fedhelm_client.line import Line
from tests.support.waiting import eventually


class FakeConnection:
    stub = "stub"

    def __init__(self):
        self.closed = 0

    async def close(self):
        self.closed += 1


async def test_a_connection_that_was_replaced_is_closed_after_the_last_exchange_and_not_before():
    connection = FakeConnection()
    line = Line(connection)
    with line.used() as stub:
        assert stub == "stub"
        with line.used():
            retired = spawn(line.retire(), "retire")
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert (connection.closed, retired.done()) == (0, False)
    await eventually(retired.done)
    assert connection.closed == 1


async def test_one_that_nobody_uses_is_closed_at_once():
    connection = FakeConnection()
    await asyncio.wait_for(Line(connection).retire(), 10)
    assert connection.closed == 1


async def test_when_the_agent_ends_it_is_closed_whoever_uses_it():
    connection = FakeConnection()
    line = Line(connection)
    with line.used():
        retired = spawn(line.retire(), "retire")
        await asyncio.sleep(0)
        await cancel(retired)
        assert connection.closed == 1
