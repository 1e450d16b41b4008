"""What `download_job` brings: made from the log and the blobs alone, the same at every server."""

from __future__ import annotations

import json
import shutil

import pytest
from blake3 import blake3

from fedhelm.errors import Corrupt, JobNotFound, NotFound, StoreUnavailable
from fedhelm.job.bundle import pack
from fedhelm.persist.blobs import BlobWriter
from fedhelm.persist.posix import PosixBlobStore, PosixLogStore
from fedhelm.persist.store import init_store, open_store
from fedhelm_server.export import export
from tests.fakes.server_log import (
    JOB,
    OTHER,
    TIME,
    Writer,
    closed,
    contribution,
    cover,
    done,
    line,
    opened,
    state,
    submitted,
)

CLUSTER = "c" * 32
STATEMENT = b'{"statement": "as it was signed"}'
LOSSES = {1: 0.5, 2: 0.25, 3: 0.75}


def put(store, owner, data):
    writer = BlobWriter(store.blobs, owner)
    writer.write(data)
    return writer.finish().to_json()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A store with a finished job of three rounds, the second by another primary; returns its root and last slot."""
    tmp_path = tmp_path_factory.mktemp("finished")
    root = tmp_path / "store"
    init_store(root, CLUSTER, "poc")
    store = open_store(root, CLUSTER)
    folder = tmp_path / "hello"
    (folder / "app").mkdir(parents=True)
    (folder / "job.yaml").write_text("name: hello\n")
    (folder / "app" / "train.py").write_text("print('hello')\n")
    pack(folder, tmp_path / "bundle")
    writer = Writer(store.log._store)
    bundle = put(store, f"jobs/{JOB}/bundle", (tmp_path / "bundle").read_bytes())
    writer.append("job_submitted", {**submitted(rounds=3), "bundle": bundle})
    writer.append("job_state", state())
    writer.append("job_state", state("RUNNING", ()))
    for number, loss in LOSSES.items():
        if number == 2:
            writer = Writer(store.log._store, "server2", "j1", epoch=2)
        writer.append("round_open", opened(number, rounds=3))
        writer.contribute(contribution("site-1", number), contribution("site-2", number))
        model = b"model %d" % number
        extra = {
            "model": put(store, f"jobs/{JOB}/0-{number}/model", model),
            "model_blake3": blake3(model).hexdigest(),
            "metrics": {"loss": loss},
        }
        writer.append("round_close", closed(number, **extra))
        writer.append(
            "metrics",
            {
                "items": [
                    item(JOB, "site-1", number * 2 - 1, line(loss, step=number), line(f"round {number}", "log")),
                    item(JOB, "site-2", 2 * number - 1, {}, {"kind": "log"}),  # any object is a line
                ]
            },
        )
    last = writer.append("job_done", done(provenance=put(store, f"jobs/{JOB}/provenance", STATEMENT)))
    return root, last.seq


def item(job, source, first, *lines):
    return {"job": job, "source": source, "first": first, "lines": list(lines)}


def content(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_everything_of_a_job_is_there(finished, tmp_path):
    root, seq = finished
    files = export(open_store(root, CLUSTER), JOB, seq, tmp_path)
    listed = {entry["path"]: entry for entry in files}
    on_disk = content(tmp_path)
    for path, data in on_disk.items():
        assert (listed[path]["size"], listed[path]["blake3"]) == (len(data), blake3(data).hexdigest())
        assert listed[path]["blob"] is None
    models = set(listed) - set(on_disk)
    assert models == {"models/final.safetensors", "models/best.safetensors"}
    assert set(on_disk) >= {"summary.json", "job/job.yaml", "job/app/train.py", "logs/site-1.log"}
    assert len([path for path in on_disk if path.startswith("tensorboard/site-1/")]) == 1
    assert on_disk["provenance.json"] == STATEMENT
    assert listed["models/final.safetensors"]["blake3"] == blake3(b"model 3").hexdigest()
    assert listed["models/best.safetensors"]["blake3"] == blake3(b"model 2").hexdigest()  # the least loss
    assert listed["models/best.safetensors"]["blob"]["owner"] == f"jobs/{JOB}/0-2/model"
    assert on_disk["logs/site-2.log"] == b"- \n" * 3
    assert on_disk["logs/site-1.log"].decode().splitlines() == [f"{TIME} round {n}" for n in LOSSES]


def test_the_summary_names_rounds_epochs_and_primaries(finished, tmp_path):
    root, seq = finished
    export(open_store(root, CLUSTER), JOB, seq, tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["schema_version"], summary["job_id"], summary["status"]) == (1, JOB, "FINISHED:COMPLETED")
    rounds = [(entry["round"], entry["epoch"], entry["primary"]) for entry in summary["rounds"]]
    assert rounds == [(1, 1, "server1"), (2, 2, "server2"), (3, 2, "server2")]
    assert (summary["best_round"], summary["reason"]) == (2, None)
    assert summary["final_model_sha256"] == "cd" * 32


def test_two_servers_make_the_same_files_from_the_same_position(finished, tmp_path):
    root, seq = finished
    copy = tmp_path / "replica"
    shutil.copytree(root, copy)
    one = export(open_store(root, CLUSTER), JOB, seq, tmp_path / "one")
    two = export(open_store(copy, CLUSTER), JOB, seq, tmp_path / "two")
    assert one == two
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_an_earlier_position_shows_the_job_as_it_was(finished, tmp_path):
    root, _ = finished
    store = open_store(root, CLUSTER)
    first_close = next(r.seq for r in store.log.read_new().records if r.kind == "round_close")
    files = export(open_store(root, CLUSTER), JOB, first_close, tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["status"], len(summary["rounds"]), summary["best_round"]) == ("RUNNING", 1, 1)
    assert "provenance.json" not in {entry["path"] for entry in files}
    assert "logs/site-1.log" not in {entry["path"] for entry in files}


def test_before_any_round_there_are_no_models(finished, tmp_path):
    root, _ = finished
    files = export(open_store(root, CLUSTER), JOB, 2, tmp_path)
    assert not [entry for entry in files if entry["path"].startswith("models/")]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["final_model_sha256"], summary["best_round"]) == (None, None)


def test_a_job_that_is_not_there_and_a_position_that_is_not_reached(finished, tmp_path):
    root, seq = finished
    with pytest.raises(JobNotFound):
        export(open_store(root, CLUSTER), OTHER, seq, tmp_path / "a")
    with pytest.raises(JobNotFound):
        export(open_store(root, CLUSTER), JOB, 1, tmp_path / "b")
    with pytest.raises(StoreUnavailable, match="read up to"):
        export(open_store(root, CLUSTER), JOB, seq + 1, tmp_path / "c")


def test_a_damaged_bundle_is_an_error(finished, tmp_path):
    root, seq = finished
    copy = tmp_path / "replica"
    shutil.copytree(root, copy)
    (chunk,) = [p for p in (copy / "blobs").rglob("c-*") if f"{JOB}/bundle" in str(p)]
    chunk.chmod(0o600)
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"x")
    with pytest.raises(Corrupt):
        export(open_store(copy, CLUSTER), JOB, seq, tmp_path / "out")


def shortened(root, target, *, more=0):
    """A copy of a store, its log shortened to the newest checkpoint, with ``more`` records after it."""
    shutil.copytree(root, target)
    slots, blobs = PosixLogStore(target), PosixBlobStore(target)
    writer = Writer(slots, "server1", "k1", epoch=9, blobs=blobs)
    for number in range(2):
        writer.append("handoff", {"to": "server2", "request_id": f"r{number}"})
        cover(slots, blobs, writer)
    for number in range(more):
        writer.append("handoff", {"to": "server2", "request_id": f"s{number}"})
    assert slots.slots()[1] > 10
    return target


@pytest.mark.parametrize("more", [0, 3])
def test_a_shortened_log_gives_the_same_files_of_an_ended_job(finished, tmp_path, more):
    root, seq = finished
    copy = shortened(root, tmp_path / "short", more=more)
    whole = export(open_store(root, CLUSTER), JOB, seq, tmp_path / "one")
    assert export(open_store(copy, CLUSTER), JOB, seq, tmp_path / "two") == whole
    end = PosixLogStore(copy).highest()
    assert export(open_store(copy, CLUSTER), JOB, end, tmp_path / "three") == whole
    assert content(tmp_path / "one") == content(tmp_path / "two") == content(tmp_path / "three")


def test_lines_that_came_after_the_position_are_left_out_of_segments_too(finished, tmp_path):
    root, seq = finished
    grown = tmp_path / "grown"
    shutil.copytree(root, grown)
    writer = Writer(PosixLogStore(grown), "server1", "k0", epoch=8)
    writer.append("metrics", {"items": [item(JOB, "site-1", 7, line("late", "log"))]})
    copy = shortened(grown, tmp_path / "short")
    whole = export(open_store(root, CLUSTER), JOB, seq, tmp_path / "one")
    assert export(open_store(copy, CLUSTER), JOB, seq, tmp_path / "two") == whole


def test_a_position_of_a_running_job_that_a_checkpoint_overtook_is_gone(finished, tmp_path):
    root, seq = finished
    copy = shortened(root, tmp_path / "short")
    with pytest.raises(NotFound, match="download it again"):
        export(open_store(copy, CLUSTER), JOB, seq - 2, tmp_path / "one")
