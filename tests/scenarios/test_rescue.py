"""What operators do when the worst has happened: a backup put back, and a standby that leads without an overseer."""

from __future__ import annotations

import shutil
import signal

import pytest

from fedhelm_lab.project_backup import EPOCH_LEAP
from tests.support.federation import Federation
from tests.support.jobs import calls, make_job
from tests.support.waiting import eventually_sync

pytestmark = [pytest.mark.processes]


def held_job(federation, name, rounds=4, at=3):
    """A job that is closed up to the round before ``at``, whose first site is held there."""
    folder, shared = make_job(federation.folder / name, rounds=rounds, name=name)
    (shared / f"hold-site-1-{at}").touch()
    job = federation.submit(folder)
    eventually_sync(lambda: f"train {at}" in calls(shared, "site-1"), 30, federation.tails())
    return job, shared


def release(shared, at=3):
    (shared / f"gate-site-1-{at}").touch()


def test_a_workspace_that_is_gone_comes_back_from_its_backup_and_its_job_is_finished(tmp_path):
    federation = Federation(tmp_path)
    try:
        federation.start()
        job, shared = held_job(federation, "kept")
        backup = tmp_path / "backup"
        answer = federation.run("backup", str(backup), "-w", str(federation.root), "-o", "json")  # while it runs
        assert answer.data["parts"] == ["lease", "store", "state"]
        inside = federation.run("backup", str(federation.store / "copy"), "-w", str(federation.root), "-o", "json")
        assert (inside.rc, inside.error["code"]) == (2, "BAD_INPUT"), inside.out
        assert not (federation.store / "copy").exists()
        again = federation.run("backup", str(backup), "-w", str(federation.root), "-o", "json")
        assert (again.rc, again.error["code"]) == (1, "CONFLICT")

        refused = federation.run("restore", str(backup), "-w", str(federation.root), "--replace", "-o", "json")
        assert refused.error["code"] == "ALREADY_RUNNING"
        later, _ = held_job(federation, "lost", at=1)
        epoch = federation.primary()["epoch"]
        federation.stop()
        shutil.rmtree(federation.root)

        done = federation.run("restore", str(backup), "-w", str(federation.root), "-o", "json").data
        assert done["epoch"] == epoch + EPOCH_LEAP
        federation.start()
        release(shared)
        assert federation.wait(job) == "FINISHED:COMPLETED"
        assert federation.primary()["epoch"] == epoch + EPOCH_LEAP + 1
        assert federation.console(f"show_job {later}").error["code"] == "JOB_NOT_FOUND"
        epochs = [one["epoch"] for one in federation.console("history").data]
        assert epochs == [*range(1, epoch + 1), epoch + EPOCH_LEAP + 1]
    finally:
        federation.close()


def test_an_old_store_is_put_back_under_sites_that_have_seen_later_epochs(tmp_path):
    federation = Federation(tmp_path)
    try:
        federation.start()
        job, shared = held_job(federation, "kept")
        backup = tmp_path / "backup"
        federation.run("backup", str(backup), "-w", str(federation.root), check=True)
        for _ in range(2):
            before = federation.leader()
            federation.kill(before["name"])
            federation.leader(above=before["epoch"])
        for name in (*federation.servers, "overseer"):
            federation.stop_one(name)

        words = (
            "restore",
            str(backup),
            "--kit",
            str(federation.kit("server1")),
            "--kit",
            str(federation.kit("overseer")),
        )
        assert federation.run(*words, "-o", "json").error["code"] == "CONFLICT"  # a store is there
        moved = federation.run(*words, "--replace", "-o", "json").data["moved"]
        assert list(moved) == [str(federation.root / "store")]
        for name in ("overseer", *federation.servers):
            federation.start_one(name)
        release(shared)
        assert federation.wait(job) == "FINISHED:COMPLETED"
        assert calls(shared, "site-1").count("train 3") == 1  # the site trained on through all of it
    finally:
        federation.close()


def test_rounds_that_were_closed_after_the_backup_are_done_again_by_sites_that_went_on(tmp_path):
    federation = Federation(tmp_path)
    try:
        federation.start()
        job, shared = held_job(federation, "kept", rounds=6)
        backup = tmp_path / "backup"
        federation.run("backup", str(backup), "-w", str(federation.root), check=True)
        (shared / "hold-site-1-5").touch()
        release(shared)
        eventually_sync(lambda: "train 5" in calls(shared, "site-1"), 30, federation.tails())
        for name in (*federation.servers, "overseer"):
            federation.stop_one(name)
        kits = [word for name in ("server1", "overseer") for word in ("--kit", str(federation.kit(name)))]
        federation.run("restore", str(backup), *kits, "--replace", check=True)
        for name in ("overseer", *federation.servers):
            federation.start_one(name)
        release(shared, 5)
        assert federation.wait(job) == "FINISHED:COMPLETED"
        assert calls(shared, "site-1").count("train 5") == 2
    finally:
        federation.close()


def test_a_standby_leads_without_any_overseer_and_is_adopted_when_one_returns(tmp_path):
    federation = Federation(tmp_path)
    try:
        federation.start()
        before = federation.leader()
        standby = next(name for name in federation.servers if name != before["name"])
        kit = str(federation.kit(standby))
        words = ("failover", kit, "--confirm", "poc", "--reason", "both lost", "-o", "json")
        assert "promote_sp" in federation.run(*words).error["hint"]  # an overseer answers
        job, shared = held_job(federation, "carried")

        federation.kill("overseer", "overseer")
        refused = federation.run(*words).error
        assert (refused["code"], before["name"] in refused["message"]) == ("REFUSED", True)  # the primary writes
        federation.kill_all(before["name"])
        unconfirmed = federation.run("failover", kit, "-o", "json")
        assert (unconfirmed.rc, unconfirmed.error["code"]) == (2, "REFUSED")
        led = federation.run(*words).data
        assert (led["name"], led["epoch"]) == (standby, before["epoch"] + 1)
        release(shared)
        assert federation.wait(job) == "FINISHED:COMPLETED"

        federation.start_one("overseer")
        assert federation.leader(above=before["epoch"])["name"] == standby
        causes = [one["cause"] for one in federation.console("history").data]
        assert causes[-1] == "adopted"
        federation.start_one(before["name"])
        eventually_sync(
            lambda: {one["state"] for one in federation.console("list_sp").data} == {"ACTIVE", "STANDBY"},
            20,
            federation.tails(),
        )
        fences = [one.body["cause"] for one in federation.records() if one.kind == "fence"]
        assert fences[-1].startswith("break-glass by ")
        assert fences[-1].endswith(": both lost")
    finally:
        federation.close()


def test_a_primary_that_leads_without_an_overseer_is_not_made_to_lead_again(tmp_path):
    federation = Federation(tmp_path, servers=1)
    try:
        federation.start()
        federation.kill("overseer", "overseer", signal.SIGKILL)
        answer = federation.run("failover", str(federation.kit("server1")), "--confirm", "poc", "-o", "json")
        assert answer.error["code"] == "REFUSED"  # it leads
        assert federation.records()[-1].epoch == 1
    finally:
        federation.close()
