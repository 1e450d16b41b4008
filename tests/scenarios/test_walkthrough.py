"""WALKTHROUGH part A, typed as it stands there: a local federation, a first job, its result, the end."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedhelm.process import marked_processes
from tests.support.federation import FEDHELM, free_base_port
from tests.support.jobs import make_job
from tests.support.waiting import eventually_sync

pytestmark = [pytest.mark.processes, pytest.mark.xdist_group("walkthrough")]

JOB_ID = re.compile(r"[a-z2-7]{12}")
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
PARTICIPANTS = ["overseer", "server1", "server2", "site-1", "site-2"]
ADMIN = "admin@nvidia.com"

# What a downloaded hello-numpy is, file by file; the sites' event files by a pattern.
TREE = {
    "summary.json",
    "job/README.md",
    "job/app/train.py",
    "job/job.yaml",
    "logs/server1.log",
    "logs/site-1.log",
    "logs/site-2.log",
    "models/best.safetensors",
    "models/final.safetensors",
    "provenance.json",
    "tensorboard/site-1/EVENTS",
    "tensorboard/site-2/EVENTS",
}


class Shell:
    """A terminal in one folder."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, *words, stdin=None, timeout=90):
        words = [str(word) for word in words]
        command = [*FEDHELM, *words[1:]] if words[0] == "fedhelm" else words
        return subprocess.run(
            command, check=False, cwd=self.folder, capture_output=True, text=True, timeout=timeout, input=stdin
        )

    def ok(self, *words, **options):
        done = self(*words, **options)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout


def _files(folder):
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {re.sub(r"events\.out\.tfevents\.\d+\.site-\d", "EVENTS", name) for name in names}


def _processes(root):
    return [one for name in PARTICIPANTS for one in marked_processes(root / name)]


def _scalars(folder, tag):
    # In a process of its own: TensorBoard may load TensorFlow, and warns about other people's code.
    script = (
        "import json, sys\n"
        "from tensorboard.backend.event_processing.event_accumulator import EventAccumulator\n"
        "a = EventAccumulator(sys.argv[1]); a.Reload()\n"
        "print(json.dumps([[e.step, e.value] for e in a.Scalars(sys.argv[2])]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder), tag], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_part_a_as_typed(tmp_path):
    shell = Shell(tmp_path)
    assert "prepare" in shell.ok("fedhelm", "poc", "-h")
    port = free_base_port(5)
    said = shell.ok("fedhelm", "poc", "-n", "2", "--base-port", port)
    assert "server2" in said
    poc = tmp_path / "poc"
    try:
        _prepared(shell, poc)
        _started(shell, poc)
        job = _first_job(shell, poc, port)
        _result(poc / ADMIN / "transfer" / job, job)
        _logs(poc, job)
        _ended(shell, poc)
    finally:
        shell("fedhelm", "poc", "stop")


def _prepared(shell, poc):
    for name in PARTICIPANTS:
        assert {"startup", "local"} <= {one.name for one in (poc / name).iterdir()}
        assert {"start.sh", "stop_fl.sh", "signature.json", "rootCA.pem"} <= {
            one.name for one in (poc / name / "startup").iterdir()
        }
    assert {one.name for one in (poc / ADMIN).iterdir()} == {"startup", "local", "transfer"}
    assert os.access(poc / ADMIN / "startup" / "fl_admin.sh", os.X_OK)
    assert {one.name for one in (poc / ADMIN / "transfer").iterdir()} == {"hello-numpy", "hello-pt-tb"}
    assert (poc / "store" / "log" / f"{0:016d}").is_file()
    again = shell("fedhelm", "poc", "prepare", "-n", "2")
    assert again.returncode == 1
    assert "error[WORKSPACE_EXISTS]" in again.stderr
    assert _processes(poc) == []


def _started(shell, poc):
    for name in PARTICIPANTS:
        said = shell.ok(f"./poc/{name}/startup/start.sh")
        assert re.match(rf"{name} (ready|started), pid \d+, log .*{name}/log.txt\n", said), said
    for name in PARTICIPANTS:
        pid = (poc / name / "run" / "pid").read_text().strip()
        second = shell(f"./poc/{name}/startup/start.sh")
        assert second.returncode == 1
        assert "error[ALREADY_RUNNING]" in second.stderr
        assert pid in second.stderr
    pids = {one.pid for one in _processes(poc)}
    shell.ok("fedhelm", "poc", "start")
    assert "all were running" in shell.ok("fedhelm", "poc", "start")
    assert {one.pid for one in _processes(poc)} == pids, "poc start leaves alone what runs"
    shown = shell.ok("fedhelm", "poc", "status")
    assert [line.split()[0] for line in shown.splitlines()[1:]] == PARTICIPANTS
    assert shown.count("ready") == 5


def _first_job(shell, poc, port):
    console = f"./poc/{ADMIN}/startup/fl_admin.sh"
    said = shell.ok(console, "-c", "submit_job hello-numpy")
    job = re.fullmatch(r"Submitted job: ([a-z2-7]{12})\n", said)[1]
    assert "FINISHED:COMPLETED" in shell.ok(console, "-c", f"wait {job}", "--timeout", "60")
    listed = shell.ok(console, stdin="list_jobs\n")  # typed into a pipe instead of a terminal
    assert job in listed
    assert "hello-numpy" in listed
    said = shell.ok(console, "-c", f"download_job {job}")
    assert said == f"Download to dir {poc / ADMIN / 'transfer' / job}\n"
    leader = shell.ok(console, "-c", "get_active_sp")
    assert leader == f"server1:{port + 1}:{port + 2} epoch 1\n"
    return job


def _result(folder, job):
    assert _files(folder) == TREE
    x = load_file(folder / "models" / "final.safetensors")["x"]
    assert x.tolist() == [8.75] * 4, "as the example's README computes by hand"
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["job_id"], summary["status"], summary["reason"]) == (job, "FINISHED:COMPLETED", None)
    assert [one["metrics"]["x"] for one in summary["rounds"]] == [1.75, 3.5, 5.25, 7.0, 8.75]
    assert [one["weights"] for one in summary["rounds"]] == 5 * [{"site-1": 1.0, "site-2": 3.0}]
    assert [one["members"] for one in summary["rounds"]] == 5 * [["site-1", "site-2"]]
    assert [one["epoch"] for one in summary["rounds"]] == 5 * [1]
    assert len({one["model_sha256"] for one in summary["rounds"]}) == 5
    assert _scalars(folder / "tensorboard" / "site-1", "x") == [[k, 1.75 * (k - 1) + 1] for k in range(1, 6)]
    assert _scalars(folder / "tensorboard" / "site-2", "x") == [[k, 1.75 * (k - 1) + 2] for k in range(1, 6)]
    assert "round 5 of 5" in (folder / "logs" / "server1.log").read_text()
    proof = Shell(folder).ok("fedhelm", "audit", "provenance", ".")
    assert f"job {job} (hello-numpy) of project poc, submitted by {ADMIN} (nvidia)" in proof
    assert re.findall(r"^(\w+) +(models/final\.safetensors|job|submission):", proof, re.MULTILINE) == [
        ("ok", "models/final.safetensors"),
        ("ok", "job"),
        ("ok", "submission"),
    ]


def _logs(poc, job):
    controller = (poc / "server1" / "log.txt").read_text()
    for said in (f"job {job} is dispatched to site-1, site-2", "round 1 of 5", "round 5 of 5", "is complete"):
        assert said in controller, "the controller's status"
    for site in ("site-1", "site-2"):
        executor = (poc / site / "log.txt").read_text()
        for said in (f"job {job} (hello-numpy): assigned", "round 1", "round 5", "job process ended (status 0"):
            assert said in executor, "the executor's status"
    assert "leads, epoch 1" in (poc / "overseer" / "log.txt").read_text()


def _ended(shell, poc):
    shell.ok("fedhelm", "poc", "stop")
    assert _processes(poc) == []
    rows = json.loads(shell.ok("fedhelm", "poc", "status", "-o", "json"))["data"]
    assert [(row["alive"], row["pid"]) for row in rows] == 5 * [(False, None)]
    shell.ok("fedhelm", "poc", "clean")
    assert not poc.exists()
    shell.ok("fedhelm", "poc", "clean")


# -- the contract for machines ----------------------------------------------------------------------------------------


def _is_moment(text):
    assert MOMENT.fullmatch(text), text
    return datetime.fromisoformat(text)


def _one_object(answer):
    """Standard output is one JSON object on one line, in the envelope, and nothing else."""
    body = json.loads(answer.out)
    assert set(body) == {"schema_version", "status", "data", "error"}
    assert body["schema_version"] == 1
    if body["status"] == "ok":
        assert body["error"] is None
    else:
        assert body["status"] == "error"
        assert body["data"] is None
        assert set(body["error"]) == {"code", "message", "hint"}
    return body


def test_every_command_answers_in_the_contracts_shape(standing, tmp_path):
    def ask(command, *options):
        answer = standing.console(command, *options)
        body = _one_object(answer)
        assert body["status"] == "ok", (command, answer.out)
        return body["data"]

    submitted = ask("submit_job hello-numpy")
    assert set(submitted) == {"job_id"}
    job = submitted["job_id"]
    assert JOB_ID.fullmatch(job)
    assert ask(f"wait {job}") == {"job_id": job, "status": "FINISHED:COMPLETED"}

    row = next(one for one in ask("list_jobs") if one["job_id"] == job)
    assert set(row) == {"job_id", "name", "status", "submit_time", "duration_s"}
    assert (row["name"], row["status"]) == ("hello-numpy", "FINISHED:COMPLETED")
    _is_moment(row["submit_time"])
    assert 0 < row["duration_s"] < 60

    shown = ask(f"show_job {job}")
    assert {"round", "rounds", "sites", "reason"} | set(row) <= set(shown)
    assert (shown["round"], shown["rounds"], shown["reason"]) == (5, 5, None)
    assert shown["sites"] == [{"name": "site-1", "status": "DONE"}, {"name": "site-2", "status": "DONE"}]
    assert ask(f"show_job {job[:6]}")["job_id"] == job

    leader = ask("get_active_sp")
    ports = [standing.base_port + 1, standing.base_port + 2]
    if leader["name"] == "server2":
        ports = [port + 2 for port in ports]
    assert leader == {
        "name": leader["name"],
        "epoch": leader["epoch"],
        "fed_learn_port": ports[0],
        "admin_port": ports[1],
    }
    assert type(leader["epoch"]) is int
    servers = ask("list_sp")
    assert all(set(one) >= {"name", "state", "epoch"} for one in servers)
    assert sorted(one["state"] for one in servers) == ["ACTIVE", "STANDBY"]
    epochs = ask("history")
    assert epochs[0]["epoch"] == 1
    _is_moment(epochs[0]["time"])
    status = ask("check_status")
    assert {site["name"]: site["connected"] for site in status["sites"]} == {"site-1": True, "site-2": True}

    there = ask(f"download_job {job} {tmp_path / 'results'}")
    assert there == {"path": str(tmp_path / "results" / job)}
    assert (tmp_path / "results" / job / "summary.json").is_file()
    assert isinstance(ask("help"), list | dict | str)

    for row in standing.status():
        assert set(row) == {"name", "role", "pid", "alive", "ready", "children", "reason"}
        assert row["alive"] is row["ready"] is True
        assert isinstance(row["pid"], int)
        assert set(row["children"]) == {"child", "runner", "nanny", "job"}
        assert len(row["children"]["child"]) == (1 if row["role"] == "server" else 0)


def test_a_job_that_runs_is_shown_while_it_runs(standing, tmp_path):
    folder, shared = make_job(tmp_path / "held")
    (shared / "hold-site-2-1").touch()
    job = standing.submit(folder)

    def training():
        shown = standing.show(job)
        return shown if [site["status"] for site in shown["sites"]] == ["DONE", "TRAINING"] else None

    shown = eventually_sync(training, 30, standing.tails())
    assert (shown["status"], shown["round"], shown["rounds"]) == ("RUNNING", 1, 3)
    # The event files grow while the job runs, in the folder of the server that leads.
    leader = standing.primary()["name"]
    events = standing.kit(leader) / "run" / "jobs" / job / "tensorboard" / "site-1"
    eventually_sync(lambda: _scalars(events, "loss") == [[1, 2.0]] if events.is_dir() else False, 20)
    rows = {row["name"]: row["children"] for row in standing.status()}
    assert [len(rows[leader][kind]) for kind in ("child", "runner")] == [1, 1]
    assert [len(rows["site-2"][kind]) for kind in ("nanny", "job")] == [1, 1]
    (shared / "gate-site-2-1").touch()
    assert standing.wait(job) == "FINISHED:COMPLETED"
    eventually_sync(
        lambda: not any(standing.status("site-2")["children"].values()), 15, "no process of the job is left"
    )


def test_the_last_model_is_the_weighted_mean_of_what_the_sites_sent(standing, tmp_path):
    folder, _ = make_job(tmp_path / "random")
    job = standing.submit(folder)
    assert standing.wait(job) == "FINISHED:COMPLETED"
    model = np.zeros(1000, np.float32)
    for round_ in (1, 2, 3):
        sent = [model + np.random.default_rng([k, round_]).normal(size=1000).astype(np.float32) for k in (1, 2)]
        model = ((sent[0].astype(np.float64) + 2 * sent[1].astype(np.float64)) / 3).astype(np.float32)
    got = load_file(standing.download(job) / "models" / "final.safetensors")["w"]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, model, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("command", "status", "code"),
    [
        ("submit_jbo hello-numpy", 2, "UNKNOWN_COMMAND"),
        ("submit_job", 2, "USAGE"),
        ("submit_job no-such-folder", 2, "BAD_INPUT"),
        ("show_job zzzzzzzzzzzz", 1, "JOB_NOT_FOUND"),
        ("promote_sp server2", 2, "REFUSED"),
        ("promote_sp server9 --yes", 1, "NOT_FOUND"),
        ("list_jobs --nonsense", 2, "USAGE"),
    ],
)
def test_an_error_is_one_object_too(standing, command, status, code):
    answer = standing.console(command)
    assert answer.rc == status
    assert _one_object(answer)["error"]["code"] == code


@pytest.mark.parametrize(
    "words",
    [
        ["console", "KIT", "-o", "json", "--nonsense", "-c", "list_jobs"],
        ["console", "KIT", "-c", "list_jobs", "--timeout", "soon", "-o", "json"],
        ["console", "/nowhere", "-c", "list_jobs", "-o", "json"],
        ["poc", "start", "-w", "/nowhere", "-o", "json"],
        ["poc", "strat", "-o", "json"],
        ["poc", "-o", "json", "prepare", "-n", "0"],
    ],
)
def test_usage_errors_are_one_object_too(standing, words):
    answer = standing.run(*[str(standing.admin_kit) if word == "KIT" else word for word in words])
    assert answer.rc != 0
    assert _one_object(answer)["status"] == "error"


def test_a_relative_folder_is_looked_up_here_and_then_in_transfer(standing, tmp_path):
    make_job(tmp_path / "hello-numpy", rounds=1, name="mine")
    kit = str(standing.admin_kit)
    here = standing.run("console", kit, "-o", "json", "-c", "submit_job hello-numpy", cwd=tmp_path).data["job_id"]
    there = standing.run("console", kit, "-o", "json", "-c", "submit_job hello-numpy", cwd=Path("/")).data["job_id"]
    assert standing.show(here)["name"] == "mine"
    assert standing.show(there)["name"] == "hello-numpy"
    assert {standing.wait(here), standing.wait(there)} == {"FINISHED:COMPLETED"}
