"""Phases of a round, the probe's figures, and reading a history that was shortened."""

from __future__ import annotations

import numpy as np
import pytest

from bench.faults.history import read_blob
from bench.faults.phases import Aim, Round, phase_at, wait_for_phase
from bench.faults.probe import Ack, first_under, longest_silence, read_acks
from bench.faults.work import JobPlan, average, expected_models, read_calls, safetensors, write_job
from fedhelm.errors import Corrupt
from fedhelm.job import load_job
from fedhelm.learning.aggregators import weighted_average
from fedhelm.persist.blobs import BlobWriter
from fedhelm.persist.record import NO_RECORD, By, Draft, seal
from fedhelm.persist.store import init_store, open_store
from fedhelm_lab.whole_log import read_history


class MemorySource:
    """A safetensors file in memory."""

    def __init__(self, data):
        self._data = data
        self.size = len(data)

    def read_into(self, offset, view):
        view[:] = self._data[offset : offset + len(view)]


BOTH = ("site-1", "site-2")
ROUND = Round(
    opened=10.0,
    submitted={"site-1": 11.0, "site-2": 11.5},
    uploaded={"site-1": 11.2, "site-2": 11.8},
    recorded={"site-1": 11.3, "site-2": 12.0},
    aggregated=13.0,
    closed=13.1,
)


@pytest.mark.parametrize(
    ("moment", "phase"),
    [
        (9.9, "starting"),
        (10.0, "training"),
        (11.1, "uploading"),
        (11.25, "appending"),
        (11.4, "training"),
        (11.6, "uploading"),
        (11.9, "appending"),
        (12.5, "aggregating"),
        (13.05, "closing"),
        (13.2, "closing"),
        (14.0, "training"),
        (20.0, "over"),
    ],
)
def test_phase_of_a_moment(moment, phase):
    assert phase_at(moment, {1: ROUND, 2: Round(opened=14.0)}, BOTH, over=20.0) == phase


def test_what_the_fault_kept_from_happening_leaves_the_phase_as_it_was():
    cut = Round(opened=10.0, submitted={"site-1": 11.0})
    assert phase_at(30.0, {1: cut}, BOTH, over=None) == "uploading"


def test_a_phase_is_waited_for_and_a_job_that_never_comes_there_is_told(tmp_path):
    plan = JobPlan("one", BOTH)
    calls = tmp_path / "calls-site-1.txt"
    aim = Aim("uploading", 2, 0.0)

    def wait(limit):
        return wait_for_phase(aim, "job", plan, tmp_path, lambda: (), tmp_path, limit)

    calls.write_text("submit train 1 77 5.0\n")
    assert not wait(0.05)
    calls.write_text("submit train 1 77 5.0\nsubmit train 2 77 6.0\n")
    assert wait(10)


def test_a_job_is_valid_and_its_models_do_not_change(tmp_path):
    plan = JobPlan("one", BOTH, rounds=2, size=10)
    folder, shared = write_job(tmp_path, plan)
    assert load_job(folder).config.sites == BOTH
    assert read_calls(shared, "site-1") == []
    assert expected_models(plan) == expected_models(plan)
    assert len(set(expected_models(plan))) == 2


def test_a_model_is_what_the_product_would_write():
    values = [np.arange(10, dtype=np.float32), np.ones(10, np.float32)]
    files = [MemorySource(safetensors(one)) for one in values]
    written = bytearray()
    weighted_average([("site-1", 1.0, files[0]), ("site-2", 2.0, files[1])], written.extend)
    assert bytes(written) == safetensors(average([(1.0, values[0]), (2.0, values[1])]))


def test_gap_and_silence(tmp_path):
    file = tmp_path / "acks.txt"
    file.write_text("0.9 1.0 1 1\n1.0 1.1 2 1\n1.1 4.0 3 2\n4.0 4.1 4 2\nhalf a li")
    acks = read_acks(file)
    assert [ack.number for ack in acks] == [1, 2, 3, 4]
    assert first_under(acks, 1, after=1.05) == Ack(1.1, 4.0, 3, 2)
    assert first_under(acks, 2, after=1.05) is None
    assert longest_silence(acks, 1.05, 4.1) == pytest.approx(2.9)
    assert longest_silence(acks, 5.0, 6.0) == 1.0
    assert read_acks(tmp_path / "none") == []


def _store(folder, records=5):
    init_store(folder, "c", "p")
    (folder / "archive" / "log").mkdir(parents=True)
    prev = read_history(folder)[0].sha256
    for seq in range(1, records):
        record, data = seal(
            Draft("fence", seq, By("server1", "a"), {"cause": "x"}), seq=seq, prev=prev, nonce="n", version=1
        )
        (folder / "log" / f"{seq:016d}").write_bytes(data)
        prev = record.sha256
    assert prev != NO_RECORD
    return folder


def test_what_compaction_moved_is_part_of_the_history(tmp_path):
    store = _store(tmp_path / "store")
    for seq in (1, 2):
        (store / "log" / f"{seq:016d}").rename(store / "archive" / "log" / f"{seq:016d}")
    assert [record.seq for record in read_history(store)] == [0, 1, 2, 3, 4]


def test_a_slot_that_is_nowhere_is_told(tmp_path):
    store = _store(tmp_path / "store")
    (store / "log" / f"{2:016d}").unlink()
    with pytest.raises(Corrupt, match="slot 2 is missing"):
        read_history(store)


def test_a_blob_is_found_in_the_archive_too(tmp_path):
    store = _store(tmp_path / "store")
    writer = BlobWriter(open_store(store, "c").blobs, "jobs/one/0-1/sites")
    writer.write(b"tensors")
    ref = writer.finish().to_json()
    assert read_blob(store, ref) == b"tensors"
    (store / "archive" / "blobs" / "jobs" / "one").mkdir(parents=True)
    (store / "blobs" / "jobs" / "one" / "0-1").rename(store / "archive" / "blobs" / "jobs" / "one" / "0-1")
    assert read_blob(store, ref) == b"tensors"
    with pytest.raises(FileNotFoundError):
        read_blob(store, ref | {"digest": "0" * 64})
