"""Servers that look for one another's tokens: in one directory, in a copy of it, and around a restart."""

from __future__ import annotations

import asyncio
import logging
import shutil
from contextlib import asynccontextmanager

import pytest

from fedhelm.config.timing import PROFILES
from fedhelm.persist.store import init_store
from fedhelm.tasks import cancel, spawn
from fedhelm_server.pace import Pace
from fedhelm_server.store_tokens import StoreTokens, wrong_store
from tests.support.waiting import eventually


@pytest.mark.parametrize(
    ("tokens", "failed", "primary", "wrong"),
    [
        ("b", "", "b", False),
        ("b", "b", "b", True),
        ("b", "b", None, True),  # two of them, nobody leads: neither may
        ("bc", "c", "b", False),  # the primary's is there: the third one has the wrong store
        ("bc", "b", "b", True),
        ("bc", "b", None, False),
        ("bc", "bc", None, True),
        ("bc", "c", "a", False),  # the primary's token is not known
    ],
)
def test_who_has_the_wrong_store(tokens, failed, primary, wrong):
    assert wrong_store(set(tokens), set(failed), primary) is wrong


@asynccontextmanager
async def members(*places):
    found = [
        StoreTokens(root, f"server{number}", f"i{number}", PROFILES["fast"]) for number, root in enumerate(places, 1)
    ]
    tasks = [spawn(one.run(), "tokens") for one in found]
    try:
        await eventually(lambda: all(one.token for one in found))
        yield found
    finally:
        await cancel(*tasks)


@pytest.fixture
def store(tmp_path):
    init_store(tmp_path / "store", "c" * 32, "poc")
    return tmp_path / "store"


@pytest.fixture
def copy(store, tmp_path):
    return shutil.copytree(store, tmp_path / "copy")


async def test_members_of_one_store_find_one_another(store):
    async with members(store, store) as (one, two):
        one.told({"server2": two.token}, None)
        two.told({"server1": one.token}, "server1")
        await eventually(lambda: one._proven and two._proven)
        assert (one.problem, two.problem) == (None, None)


async def test_a_copy_of_the_store_is_found_out_at_once_and_named(store, copy, caplog):
    caplog.set_level(logging.INFO)
    async with members(store, copy) as (one, two):
        two.told({"server1": one.token}, "server1")
        await eventually(lambda: two.problem)
        assert "lacks what server1 wrote to its store" in two.problem
        assert f"server2 must not lead: {two.problem}" in caplog.messages
        one.told({"server2": two.token}, "server1")  # it leads: its own store is the right one
        await eventually(lambda: "server2" in one._said)
        assert one.problem is None
        two.told({}, "server1")
        await asyncio.sleep(0)
        assert two.problem is not None  # for good, whoever leaves


async def test_a_token_that_was_just_replaced_is_no_reason_to_distrust_a_store(store):
    async with members(store, store) as (one, two):
        two.told({"server1": one.token}, "server1")
        await eventually(lambda: two._proven)
        old = one.token
        async with members(store) as (again,):
            assert again.token != old
            two._proven = False
            two._told.set()  # as after 30 s
            await eventually(lambda: two._proven)
            assert (two.problem, two._failures) == (None, 0)


async def test_one_that_just_started_and_is_told_a_token_of_the_life_before_is_a_candidate(store):
    async with members(store) as (one,):
        old = one.token
    async with members(store, store) as (again, two):
        assert again.token != old
        two.told({"server1": old}, "server1")
        await eventually(lambda: two._proven)
        assert two.problem is None


async def test_a_failure_that_lasts_is_believed_and_forgiven_when_it_is_over(store, tmp_path):
    async with members(store, store) as (one, two):
        two.told({"server1": one.token}, "server1")
        await eventually(lambda: two._proven)
        token = store / "probe" / one.token
        aside = token.rename(tmp_path / "aside")
        two._told.set()
        await eventually(lambda: two.problem)
        aside.rename(token)
        await eventually(lambda: two.problem is None)


async def test_a_store_that_is_away_at_the_start_gets_its_token_when_it_is_there(store):
    away = store.rename(store.with_name("away"))
    one = StoreTokens(store, "server1", "i1", PROFILES["fast"])
    task = spawn(one.run(), "tokens")
    try:
        await asyncio.sleep(0)
        assert one.token is None
        away.rename(store)
        await eventually(lambda: one.token)
    finally:
        await cancel(task)


def test_the_pause_is_four_medians_and_at_least_50_ms():
    pace = Pace()
    assert pace.pause == 0.05
    for seconds in (0.004, 0.005, 0.9):
        pace.took(seconds)
    assert pace.pause == 0.05
    for _ in range(20):
        pace.took(0.1)
    assert pace.pause == pytest.approx(0.4)
    for _ in range(40):
        pace.took(0.02)
    assert pace.pause == pytest.approx(0.08)
