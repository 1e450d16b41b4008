"""Founding, opening and probing a store."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

from fedhelm.errors import BadInput, Corrupt, FedhelmError, StoreUnavailable, WrongStore
from fedhelm.persist import BlobReader, BlobWriter, By, Draft, check_tokens, init_store, leave_token, open_store, probe
from fedhelm.persist.posix import PosixLogStore, make_layout
from fedhelm.persist.record import seal
from fedhelm.persist.store import require_exclusive
from tests.fakes.persist_files import FaultyFiles

CLUSTER = "0" * 31 + "1"
OTHER = "0" * 31 + "2"


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "deep" / "store"
    init_store(root, CLUSTER, "poc")
    return root


def tree(root):
    return {path: path.read_bytes() if path.is_file() else None for path in root.rglob("*")}


def test_a_founded_store_opens_with_its_genesis(root):
    store = open_store(root, CLUSTER)
    assert (store.root, store.cluster, store.project) == (root, CLUSTER, "poc")
    assert store.log.next_seq == 0
    (genesis,) = store.log.read_new().records
    assert (genesis.seq, genesis.epoch, genesis.kind) == (0, 0, "genesis")
    assert genesis.body == {"cluster": CLUSTER, "project": "poc"}


def test_two_members_share_log_and_blobs(root):
    one, two = open_store(root, CLUSTER), open_store(root, CLUSTER)
    writer = BlobWriter(one.blobs, "jobs/j/bundle")
    writer.write(b"bundle")
    ref = writer.finish()
    one.log.read_new()
    one.log.append(Draft("fence", 1, By("server1", "a"), {"cause": "start", "blob": ref.to_json()}))
    fence = two.log.read_new().records[-1]
    assert BlobReader(two.blobs, type(ref).from_json(fence.body["blob"])).read() == b"bundle"


def test_founding_again_changes_nothing(root):
    before = tree(root)
    init_store(root, CLUSTER, "poc")
    assert tree(root) == before


def test_another_federations_store_is_neither_opened_nor_founded(root):
    before = tree(root)
    for call in (lambda: open_store(root, OTHER), lambda: init_store(root, OTHER, "other")):
        with pytest.raises(WrongStore, match=CLUSTER):
            call()
    assert tree(root) == before


def test_of_many_founders_one_founds(tmp_path):
    def found(index):
        try:
            init_store(tmp_path / "store", f"{index % 2:032x}", "poc")
        except WrongStore:
            return None
        return index % 2

    with ThreadPoolExecutor(8) as pool:
        (winner,) = set(pool.map(found, range(16))) - {None}
    assert open_store(tmp_path / "store", f"{winner:032x}").project == "poc"


def test_no_directory_an_empty_one_and_one_without_genesis_are_refused(tmp_path):
    make_layout(tmp_path / "layout")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for name in ("missing", "empty", "layout", "file"):
        with pytest.raises(WrongStore, match=str(tmp_path / name)) as caught:
            open_store(tmp_path / name, CLUSTER)
        assert "mounted" in caught.value.hint
    assert not (tmp_path / "missing").exists()
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_store_that_goes_away_after_it_was_opened_is_unavailable(root):
    store = open_store(root, CLUSTER)
    shutil.rmtree(root)
    with pytest.raises(StoreUnavailable, match=str(root)):
        store.log.read_new()


def test_a_damaged_genesis_is_named(root):
    slot = root / "log" / f"{0:016d}"
    slot.write_bytes(slot.read_bytes().replace(b"poc", b"pox"))
    for call in (lambda: open_store(root, CLUSTER), lambda: init_store(root, CLUSTER, "poc")):
        with pytest.raises(Corrupt, match="slot 0"):
            call()


def test_a_log_that_begins_otherwise_is_refused(tmp_path):
    make_layout(tmp_path)
    draft = Draft("fence", 1, By("server1", "a"), {"cluster": CLUSTER})
    PosixLogStore(tmp_path).create(0, seal(draft, seq=0, prev="0" * 64, nonce="n")[1])
    with pytest.raises(WrongStore, match="fence"):
        open_store(tmp_path, CLUSTER)


class TestProbe:
    def test_leaves_nothing_behind(self, root):
        before = tree(root)
        probe(root)
        probe(root)
        assert tree(root) == before

    def test_says_what_is_missing(self, root):
        shutil.rmtree(root / "tmp")
        with pytest.raises(StoreUnavailable, match=str(root)):
            probe(root)
        shutil.rmtree(root / "log")
        with pytest.raises(StoreUnavailable, match="log"):
            probe(root)

    def test_many_members_may_probe_at_once(self, root):
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: probe(root), range(32)))
        assert list((root / "tmp").iterdir()) == []

    @pytest.mark.parametrize(
        ("create", "error"),
        [
            (lambda store, data: store.update(x=data) or True, WrongStore),
            (lambda store, data: store.update(x=data) or len(store) > 1, WrongStore),
            (lambda store, data: store.setdefault("x", data) and True, WrongStore),
            (lambda store, data: not store.update(x=data), WrongStore),
            (lambda store, data: False, WrongStore),
            (lambda store, data: store.setdefault("y", data) is data, StoreUnavailable),
        ],
        ids=[
            "overwrites",
            "denies and writes",
            "keeps and denies it",
            "overwrites silently",
            "always taken",
            "forgets",
        ],
    )
    def test_finds_out_a_store_that_is_not_exclusive(self, create, error):
        store: dict[str, bytes] = {}
        with pytest.raises(error, match="bucket"):
            require_exclusive(lambda data: create(store, data), lambda: store.get("x"), "bucket")

    def test_passes_one_that_is(self):
        store: dict[str, bytes] = {}
        require_exclusive(lambda data: store.setdefault("x", data) is data, lambda: store.get("x"), "bucket")
        assert issubclass(WrongStore, FedhelmError)


class TestTokens:
    def names(self, root):
        return sorted(path.name for path in (root / "probe").iterdir())

    def test_members_that_share_a_directory_find_each_others_tokens(self, root):
        tokens = {name: leave_token(root, name, f"{name}-life") for name in ("server1", "server2", "server-3.example")}
        for _ in range(2):
            assert check_tokens(root, tokens) == []
        assert self.names(root) == sorted(tokens.values())
        assert (root / "probe" / tokens["server2"]).read_text() == "server2-life"

    def test_the_last_few_tokens_of_a_name_stay_for_whoever_was_told_of_one_of_them(self, root):
        others = [leave_token(root, name, "a") for name in ("server", "server10", "server1.example")]
        mine = []
        for life in range(7):
            mine.append(leave_token(root, "server1", f"{life}"))
            os.utime(root / "probe" / mine[-1], (life, life))  # a clock as coarse as a file system's
        assert len(set(mine)) == 7
        assert self.names(root) == sorted([*others, *mine[-5:]])
        for token in mine[-5:]:
            assert check_tokens(root, {"server1": token}) == []
        assert check_tokens(root, {"server1": mine[1]})

    def test_another_directory_is_named_with_its_member_and_left_as_it_was(self, root, tmp_path):
        init_store(tmp_path / "other", CLUSTER, "poc")
        mine = leave_token(root, "server1", "a")
        elsewhere = leave_token(tmp_path / "other", "server2", "b")
        (problem,) = check_tokens(root, {"server1": mine, "server2": elsewhere})
        assert str(root) in problem
        assert "server2" in problem
        assert "mounted" in problem
        assert self.names(root) == [mine]

    def test_a_listing_that_is_late_is_named(self, root):
        """As an NFS client does that caches attributes: the name is there, the listing is from before."""
        token, files = leave_token(root, "server2", "a"), FaultyFiles()
        files.late = True
        (problem,) = check_tokens(root, {"server2": token}, files)
        assert "server2" in problem
        assert "lookupcache=none" in problem

    @pytest.mark.parametrize("token", ["", "../../etc/passwd", "server2", "a/b~0123456789abcdef", "x~0123456789abcdeg"])
    def test_what_is_no_token_creates_nothing(self, root, token):
        before = tree(root)
        (problem,) = check_tokens(root, {"server2": token})
        assert "server2" in problem
        assert {path for path in tree(root) if path.is_file()} == {path for path in before if path.is_file()}

    @pytest.mark.parametrize("name", ["", "../x", "a/b", "a b", "~"])
    def test_a_name_leads_nowhere_else(self, root, name):
        with pytest.raises(BadInput):
            leave_token(root, name, "a")

    def test_a_store_that_is_not_there_is_unavailable(self, tmp_path):
        for call in (lambda: leave_token(tmp_path, "server1", "a"), lambda: check_tokens(tmp_path, {})):
            with pytest.raises(StoreUnavailable, match="log"):
                call()
        assert list(tmp_path.iterdir()) == []
