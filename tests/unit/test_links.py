"""What a site tells a server in its stream, beside what it holds."""

from __future__ import annotations

import asyncio
import contextlib

from fedhelm_client.links import Links
from tests.support.kits import make_kits


def links_of(tmp_path):
    return Links(
        make_kits(tmp_path)["site-1"],
        "incarnation",
        lambda _: None,
        held=list,
        on_assignment=lambda _: None,
        on_change=lambda *_: None,
        on_order=lambda _: None,
    )


async def test_an_order_that_is_not_obeyed_is_answered_once_to_the_server_that_brought_it(tmp_path):
    links = links_of(tmp_path)
    changed = asyncio.Event()
    async with contextlib.aclosing(links._messages("server1", changed)) as stream:
        assert (await anext(stream)).hello.answers_orders
        links.answer("server1", "r1", "operate is none" + "!" * 1000)
        links.answer("server2", "r9")
        links.answer("server1", "r2")
        changed.set()
        answers = (await anext(stream)).beat.answers
        assert [(one.id, one.refusal[:15], len(one.refusal)) for one in answers] == [
            ("r1", "operate is none", 500),
            ("r2", "", 0),
        ]
        changed.set()
        assert not (await anext(stream)).beat.answers


async def test_a_server_that_asks_without_end_is_not_remembered_without_end(tmp_path):
    links = links_of(tmp_path)
    for number in range(1000):
        links.answer("server1", f"r{number}")
    changed = asyncio.Event()
    changed.set()
    async with contextlib.aclosing(links._messages("server1", changed)) as stream:
        await anext(stream)
        answers = (await anext(stream)).beat.answers
    assert (len(answers), answers[-1].id) == (50, "r999")
