"""WALKTHROUGH part B, as its operators type it: one project file, a zip for each, unpacked far apart, a primary killed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedhelm.process import marked_processes
from tests.support.federation import FEDHELM, free_base_port
from tests.support.jobs import calls, make_job
from tests.support.waiting import eventually_sync

pytestmark = [pytest.mark.processes, pytest.mark.xdist_group("provisioned"), pytest.mark.timeout(300)]

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
ADMIN, LEAD = "admin@nvidia.com", "lea@hospital-a.org"
RUNNING = ("overseer", "server1", "server2", "site-1", "site-2")
ALL = {"rootCA.pem", "signature.json", "readme.txt", "log.config"}
SCRIPTS = {"start.sh", "stop_fl.sh", "sub_start.sh"}
FILES = {
    "overseer": ALL
    | SCRIPTS
    | {"fed_overseer.json", "overseer.crt", "overseer.key", "overseer.pfx", "authorization.json"},
    "server1": ALL | SCRIPTS | {"authorization.json", "fed_server.json", "server.crt", "server.key", "server.pfx"},
    "site-1": ALL | SCRIPTS | {"authorization.json", "fed_client.json", "client.crt", "client.key", "client.pfx"},
    ADMIN: ALL | {"fed_admin.json", "fl_admin.sh", "client.crt", "client.key", "client.pfx"},
}
"""What is in `startup/`, as WALKTHROUGH B.3 names it for a server."""

PROJECT = """\
api_version: 3
name: hospitals
description: two hospitals train one model
snapshot_persistor: {store}
timing: fast
participants:
  - {{name: overseer, type: overseer, org: nvidia, protocol: https, api_root: /api/v1, host: 127.0.0.1, port: {port}}}
  - {{name: server1, type: server, org: nvidia, host: 127.0.0.1, fed_learn_port: {fed1}, admin_port: {adm1}}}
  - {{name: server2, type: server, org: nvidia, host: 127.0.0.1, fed_learn_port: {fed2}, admin_port: {adm2}}}
  - name: site-1
    type: client
    org: hospital-a
    enable_byoc: true
    components:
      resource_manager:
        path: list
        args: {{resources: {{gpu: [0, 1]}}}}
  - {{name: site-2, type: client, org: hospital-b, enable_byoc: true}}
  - {{name: admin@nvidia.com, type: admin, org: nvidia, role: project_admin}}
  - {{name: anna@hospital-a.org, type: admin, org: hospital-a, role: org_admin}}
  - {{name: mo@hospital-b.org, type: admin, org: hospital-b, role: member}}
"""
ONE_MORE = f"  - {{name: {LEAD}, type: admin, org: hospital-a, role: lead}}\n"

GRAPHICS = """\
#!/bin/sh
echo '0, NVIDIA H100, 81559 MiB'
echo '1, NVIDIA H100, 81559 MiB'
"""


class Operators:
    """Those who type: the project's administrator in ``office``, everybody else at ``machines/NAME``."""

    def __init__(self, folder):
        self.office, self.machines = folder / "office", folder / "machines"
        self.office.mkdir()
        self.store = folder / "shared" / "store"  # what every server mounts
        # The virtual environment is active, and each machine has two graphics cards, as the project file says of one.
        tools = folder / "tools"
        tools.mkdir()
        (tools / "nvidia-smi").write_text(GRAPHICS)
        (tools / "nvidia-smi").chmod(0o755)
        self.env = {key: value for key, value in os.environ.items() if key != "FEDHELM_PYTHON"}
        self.env["PATH"] = os.pathsep.join([str(tools), str(Path(sys.executable).parent), self.env["PATH"]])

    def begin(self, *words, cwd=None, stdin=None):
        words = [str(word) for word in words]
        return subprocess.Popen(
            [*FEDHELM, *words[1:]] if words[0] == "fedhelm" else words,
            cwd=cwd or self.office,
            env=self.env,
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self, process, stdin=None):
        with process:
            try:
                out, err = process.communicate(stdin, timeout=90)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def __call__(self, *words, stdin=None, cwd=None):
        return self.end(self.begin(*words, stdin=stdin, cwd=cwd), stdin)

    def ok(self, *words, **options):
        done = self(*words, **options)
        assert done.returncode == 0, (done.args, done.stdout, done.stderr, self.tails())
        return done.stdout

    def all_ok(self, commands):
        """Run these side by side, as people at different places do; their outputs."""
        begun = [self.begin(*words) for words in commands]
        ended = [self.end(process) for process in begun]
        for done in ended:
            assert done.returncode == 0, (done.args, done.stdout, done.stderr, self.tails())
        return [done.stdout for done in ended]

    def kit(self, name):
        return self.machines / name / name

    def script(self, name, which, *words):
        return ["bash", self.kit(name) / "startup" / which, *words]

    def console(self, command, *options, admin=ADMIN):
        return self(*self.script(admin, "fl_admin.sh", "-o", "json", *options, "-c", command))

    def asked(self, command, *options, admin=ADMIN):
        done = self.console(command, *options, admin=admin)
        assert done.returncode == 0, (command, done.stdout, done.stderr, self.tails())
        return json.loads(done.stdout)["data"]

    def tails(self):
        logs = [(name, self.kit(name) / "log.txt") for name in RUNNING]
        return "\n".join(f"--- {name}\n{path.read_text()[-1500:]}" for name, path in logs if path.exists())

    def processes(self):
        return {name: [one.pid for one in marked_processes(self.kit(name))] for name in RUNNING}

    def close(self):
        """Nothing runs on, however the test ended."""
        for pids in self.processes().values():
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
        eventually_sync(lambda: not any(self.processes().values()), 20, "all have ended")


@pytest.fixture
def operators(tmp_path):
    with closing(Operators(tmp_path)) as made:
        yield made


def test_part_b_as_typed(operators):
    _provisioned(operators)
    _handed_over(operators)
    _started(operators)
    _first_job(operators)
    _one_more_admin(operators)
    _primary_killed(operators)
    _one_admin_less(operators)
    _ended(operators)
    _nothing_is_open_to_others(operators)


def _provisioned(operators):
    port = free_base_port(5)
    ports = dict(zip(("port", "fed1", "adm1", "fed2", "adm2"), range(port, port + 5), strict=True))
    (operators.office / "project.yml").write_text(PROJECT.format(store=operators.store, **ports))
    said = operators.ok("fedhelm", "provision", "-p", "project.yml")
    assert "server1/startup/start.sh --found-store" in said, "what to do next"
    project = operators.office / "workspace" / "hospitals"
    assert {path.name for path in project.iterdir()} == {"prod_00", "resources", "state"}
    for name, files in FILES.items():
        assert {path.name for path in (project / "prod_00" / name / "startup").iterdir()} == files
    assert not list((project / "state").rglob("*client.key")), "no participant's key is kept"


def _handed_over(operators):
    """Each zip goes to its own machine, and is unpacked there with what everybody has."""
    prod = operators.office / "workspace" / "hospitals" / "prod_00"
    for name in (*RUNNING, ADMIN):
        machine = operators.machines / name
        machine.mkdir(parents=True)
        shutil.copy(prod / f"{name}.zip", machine)
    unpack = ["unzip", "-q"] if shutil.which("unzip") else ["fedhelm", "kit", "unpack"]
    for name in (*RUNNING, ADMIN):
        operators.ok(*unpack, f"{name}.zip", cwd=operators.machines / name)
        keys = [path for path in (operators.kit(name) / "startup").iterdir() if path.suffix in (".key", ".pfx")]
        assert [path.stat().st_mode & 0o777 for path in keys] == [0o600, 0o600]


def _started(operators):
    said = operators.ok(*operators.script("overseer", "start.sh"))
    assert re.fullmatch(r"overseer (ready|started), pid \d+, log .*/log.txt\n", said), said
    early = operators("fedhelm", "check", operators.kit("server1"))
    assert early.returncode == 1
    assert "startup/start.sh --found-store" in early.stdout
    operators.ok(*operators.script("server1", "start.sh", "--found-store"))
    operators.all_ok([operators.script(name, "start.sh") for name in ("server2", "site-1", "site-2")])
    reports = operators.all_ok([("fedhelm", "check", operators.kit(name)) for name in (*RUNNING, ADMIN)])
    for report in reports:
        assert not re.search(r"^(fail|warn)", report, re.MULTILINE), report
    assert "NVIDIA H100" in reports[RUNNING.index("site-1")]


def _first_job(operators):
    shutil.copytree(EXAMPLES / "hello-numpy", operators.kit(ADMIN) / "transfer" / "hello-numpy")
    said = operators.ok(*operators.script(ADMIN, "fl_admin.sh"), "-c", "submit_job hello-numpy")
    job = re.fullmatch(r"Submitted job: ([a-z2-7]{12})\n", said)[1]
    assert operators.asked(f"wait {job}", "--timeout", "60")["status"] == "FINISHED:COMPLETED"
    folder = Path(operators.asked(f"download_job {job}")["path"])
    assert folder == operators.kit(ADMIN) / "transfer" / job
    assert load_file(folder / "models" / "final.safetensors")["x"].tolist() == [8.75] * 4
    assert {path.name for path in (folder / "tensorboard").iterdir()} == {"site-1", "site-2"}


def _one_more_admin(operators):
    """A second run, with a password this time: root and certificates are used again, and nothing is stopped."""
    with (operators.office / "project.yml").open("a") as file:
        file.write(ONE_MORE)
    password = operators.office / "zip.pass"
    password.write_text("a word for Lea\n")
    password.chmod(0o600)
    said = operators.ok("fedhelm", "provision", "--zip-password-file", password)
    assert [line.split()[0] for line in said.splitlines() if re.search(r"\bnew\b", line)][:1] == [LEAD], said
    machine = operators.machines / LEAD
    machine.mkdir()
    shutil.copy(operators.office / "workspace" / "hospitals" / "prod_01" / f"{LEAD}.zip", machine)
    closed = operators("fedhelm", "kit", "unpack", f"{LEAD}.zip", cwd=machine)
    assert closed.returncode == 4
    assert "error[BAD_KIT]" in closed.stderr
    assert [path.name for path in machine.iterdir()] == [f"{LEAD}.zip"], "nothing half done"
    operators.ok("fedhelm", "kit", "unpack", f"{LEAD}.zip", "--password-file", password, cwd=machine)


def _primary_killed(operators):
    """In the middle of round 2: the standby is promoted, sites and console follow, the job goes on in that round."""
    before = operators.asked("get_active_sp")
    _, shared = make_job(operators.kit(LEAD) / "transfer" / "counting")
    (shared / "hold-site-2-2").touch()
    job = operators.asked("submit_job counting", admin=LEAD)["job_id"]
    eventually_sync(lambda: calls(shared, "site-2") == ["train 1", "train 2"], 40, operators.tails())
    for pid in operators.processes()[before["name"]]:
        os.kill(pid, signal.SIGKILL)
    eventually_sync(lambda: _epoch(operators) > before["epoch"], 40, operators.tails())
    (shared / "gate-site-2-2").touch()
    assert operators.asked(f"wait {job}", "--timeout", "60", admin=LEAD)["status"] == "FINISHED:COMPLETED"
    for site in ("site-1", "site-2"):
        assert calls(shared, site) == ["train 1", "train 2", "train 3"], operators.tails()
    result = Path(operators.asked(f"download_job {job}", admin=LEAD)["path"])
    summary = json.loads((result / "summary.json").read_text())
    assert [one["epoch"] for one in summary["rounds"]] == [before["epoch"]] + 2 * [before["epoch"] + 1]
    np.testing.assert_allclose(
        load_file(result / "models" / "final.safetensors")["w"], _undisturbed(3), rtol=1e-5, atol=1e-6
    )
    assert "lea@hospital-a.org" in operators.ok("fedhelm", "audit", "provenance", result, "--kit", operators.kit(LEAD))
    shown = operators.ok(*operators.script(ADMIN, "fl_admin.sh"), "-c", "list_sp", "-c", "history")
    assert before["name"] in shown


def _epoch(operators):
    done = operators.console("get_active_sp")
    return json.loads(done.stdout)["data"]["epoch"] if done.returncode == 0 else 0


def _undisturbed(rounds):
    """The model that the job computes when nothing happens."""
    model = np.zeros(1000, np.float32)
    for round_ in range(1, rounds + 1):
        sent = [model + np.random.default_rng([k, round_]).normal(size=1000).astype(np.float32) for k in (1, 2)]
        model = ((sent[0].astype(np.float64) + 2 * sent[1].astype(np.float64)) / 3).astype(np.float32)
    return model


def _one_admin_less(operators):
    """Her certificate is revoked: the list goes from the office to an admin, and from there to all."""
    office = operators.office / "workspace" / "hospitals"
    operators.ok("fedhelm", "pki", "revoke", LEAD, "--reason", "laptop stolen", "-w", office)
    operators.asked(f"revoke_certificates {office / 'state' / 'revoked.json'}", "--yes")
    refused = operators.console("list_jobs", admin=LEAD)
    assert refused.returncode == 4, refused.stdout
    error = json.loads(refused.stdout)["error"]
    assert error["code"] == "BAD_CERTIFICATE"
    assert f"{LEAD} was revoked" in error["message"]
    assert len(operators.asked("list_jobs")) == 2


def _ended(operators):
    operators.all_ok([operators.script(name, "stop_fl.sh") for name in RUNNING])
    assert not any(operators.processes().values())
    operators.all_ok(
        [("fedhelm", "audit", "verify", operators.kit(name)) for name in ("overseer", "server1", "site-1")]
    )


def _nothing_is_open_to_others(operators):
    """Whatever the umask: all that participants and consoles made is for their user alone."""
    transfer = operators.kit(ADMIN) / "transfer"
    made = [operators.store, *(path.parent for path in transfer.glob("*/summary.json"))]
    for name in RUNNING:
        made += [operators.kit(name) / part for part in ("run", "log.txt", "audit.jsonl")]
    assert len(made) > 1 + 3 * len(RUNNING), "a download too"
    paths = [path for one in made for path in (one, *one.rglob("*")) if not path.is_symlink()]
    assert [path for path in paths if path.stat().st_mode & 0o077] == []
