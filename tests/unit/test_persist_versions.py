"""A store that the software before this one wrote is read, written on, and brought to the new version."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from fedhelm.errors import BadInput
from fedhelm.persist import BlobReader, BlobRef, By, Draft, open_store
from fedhelm.persist.fsck import examine

FROZEN = Path(__file__).parents[1] / "data" / "log-v1"
ME = By("server1", "new software")
LAST = 76


@pytest.fixture
def root(tmp_path):
    """A copy that may be written to."""
    shutil.copytree(FROZEN, tmp_path / "store")
    (tmp_path / "store" / "tmp").mkdir()  # empty, so it is not kept
    return tmp_path / "store"


@pytest.fixture
def store(root):
    genesis = json.loads((FROZEN / "log" / f"{0:016d}").read_bytes())
    return open_store(root, genesis["body"]["cluster"])


def reopened(store):
    return open_store(store.root, store.cluster).log


def blobs_in(value):
    if isinstance(value, dict):
        if value.keys() == {"owner", "digest", "size"}:
            yield BlobRef.from_json(value)
        for inner in value.values():
            yield from blobs_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from blobs_in(inner)


def put(epoch, name):
    return Draft("contribution", epoch, ME, {"items": [name]})


def test_every_record_and_every_blob_is_read(store):
    batch = store.log.read_new()
    assert batch.base is None
    assert [record.seq for record in batch.records] == list(range(LAST + 1))
    assert {record.v for record in batch.records} == {1}
    kinds = Counter(record.kind for record in batch.records)
    assert (kinds["fence"], kinds["job_submitted"], kinds["job_done"], kinds["round_close"]) == (2, 2, 1, 7)
    refs = {ref for record in batch.records for ref in blobs_in(record.body)}
    assert len(refs) > 20
    assert all(BlobReader(store.blobs, ref).read() for ref in refs)
    assert examine(store.root).findings == []
    assert (store.log.version, store.log.epoch, store.log.low_water, store.log.checkpoint) == (1, 2, 0, None)


def test_what_is_appended_is_of_its_version_so_that_the_old_software_can_take_over(store, root):
    store.log.read_new()
    assert store.log.append(Draft("fence", 3, ME, {"cause": "test"})).v == 1
    assert store.log.append(put(3, "a")).v == 1
    with pytest.raises(BadInput, match="checkpoint"):
        store.log.append(Draft("checkpoint", 3, ME, {}))
    assert {json.loads(path.read_bytes())["v"] for path in (root / "log").iterdir()} == {1}
    assert store.log.compact().low_water == 0
    assert not (root / "marks").exists()


def test_from_the_config_record_on_it_is_of_the_new_version(store, root):
    reader = reopened(store)
    reader.read_new()
    store.log.read_new()
    store.log.append(Draft("fence", 3, ME, {"cause": "test"}))
    config = store.log.append(Draft("config", 3, ME, {"log_version": 2}))
    for _ in range(2):
        position = store.log.tip
        ref = store.log.write_checkpoint_blob(position, {"slots": position.next_seq})
        store.log.append(Draft("checkpoint", 3, ME, {"covered": position.next_seq - 1, "blob": ref.to_json()}))
    assert [(record.kind, record.v) for record in reader.read_new().records] == [
        ("fence", 1),
        ("config", 2),
        ("checkpoint", 2),
        ("checkpoint", 2),
    ]
    assert store.log.compact().slots == config.seq
    fresh = reopened(store)
    batch = fresh.read_new()
    assert batch.base.state == {"slots": config.seq + 2}
    assert fresh.version == 2
    assert fresh.append(put(3, "b")).v == 2
    assert [record.seq for record in reader.read_new().records] == [config.seq + 3]
    assert sorted(path.name for path in (root / "marks").iterdir()) == [f"{1:016d}"]
