"""The shared store is full, gone, or damaged: nothing is acknowledged that is not on it, and nothing is lost."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess

import pytest

from tests.support.federation import Federation
from tests.support.jobs import calls, make_job
from tests.support.waiting import eventually_sync

pytestmark = [pytest.mark.processes, pytest.mark.xdist_group("store")]

ALL_ROUNDS = ["train 1", "train 2", "train 3"]


def _state(federation, name):
    return next(row["state"] for row in federation.console("list_sp").data if row["name"] == name)


def _held_at_round_2(federation, folder):
    job_folder, shared = make_job(folder)
    for site in federation.sites:
        (shared / f"hold-{site}-2").touch()
    job = federation.submit(job_folder)
    for site in federation.sites:
        eventually_sync(lambda site=site: calls(shared, site) == ALL_ROUNDS[:2], 40, federation.tails())
    return job, shared


def _open_gates(shared):
    for held in shared.glob("hold-*"):
        (shared / held.name.replace("hold", "gate")).touch()


def _results_wait(federation):
    """Each site has its result on its own disk, and no receipt for it."""
    return all(list((federation.kit(site) / "run" / "outbox").rglob("*.result.json")) for site in federation.sites)


def _outage(federation, tmp_path, lose, restore):
    """A job in mid-round meets a store that takes nothing, and goes on when it is back."""
    leader = federation.primary()
    job, shared = _held_at_round_2(federation, tmp_path / "outage")
    end = len(federation.records())
    lose()
    try:
        _open_gates(shared)
        eventually_sync(lambda: _results_wait(federation), 20, federation.tails())
        eventually_sync(lambda: _state(federation, leader["name"]) == "READONLY", 20, federation.tails())
        refused = federation.console("submit_job hello-numpy", "--timeout", "3")
        assert refused.json["status"] == "error", "nothing is acknowledged that is not on the store"
        assert refused.error["code"] in ("STORE_UNAVAILABLE", "TIMEOUT", "REFUSED")  # a full disk takes no new job
        assert federation.show(job)["status"] == "RUNNING", "what is known can be read"
        assert _results_wait(federation)
    finally:
        restore()
    assert federation.wait(job) == "FINISHED:COMPLETED", federation.tails()
    for site in federation.sites:
        assert calls(shared, site) == ALL_ROUNDS, "no finished work was done again"
    assert federation.primary()["epoch"] == leader["epoch"], "nobody else could have done better"
    assert len(federation.records()) > end
    second, _ = make_job(tmp_path / "after", rounds=1)
    assert federation.wait(federation.submit(second)) == "FINISHED:COMPLETED"
    federation.check_log()
    summary = json.loads((federation.download(job) / "summary.json").read_text())
    assert [one["members"] for one in summary["rounds"]] == 3 * [["site-1", "site-2"]]


def test_a_log_that_is_gone_in_mid_round_loses_nothing(standing, tmp_path):
    log, away = standing.root / "store" / "log", standing.root / "store" / "log.away"
    _outage(standing, tmp_path, lambda: log.rename(away), lambda: away.rename(log))


def test_a_runner_that_dies_while_the_store_is_gone_does_not_cost_the_job(standing, tmp_path):
    federation = standing
    store, away = federation.root / "store", federation.root / "store.away"
    leader = federation.primary()["name"]
    job, shared = _held_at_round_2(federation, tmp_path / "runner")
    store.rename(away)
    try:
        (dead,) = federation.kill(leader, "runner")
        eventually_sync(lambda: "died" in federation.log(leader), 10, federation.tails())
        eventually_sync(lambda: set(federation.pids(leader, "runner")) - {dead}, 10, federation.tails())
        _open_gates(shared)
        eventually_sync(lambda: _results_wait(federation), 20, federation.tails())
    finally:
        away.rename(store)
    assert federation.wait(job) == "FINISHED:COMPLETED", (federation.show(job), federation.tails())
    for site in federation.sites:
        assert calls(shared, site) == ALL_ROUNDS


@pytest.fixture
def small_disk(tmp_path):
    """A federation whose store is a file system of 4 MiB of its own."""
    made = Federation(tmp_path)
    store = made.root / "store"
    copy = tmp_path / "store.copy"
    shutil.copytree(store, copy)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m,mode=0700", "tmpfs", str(store)], capture_output=True, check=False
    )
    if mounted.returncode:
        made.close()
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    shutil.copytree(copy, store, dirs_exist_ok=True)
    try:
        yield made.start()
    finally:
        with contextlib.ExitStack() as stack:
            stack.callback(subprocess.run, ["umount", str(store)], check=True)
            made.close()


def test_a_full_disk_loses_nothing(small_disk, tmp_path):
    ballast = small_disk.root / "store" / "ballast"

    def fill():
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(os.urandom(4096))

    _outage(small_disk, tmp_path, fill, ballast.unlink)


def test_a_server_refuses_a_store_that_is_not_there_or_damaged(federation):
    job = federation.submit("hello-numpy")
    federation.wait(job)
    federation.stop()
    _not_there(federation)
    slot = federation.root / "store" / "log" / f"{7:016d}"
    good = slot.read_bytes()
    middle = len(good) // 2
    try:
        for name in ("overseer", *federation.servers):
            slot.write_bytes(good[:-20])  # torn
            if name == "server2":
                slot.write_bytes(good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :])  # one bit flipped
            federation.start_one(name)
            if name != "overseer":
                _names_the_slot(federation, name)
        answer = federation.console("get_active_sp")
        assert (answer.rc, answer.error["code"]) == (3, "NO_PRIMARY")
        assert not any(row["ready"] for row in federation.status() if row["role"] == "server")
        federation.stop()
    finally:
        slot.write_bytes(good)
    federation.start()
    assert federation.show(job)["status"] == "FINISHED:COMPLETED"


def _names_the_slot(federation, name):
    eventually_sync(lambda: "error[CORRUPT]: slot 7" in federation.log(name), 20, federation.tails())


def _not_there(federation):
    store, away = federation.root / "store", federation.root / "store.away"
    store.rename(away)
    try:
        answer = federation.poc("start")
        assert answer.rc == 1
        assert answer.error["code"] == "WRONG_STORE"
        assert str(store) in answer.error["message"]
        store.mkdir()  # the empty directory at which it should have been mounted
        answer = federation.script("server1", "start.sh")
        assert answer.rc == 1
        assert "error[WRONG_STORE]" in answer.err
        assert str(store) in answer.err
        assert federation.pids("server1", "child") == []
        store.rmdir()
        federation.stop()
    finally:
        away.rename(store)
