"""A copy of a whole store while a primary writes and compacts, and the way back."""

from __future__ import annotations

import shutil

import pytest

from fedhelm.errors import Conflict, Corrupt, StoreUnavailable, WrongStore
from fedhelm.persist import BlobReader, BlobWriter, By, Draft, open_store
from fedhelm.persist.backup import back_up, restore
from fedhelm.persist.fsck import examine
from fedhelm.persist.posix import PosixBlobStore, PosixLogStore, make_layout
from tests.fakes.persist_member import Member


@pytest.fixture
def root(tmp_path):
    make_layout(tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def primary(root):
    """A log with a mark, and a contribution whose blob has several chunks."""
    primary = Member(PosixLogStore(root), PosixBlobStore(root))
    primary.log.append(Draft("genesis", 0, By("provision", "p"), {"cluster": "c", "project": "p"}))
    primary.fence(1)
    writer = BlobWriter(PosixBlobStore(root, chunk_size=512), "jobs/j1/0-1/sites")
    writer.write(bytes(range(256)) * 10)
    primary.ref = writer.finish()
    primary.put("a", primary.ref.to_json())
    primary.checkpoint()
    primary.put("b")
    primary.checkpoint()
    primary.log.compact()
    primary.put("c")
    return primary


def read(root):
    member = Member(PosixLogStore(root), PosixBlobStore(root))
    member.read()
    return member


def below(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_copy_is_a_store_with_everything(primary, root, tmp_path):
    copied = back_up(root, tmp_path / "copy")
    log = primary.log
    assert (copied.cluster, copied.low_water, copied.end, copied.epoch) == ("c", log.low_water, log.next_seq, 1)
    assert copied.blobs == 3
    assert examine(tmp_path / "copy").findings == []
    copy = read(tmp_path / "copy")
    assert copy.fold == primary.fold
    assert copy.log.tip == primary.log.tip
    assert BlobReader(PosixBlobStore(tmp_path / "copy"), primary.ref).read() == bytes(range(256)) * 10
    for folder in ("log", "marks"):
        for path in (root / folder).iterdir():
            assert (tmp_path / "copy" / folder / path.name).read_bytes() == path.read_bytes()
    for path in (tmp_path / "copy").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0


def test_there_and_back_is_the_same_store_and_it_is_written_on(primary, root, tmp_path):
    back_up(root, tmp_path / "copy")
    shutil.rmtree(root)
    restore(tmp_path / "copy", root)
    restored = open_store(root, "c")
    restored.log.read_new()
    assert restored.log.tip == primary.log.tip
    assert primary.put("d").seq == copy_end(tmp_path)
    assert read(tmp_path / "copy").fold == ["a", primary.ref.to_json(), "b", "c"]


def copy_end(tmp_path):
    return read(tmp_path / "copy").log.next_seq


def test_nothing_is_overwritten(primary, root, tmp_path):
    back_up(root, tmp_path / "copy")
    (tmp_path / "file").write_text("mine")
    for source, target in ((root, tmp_path / "copy"), (root, tmp_path / "file"), (tmp_path / "copy", root)):
        with pytest.raises(Conflict, match=str(target)):
            back_up(source, target)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("what", ["log/0000000000000006", "marks/0000000000000001", "log/0000000000000000", "blob"])
def test_of_a_damaged_store_there_is_no_copy(primary, root, tmp_path, what):
    path = next((root / "blobs" / "jobs").rglob("c-*")) if what == "blob" else root / what
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(Corrupt):
        back_up(root, tmp_path / "copy")
    assert below(tmp_path) == ["store"]


def test_of_no_store_there_is_no_copy(tmp_path):
    make_layout(tmp_path / "empty")
    for source in (tmp_path / "none", tmp_path / "empty"):
        with pytest.raises(WrongStore, match=source.name):
            back_up(source, tmp_path / "copy")
    assert below(tmp_path) == ["empty"]


def test_an_interrupted_copy_leaves_nothing(primary, root, tmp_path):
    def full():
        raise StoreUnavailable("no answer")

    with pytest.raises(StoreUnavailable):
        back_up(root, tmp_path / "copy", store=Busy(root, [full]))
    assert below(tmp_path) == ["store"]


def test_a_blob_that_was_collected_is_not_missed(primary, root, tmp_path):
    PosixBlobStore(root).delete_owner("jobs/j1/0-1/sites")
    with pytest.raises(Corrupt, match="missing"):
        back_up(root, tmp_path / "copy")
    copied = back_up(root, tmp_path / "copy", lambda _, owners: owners)
    assert copied.blobs == 2
    assert read(tmp_path / "copy").fold == primary.fold


class Busy(PosixLogStore):
    """A store whose primary does something while slots are being copied."""

    def __init__(self, root, meanwhile):
        super().__init__(root)
        self.meanwhile = meanwhile

    def read(self, seq):
        if self.meanwhile:
            self.meanwhile.pop()()
        return super().read(seq)


def test_what_is_appended_meanwhile_comes_with_the_next_copy(primary, root, tmp_path):
    end = primary.log.next_seq
    steps = [lambda: primary.put("late")]
    copied = back_up(root, tmp_path / "copy", store=Busy(root, steps))
    assert steps == []
    assert copied.end == end
    assert read(tmp_path / "copy").fold == primary.fold[:-1]


def test_a_compaction_meanwhile_makes_the_copy_begin_again(primary, root, tmp_path):
    def compact():
        primary.checkpoint()
        primary.checkpoint()
        primary.log.compact()

    steps = [compact, compact]
    copied = back_up(root, tmp_path / "copy", store=Busy(root, steps))
    assert steps == []
    assert copied.low_water == primary.log.low_water
    assert examine(tmp_path / "copy").findings == []
    assert read(tmp_path / "copy").fold == primary.fold
    assert below(tmp_path) == ["copy", "store"]


def test_compactions_during_every_try_end_it(primary, root, tmp_path):
    def compact():
        primary.checkpoint()
        primary.checkpoint()
        primary.log.compact()

    with pytest.raises(Corrupt):
        back_up(root, tmp_path / "copy", store=Busy(root, [compact] * 1000))
    assert below(tmp_path) == ["store"]


def test_a_job_whose_rounds_are_shorter_than_the_copy_takes_does_not_prevent_it(primary, root, tmp_path, monkeypatch):
    def put(owner):
        writer = BlobWriter(PosixBlobStore(root), owner)
        writer.write(owner.encode())
        primary.put(writer.finish().to_json())

    for number in range(20):
        put(f"jobs/ended{number}/0-1/model")
    rounds, copied = [1], []
    put("jobs/runs/0-1/model")

    def next_round(store, ref, real=PosixBlobStore.manifest):
        if store._directory.is_relative_to(root) and ref.owner.startswith("jobs/ended"):
            copied.append(ref.owner)
            if len(copied) % 8 == 0:
                rounds.append(rounds[-1] + 1)
                put(f"jobs/runs/0-{rounds[-1]}/model")
                PosixBlobStore(root).delete_owner(f"jobs/runs/0-{rounds[-2]}/model")
        return real(store, ref)

    def closed(batch, owners):
        newest = max(record.seq for record in batch.records if "jobs/runs/" in str(record.body))
        kept = next(str(record.body) for record in batch.records if record.seq == newest)
        return [owner for owner in owners if owner.startswith("jobs/runs/") and owner not in kept]

    monkeypatch.setattr(PosixBlobStore, "manifest", next_round)
    back_up(root, tmp_path / "copy", closed)
    monkeypatch.undo()
    assert examine(tmp_path / "copy", closed).findings == []
    assert len(PosixBlobStore(tmp_path / "copy").owners("jobs/runs")) == 1
