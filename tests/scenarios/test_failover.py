"""The primary dies in the middle of a job, and nobody loses anything."""

from __future__ import annotations

import json
from pathlib import Path

from fedhelm.provision.provenance_check import check_folder, trust_of_kit
from tests.support.jobs import calls, make_job
from tests.support.waiting import eventually_sync


def _models(summary):
    return [(entry["round"], entry["model_sha256"]) for entry in summary["rounds"]]


def _result(federation, job):
    return json.loads((federation.download(job) / "summary.json").read_text())


def _contributed(federation, job, site):
    return any(row["name"] == site and row["status"] == "DONE" for row in federation.show(job)["sites"])


def _run_held_at_round_2(federation, folder, fault):
    """site-1 has contributed to round 2 and site-2 still trains when ``fault`` is called."""
    job_folder, shared = make_job(folder)
    (shared / "hold-site-2-2").touch()
    job = federation.submit(job_folder)
    eventually_sync(lambda: calls(shared, "site-2") == ["train 1", "train 2"], 30, "site-2 trains in round 2")
    eventually_sync(lambda: _contributed(federation, job, "site-1"), 30, "site-1 has its receipt")
    fault()
    (shared / "gate-site-2-2").touch()
    assert federation.wait(job) == "FINISHED:COMPLETED", federation.tails()
    return _result(federation, job), shared


def _prove(federation, summary, epochs):
    """What was downloaded carries a statement that holds, of the primary that ended the job."""
    folder = Path(federation.admin_kit) / "transfer" / summary["job_id"]
    verified, checks = check_folder(folder, *trust_of_kit(federation.admin_kit))
    assert [(one.what, one.told) for one in checks if not one.good] == []
    assert (verified.signer.name, verified.provenance.epochs) == (summary["rounds"][-1]["primary"], epochs)
    assert verified.provenance.members == ("site-1", "site-2")


def _same_words_of_another_server(federation, summary, tmp_path):
    """The server that signed is gone; the next one hands out what it signed, byte for byte."""
    first = Path(federation.admin_kit) / "transfer" / summary["job_id"] / "provenance.json"
    again = federation.console(f"download_job {summary['job_id']} {tmp_path / 'again'}").data["path"]
    assert (Path(again) / "provenance.json").read_bytes() == first.read_bytes()


def test_killed_primary_in_mid_round_gives_the_same_bits_and_one_call_per_site_and_round(federation, tmp_path):
    unfaulted, shared = _run_held_at_round_2(federation, tmp_path / "quiet", lambda: None)
    for site in federation.sites:
        assert calls(shared, site) == ["train 1", "train 2", "train 3"]
    before = federation.primary()

    def kill():
        federation.kill(before["name"])
        federation.leader(above=before["epoch"])

    faulted, shared = _run_held_at_round_2(federation, tmp_path / "kill", kill)

    assert _models(faulted) == _models(unfaulted)
    for site in federation.sites:
        assert calls(shared, site) == ["train 1", "train 2", "train 3"], federation.tails()
    assert [entry["epoch"] for entry in faulted["rounds"]] == [before["epoch"]] + 2 * [before["epoch"] + 1]
    assert faulted["rounds"][1]["members"] == ["site-1", "site-2"]
    _prove(federation, faulted, (before["epoch"], before["epoch"] + 1))
    _same_words_of_another_server(federation, unfaulted, tmp_path)

    federation.stop()
    for name in [*federation.overseers, *federation.servers, *federation.sites]:
        written = federation.log(name)
        assert written
        alarms = [line for line in written.splitlines() if " WARNING " in line or " ERROR " in line or line[:1] == " "]
        assert alarms == [], f"{name} alarms its operator, and all is well"


def test_planned_switchover_during_a_job_loses_nothing(federation, tmp_path):
    before = federation.primary()
    other = next(name for name in federation.servers if name != before["name"])

    def switch():
        answer = federation.console(f"promote_sp {other}", "--yes")
        assert answer.rc == 0, answer.out + answer.err + federation.tails()
        assert federation.primary()["name"] == other

    result, shared = _run_held_at_round_2(federation, tmp_path / "switch", switch)

    assert [entry["members"] for entry in result["rounds"]] == 3 * [["site-1", "site-2"]]
    for site in federation.sites:
        assert calls(shared, site) == ["train 1", "train 2", "train 3"], federation.tails()
    # Back again: the old primary came back as a standby of the new one.
    eventually_sync(lambda: _state(federation, before["name"]) == "STANDBY", 15, federation.tails())
    assert federation.console(f"promote_sp {before['name']}", "--yes").rc == 0


def _state(federation, name):
    return next(row["state"] for row in federation.console("list_sp").data if row["name"] == name)


def test_whole_server_lost_is_replaced_when_its_lease_runs_out(federation, tmp_path):
    before = federation.primary()

    def power_cut():
        federation.kill_all(before["name"])
        federation.leader(above=before["epoch"])
        eventually_sync(lambda: _state(federation, before["name"]) == "DOWN", 15)

    result, shared = _run_held_at_round_2(federation, tmp_path / "cut", power_cut)

    assert result["status"] == "FINISHED:COMPLETED"
    for site in federation.sites:
        assert calls(shared, site) == ["train 1", "train 2", "train 3"], federation.tails()


def test_everything_stopped_in_mid_round_goes_on_where_it_was(federation, tmp_path):
    def restart():
        federation.stop()
        federation.start()

    result, shared = _run_held_at_round_2(federation, tmp_path / "restart", restart)

    assert [entry["round"] for entry in result["rounds"]] == [1, 2, 3]
    assert calls(shared, "site-1") == ["train 1", "train 2", "train 3"], "its contribution to round 2 was in the log"
    assert calls(shared, "site-2") == ["train 1", "train 2", "train 2", "train 3"], "its task was cut off and repeated"


def test_overseer_away_neither_stops_a_job_nor_keeps_one_from_starting(federation, tmp_path):
    before = federation.primary()

    def kill():
        federation.kill("overseer", "overseer")

    result, _ = _run_held_at_round_2(federation, tmp_path / "first", kill)
    second, _ = _run_held_at_round_2(federation, tmp_path / "second", lambda: None)

    assert [entry["epoch"] for entry in result["rounds"] + second["rounds"]] == 6 * [before["epoch"]]
    answer = federation.console("get_active_sp")
    assert (answer.rc, answer.error["code"]) == (3, "UNREACHABLE")
    federation.start()
    eventually_sync(lambda: federation.console("get_active_sp").rc == 0, 15)
    assert federation.primary()["epoch"] == before["epoch"], "a new overseer adopts the primary that it finds"
