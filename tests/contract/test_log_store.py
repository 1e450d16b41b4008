"""What every LogStore does: the real one and the fake that other tests use."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from fedhelm.errors import SlotTaken
from fedhelm.persist.base import LogStore
from fedhelm.persist.posix import PosixLogStore, make_layout
from tests.fakes.persist_memory import MemoryLogStore

Opener = Callable[[], LogStore]


@pytest.fixture(params=["posix", "memory"])
def opener(request, tmp_path) -> Opener:
    """Return a function that opens the same store once more, as another member would."""
    if request.param == "posix":
        make_layout(tmp_path / "store")
        return lambda: PosixLogStore(tmp_path / "store")
    store = MemoryLogStore()
    return lambda: store


@pytest.fixture
def store(opener: Opener) -> LogStore:
    return opener()


def test_a_new_store_has_no_slots(store):
    assert store.read(0) is None
    assert store.highest() is None


def test_a_created_slot_is_read_back_by_every_member(opener):
    opener().create(0, b"hello\n")
    assert opener().read(0) == b"hello\n"
    assert opener().read(1) is None


def test_a_taken_slot_is_refused_and_stays_what_it_was(opener):
    first, second = opener(), opener()
    first.create(7, b"first")
    with pytest.raises(SlotTaken, match="7"):
        second.create(7, b"second, and longer")
    with pytest.raises(SlotTaken):
        first.create(7, b"first")
    assert second.read(7) == b"first"


def test_slots_are_told_apart_by_number_alone(store):
    for seq in (0, 1, 10, 10**15):
        store.create(seq, str(seq).encode())
    assert [store.read(seq) for seq in (0, 1, 10, 10**15)] == [b"0", b"1", b"10", b"1000000000000000"]
    assert store.read(2) is None
    assert store.highest() == 10**15


def test_the_highest_slot_is_seen_across_holes(opener):
    writer, reader = opener(), opener()
    writer.create(0, b"0")
    writer.create(4, b"4")
    assert reader.highest() == 4
    assert reader.read(3) is None


def test_sync_is_allowed_at_any_time(store):
    store.sync()
    store.create(0, b"x")
    store.sync()


def test_large_and_binary_contents_survive(store):
    data = bytes(range(256)) * 8192
    store.create(0, data)
    assert store.read(0) == data


def test_of_many_racing_creators_exactly_one_wins_each_slot(opener):
    writers, slots = 8, 25
    start = threading.Barrier(writers)

    def race(me: int) -> list[int]:
        store, won = opener(), []
        for seq in range(slots):
            start.wait(timeout=30)
            try:
                store.create(seq, b"writer %d" % me)
            except SlotTaken:
                continue
            won.append(seq)
        return won

    with ThreadPoolExecutor(writers) as pool:
        wins = list(pool.map(race, range(writers)))
    assert sorted(seq for won in wins for seq in won) == list(range(slots))
    reader = opener()
    for me, won in enumerate(wins):
        assert [reader.read(seq) for seq in won] == [b"writer %d" % me] * len(won)
