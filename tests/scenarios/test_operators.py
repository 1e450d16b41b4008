"""What operators do to a federation that works: pause, switch over, restart, delete, shut down. Nothing is lost."""

from __future__ import annotations

import json
import time

from tests.support.jobs import calls, make_job
from tests.support.waiting import eventually_sync


def _states(standing):
    return {row["name"]: row["state"] for row in standing.console("list_sp").data}


def _all_up(standing):
    return sorted(_states(standing).values()) == ["ACTIVE", "STANDBY"]


def _started(standing, folder):
    """A job that site-2 holds in round 2; site-1 has contributed."""
    eventually_sync(lambda: _all_up(standing), 20, standing.tails())
    job_folder, shared = make_job(folder)
    (shared / "hold-site-2-2").touch()
    job = standing.submit(job_folder)
    eventually_sync(lambda: calls(shared, "site-2") == ["train 1", "train 2"], 30, "site-2 trains in round 2")
    eventually_sync(lambda: _at_site(standing, job, "site-1") == "DONE", 30, "site-1 has its receipt")
    return job, shared


def _at_site(standing, job, site):
    return next((row["status"] for row in standing.show(job)["sites"] if row["name"] == site), None)


def _ended(standing, job, shared):
    """The models of a job that is let go on."""
    (shared / "gate-site-2-2").touch()
    assert standing.wait(job) == "FINISHED:COMPLETED", standing.tails()
    summary = json.loads((standing.download(job) / "summary.json").read_text())
    return [(entry["round"], entry["model_sha256"]) for entry in summary["rounds"]]


def _say(standing, line, *options):
    answer = standing.console(line, *options)
    assert answer.rc == 0, answer.out + answer.err + standing.tails()
    return answer.data


def test_nobody_takes_over_while_failover_is_paused(standing, tmp_path):
    job, shared = _started(standing, tmp_path / "paused")
    before = standing.primary()
    _say(standing, 'pause_failover --reason "new switch"', "--yes")
    standing.kill(before["name"])

    def alarmed():
        last = _say(standing, "events 5")
        return [one for one in last if one["kind"] == "alarm" and "paused" in one["text"]]

    eventually_sync(alarmed, 15, "the overseer says that it grants nothing")
    # The killed child is back: who could be granted the lease is there, and nobody is.
    eventually_sync(lambda: set(_states(standing).values()) == {"STANDBY"}, 20, standing.tails())
    for name in standing.servers:
        found = _say(standing, f"explain {name}")
        assert "paused" in found["verdict"]
        assert found["next"] is None
        assert [check["name"] for check in found["checks"] if not check["ok"]] == ["paused", "holder"]
    answer = standing.console("get_active_sp")
    assert (answer.rc, answer.error["code"]) == (3, "NO_PRIMARY")
    assert _say(standing, "history")[-1]["epoch"] == before["epoch"]
    again = standing.console("pause_failover", "--yes")
    assert (again.rc, again.error["code"]) == (2, "REFUSED")

    _say(standing, "resume_failover", "--yes")
    standing.leader(above=before["epoch"])
    _ended(standing, job, shared)
    assert calls(shared, "site-2") == ["train 1", "train 2", "train 3"], "it trained on through all of it"
    last = _say(standing, "history")[-1]
    assert (last["epoch"], last["jobs"]) == (before["epoch"] + 1, 1)
    assert "signal 9" in last["cause"]


def test_a_switchover_shows_both_servers_before_and_after(standing, tmp_path):
    job, shared = _started(standing, tmp_path / "switch")
    before = standing.primary()
    other = next(name for name in standing.servers if name != before["name"])
    said = _say(standing, f"promote_sp {other}", "--yes")
    assert said["before"]["primary"] == before["name"]
    assert (said["before"]["epoch"], said["after"]["epoch"]) == (before["epoch"], before["epoch"] + 1)
    assert said["after"]["primary"] == other
    assert [one["name"] for one in said["after"]["servers"]] == standing.servers
    assert (said["before"]["jobs"], said["after"]["jobs"]) == (1, 1)
    last = _say(standing, "history")[-1]
    assert (last["name"], last["by"], last["jobs"]) == (other, "admin@nvidia.com", 1)
    for line in (f"promote_sp {other}", "promote_sp server9", f"remove_sp {other}"):
        answer = standing.console(line, "--yes")
        assert answer.rc in (1, 2), line
        assert answer.error["code"] in ("REFUSED", "NOT_FOUND")
    _ended(standing, job, shared)
    assert calls(shared, "site-2") == ["train 1", "train 2", "train 3"]


def test_a_site_restarted_in_mid_round_gives_the_same_bits_and_deleted_jobs_are_gone(standing, tmp_path):
    quiet, shared = _started(standing, tmp_path / "quiet")
    unfaulted = _ended(standing, quiet, shared)
    job, shared = _started(standing, tmp_path / "restart")
    (agent,) = standing.pids("site-2", "agent")
    refused = standing.console(f"delete_job {job}", "--yes")
    assert (refused.rc, refused.error["code"]) == (2, "REFUSED")

    assert _say(standing, "restart client site-2", "--yes") == {"told": ["site-2"], "missed": [], "refused": {}}
    eventually_sync(lambda: calls(shared, "site-2") == ["train 1", "train 2", "train 2"], 30, standing.tails())
    assert standing.pids("site-2", "agent") == [agent], "a new agent in the same process"
    assert _ended(standing, job, shared) == unfaulted
    assert calls(shared, "site-1") == ["train 1", "train 2", "train 3"]
    assert calls(shared, "site-2") == ["train 1", "train 2", "train 2", "train 3"], "the order was obeyed once"

    assert _say(standing, f"delete_job {quiet} {job}", "--yes") == [{"job_id": quiet}, {"job_id": job}]
    assert {quiet, job} & {one["job_id"] for one in _say(standing, "list_jobs --all")} == set()
    gone = standing.console(f"show_job {job}")
    assert (gone.rc, gone.error["code"]) == (1, "JOB_NOT_FOUND")


def test_the_primary_restarted_by_an_admin_comes_back_as_a_standby(standing, tmp_path):
    job, shared = _started(standing, tmp_path / "primary")
    before = standing.primary()
    leads = _say(standing, f"restart server {before['name']}", "--yes")
    assert leads["epoch"] == before["epoch"] + 1
    eventually_sync(lambda: _all_up(standing), 20, standing.tails())
    _ended(standing, job, shared)
    assert calls(shared, "site-2") == ["train 1", "train 2", "train 3"]


def test_a_shut_down_system_leaves_the_overseer_and_goes_on_after_the_next_start(standing, tmp_path):
    job, shared = _started(standing, tmp_path / "night")
    refused = standing.console("shutdown_system", "--yes")
    assert (refused.rc, refused.error["code"], refused.error["hint"]) == (2, "REFUSED", "--confirm poc")
    ended = _say(standing, "shutdown_system --confirm poc")
    assert ended == {
        "sites": standing.sites,
        "sites_left": [],
        "servers": standing.servers,
        "servers_left": [],
        "sites_refused": {},
        "complete": True,
    }
    eventually_sync(lambda: {name for name, _, _ in standing.processes()} == {"overseer"}, 15, "the supervisors end")
    began = time.monotonic()
    answer = standing.console("list_jobs")
    assert (answer.rc, answer.error["code"]) == (3, "NO_PRIMARY")
    assert "the system is down" in answer.error["message"]
    assert time.monotonic() - began < 30, "it does not elect for ever"
    standing.start()
    _ended(standing, job, shared)
    assert calls(shared, "site-1") == ["train 1", "train 2", "train 3"], "its contribution was in the log"
