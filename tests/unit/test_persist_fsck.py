"""Damage of every kind to a whole store: each is named by its file, and mended where hashes prove how, or not at all."""

from __future__ import annotations

import shutil

import pytest

from fedhelm.errors import Corrupt, Refused, StoreUnavailable
from fedhelm.persist import BlobReader, BlobRef, BlobWriter, By, Draft
from fedhelm.persist.compaction import compact
from fedhelm.persist.fsck import Remedy, examine
from fedhelm.persist.marks import Mark, Marks
from fedhelm.persist.mending import repair
from fedhelm.persist.posix import PosixBlobStore, PosixLogStore, make_layout
from fedhelm.persist.record import decode, seal
from tests.fakes.persist_member import TWO, Member

SITES = "jobs/j1/0-1/sites"


def opened(root):
    member = Member(PosixLogStore(root), PosixBlobStore(root, chunk_size=1024))
    member.read()
    return member


def upload(root, data, owner=SITES):
    writer = BlobWriter(PosixBlobStore(root, chunk_size=1024), owner)
    writer.write(data)
    return writer.finish()


@pytest.fixture
def root(tmp_path):
    """Genesis, fence, contributions in slots 2 to 5 (a blob each in 2 and 5), no checkpoint."""
    root = tmp_path / "store"
    make_layout(root)
    member = Member(PosixLogStore(root), PosixBlobStore(root))
    member.log.append(Draft("genesis", 0, By("provision", "p"), {"cluster": "c", "project": "p"}))
    member.fence(1)
    member.put(upload(root, b"a" * 3000).to_json(), "b", "c", upload(root, b"d").to_json())
    return root


@pytest.fixture
def shortened(root):
    """Two marks, low water 9, checkpoints in 9 and 11, contributions in 10 and 12."""
    member = opened(root)
    member.checkpoint()
    member.put("e")
    member.checkpoint()
    member.log.compact()
    member.checkpoint()
    member.put("f")
    member.checkpoint()
    member.log.compact()
    member.put("g")
    assert sorted(path.name[-1] for path in (root / "marks").iterdir()) == ["1", "2"]
    return root


@pytest.fixture
def backup(root, tmp_path):
    """What a backup has; call it when the store is as it should be."""

    def copy():
        shutil.copytree(root, tmp_path / "backup")
        return tmp_path / "backup"

    return copy


def tree(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and "quarantine" not in path.parts}


def slot(root, seq):
    return root / "log" / f"{seq:016d}"


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def only(root, **options):
    (finding,) = examine(root, **options).findings
    return finding


DAMAGES = {"a flipped bit": flip, "a cut": truncate, "nothing in it": lambda path: path.write_bytes(b"")}
damages = pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
every_damage = pytest.mark.parametrize(
    "damage", [*DAMAGES.values(), lambda path: path.unlink()], ids=[*DAMAGES, "lost"]
)


class TestSound:
    def test_a_whole_log(self, root):
        report = examine(root)
        assert (report.sound, report.findings) == (True, [])
        assert (report.low_water, report.end, report.version, report.blobs) == (0, 6, 2, 2)

    def test_a_shortened_log(self, shortened):
        report = examine(shortened)
        assert (report.sound, report.findings) == (True, [])
        assert (report.low_water, report.end, report.version) == (9, 13, 2)
        assert report.blobs == 4  # two checkpoints, two contributions

    def test_looking_changes_nothing(self, shortened):
        before = tree(shortened)
        flip(slot(shortened, 10))
        damaged = tree(shortened)
        examine(shortened)
        assert tree(shortened) == damaged != before

    def test_a_store_that_is_not_there(self, tmp_path):
        with pytest.raises(StoreUnavailable):
            examine(tmp_path)


class TestSlots:
    @every_damage
    @pytest.mark.parametrize("seq", [0, 1, 3])
    def test_one_before_others_comes_from_a_backup(self, root, backup, damage, seq):
        good, there = tree(root), backup()
        damage(slot(root, seq))
        finding = only(root)
        assert (finding.what, finding.path) == ("slot", f"log/{seq:016d}")
        with pytest.raises(Refused):
            repair(root, finding, accept_loss=True)
        assert "restored" in repair(root, finding, there)
        assert tree(root) == good
        assert examine(root).findings == []

    @every_damage
    @pytest.mark.parametrize("seq", [0, 9, 10, 11])
    def test_one_of_a_shortened_log(self, shortened, backup, damage, seq):
        good, there = tree(shortened), backup()
        damage(slot(shortened, seq))
        finding = only(shortened)
        assert finding.path == f"log/{seq:016d}"
        repair(shortened, finding, there)
        assert tree(shortened) == good

    def test_several_side_by_side_are_mended_together(self, root, backup):
        good, there = tree(root), backup()
        flip(slot(root, 2))
        slot(root, 3).unlink()
        truncate(slot(root, 4))
        findings = examine(root).findings
        assert [finding.path[-1] for finding in findings] == ["2", "3", "4"]
        repair(root, findings[0], there)
        assert tree(root) == good

    def test_what_was_damaged_is_kept(self, root, backup):
        there = backup()
        flip(slot(root, 3))
        damaged = slot(root, 3).read_bytes()
        repair(root, only(root), there)
        (kept,) = (root / "quarantine" / "log").iterdir()
        assert kept.read_bytes() == damaged

    def test_a_backup_of_another_log_proves_nothing(self, root, tmp_path):
        other = tmp_path / "other"
        make_layout(other)
        stranger = Member(PosixLogStore(other), PosixBlobStore(other))
        stranger.log.append(Draft("genesis", 0, By("provision", "p"), {"cluster": "c", "project": "p"}))
        stranger.fence(1)
        stranger.put("a", "b", "c", "d")
        for seq in (3, 5):
            before = slot(root, seq).read_bytes()
            flip(slot(root, seq))
            damaged = tree(root)
            with pytest.raises(Refused):
                repair(root, only(root), other)
            assert tree(root) == damaged
            slot(root, seq).write_bytes(before)

    def test_a_backup_that_went_another_way_proves_nothing(self, root, backup):
        """The same log up to slot 3, and then another slot 4: it continues 3, but 5 does not continue it."""
        there = backup()
        prev = decode(slot(root, 3).read_bytes(), 3).sha256
        other = seal(
            Draft("contribution", 1, Member.__init__.__defaults__[0], {"items": []}), seq=4, prev=prev, nonce="x"
        )
        slot(there, 4).write_bytes(other[1])
        flip(slot(root, 4))
        with pytest.raises(Refused, match="slot 5 does not continue"):
            repair(root, only(root), there)

    @pytest.mark.parametrize("damage", [flip, truncate], ids=["a flipped bit", "a cut"])
    def test_the_last_one_comes_from_a_backup_that_it_resembles(self, root, backup, damage):
        good, there = tree(root), backup()
        damage(slot(root, 5))
        finding = only(root)
        assert finding.remedy is Remedy.CUT
        assert "acknowledged" in finding.advice
        repair(root, finding, there)
        assert tree(root) == good

    @pytest.mark.parametrize("empty", [True, False])
    def test_the_last_one_is_cut_off_only_if_the_loss_is_accepted(self, root, backup, empty):
        there = backup()
        slot(there, 5).unlink()
        slot(root, 5).write_bytes(b"" if empty else b"\0" * 200)
        finding, before = only(root), tree(root)
        for where in (None, there):
            with pytest.raises(Refused):
                repair(root, finding, where)
        assert tree(root) == before
        assert "lost" in repair(root, finding, accept_loss=True)
        assert (examine(root).end, examine(root).sound) == (5, True)
        member = opened(root)
        assert member.fold[1:] == ["b", "c"]
        assert member.put("again").seq == 5

    def test_an_empty_file_at_the_end_is_not_filled_from_a_backup_that_may_have_gone_another_way(self, root, backup):
        there = backup()
        slot(root, 5).write_bytes(b"")
        with pytest.raises(Refused, match="last slot"):
            repair(root, only(root), there)

    def test_a_sound_record_that_does_not_fit_is_named_and_not_cut_off(self, root):
        data = seal(Draft("contribution", 1, TWO, {"items": []}), seq=6, prev="ab" * 32, nonce="n")[1]
        PosixLogStore(root).create(6, data)
        finding = only(root)
        assert (finding.path, finding.problem) == (f"log/{6:016d}", "does not continue the record before it")
        with pytest.raises(Refused):
            repair(root, finding, accept_loss=True)

    def test_a_record_that_its_writer_might_not_write_is_named(self, root):
        prev = decode(slot(root, 5).read_bytes(), 5).sha256
        PosixLogStore(root).create(
            6, seal(Draft("contribution", 1, TWO, {"items": []}), seq=6, prev=prev, nonce="n")[1]
        )
        assert "server2" in only(root).problem

    def test_no_log_at_all(self, tmp_path):
        make_layout(tmp_path)
        finding = only(tmp_path)
        assert finding.remedy is Remedy.NONE
        with pytest.raises(Refused):
            repair(tmp_path, finding, tmp_path)


class TestBlobs:
    def paths(self, root, data=b"a" * 3000):
        ref = upload(root, data)
        folder = root / "blobs" / SITES
        return [folder / f"m-{ref.digest}", folder / f"c-{PosixBlobStore(root).manifest(ref).chunks[-1]}"]

    @every_damage
    @pytest.mark.parametrize("which", [0, 1], ids=["manifest", "chunk"])
    def test_is_named_and_comes_from_a_backup(self, root, backup, damage, which):
        path, good, there = self.paths(root)[which], tree(root), backup()
        damage(path)
        finding = only(root)
        assert (finding.what, root / finding.path) == ("blob", path)
        with pytest.raises(Refused):
            repair(root, finding)
        repair(root, finding, there)
        assert tree(root) == good

    def test_a_backup_with_the_same_damage_is_refused(self, root, backup):
        path = self.paths(root)[1]
        flip(path)
        there, before = backup(), tree(root)
        with pytest.raises(Refused, match="backup"):
            repair(root, only(root), there)
        assert tree(root) == before

    def test_a_whole_folder_that_is_gone(self, root, backup):
        good, there = tree(root), backup()
        shutil.rmtree(root / "blobs" / "jobs")
        findings = examine(root).findings
        assert {finding.what for finding in findings} == {"blob"}
        while findings:
            repair(root, findings[0], there)
            findings = examine(root).findings
        assert tree(root) == good

    def test_of_a_closed_owner_nothing_is_missed(self, root):
        PosixBlobStore(root).delete_owner(SITES)
        assert not examine(root).sound
        report = examine(root, lambda batch, owners: owners if batch.records[-1].seq == 5 else [])
        assert (report.sound, report.blobs) == (True, 0)

    @pytest.mark.parametrize("seq", [9, 11])
    def test_a_damaged_checkpoint(self, shortened, backup, seq):
        good, there = tree(shortened), backup()
        ref = BlobRef.from_json(decode(slot(shortened, seq).read_bytes(), seq).body["blob"])
        chunk = PosixBlobStore(shortened).manifest(ref).chunks[0]
        flip(shortened / "blobs" / ref.owner / f"c-{chunk}")
        assert "checkpoints" in only(shortened).path
        repair(shortened, only(shortened), there)
        assert tree(shortened) == good

    def test_both_checkpoints_damaged(self, shortened, backup):
        good, there = tree(shortened), backup()
        chunks = sorted((shortened / "blobs" / "checkpoints").rglob("c-*"))
        for path in chunks:
            flip(path)
        with pytest.raises(Corrupt):
            opened(shortened)
        findings = examine(shortened).findings
        assert sorted(shortened / finding.path for finding in findings) == chunks
        for finding in findings:
            repair(shortened, finding, there)
        assert tree(shortened) == good


class TestMarks:
    @every_damage
    @pytest.mark.parametrize("number", [1, 2])
    def test_is_named_and_comes_from_a_backup(self, shortened, backup, damage, number):
        good, there = tree(shortened), backup()
        damage(shortened / "marks" / f"{number:016d}")
        if damage not in DAMAGES.values() and number == 2:
            return  # the newest, lost without a trace: what it allowed to delete shows it
        report = examine(shortened)
        finding = report.findings[0]
        assert (finding.what, finding.path) == ("mark", f"marks/{number:016d}")
        assert len(report.findings) == 1
        repair(shortened, finding, there)
        assert tree(shortened) == good
        assert examine(shortened).findings == []

    def test_the_newest_lost_without_a_trace_is_seen_by_what_it_deleted(self, shortened):
        (shortened / "marks" / f"{2:016d}").unlink()
        assert not examine(shortened).sound

    @damages
    @pytest.mark.parametrize("number", [1, 2])
    @pytest.mark.parametrize("backed_up", [False, True])
    def test_without_a_backup_that_fits_it_is_made_anew(self, shortened, backup, damage, number, backed_up):
        there = backup() if backed_up else None
        if there is not None:
            (there / "marks" / f"{number:016d}").write_bytes(
                Mark(number, *((10, 11) if number == 1 else (1, 9))).encode()
            )
        fold = opened(shortened).fold
        damage(shortened / "marks" / f"{number:016d}")
        assert "anew" in repair(shortened, examine(shortened).findings[0], there)
        assert examine(shortened).findings == []
        member = opened(shortened)
        assert member.fold == fold
        assert member.log.low_water == 9
        member.checkpoint()
        assert member.log.compact().marked
        assert opened(shortened).fold == fold

    def test_the_newest_is_made_anew_while_its_slots_are_half_deleted(self, shortened):
        member = opened(shortened)
        member.checkpoint()

        class Dying(PosixLogStore):
            def delete(self, seq):
                if seq > 9:
                    raise StoreUnavailable("dead")
                super().delete(seq)

        with pytest.raises(StoreUnavailable):
            compact(Dying(shortened), PosixBlobStore(shortened), Marks(PosixLogStore(shortened)), member.log.tip)
        assert PosixLogStore(shortened).highest_mark() == 3
        flip(shortened / "marks" / f"{3:016d}")
        repair(shortened, examine(shortened).findings[0])
        assert examine(shortened).sound
        assert opened(shortened).fold == member.fold

    def test_without_sound_checkpoints_it_is_refused(self, shortened):
        for path in (shortened / "blobs" / "checkpoints").rglob("m-*"):
            flip(path)
        flip(shortened / "marks" / f"{2:016d}")
        with pytest.raises(Refused, match="no two checkpoints"):
            repair(shortened, examine(shortened).findings[0])


class TestLitter:
    def test_is_harmless_named_and_put_aside(self, shortened):
        (shortened / "tmp" / "0000000000000013.ab").write_bytes(b"half")
        slot(shortened, 4).write_bytes(b"a ghost")
        orphan = upload(shortened, b"nobody named it", "jobs/j9/bundle")
        report = examine(shortened)
        assert report.sound
        assert [finding.path for finding in report.findings] == [
            "blobs/jobs/j9/bundle",
            "tmp/0000000000000013.ab",
            f"log/{4:016d}",
        ]
        for finding in report.findings:
            assert "aside" in repair(shortened, finding)
        assert examine(shortened).findings == []
        with pytest.raises(Corrupt):
            BlobReader(PosixBlobStore(shortened), orphan)
        assert len([path for path in (shortened / "quarantine").rglob("*") if path.is_file()]) == 4

    def test_an_owner_below_another_is_left_alone(self, root):
        upload(root, b"x", "jobs/j1")
        repair(root, only(root))
        assert examine(root).findings == []
