"""A long job: the log is shortened under it, blobs go, the primary dies, and nothing of it is lost or doubled."""

from __future__ import annotations

import json

import pytest

from fedhelm.persist.store import open_store
from fedhelm.provision.provenance_check import check_folder, trust_of_kit
from fedhelm.security.kit import open_kit
from fedhelm_server.segments import read_segments
from tests.fakes.server_log import fold
from tests.support.jobs import calls, make_job
from tests.support.waiting import eventually_sync

ROUNDS = 240  # some 1,900 records: seven checkpoints

QUICK = """
    import pathlib
    import numpy as np
    import fedhelm.script as fl

    with fl.connect() as site:
        number = int(site.name.rsplit("-", 1)[1])
        folder = pathlib.Path(site.options["folder"])
        for task in site.tasks():
            with open(folder / f"calls-{site.name}.txt", "a") as calls:
                calls.write(f"{task.kind} {task.round}\\n")
            model = task.model.numpy()["w"] if task.model else np.zeros(8, np.float32)
            site.log("loss", float(task.round), task.round)
            task.submit({"w": model + np.float32(number)}, weight=1.0, metrics={"seen": number})
"""


def _slots(federation):
    return sorted(int(path.name) for path in (federation.store / "log").iterdir())


def _owners(federation, job):
    root = federation.store / "blobs" / "jobs" / job
    return sorted({path.parent.relative_to(root).as_posix() for path in root.rglob("m-*")})


def _lines(federation, job):
    """(source, step) of every scalar line: of the segments, then of the slots."""
    kit = open_kit(federation.kit("server1"))
    store = open_store(kit.store, kit.cluster)
    book, records = fold(store.log)
    found = list(read_segments(store.blobs, book.jobs[job].segments))
    found += [
        {"seq": one.seq, **item}
        for one in records
        if one.kind == "metrics" and one.seq > book.covered
        for item in one.body["items"]
        if item["job"] == job
    ]
    numbers = {}
    for item in found:
        assert item["first"] == numbers.get(item["source"], 0) + 1, "lines without a gap, none twice"
        numbers[item["source"]] = item["first"] + len(item["lines"]) - 1
    assert numbers == book.jobs[job].lines
    return [(item["source"], line["step"]) for item in found for line in item["lines"] if line["kind"] == "scalar"]


def _checkpoints(federation):
    return [one for one in federation.records() if one.kind == "checkpoint"]


def _shortened(federation):
    """Nothing before the last checkpoint but one is left. The server may still be at it."""
    checkpoints, slots = _checkpoints(federation), _slots(federation)
    low_water = checkpoints[-2].body["covered"] + 1
    return (
        slots == [0, *range(low_water, slots[-1] + 1)]
        and len(list((federation.store / "blobs" / "checkpoints").glob("*/m-*"))) <= 3
    )


@pytest.mark.timeout(600)
def test_a_long_job_keeps_log_and_store_small_and_survives_its_primary(federation, tmp_path):
    job_folder, shared = make_job(tmp_path / "long", QUICK, rounds=ROUNDS, name="long")
    before = federation.primary()
    job = federation.submit(job_folder)

    eventually_sync(lambda: _slots(federation)[1] > 1, 60, f"slots are deleted: {federation.tails()}")
    eventually_sync(lambda: len(calls(shared, "site-1")) > ROUNDS // 2, 120, federation.tails())
    federation.kill(before["name"])
    federation.leader(above=before["epoch"])
    assert federation.wait(job, 240) == "FINISHED:COMPLETED", federation.tails()

    for site in federation.sites:
        assert calls(shared, site) == [f"train {number}" for number in range(1, ROUNDS + 1)]
    eventually_sync(lambda: _shortened(federation), 30, f"log and store are shortened: {federation.tails()}")
    checkpoints = _checkpoints(federation)
    assert len(checkpoints) > 3
    assert len({one.epoch for one in checkpoints}) == 2, "the next primary goes on with it"

    lines = _lines(federation, job)
    assert sorted(lines) == sorted((site, number) for site in federation.sites for number in range(1, ROUNDS + 1))
    owners = _owners(federation, job)
    assert len([one for one in owners if one.endswith("sites")]) < ROUNDS / 2
    kept = {one for one in owners if one.endswith("model")}
    folder = federation.download(job)
    summary, signed = json.loads((folder / "summary.json").read_text()), (folder / "provenance.json").read_bytes()
    assert len(summary["rounds"]) == ROUNDS
    verified, checks = check_folder(folder, *trust_of_kit(federation.admin_kit))
    assert [(one.what, one.told) for one in checks if not one.good] == []
    assert [one.model_sha256 for one in verified.provenance.rounds] == [
        one["model_sha256"] for one in summary["rounds"]
    ]
    assert f"0-{ROUNDS}/model" in kept

    # A server that starts now begins with the checkpoint, and knows the job.
    federation.stop()
    federation.start()
    assert federation.show(job)["status"] == "FINISHED:COMPLETED"
    folder = federation.download(job)
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert (folder / "provenance.json").read_bytes() == signed


EPHEMERAL = """
    name: counting
    deploy: {app: ["@ALL"]}
    options: {folder: "%s"}
    durability: ephemeral
    workflow:
      - {type: fedavg, rounds: 3}
"""


def _held_at_round_2(federation, folder, yaml, fault):
    job_folder, shared = make_job(folder, yaml=yaml and yaml % (folder.parent / f"{folder.name}-files"))
    (shared / "hold-site-2-2").touch()
    job = federation.submit(job_folder)
    eventually_sync(lambda: calls(shared, "site-2") == ["train 1", "train 2"], 30, "site-2 trains in round 2")
    given = {"name": "site-1", "status": "DONE"}
    eventually_sync(
        lambda: any(given.items() <= row.items() for row in federation.show(job)["sites"]), 30, "site-1 has contributed"
    )
    fault()
    (shared / "gate-site-2-2").touch()
    assert federation.wait(job) == "FINISHED:COMPLETED", federation.tails()
    for site in federation.sites:
        assert calls(shared, site) == ["train 1", "train 2", "train 3"], federation.tails()
    rounds = json.loads((federation.download(job) / "summary.json").read_text())["rounds"]
    return job, [(entry["round"], entry["members"], entry["model_sha256"]) for entry in rounds]


def test_an_ephemeral_job_gives_the_same_bits_as_a_durable_one_and_survives_its_primary_and_runner(
    federation, tmp_path
):
    _, durable = _held_at_round_2(federation, tmp_path / "durable", None, lambda: None)
    before = federation.primary()

    def kill_runner():
        federation.kill(before["name"], "runner")

    first, runner_killed = _held_at_round_2(federation, tmp_path / "runner", EPHEMERAL, kill_runner)

    def kill_primary():
        federation.kill(before["name"])
        federation.leader(above=before["epoch"])

    second, primary_killed = _held_at_round_2(federation, tmp_path / "primary", EPHEMERAL, kill_primary)

    assert runner_killed == primary_killed == durable
    recorded = {item["job"] for one in federation.records() if one.kind == "contribution" for item in one.body["items"]}
    assert not recorded & {first, second}, "their contributions stay out of the log"
