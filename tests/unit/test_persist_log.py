"""The log: chain, authority, and appends whose outcome is not known."""

from __future__ import annotations

import threading

import pytest

from fedhelm.errors import BadInput, Corrupt, Fenced, NotFound, SlotTaken, StoreUnavailable, WrongStore
from fedhelm.persist.log import Log
from fedhelm.persist.record import By, Draft, decode, seal
from tests.fakes.persist_memory import LOST, REPEATED, UNAVAILABLE, MemoryLogStore

ONE = By("server1", "a1")
TWO = By("server2", "b1")
PROVISION = By("provision", "p")


def genesis():
    return Draft("genesis", 0, PROVISION, {"cluster": "c", "project": "p"})


def fence(epoch, by=ONE):
    return Draft("fence", epoch, by, {"cause": "test"})


def put(epoch, site, by=ONE):
    return Draft("contribution", epoch, by, {"items": [{"site": site}]})


@pytest.fixture
def store():
    """A store with genesis and server1's fence of epoch 1."""
    store = MemoryLogStore()
    log = Log(store)
    log.append(genesis())
    log.append(fence(1))
    return store


def opened(store) -> Log:
    log = Log(store)
    log.read_new()
    return log


def force(store, draft, seq=None):
    """Write a slot that fits the chain, past all rules."""
    last = max(store.contents)
    prev = decode(store.contents[last], last).sha256
    seq = last + 1 if seq is None else seq
    store.contents[seq] = seal(draft, seq=seq, prev=prev, nonce="forced")[1]


def test_a_fresh_log_has_read_nothing_and_loads_everything(store):
    log = Log(store)
    assert (log.next_seq, log.last, log.epoch) == (0, None, 0)
    assert [record.kind for record in log.read_new().records] == ["genesis", "fence"]
    assert (log.next_seq, log.epoch) == (2, 1)
    assert log.last == log.fence == log.at(1)
    assert log.read_new().records == []


def test_what_one_appends_another_reads(store):
    writer, reader = opened(store), opened(store)
    written = [writer.append(put(1, site)) for site in "abc"]
    assert reader.read_new().records == written
    assert [record.seq for record in written] == [2, 3, 4]
    assert [record.prev for record in written] == [writer.at(seq).sha256 for seq in (1, 2, 3)]
    assert reader.tip == writer.tip


def test_only_a_passed_slot_can_be_looked_at(store):
    log, other = opened(store), opened(store)
    other.append(put(1, "a"))
    assert log.at(0).kind == "genesis"
    for seq in (-1, 2, 3):
        with pytest.raises(NotFound):
            log.at(seq)
    del store.contents[0]
    with pytest.raises(Corrupt, match="slot 0"):
        log.at(0)


def test_who_loses_the_slot_reads_on_and_decides_again(store):
    first, second = opened(store), opened(store)
    won = first.append(put(1, "a"))
    with pytest.raises(SlotTaken):
        second.append(put(1, "b"))
    assert second.next_seq == 2
    assert second.read_new().records == [won]
    assert second.append(put(1, "b")).seq == 3


def test_a_writer_that_comes_between_wins_the_slot(store):
    log = opened(store)

    def overtake(seq):
        store.before_create = None
        opened(store).append(fence(2, TWO))

    store.before_create = overtake
    with pytest.raises(SlotTaken):
        log.append(put(1, "a"))
    log.read_new()
    with pytest.raises(Fenced, match="epoch 1 after epoch 2"):
        log.append(put(1, "a"))


class TestAuthority:
    def test_a_writer_is_fenced_by_a_higher_epoch(self, store):
        zombie, successor = opened(store), opened(store)
        successor.append(fence(2, TWO))
        zombie.read_new()
        assert not zombie.leads(1, ONE)
        assert zombie.leads(2, TWO)
        with pytest.raises(Fenced):
            zombie.append(put(1, "a"))
        assert successor.append(put(2, "a", TWO)).epoch == 2

    def test_an_equal_epoch_is_no_right_to_write(self, store):
        other = opened(store)
        with pytest.raises(Fenced, match="server1"):
            other.append(put(1, "a", TWO))
        with pytest.raises(Fenced):
            other.append(fence(1, TWO))
        assert other.next_seq == 2
        assert max(store.contents) == 1

    def test_another_life_of_the_same_server_is_another_writer(self, store):
        with pytest.raises(Fenced):
            opened(store).append(put(1, "a", By("server1", "a2")))

    def test_a_later_epoch_needs_its_fence_first(self, store):
        with pytest.raises(Fenced):
            opened(store).append(put(2, "a"))

    def test_nobody_writes_before_the_first_fence(self):
        store = MemoryLogStore()
        Log(store).append(genesis())
        with pytest.raises(Fenced, match="nobody"):
            opened(store).append(put(0, "a", PROVISION))

    def test_after_an_epoch_repair_a_new_fence_is_needed(self, store):
        log = opened(store)
        log.append(Draft("epoch_repair", 1 + 2**20, PROVISION, {}))
        with pytest.raises(Fenced):
            log.append(put(1, "a"))
        with pytest.raises(Fenced):
            log.append(put(1 + 2**20, "a", PROVISION))
        log.append(fence(2 + 2**20, TWO))
        log.append(put(2 + 2**20, "a", TWO))

    def test_a_log_that_was_not_read_cannot_be_written(self, store):
        with pytest.raises(WrongStore):
            Log(store).append(fence(2))
        with pytest.raises(WrongStore):
            Log(MemoryLogStore()).append(fence(1))

    def test_genesis_is_written_once(self, store):
        with pytest.raises(SlotTaken):
            Log(store).append(genesis())
        with pytest.raises(BadInput):
            opened(store).append(genesis())


class TestDamage:
    def test_a_bad_record_is_named_and_never_skipped(self, store):
        log = opened(store)
        for site in "abc":
            log.append(put(1, site))
        store.contents[3] = store.contents[3].replace(b'"b"', b'"x"')
        reader = Log(store)
        for _ in range(2):
            with pytest.raises(Corrupt, match="slot 3"):
                reader.read_new()
            assert reader.next_seq == 0
        with pytest.raises(Corrupt, match="slot 3"):
            log.at(3)

    @pytest.mark.parametrize(("lost", "draft"), [(2, fence(2, TWO)), (2, put(1, "x")), (4, put(1, "x"))])
    def test_a_lost_slot_is_not_filled_by_who_had_read_up_to_it(self, store, lost, draft):
        sleeper, log = opened(store), opened(store)
        for site in "abc":
            log.append(put(1, site))
        if lost == 4:
            sleeper.read_new()
            log.append(put(1, "d"))
            log.append(put(1, "e"))
            lost = sleeper.next_seq
        saved = store.contents.pop(lost)
        with pytest.raises(Corrupt, match=f"slot {lost} is missing, slot "):
            sleeper.append(draft)
        assert lost not in store.contents
        store.contents[lost] = saved
        with pytest.raises(SlotTaken):
            sleeper.append(draft)

    def test_a_lost_slot_does_not_pass_for_the_end(self, store):
        log = opened(store)
        for site in "abc":
            log.append(put(1, site))
        del store.contents[3]
        with pytest.raises(Corrupt, match="slot 3 is missing, slot 4 is there"):
            Log(store).read_new()

    def test_slots_made_during_the_load_are_no_damage(self, store):
        writer = opened(store)

        class Busy(MemoryLogStore):
            def highest(self):
                if writer.next_seq < 6:
                    writer.append(put(1, "a"))
                return store.highest()

            def read(self, seq):
                return store.read(seq)

        log = Log(Busy())
        assert [record.seq for record in log.read_new().records] == list(range(6))

    def test_a_record_that_does_not_continue_the_chain_is_named(self, store):
        opened(store).append(put(1, "a"))
        store.contents[2] = seal(put(1, "b"), seq=2, prev="ab" * 32, nonce="n")[1]
        with pytest.raises(Corrupt, match="slot 2: does not continue"):
            Log(store).read_new()

    def test_a_replaced_record_breaks_the_chain_after_it(self, store):
        log = opened(store)
        log.append(put(1, "a"))
        log.append(put(1, "b"))
        store.contents[2] = seal(put(1, "x"), seq=2, prev=log.at(1).sha256, nonce="n")[1]
        with pytest.raises(Corrupt, match="slot 3: does not continue"):
            Log(store).read_new()

    @pytest.mark.parametrize(
        "draft",
        [put(0, "a"), put(2, "a"), put(1, "a", TWO), fence(1), fence(1, TWO), genesis()],
        ids=["lower epoch", "unfenced epoch", "second writer", "fence twice", "equal fence", "genesis again"],
    )
    def test_a_record_that_nobody_might_write_is_named(self, store, draft):
        force(store, draft)
        with pytest.raises(Corrupt, match="slot 2"):
            Log(store).read_new()

    def test_a_log_without_genesis_is_refused(self):
        store = MemoryLogStore()
        store.contents[0] = seal(fence(1), seq=0, prev="0" * 64, nonce="n")[1]
        with pytest.raises(Corrupt, match="slot 0"):
            Log(store).read_new()


class TestUnknownOutcome:
    def test_a_repeated_request_is_recognised_as_mine(self, store):
        log = opened(store)
        store.faults.append(REPEATED)
        record = log.append(put(1, "a"))
        assert (log.next_seq, log.last) == (3, record)
        assert opened(store).last == record

    @pytest.mark.parametrize("fault", [LOST, UNAVAILABLE])
    def test_the_same_draft_again_is_one_record(self, store, fault):
        log = opened(store)
        store.faults += [fault, UNAVAILABLE]
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                log.append(put(1, "a"))
            assert log.next_seq == 2
        record = log.append(put(1, "a"))
        assert record.seq == 2
        assert opened(store).read_new().records == []
        assert opened(store).last == record

    def test_another_draft_after_a_lost_answer_loses_the_slot(self, store):
        log = opened(store)
        store.faults.append(LOST)
        with pytest.raises(StoreUnavailable):
            log.append(put(1, "a"))
        with pytest.raises(SlotTaken):
            log.append(put(1, "b"))
        assert [record.body["items"][0]["site"] for record in log.read_new().records] == ["a"]
        assert log.append(put(1, "b")).seq == 3

    def test_another_draft_after_a_failed_append_takes_the_slot(self, store):
        log = opened(store)
        store.faults.append(UNAVAILABLE)
        with pytest.raises(StoreUnavailable):
            log.append(put(1, "a"))
        assert log.append(put(1, "b")).seq == 2

    def test_a_record_that_arrives_late_is_one_record(self, store):
        log = opened(store)
        store.faults.append(UNAVAILABLE)
        sent = []
        store.before_create = sent.append
        with pytest.raises(StoreUnavailable):
            log.append(put(1, "a"))
        late = log._attempt[1]
        store.before_create = lambda seq: store.contents.setdefault(seq, late)
        record = log.append(put(1, "a"))
        assert sent == [2]
        assert store.contents[record.seq] == late

    def test_an_append_told_as_failed_is_durable_before_it_is_read(self, store):
        log = opened(store)
        store.faults.append(LOST)
        with pytest.raises(StoreUnavailable):
            log.append(put(1, "a"))
        assert store.synced == 0
        assert len(log.read_new().records) == 1
        assert store.synced == 1
        log.append(put(1, "b"))
        opened(store)
        assert store.synced == 1

    def test_reading_on_waits_until_it_is_durable(self, store):
        log = opened(store)
        store.faults.append(LOST)
        with pytest.raises(StoreUnavailable):
            log.append(put(1, "a"))
        works, store.sync = store.sync, lambda: (_ for _ in ()).throw(StoreUnavailable("sync"))
        with pytest.raises(StoreUnavailable):
            log.read_new()
        assert log.next_seq == 2
        store.sync = works
        assert len(log.read_new().records) == 1

    def test_a_fence_whose_answer_was_lost_is_mine(self, store):
        log = opened(store)
        store.faults.append(LOST)
        with pytest.raises(StoreUnavailable):
            log.append(fence(2, TWO))
        assert log.append(fence(2, TWO)).seq == 2
        assert log.leads(2, TWO)

    def test_a_fence_that_was_read_instead_is_mine_as_well(self, store):
        log = opened(store)
        store.faults.append(LOST)
        with pytest.raises(StoreUnavailable):
            log.append(fence(2, TWO))
        log.read_new()
        assert log.leads(2, TWO)
        log.append(put(2, "a", TWO))

    def test_a_slot_that_is_taken_and_not_visible_is_no_answer(self, store):
        log = opened(store)
        store.faults.append(REPEATED)
        works, store.read = store.read, lambda seq: None if seq == 2 else works(seq)
        with pytest.raises(StoreUnavailable):
            log.append(put(1, "a"))
        store.read = works
        assert log.append(put(1, "a")).seq == 2

    def test_what_cannot_be_written_changes_nothing(self, store):
        log = opened(store)
        with pytest.raises(BadInput):
            log.append(put(1, float("nan")))
        assert log.append(put(1, "a")).seq == 2

    def test_a_store_that_is_down_is_not_an_empty_log(self, store):
        log, fresh = opened(store), Log(store)
        store.down = True
        for call in (log.read_new, fresh.read_new, lambda: log.at(0), lambda: log.append(put(1, "a"))):
            with pytest.raises(StoreUnavailable):
                call()
        store.down = False
        assert len(fresh.read_new().records) == 2
        assert log.append(put(1, "a")).seq == 2


def test_an_idle_look_is_one_read(store):
    log = opened(store)
    looks = []
    works, store.read = store.read, lambda seq: looks.append(seq) or works(seq)
    store.highest = None  # not to be asked
    assert log.read_new().records == []
    assert looks == [2]


def test_two_threads_at_once_are_refused(store):
    log = opened(store)
    entered, leave = threading.Event(), threading.Event()

    def wait(seq):
        store.before_create = None
        entered.set()
        assert leave.wait(30)

    store.before_create = wait
    thread = threading.Thread(target=log.append, args=(put(1, "a"),))
    thread.start()
    try:
        assert entered.wait(30)
        with pytest.raises(RuntimeError):
            log.append(put(1, "a"))
        with pytest.raises(RuntimeError):
            log.read_new()
    finally:
        leave.set()
        thread.join()
    assert log.next_seq == 3


class TestALogThatWasReplacedUnderASleeper:
    """A restore put an older log in the place of the one that a paused primary has read."""

    def replaced(self, store, kept):
        for seq in [seq for seq in store.contents if seq >= kept]:
            del store.contents[seq]

    def test_it_writes_nothing_past_the_end_of_the_restored_one(self, store):
        sleeper = opened(store)
        for site in ("site-1", "site-2"):
            sleeper.append(put(1, site))
        self.replaced(store, kept=3)
        with pytest.raises(Corrupt, match="slot 3 is not what was read there"):
            sleeper.append(put(1, "site-3"))
        assert max(store.contents) == 2

    def test_nor_where_the_restored_one_has_gone_on_differently(self, store):
        sleeper = opened(store)
        sleeper.append(put(1, "site-1"))
        self.replaced(store, kept=2)
        force(store, fence(2, TWO))
        with pytest.raises(Corrupt, match="slot 2"):
            sleeper.append(put(1, "site-2"))
        assert max(store.contents) == 2

    def test_who_reads_afresh_goes_on(self, store):
        sleeper = opened(store)
        sleeper.append(put(1, "site-1"))
        self.replaced(store, kept=2)
        log = opened(store)
        log.append(fence(2, TWO))
        assert log.next_seq == 3
