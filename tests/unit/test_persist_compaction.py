"""A log that is shortened: readers that lag, writers that were asleep, and compactions that die anywhere."""

from __future__ import annotations

import json

import pytest

from fedhelm.errors import BadInput, Corrupt, Fenced, NotFound, SlotTaken, StoreUnavailable
from fedhelm.persist.chain import checkpoint_owner
from fedhelm.persist.log import Log
from fedhelm.persist.marks import Mark, decode_mark
from fedhelm.persist.posix import PosixBlobStore, PosixLogStore, make_layout
from fedhelm.persist.record import By, Draft, decode, seal
from tests.fakes.persist_files import FaultyFiles, Killed
from tests.fakes.persist_member import ONE, TWO, Member
from tests.fakes.persist_memory import LOST, MemoryBlobStore, MemoryLogStore


@pytest.fixture
def store():
    return MemoryLogStore()


@pytest.fixture
def blobs():
    return MemoryBlobStore()


@pytest.fixture
def member(store, blobs):
    """Return a function that opens the store once more."""
    return lambda by=ONE: Member(store, blobs, by)


@pytest.fixture
def primary(member):
    """Epoch 1, contributions a and b in slots 2 and 3, a checkpoint in slot 4."""
    primary = member()
    primary.log.append(Draft("genesis", 0, By("provision", "p"), {"cluster": "c", "project": "p"}))
    primary.fence(1)
    primary.put("a", "b")
    primary.checkpoint()
    return primary


def shorten(primary, *items):
    """Two more checkpoints, so that everything from before is below the mark."""
    primary.put(*(items or ["x"]))
    primary.checkpoint()
    primary.checkpoint()
    return primary.log.compact()


class TestWhatIsDeleted:
    def test_nothing_before_there_are_two_checkpoints(self, primary, store):
        before = dict(store.contents)
        for _ in range(2):
            done = primary.log.compact()
            assert (done.low_water, done.marked, done.slots, done.owners) == (0, False, 0, ())
        assert (store.contents, store.marks) == (before, {})

    def test_the_slots_that_the_older_of_two_checkpoints_covers_but_genesis(self, primary, store):
        primary.put("c")  # 5
        primary.checkpoint()  # 6, covers 5
        done = primary.log.compact()
        assert (done.low_water, done.marked, done.slots, done.owners) == (4, True, 3, ())
        assert sorted(store.contents) == [0, 4, 5, 6]
        assert decode_mark(store.marks[1], 1) == Mark(1, 4, 6)
        assert (primary.log.low_water, primary.log.checkpoint) == (4, 6)

    def test_again_changes_nothing(self, primary, store):
        primary.checkpoint()
        primary.log.compact()
        before = dict(store.contents), dict(store.marks)
        done = primary.log.compact()
        assert (done.low_water, done.marked, done.slots) == (4, False, 0)
        assert (store.contents, store.marks) == before

    def test_of_checkpoints_two_are_kept_and_what_is_left_of_others_goes(self, primary, store, blobs):
        primary.put("c")
        primary.log.write_checkpoint_blob(primary.log.tip, {"fold": ["half"]})  # and the primary died
        primary.put("d")
        for _ in range(3):
            primary.checkpoint()
        done = primary.log.compact()
        kept = [checkpoint_owner(one.covered) for one in primary.log.tip.checkpoints]
        assert blobs.owners("checkpoints") == kept
        assert len(kept) == 2
        assert done.owners == (checkpoint_owner(3), checkpoint_owner(5), checkpoint_owner(6))
        assert done.freed > 0

    def test_by_any_server_and_by_one_that_lost_its_lead(self, primary, member, store):
        primary.checkpoint()
        successor = member(TWO)
        successor.read()
        successor.fence(2)
        assert primary.log.compact().marked
        assert successor.log.compact().marked is False
        assert successor.put("c").seq == 7
        assert member().read().base.covered == 4

    def test_a_compaction_that_lost_its_number_reads_the_mark_and_goes_on_later(self, primary, member, store):
        primary.checkpoint()
        late = member(TWO)
        late.read()
        primary.put("c")
        primary.checkpoint()

        def overtake(name, _):
            if name == "create_mark":
                store.called = None
                late.log.compact()

        store.called = overtake
        done = primary.log.compact()
        assert (done.low_water, done.marked) == (4, False)
        done = primary.log.compact()
        assert (done.low_water, done.marked) == (5, True)
        assert sorted(store.marks) == [1, 2]

    def test_nothing_while_a_checkpoint_cannot_be_read(self, primary, store, blobs):
        primary.checkpoint()
        before = dict(store.contents)
        blobs.chunks[next(key for key in blobs.chunks if key[0] == checkpoint_owner(3))] = b"damaged"
        with pytest.raises(Corrupt):
            primary.log.compact()
        assert (store.contents, store.marks) == (before, {})

    def test_nothing_for_a_checkpoint_of_another_log(self, primary, member, store):
        """The blob is sound, but what it says of the slot is not what is in the slot."""
        position = primary.log.tip
        other = MemoryLogStore()
        stranger = Member(other, primary.log._blobs)
        stranger.log.append(Draft("genesis", 0, By("provision", "q"), {"cluster": "d", "project": "p"}))
        stranger.fence(1)
        stranger.put("a", "b", "c")
        ref = stranger.log.write_checkpoint_blob(stranger.log.tip, {"fold": []})
        primary.append("checkpoint", {"covered": position.next_seq - 1, "blob": ref.to_json()})
        with pytest.raises(Corrupt, match="slot 5"):
            primary.log.compact()
        assert store.marks == {}


class TestReading:
    def test_who_starts_gets_the_newer_checkpoint_and_what_follows(self, primary, member):
        primary.put("c")
        primary.checkpoint()
        primary.log.compact()
        primary.put("d")
        fresh = member()
        batch = fresh.read()
        assert batch.base.covered == 5
        assert batch.base.state == {"fold": ["a", "b", "c"]}
        assert [record.seq for record in batch.records] == [6, 7]
        assert fresh.fold == primary.fold == ["a", "b", "c", "d"]
        assert fresh.log.tip == primary.log.tip
        assert (fresh.log.low_water, fresh.log.checkpoint) == (4, 6)
        assert fresh.put("e").seq == 8
        assert primary.read().base is None
        assert primary.fold == fresh.fold

    def test_without_a_mark_the_log_is_read_from_its_beginning(self, primary, member):
        primary.checkpoint()
        fresh = member()
        assert fresh.read().base is None
        assert fresh.fold == ["a", "b"]

    def test_a_reader_at_or_above_the_mark_just_reads_on(self, primary, member):
        reader = member()
        reader.read()
        primary.checkpoint()
        primary.log.compact()
        assert [record.kind for record in reader.read().records] == ["checkpoint"]
        assert reader.bases == 0
        assert reader.log.low_water == 4

    @pytest.mark.parametrize("left", ["missing", "there", "broken", "a ghost"])
    def test_a_reader_below_the_mark_starts_again_whatever_lies_there(self, primary, member, store, left):
        reader = member()
        reader.read()
        at = reader.log.next_seq
        kept = {}
        store.called = lambda name, seq: kept.update({seq: store.contents.get(seq)}) if name == "delete" else None
        shorten(primary, "c", "d")
        store.called = None
        assert at < primary.log.low_water
        assert at in kept
        if left == "there":
            store.contents.update(kept)
        elif left == "broken":
            store.contents[at] = kept[at][:-5]
        elif left == "a ghost":  # fits the chain as the reader knows it
            zombie = member()
            zombie.log = reader.log
            record, data = zombie.log._seal(Draft("contribution", 1, ONE, {"items": ["ghost"]}))
            assert record.seq == at
            store.contents[at] = data
        assert reader.read().base is not None
        assert reader.fold == primary.fold == ["a", "b", "c", "d"]
        assert reader.log.tip == primary.log.tip
        assert primary.log.compact().slots == (0 if left == "missing" else len(kept) if left == "there" else 1)

    @pytest.mark.parametrize("moment", ["read", "read_mark"])
    def test_a_compaction_in_the_middle_of_a_read(self, primary, member, store, moment):
        """Between two slots of a batch, and between the last slot and the look at the marks."""
        reader = member()
        reader.read()
        primary.put("c", "d", "e")

        def overtake(name, _):
            if name == moment:
                store.called = None
                shorten(primary)

        store.called = overtake
        assert reader.read().base is not None
        assert reader.fold == primary.fold
        assert reader.log.tip == primary.log.tip

    def test_a_checkpoint_that_is_deleted_while_it_is_being_loaded(self, primary, member, store, blobs):
        shorten(primary, "c")
        newest = primary.log.checkpoint
        looks = []

        def overtake(name, seq):
            if name == "read" and seq == newest and not looks:
                looks.append(seq)
                shorten(primary, "d")
                shorten(primary, "e")

        store.called = overtake
        fresh = member()
        assert fresh.read().base.covered > newest
        assert looks
        assert fresh.fold == ["a", "b", "c", "d", "e"]

    def test_damage_of_the_newer_checkpoint_costs_only_time(self, primary, member, blobs):
        primary.put("c")
        primary.checkpoint()
        primary.log.compact()
        owner = checkpoint_owner(5)
        key = next(key for key in blobs.chunks if key[0] == owner)
        blobs.chunks[key] = b"damaged"
        fresh = member()
        assert fresh.read().base.covered == 3
        assert fresh.fold == primary.fold
        assert fresh.log.tip == primary.log.tip

    def test_damage_of_both_checkpoints_is_named(self, primary, member, blobs):
        primary.checkpoint()
        primary.log.compact()
        blobs.chunks.clear()
        with pytest.raises(Corrupt, match="chunk"):
            member().read()

    def test_at_or_above_the_mark_it_is_damage_still(self, primary, member, store):
        primary.put("c")
        primary.checkpoint()
        primary.log.compact()
        primary.put("d", "e")
        good = store.contents[7]
        store.contents[7] = good[:-5]
        with pytest.raises(Corrupt, match="slot 7"):
            member().read()
        del store.contents[7]
        with pytest.raises(Corrupt, match="slot 7 is missing, slot 8 is there"):
            member().read()
        store.contents[7] = good
        assert member().read().records[-1].seq == 8

    def test_a_shortened_log_cannot_be_read_without_blobs(self, primary, store):
        primary.checkpoint()
        primary.log.compact()
        with pytest.raises(RuntimeError, match="blobs"):
            Log(store).read_new()

    def test_a_slot_can_be_looked_at_if_it_is_kept_or_is_the_fence(self, primary, member):
        primary.checkpoint()
        primary.log.compact()
        fresh = member()
        fresh.read()
        for one in (primary, fresh):
            assert one.log.at(1) == one.log.fence == primary.log.fence
            assert one.log.at(5).kind == "checkpoint"
            for seq in (2, 3):
                with pytest.raises(NotFound, match="compacted"):
                    one.log.at(seq)

    def test_an_idle_look_reads_one_slot_and_one_mark(self, primary, store):
        primary.checkpoint()
        primary.log.compact()
        primary.read()
        calls = []
        store.called = lambda name, number: calls.append((name, number))
        store.highest = store.slots = store.highest_mark = None  # no listing
        primary.read()
        assert calls == [("read", 6), ("read_mark", 2)]


class TestMarks:
    @pytest.mark.parametrize("change", [lambda data: data[:-3], lambda data: data.replace(b"4", b"3"), lambda _: b"{}", lambda _: b"7", lambda _: b""])  # fmt: skip
    def test_a_damaged_mark_is_named(self, primary, member, store, change):
        primary.checkpoint()
        primary.log.compact()
        store.marks[1] = change(store.marks[1])
        with pytest.raises(Corrupt, match="mark 1"):
            member().read()

    def test_a_mark_never_goes_back(self, primary, member, store):
        primary.checkpoint()
        primary.log.compact()
        store.marks[2] = Mark(2, 4, 5).encode()
        with pytest.raises(Corrupt, match="mark 2"):
            primary.read()
        with pytest.raises(Corrupt, match="mark 2"):
            primary.put("c")

    def test_a_mark_under_another_number_is_none(self):
        with pytest.raises(Corrupt, match="mark 3"):
            decode_mark(Mark(2, 4, 5).encode(), 3)


class TestAppending:
    """A writer that was asleep while its slot was folded into a checkpoint, and deleted."""

    @pytest.fixture
    def zombie(self, primary, member, store):
        """Server1 as it was in epoch 1, its next slot deleted; server2 leads."""
        zombie, successor = member(), member(TWO)
        zombie.read()
        successor.read()
        successor.fence(2)
        shorten(successor, "c", "d")
        assert zombie.log.next_seq not in store.contents
        assert zombie.log.next_seq < successor.log.low_water
        zombie.successor = successor
        return zombie

    def test_gets_no_acknowledgement_and_leaves_no_ghost(self, zombie, store):
        before = dict(store.contents)
        for _ in range(2):
            with pytest.raises(Fenced, match="compacted"):
                zombie.put("lost")
            assert store.contents == before
        assert "lost" not in zombie.fold

    def test_starts_again_and_finds_that_it_is_fenced(self, zombie):
        with pytest.raises(Fenced):
            zombie.put("lost")
        assert zombie.read().base is not None
        assert zombie.fold == zombie.successor.fold
        assert zombie.log.leads(2, TWO)
        with pytest.raises(Fenced, match="epoch"):
            zombie.append("contribution", {"items": ["lost"]}, epoch=1)

    def test_a_fence_below_the_mark_is_no_fence_and_is_written_again(self, zombie, store):
        with pytest.raises(Fenced, match="compacted"):
            zombie.fence(3)
        assert not zombie.log.leads(3, ONE)
        zombie.read()
        record = zombie.fence(3)
        assert record.seq == zombie.successor.log.next_seq
        assert zombie.put("e").seq == record.seq + 1
        zombie.successor.read()
        assert zombie.successor.fold == zombie.fold == ["a", "b", "c", "d", "e"]

    def test_a_ghost_that_cannot_be_removed_is_ignored_and_goes_with_the_next_compaction(self, zombie, member, store):
        def no_answer(name, seq):
            if name == "delete":
                raise StoreUnavailable("no answer")

        store.called, ghost = no_answer, zombie.log.next_seq
        with pytest.raises(Fenced):
            zombie.put("lost")
        store.called = None
        assert ghost in store.contents
        fresh = member()
        fresh.read()
        assert fresh.fold == zombie.successor.fold
        zombie.read()
        assert zombie.fold == zombie.successor.fold
        assert zombie.successor.log.compact().slots == 1
        assert ghost not in store.contents

    def test_a_mark_that_is_made_between_create_and_answer_counts(self, primary, member, store):
        zombie, successor = member(), member(TWO)
        zombie.read()
        successor.read()

        def overtake(_):
            store.before_create = None
            successor.fence(2)
            shorten(successor)

        store.before_create = overtake
        with pytest.raises(Fenced, match="compacted"):
            zombie.put("lost")

    def test_a_lost_answer_whose_slot_was_folded_and_deleted_meanwhile(self, primary, member, store):
        """The record did land, and is below the mark now. The retry must not land a second time, nor be thought lost."""
        store.faults.append(LOST)
        with pytest.raises(StoreUnavailable):
            primary.put("c")
        successor = member(TWO)
        successor.read()
        successor.fence(2)
        shorten(successor)
        with pytest.raises(Fenced, match="compacted"):
            primary.put("c")
        primary.read()
        assert primary.fold == ["a", "b", "c", "x"]

    def test_a_slot_that_is_taken_and_deleted_before_it_can_be_read(self, primary, member, store):
        zombie, successor = member(), member(TWO)
        zombie.read()
        successor.read()
        successor.fence(2)

        def overtake(name, _):
            if name == "read":
                store.called = None
                shorten(successor)

        store.called = overtake
        with pytest.raises(Fenced, match="compacted"):
            zombie.put("lost")

    def test_a_slot_that_is_taken_is_lost_as_ever(self, primary, member):
        other = member()
        other.read()
        primary.checkpoint()
        with pytest.raises(SlotTaken):
            other.put("c")

    def test_without_an_answer_about_the_marks_there_is_no_acknowledgement(self, primary, member, store):
        def no_answer(name, _):
            if name == "read_mark":
                raise StoreUnavailable("no answer")

        store.called = no_answer
        with pytest.raises(StoreUnavailable):
            primary.put("c")
        assert primary.log.next_seq == 5
        store.called = None
        assert primary.put("c").seq == 5
        fresh = member()
        fresh.read()
        assert fresh.fold == ["a", "b", "c"]


class TestCheckpointRecords:
    def test_what_is_no_checkpoint_is_not_written(self, primary):
        good = primary.log.write_checkpoint_blob(primary.log.tip, {}).to_json()
        other = {**good, "owner": checkpoint_owner(3)}
        for body in ({}, {"covered": 4}, {"covered": 5, "blob": good}, {"covered": 3, "blob": other}, {"covered": True, "blob": good}, {"covered": 4, "blob": other}):  # fmt: skip
            with pytest.raises(BadInput, match="slot 5"):
                primary.append("checkpoint", body)
        assert primary.append("checkpoint", {"covered": 4, "blob": good}).seq == 5

    def test_appends_may_go_on_while_the_blob_is_written(self, primary, member):
        position, state = primary.log.tip, {"fold": list(primary.fold)}
        primary.put("c", "d")
        ref = primary.log.write_checkpoint_blob(position, state)
        primary.append("checkpoint", {"covered": position.next_seq - 1, "blob": ref.to_json()})
        primary.put("e")
        primary.log.compact()
        fresh = member()
        assert fresh.read().base.covered == 4
        assert fresh.fold == ["a", "b", "c", "d", "e"]

    def test_nothing_is_a_checkpoint_before_genesis(self, store, blobs):
        with pytest.raises(ValueError, match="nothing"):
            Log(store, blobs).write_checkpoint_blob(Log(store).tip, {})

    def test_a_state_that_is_not_json_is_refused(self, primary, blobs):
        before = blobs.owners("")
        with pytest.raises(BadInput):
            primary.log.write_checkpoint_blob(primary.log.tip, {"x": float("nan")})
        assert blobs.owners("") == before

    @pytest.mark.parametrize("position", [{}, [], None, {"last": 1}, {"last": "x", "fence": None, "version": 2, "checkpoints": []}])  # fmt: skip
    def test_a_blob_that_is_no_checkpoint_is_named(self, primary, member, blobs, position):
        data = json.dumps({"position": position, "state": {}}).encode()
        primary.checkpoint()
        primary.log.compact()
        writers = []
        for slot in (4, 5):
            ref = json.loads(primary.log._store.contents[slot])["body"]["blob"]
            manifest = blobs.manifests[ref["owner"], ref["digest"]]
            writers.append((ref["owner"], manifest.chunks[0]))
        assert writers
        blobs.read_part = lambda owner, digest, offset, view: view.__setitem__(
            slice(None), data.ljust(offset + len(view))[offset : offset + len(view)]
        )
        with pytest.raises(Corrupt):
            member().read()


class TestKilled:
    """On a real disk: the process dies at every step of a compaction. Others read and write on; the next one finishes."""

    @pytest.fixture
    def root(self, tmp_path):
        make_layout(tmp_path / "store")
        return tmp_path / "store"

    def opened(self, root, by=ONE, files=None):
        return Member(PosixLogStore(root, files), PosixBlobStore(root, files=files), by)

    def prepare(self, root):
        """A log with a mark, and another compaction to do: slots, and the blob of the first checkpoint."""
        first = self.opened(root)
        first.log.append(Draft("genesis", 0, By("provision", "p"), {"cluster": "c", "project": "p"}))
        first.fence(1)
        first.put("a", "b")
        first.checkpoint()
        first.checkpoint()
        first.log.compact()
        first.put("c")
        first.checkpoint()
        first.put("d")
        first.checkpoint()
        return first

    def steps_of_a_compaction(self, tmp_path):
        make_layout(tmp_path / "rehearsal")
        self.prepare(tmp_path / "rehearsal")
        files = FaultyFiles()
        member = self.opened(tmp_path / "rehearsal", files=files)
        member.read()
        files.steps.clear()
        member.log.compact()
        return files.steps

    def test_at_every_step(self, root, tmp_path):
        steps = self.steps_of_a_compaction(tmp_path)
        assert [name for name, _ in steps].count("unlink") > 5
        assert [name for name, _ in steps].count("link") == 1
        names = [name for name, _ in steps]
        assert names.index("unlink") > names.index("link") + 1
        assert steps[:2] == [("sync_directory", "log"), ("sync_directory", "marks")]  # a dead primary's records, too
        assert steps[names.index("link") + 1] == ("sync_directory", "marks")
        slots = [int(name) for step, name in steps if step == "unlink" and name.isdecimal()]
        assert slots == sorted(slots)
        for number in range(len(steps)):
            where = tmp_path / f"store-{number}"
            make_layout(where)
            self.check_killed_at(where, number)

    def check_killed_at(self, root, number):
        first = self.prepare(root)
        files = FaultyFiles()
        dying = self.opened(root, files=files)
        dying.read()
        files.kill_at = len(files.steps) + number
        with pytest.raises(Killed):
            dying.log.compact()
        # The primary goes on, a reader starts, another server takes over and finishes.
        assert first.put("e").seq == first.log.next_seq - 1
        reader = self.opened(root)
        reader.read()
        assert reader.fold == ["a", "b", "c", "d", "e"]
        successor = self.opened(root, TWO)
        successor.read()
        successor.fence(2)
        successor.log.compact()
        successor.log.compact()
        low_water = successor.log.low_water
        assert low_water == successor.log.tip.checkpoints[0].covered + 1
        assert PosixLogStore(root).slots() == [0, *range(low_water, successor.log.next_seq)]
        assert PosixBlobStore(root).owners("checkpoints") == [
            checkpoint_owner(one.covered) for one in successor.log.tip.checkpoints
        ]
        last = self.opened(root)
        last.read()
        assert last.fold == reader.fold

    def test_between_blob_and_record(self, root):
        first = self.prepare(root)
        first.log.write_checkpoint_blob(first.log.tip, {"fold": first.fold})
        successor = self.opened(root, TWO)
        successor.read()
        successor.fence(2)
        successor.checkpoint()
        successor.checkpoint()
        successor.log.compact()
        assert len(PosixBlobStore(root).owners("checkpoints")) == 2

    def test_an_archive_keeps_the_whole_history(self, root):
        (root / "archive").mkdir()
        first = self.prepare(root)
        first.log.compact()
        assert not (root / "log" / f"{2:016d}").exists()
        archived = {int(path.name) for path in (root / "archive" / "log").iterdir()}
        assert archived | set(PosixLogStore(root).slots()) == set(range(first.log.next_seq))
        assert archived & set(PosixLogStore(root).slots()) == set()
        owners = {path.name for path in (root / "archive" / "blobs" / "checkpoints").iterdir()}
        assert f"{3:016d}" in owners
        # The whole history reads as one log, and its blobs are whole.
        for path in (root / "archive" / "log").iterdir():
            path.rename(root / "log" / path.name)
        for path in (root / "marks").iterdir():
            path.unlink()
        whole = self.opened(root)
        assert whole.read().base is None
        assert whole.fold == first.fold

    def test_a_ghost_does_not_replace_what_was_archived(self, root):
        (root / "archive").mkdir()
        first = self.prepare(root)
        zombie = self.opened(root)
        zombie.read()
        first.put("f")
        first.checkpoint()
        first.checkpoint()
        first.log.compact()
        real = (root / "archive" / "log" / f"{zombie.log.next_seq:016d}").read_bytes()
        with pytest.raises(Fenced):
            zombie.put("ghost")
        assert (root / "archive" / "log" / f"{zombie.log.next_seq:016d}").read_bytes() == real

    def test_a_store_of_the_first_version_gets_its_marks_when_they_are_needed(self, root):
        (root / "marks").rmdir()
        first = self.prepare(root)
        assert first.log.low_water > 0
        assert PosixLogStore(root).highest_mark() == 1


class TestVersions:
    @pytest.fixture
    def old(self, store, member):
        """A log of version 1."""
        old = member()
        draft = Draft("genesis", 0, By("provision", "p"), {"cluster": "c", "project": "p"})

        store.contents[0] = seal(draft, seq=0, prev="0" * 64, nonce="n", version=1)[1]
        old.read()
        old.fence(1)
        return old

    def test_a_new_log_is_of_version_2(self, primary):
        assert primary.log.version == 2
        assert {primary.log.at(seq).v for seq in range(5)} == {2}

    def test_an_old_one_goes_on_as_it_is(self, old, member):
        record = old.put("a")
        assert (old.log.version, record.v) == (1, 1)
        with pytest.raises(BadInput, match="checkpoint"):
            old.checkpoint()
        with pytest.raises(BadInput, match="admin_action"):
            old.append("admin_action", {})
        fresh = member()
        fresh.read()
        assert fresh.log.version == 1
        assert fresh.put("b").v == 1

    def test_until_a_config_says_otherwise(self, old, member):
        old.put("a")
        reader = member()
        reader.read()
        assert old.append("config", {"log_version": 2}).v == 2
        assert old.put("b").v == 2
        old.checkpoint()
        assert [record.v for record in reader.read().records] == [2, 2, 2]
        assert reader.log.version == 2
        old.checkpoint()
        old.log.compact()
        fresh = member()
        assert fresh.read().base is not None
        assert fresh.log.version == 2
        assert fresh.fold == ["a", "b"]

    @pytest.mark.parametrize("version", [0, 3, None, "2", True])
    def test_of_a_version_that_nobody_reads_nothing_is_written(self, old, version):
        with pytest.raises(BadInput, match="log version"):
            old.append("config", {"log_version": version})
        assert old.log.next_seq == 2

    def test_there_is_no_way_back(self, primary):
        with pytest.raises(BadInput):
            primary.append("config", {"log_version": 1})
        assert primary.append("config", {"log_version": 2}).v == 2

    @pytest.mark.parametrize(("was", "then"), [(1, 2), (2, 1)])
    def test_a_record_of_another_version_than_the_logs_is_named(self, store, member, was, then):

        genesis = Draft("genesis", 0, By("provision", "p"), {"cluster": "c", "project": "p"})
        store.contents[0] = seal(genesis, seq=0, prev="0" * 64, nonce="n", version=was)[1]
        prev = decode(store.contents[0], 0).sha256
        fence = Draft("fence", 1, ONE, {"cause": "test"})
        store.contents[1] = seal(fence, seq=1, prev=prev, nonce="n", version=then)[1]
        with pytest.raises(Corrupt, match=f"slot 1: a record of version {then} in a log of version {was}"):
            member().read()
