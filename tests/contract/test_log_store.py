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


def test_slots_are_listed_in_their_order(store):
    assert store.slots() == []
    for seq in (10, 0, 9, 10**15):
        store.create(seq, b"x")
    assert store.slots() == [0, 9, 10, 10**15]


def test_a_deleted_slot_is_gone_for_every_member_and_may_be_deleted_again(opener):
    writer, other = opener(), opener()
    for seq in range(3):
        writer.create(seq, b"%d" % seq)
    other.delete(1)
    writer.delete(1)
    writer.delete(7)
    assert [writer.read(seq) for seq in range(3)] == [b"0", None, b"2"]
    assert other.slots() == [0, 2]
    assert other.highest() == 2


def test_a_new_store_has_no_marks(store):
    assert store.highest_mark() == 0
    assert store.read_mark(1) is None


def test_marks_are_created_once_and_are_no_slots(opener):
    first, second = opener(), opener()
    first.create_mark(1, b"one")
    second.create_mark(2, b"two")
    with pytest.raises(SlotTaken, match="2"):
        first.create_mark(2, b"other")
    assert [second.read_mark(number) for number in (1, 2, 3)] == [b"one", b"two", None]
    assert first.highest_mark() == second.highest_mark() == 2
    assert first.slots() == []
    first.create(2, b"slot")
    assert second.read_mark(2) == b"two"
    first.sync()


def test_of_many_who_make_a_mark_one_does(opener):
    start = threading.Barrier(6)

    def race(me: int) -> bool:
        start.wait(timeout=30)
        try:
            opener().create_mark(1, b"%d" % me)
        except SlotTaken:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        won = list(pool.map(race, range(6)))
    assert won.count(True) == 1
    assert opener().read_mark(1) == b"%d" % won.index(True)


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
