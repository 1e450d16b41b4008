"""Jobs that go wrong, wait, share the sites, and are many: each as its owner sees it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.support.jobs import calls, make_job
from tests.support.waiting import eventually_sync

pytestmark = [pytest.mark.processes, pytest.mark.xdist_group("jobs")]

RAISES = """
    import pathlib, select
    import numpy as np
    import fedhelm.script as fl

    def deep(number):
        return number / 0

    with fl.connect() as site:
        for task in site.tasks():
            if site.name == "site-2" and task.round == 2:
                deep(1)
            while site.name == "site-1" and task.round == 2 and not pathlib.Path(site.options["folder"], "go").exists():
                select.select([], [], [], 0.02)
            task.submit({"w": np.ones(1)})
"""


def _shown(federation, job, status):
    """The job once it has this status."""

    def look():
        shown = federation.show(job)
        return shown if shown["status"] == status else None

    return eventually_sync(look, 40, federation.tails())


def _sites(shown):
    return {site["name"]: site["status"] for site in shown["sites"]}


def _held(federation, folder, *, sites=("site-1", "site-2"), round_=1, **options):
    """Submit a job whose sites wait at their gates, and return once they do."""
    job_folder, shared = make_job(folder, **options)
    for site in sites:
        (shared / f"hold-{site}-{round_}").touch()
    job = federation.submit(job_folder)
    for site in sites:
        eventually_sync(lambda site=site: calls(shared, site)[round_ - 1 :], 40, federation.tails())
    return job, shared


def _open_gates(shared):
    for held in shared.glob("hold-*"):
        (shared / held.name.replace("hold", "gate")).touch()


def _no_process_of_a_job(federation):
    for site in federation.sites:
        eventually_sync(
            lambda site=site: not federation.pids(site, "job") + federation.pids(site, "nanny"),
            15,
            f"no process of a job is left at {site}: {federation.processes()}",
        )


# -- a job that fails -------------------------------------------------------------------------------------------------


def test_a_script_that_raises_fails_the_job_with_its_traceback(standing, tmp_path):
    folder, _ = make_job(tmp_path / "raises", RAISES)  # site-1 waits in round 2: the other's failure ends the job
    job = standing.submit(folder)
    answer = standing.console(f"wait {job}")
    assert (answer.rc, answer.data) == (1, {"job_id": job, "status": "FINISHED:FAILED"})
    shown = standing.show(job)
    assert "site-2" in shown["reason"]
    assert "ZeroDivisionError" in shown["reason"]
    assert _sites(shown)["site-2"] == "FAILED"
    assert "train.py" in shown["traceback"]
    assert "in deep" in shown["traceback"]
    assert "return number / 0" in shown["traceback"]
    for_people = standing.run("console", str(standing.admin_kit), "-c", f"show_job {job}").out
    assert "ZeroDivisionError: division by zero" in for_people
    summary = json.loads((standing.download(job) / "summary.json").read_text())
    assert summary["status"] == "FINISHED:FAILED"
    assert [one["round"] for one in summary["rounds"]] == [1], "what was done before stays"
    _no_process_of_a_job(standing)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("import sys; print('bye'); sys.exit(3)", "status 3"),
        ("this is no Python", "SyntaxError"),
        ("import no_such_module_here", "no_such_module_here"),
        ("print('no loop at all')", "returned before the job ended"),
    ],
)
def test_a_script_that_ends_in_another_way_says_so(standing, tmp_path, script, reason):
    folder, _ = make_job(tmp_path / "ends", script)
    job = standing.submit(folder)
    assert standing.wait(job) == "FINISHED:FAILED"
    assert reason in standing.show(job)["reason"]


def test_a_killed_job_process_is_named(standing, tmp_path):
    job, shared = _held(standing, tmp_path / "killed")
    standing.kill("site-2", "job")
    _open_gates(shared)
    assert standing.wait(job) == "FINISHED:FAILED"
    reason = standing.show(job)["reason"]
    assert "site-2" in reason
    assert "SIGKILL" in reason
    _no_process_of_a_job(standing)


def test_with_min_responses_a_job_outlives_a_site_that_fails(standing, tmp_path):
    folder, shared = make_job(tmp_path / "outlives", RAISES, rounds=3, min_responses=2)
    job = standing.submit(folder)
    assert standing.wait(job) == "FINISHED:FAILED", "two answers were wanted"
    folder, shared = make_job(tmp_path / "goes-on", RAISES, rounds=3, min_responses=1)
    job = standing.submit(folder)
    eventually_sync(
        lambda: _sites(standing.show(job)).get("site-2") == "FAILED" and standing.show(job)["round"] == 2,
        30,
        standing.tails(),
    )
    (shared / "go").touch()
    assert standing.wait(job) == "FINISHED:COMPLETED"
    assert _sites(standing.show(job))["site-2"] == "FAILED"
    rounds = json.loads((standing.download(job) / "summary.json").read_text())["rounds"]
    assert [one["members"] for one in rounds][1:] == [["site-1"], ["site-1"]]


def test_with_min_responses_a_round_does_not_wait_for_the_slow(standing, tmp_path):
    folder, shared = make_job(tmp_path / "slow", rounds=2, min_responses=1)
    (shared / "hold-site-2-1").touch()
    job = standing.submit(folder)
    assert standing.wait(job) == "FINISHED:COMPLETED"
    _open_gates(shared)  # its answer comes too late for anything
    rounds = json.loads((standing.download(job) / "summary.json").read_text())["rounds"]
    assert [one["members"] for one in rounds] == [["site-1"], ["site-1"]]
    _no_process_of_a_job(standing)


# -- a site that dies -------------------------------------------------------------------------------------------------


def test_a_dead_agents_job_waits_for_it_and_goes_on(standing, tmp_path):
    job, shared = _held(standing, tmp_path / "agent", sites=("site-2",), round_=2)
    of_the_dead = standing.pids("site-2", "job") + standing.pids("site-2", "nanny")
    assert len(of_the_dead) == 2
    standing.kill("site-2", "agent")
    eventually_sync(lambda: not any(Path(f"/proc/{pid}").exists() for pid in of_the_dead), 10, "they die with it")

    def waits():
        shown = standing.show(job)
        return shown if _sites(shown)["site-2"] == "DISCONNECTED" and shown["reason"] else None

    shown = eventually_sync(waits, 20, standing.tails())
    assert shown["status"] == "RUNNING"
    assert "site-2" in shown["reason"]
    (shared / "gate-site-2-2").touch()
    standing.start_one("site-2")
    assert standing.wait(job) == "FINISHED:COMPLETED", standing.tails()
    assert calls(shared, "site-1") == ["train 1", "train 2", "train 3"]
    assert calls(shared, "site-2") == ["train 1", "train 2", "train 2", "train 3"], "only its cut-off task is repeated"
    _no_process_of_a_job(standing)


def test_a_job_waits_until_its_site_connects(standing, tmp_path):
    standing.stop_one("site-2")
    try:
        eventually_sync(lambda: not standing.console("check_status client site-2").data[0]["connected"], 20)
        everywhere = standing.submit(make_job(tmp_path / "everywhere", rounds=1)[0])
        shown = eventually_sync(lambda: (one := standing.show(everywhere))["reason"] and one, 10)
        assert shown["status"] == "SUBMITTED"
        assert "site-2" in shown["reason"]
        # One that needs less overtakes it, with the sites that are there.
        yaml = """
            name: one-is-enough
            deploy: {app: ["@ALL"]}
            min_sites: 1
            options: {folder: "%s"}
            workflow: [{type: fedavg, rounds: 1}]
        """
        folder, shared = make_job(tmp_path / "enough", yaml=yaml % (tmp_path / "enough-files"))
        one = standing.submit(folder)
        assert standing.wait(one) == "FINISHED:COMPLETED"
        assert _sites(standing.show(one)) == {"site-1": "DONE"}
        assert calls(shared, "site-2") == []
        assert standing.show(everywhere)["status"] == "SUBMITTED"
    finally:
        standing.start_one("site-2")
    assert standing.wait(everywhere) == "FINISHED:COMPLETED"


# -- abort, and many at once ------------------------------------------------------------------------------------------


def test_an_aborted_job_leaves_no_process_and_others_go_on(standing, tmp_path):
    job, _ = _held(standing, tmp_path / "aborted")
    other, shared = _held(standing, tmp_path / "other")
    refused = standing.console(f"abort_job {job}")
    assert (refused.rc, refused.error["code"]) == (2, "REFUSED")
    assert standing.show(job)["status"] == "RUNNING"
    aborted = standing.console(f'abort_job {job} --reason "wrong data"', "--yes").data
    assert aborted == {"job_id": job, "status": "FINISHED:ABORTED"}
    answer = standing.console(f"wait {job}")
    assert (answer.rc, answer.data["status"]) == (1, "FINISHED:ABORTED")
    assert "wrong data" in standing.show(job)["reason"]
    for site in standing.sites:
        eventually_sync(lambda site=site: len(standing.pids(site, "job")) == 1, 15, "the other's alone is left")
    again = standing.console(f"abort_job {job}", "--yes")
    assert (again.rc, again.error["code"]) == (1, "CONFLICT")
    _open_gates(shared)
    assert standing.wait(other) == "FINISHED:COMPLETED"
    _no_process_of_a_job(standing)
    standing.download(job)


def test_an_aborted_job_that_waits_never_starts(standing, tmp_path):
    yaml = "name: nowhere\ndeploy: {app: [site-1, site-9]}\nworkflow: [{type: fedavg, rounds: 1}]\n"
    job = standing.submit(make_job(tmp_path / "nowhere", yaml=yaml)[0])
    assert "site-9" in eventually_sync(lambda: standing.show(job)["reason"], 10)
    standing.console(f"abort_job {job}", "--yes")
    assert standing.show(job)["status"] == "FINISHED:ABORTED"


def test_several_jobs_run_at_once(standing, tmp_path):
    jobs = [_held(standing, tmp_path / f"many-{number}", rounds=2) for number in range(3)]
    assert [standing.show(job)["status"] for job, _ in jobs] == 3 * ["RUNNING"]
    for job, shared in reversed(jobs):  # not in the order of submission
        _open_gates(shared)
        assert standing.wait(job) == "FINISHED:COMPLETED"
    results = [load_file(standing.download(job) / "models" / "final.safetensors")["w"] for job, _ in jobs]
    assert all(np.array_equal(results[0], one) for one in results)
    for _, shared in jobs:
        for site in standing.sites:
            assert calls(shared, site) == ["train 1", "train 2"]


# -- what is refused --------------------------------------------------------------------------------------------------

GOOD = """\
name: good
deploy: {app: ["@ALL"]}
workflow:
  - type: fedavg
    rounds: 1
"""


@pytest.mark.parametrize(
    ("text", "code", "place", "key"),
    [
        (GOOD + "colour: blue\n", "BAD_INPUT", "job.yaml:6:1", "colour"),
        (GOOD + "resources: {site-1: {gpu: 1}}\n", "NOT_SUPPORTED_YET", "job.yaml:6:", "resources"),
        (GOOD + "priority: 3\n", "NOT_SUPPORTED_YET", "job.yaml:6:", "priority"),
        (GOOD.replace("fedavg", "scaffold"), "NOT_SUPPORTED_YET", "job.yaml:4:", "scaffold"),
        (GOOD.replace("rounds: 1", "rounds: many"), "BAD_INPUT", "job.yaml:5:13", "rounds"),
        (GOOD.replace("rounds: 1", "rounds: 0"), "BAD_INPUT", "job.yaml:5:", "rounds"),
        (GOOD.replace("rounds: 1", "rounds: 1\n    rounds: 2"), "BAD_INPUT", "job.yaml:6:", "rounds"),
        (GOOD + "script: no.py\n", "BAD_INPUT", "job.yaml:6:", "script"),
        (GOOD + "initial_model: no.safetensors\n", "BAD_INPUT", "job.yaml:6:", "initial_model"),
        (GOOD + "  bad: [indent\n", "BAD_INPUT", "job.yaml:", ""),
        ("name: only\n", "BAD_INPUT", "job.yaml:", "deploy"),
        ("\n", "BAD_INPUT", "job.yaml:1:1", ""),
    ],
)
def test_a_wrong_job_yaml_is_named_by_line_and_key_and_nothing_is_sent(standing, tmp_path, text, code, place, key):
    folder, _ = make_job(tmp_path / "wrong", yaml=text)
    bundles = (standing.root / "store" / "blobs" / "jobs").glob
    before = {path.parent.name for path in bundles("*/bundle")}
    answer = standing.console(f"submit_job {folder}")
    assert (answer.rc, answer.error["code"]) == (2, code), answer.out
    assert place in answer.error["message"]
    assert key in answer.error["message"]
    assert {path.parent.name for path in bundles("*/bundle")} == before


def test_a_job_folder_that_leads_out_or_is_none(standing, tmp_path):
    folder, _ = make_job(tmp_path / "link")
    (folder / "app" / "passwd").symlink_to("/etc/passwd")
    answer = standing.console(f"submit_job {folder}")
    assert (answer.rc, answer.error["code"]) == (2, "BAD_INPUT")
    assert "app/passwd" in answer.error["message"]
    missing = standing.console(f"submit_job {tmp_path / 'missing'}")
    assert (missing.rc, missing.error["code"]) == (2, "BAD_INPUT")
    assert "missing" in missing.error["message"]
    (tmp_path / "empty").mkdir()
    empty = standing.console(f"submit_job {tmp_path / 'empty'}")
    assert (empty.rc, empty.error["code"]) == (2, "BAD_INPUT")
    assert "job.yaml" in empty.error["message"]


# -- submitted twice --------------------------------------------------------------------------------------------------


def test_the_same_submit_twice_is_one_job(standing, tmp_path):
    from fedhelm.admin import connect
    from fedhelm.errors import BadSignature, Conflict
    from fedhelm.ids import new_job_id, new_request_id
    from fedhelm.v1 import admin_pb2

    folder, shared = make_job(tmp_path / "twice", rounds=1)
    with connect(standing.admin_kit) as session:
        stub = session._follower.connect(_deadline()).stub
        packed = tmp_path / "packed"
        signed_as = session._network.pack(folder, packed)
        job, request_id = new_job_id(), new_request_id()
        ref = session._network.upload(stub, f"jobs/{job}/bundle", packed)
        signed = session._network.sign_job(job, *signed_as)
        request = admin_pb2.SubmitJobRequest(request_id=request_id, job=job, bundle=ref, submission=signed)
        first = stub.submit_job(request, timeout=20)
        assert session.wait(job, timeout=40).status == "FINISHED:COMPLETED"
        second = stub.submit_job(request, timeout=20)  # also when it has long ended
        assert (second.job, second.receipt.seq) == (first.job, first.receipt.seq)
        assert [one.job_id for one in session.jobs(prefix=job)] == [job]
        assert calls(shared, "site-1") == ["train 1"]
        other = new_job_id()
        ref = session._network.upload(stub, f"jobs/{other}/bundle", packed)
        request = admin_pb2.SubmitJobRequest(request_id=request_id, job=other, bundle=ref, submission=signed)
        with pytest.raises(BadSignature, match=f"job is '{job}' there"):
            stub.submit_job(request, timeout=20)
        request.submission = session._network.sign_job(other, *signed_as)
        with pytest.raises(Conflict):
            stub.submit_job(request, timeout=20)
        assert session.jobs(prefix=other) == []


def _deadline():
    from fedhelm.admin.deadline import Deadline
    from fedhelm.clock import SystemClock

    return Deadline(SystemClock(), 30)


# -- what goes in and what comes out ----------------------------------------------------------------------------------

ADDS_ONE = """
    import fedhelm.script as fl

    with fl.connect() as site:
        for task in site.tasks():
            model = task.model.numpy()
            task.submit({name: value + 1 for name, value in model.items()})
"""


def test_the_initial_model_is_what_the_first_round_gets_and_a_site_filters_its_own_share(standing, tmp_path):
    yaml = GOOD.replace("rounds: 1", "rounds: 2") + "initial_model: start/model.safetensors\n"
    folder, _ = make_job(tmp_path / "initial", ADDS_ONE, yaml=yaml)
    (folder / "start").mkdir()
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.full((3,), 10.0)}
    save_file(arrays, folder / "start" / "model.safetensors")
    decree = standing.kit("site-2") / "local" / "privacy.json"
    filters = [{"type": "exclude", "tensors": ["b"]}, {"type": "clip", "norm": 6**0.5 / 2}]  # of a: half its change
    decree.write_text(json.dumps({"format_version": "1.0", "filters": filters, "show_parameters": False}))
    try:
        job = standing.submit(folder)
        assert standing.wait(job) == "FINISHED:COMPLETED", standing.show(job)
    finally:
        decree.unlink()
    result = standing.download(job)
    final = load_file(result / "models" / "final.safetensors")
    assert final["a"].tolist() == (arrays["a"] + 1.5).tolist()
    assert final["b"].tolist() == (arrays["b"] + 1.0).tolist()
    given = [item for record in standing.records() if record.kind == "contribution" for item in record.body["items"]]
    told = [(item["site"], item.get("filters")) for item in given if item["job"] == job]
    assert sorted(told, key=str) == [("site-1", None)] * 2 + [("site-2", ["exclude", "clip"])] * 2
    assert "privacy filters of this site: exclude, clip" in (result / "logs" / "site-2.log").read_text()


TALKS = """
    import numpy as np
    import sys
    import fedhelm.script as fl

    with fl.connect() as site:
        for task in site.tasks():
            for number in range(10_000):
                print(f"line {number:05d}")
            sys.stdout.flush()
            site.log("loss", float("nan"), task.round)
            site.log("loss", float("inf"), task.round + 1)
            site.log("loss", 0.25, task.round + 2)
            task.submit({"w": np.ones(1)}, metrics={"good": 1.0})
"""


def test_no_line_is_lost_and_no_number_hurts(standing, tmp_path):
    folder, _ = make_job(tmp_path / "talks", TALKS, rounds=1)
    job = standing.submit(folder)
    assert standing.wait(job) == "FINISHED:COMPLETED"
    expected = [f"line {number:05d}" for number in range(10_000)]

    def lines(site):
        text = (standing.download(job) / "logs" / f"{site}.log").read_text()
        return [line.partition(" ")[2] for line in text.splitlines() if " line " in line]

    # What a script prints travels beside its results, so the last lines may come after the job's end.
    eventually_sync(lambda: all(len(lines(site)) >= 10_000 for site in standing.sites), 30, standing.tails())
    for site in standing.sites:
        assert lines(site) == expected
    from tests.scenarios.test_walkthrough import _scalars

    curve = _scalars(standing.admin_kit / "transfer" / job / "tensorboard" / "site-1", "loss")
    assert [step for step, _ in curve] == [1, 2, 3]
    assert curve[2] == [3, 0.25]


DAEMONISES = """
    import numpy as np
    import os, pathlib, time
    import fedhelm.script as fl

    with fl.connect() as site:
        for task in site.tasks():
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    pathlib.Path(site.options["folder"], f"daemon-{site.name}").write_text(str(os.getpid()))
                    time.sleep(1000)
                os._exit(0)
            os.wait()
            task.submit({"w": np.ones(1)})
"""


def test_a_daemon_of_a_script_does_not_outlive_the_job(standing, tmp_path):
    folder, shared = make_job(tmp_path / "daemon", DAEMONISES, rounds=1)
    job = standing.submit(folder)
    daemons = []
    try:
        for site in standing.sites:
            file = shared / f"daemon-{site}"
            daemons.append(
                int(eventually_sync(lambda file=file: file.exists() and file.read_text(), 30, standing.tails()))
            )
        assert standing.wait(job) == "FINISHED:COMPLETED"
        for pid in daemons:
            eventually_sync(lambda pid=pid: not Path(f"/proc/{pid}").exists(), 15, f"{pid} outlived its job")
    finally:
        for pid in daemons:
            if Path(f"/proc/{pid}").exists():
                os.kill(pid, signal.SIGKILL)
